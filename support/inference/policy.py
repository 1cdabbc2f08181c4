"""From a checkpoint to actions: what a robot, a simulator or infer.py calls.

Two ways in. `Policy.plan` takes raw pictures and states of any number of scenes and returns whole chunks. `reset` and
`step` drive one robot, frame by frame: they keep the last m + 1 frames and the latents of those that a coming plan will
look back at, hand out the planned actions one by one and plan anew when `execute_steps` of them are used, at once or in
the background; the first step of an episode waits for its plan. Everything a policy needs to know (statistics, action
mode, camera slots, m, k, the rate) comes from the checkpoint.
"""

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import numpy as np
import torch

import config as configs
from data import VIEWS, Batch, collate, observation
from support import checkpoint
from support.data.letterbox import letterbox
from support.data.statistics import of_checkpoint
from support.weights.loading import empty_model, load_state


def known(cameras, caller):
    """Places among the model's views of some cameras' names. ValueError: one line."""
    unknown = set(cameras) - set(VIEWS)
    if unknown or not cameras:
        raise ValueError(f"{caller}: cameras {sorted(unknown) or 'none'} given; the model knows {', '.join(VIEWS)}")
    return tuple(v for v, view in enumerate(VIEWS) if view in cameras)


class Policy:
    """A model with the statistics it was trained with. model: InternVLA_A1; config: Config.

    engine: "plain" (the model as it is written), a mode of support/inference/engine.py, or None: the one for this device. An engine
    takes the model's weights over; a plain policy keeps no latents. cameras: those that `step` will be given; an engine
    compiles and records for them here, for others in the control loop.
    """

    def __init__(self, model, config, stats, seed=0, engine="plain", euler_steps=None, cameras=VIEWS):
        self.model, self.config, self.stats, self.seed, self.calls = model.eval(), config, stats, seed, 0
        self.device, self.euler_steps, self.engine = model.act.state_proj.weight.device, euler_steps, None
        self.run, self.pool, views = None, None, known(cameras, "Policy")
        if engine != "plain":
            from support.inference.engine import Engine, default_mode   # only here: everything else works without that file
            self.engine = Engine(model, engine or default_mode(self.device), euler_steps, views=views)

    @classmethod
    def load(cls, path, seed=0, tokenizer=None, robot=None, device="cpu", engine=None, **options):
        """path: a run or one checkpoint of it; it computes in bfloat16 if its weights are stored so. tokenizer: where
        that lies now, if not where the checkpoint says. robot: which, if it was trained on several. engine: the one for
        this device, unless another is given. options: euler_steps; cameras, those that it was trained with.

        CheckpointError or ValueError: one line.
        """
        tensors, state = checkpoint.load(checkpoint.resolve(path))
        config = configs.from_dict(state["config"])
        if tokenizer:
            config = replace(config, model=replace(config.model, tokenizer=tokenizer))
        half = any(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
        model = empty_model(config.model, device, torch.bfloat16 if half else torch.float32)
        load_state(model, tensors, f"checkpoint {path}")
        by_robot = of_checkpoint(state)
        robot = robot or next(iter(by_robot))
        if robot not in by_robot:
            raise ValueError(f"--robot {robot}: {path} was trained on {', '.join(by_robot)}")
        stats = by_robot[robot].check(config.data.action_mode)
        options.setdefault("cameras", stats.cameras() or VIEWS)
        return cls(model, config, stats, seed, engine, **options)

    # ---- whole chunks -------------------------------------------------------------------------------------------

    def batch(self, pictures, states, tasks):
        """pictures: per sample a dict view -> [o_{t-m}, o_t] uint8 (H, W, 3); states (N, d_q) -> Batch, on the
        CPU, where the engine reads its masks."""
        return collate([observation(self.config.model, self.stats, p, q, task)
                        for p, q, task in zip(pictures, states, tasks)])

    def noise(self, n):
        """eps (n, k, d_a) on the CPU: a pure function of the seed and the number of calls so far."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.calls)
        self.calls += 1
        shape = n, self.config.model.chunk, self.config.model.action_dim
        return torch.randn(shape, generator=generator)

    def plan(self, pictures, states, tasks, imagine=True):
        """Observations as in `batch` -> (actions (N, k, d_a) in raw units, z_hat (N, V, 16, g, g) or None).

        Also while a plan is under way in the background, for which an engine waits.
        """
        imagine = imagine and self.config.model.gen_expert
        batch, eps = self.batch(pictures, states, tasks), self.noise(len(tasks))
        if self.engine is None:
            batch, eps = batch.to(self.device), eps.to(self.device)
            with torch.inference_mode():
                prefix = self.model.prefill(batch)
                a = self.model.sample_actions(batch, eps, self.euler_steps, prefix)
                z_hat = self.model.imagine(batch, prefix) if imagine else None
        else:
            a, z_hat = self._by_cameras(batch, eps, imagine)
        return self.stats.actions(a.cpu().numpy(), np.asarray(states, np.float32)), None if z_hat is None else z_hat.cpu()

    def _by_cameras(self, batch, eps, imagine):
        """The engine once per set of cameras -> (a, z_hat or None) of all samples, in their order, on the CPU."""
        a, z_hat, g = torch.empty_like(eps), None, self.config.model.latent_grid
        if imagine:
            z_hat = eps.new_empty(len(eps), len(VIEWS), 16, g, g)
        for cameras in batch.view_mask.unique(dim=0):
            rows = (batch.view_mask == cameras).all(1)
            some = Batch(**{name: x if x is None else x[rows] for name, x in vars(batch).items()})
            chunk = self.engine(some, eps[rows], imagine=imagine)
            a[rows] = chunk.actions.cpu()
            if imagine:
                z_hat[rows] = chunk.z_hat.cpu()
        return a, z_hat

    def euler_error(self, pictures, states, tasks):
        """What fewer Euler steps change: rms difference from the config's number, same noise, standardised actions."""
        batch, model = self.batch(pictures, states, tasks).to(self.device), self.model
        eps = self.noise(len(tasks)).to(self.device)
        with torch.inference_mode():
            prefix = model.prefill(batch)
            few, all_of_them = (model.sample_actions(batch, eps, steps, prefix) for steps in (self.euler_steps, None))
        real = batch.dim_mask[:, None].expand_as(few)
        return (few - all_of_them)[real].square().mean().sqrt().item()

    def to_pictures(self, z):
        """Latents (..., 16, g, g) -> pictures (..., 3, H, W) uint8 on the CPU."""
        return (self.engine or self.model).to_pictures(z.to(self.device)).cpu()

    def __call__(self, past, now, states, tasks):
        """conveyor's interface: past, now (N, 3, H, W, 3) uint8 -> actions (N, k, d_a)."""
        out = []
        for part in np.array_split(np.arange(len(tasks)), max(1, len(tasks) // 50)):
            pictures = [{view: [past[i, v], now[i, v]] for v, view in enumerate(VIEWS)} for i in part]
            out.append(self.plan(pictures, states[part], [tasks[i] for i in part], imagine=False)[0])
        return np.concatenate(out)

    # ---- one robot, frame by frame ------------------------------------------------------------------------------

    def reset(self, task, fps=None, execute_steps=None, background=False):
        """Begin an episode. fps: the rate at which `step` will be called; another than the checkpoint's is refused,
        because m and the chunk count its frames. execute_steps: actions of a chunk before the next is planned (default:
        all; in the background half). background: plan beside the control loop, except the first chunk, which the first
        step waits for; call `close` at the end. The episode before is ended; what failed there is raised as by `close`,
        and then no new one has begun.
        """
        k = self.config.model.chunk
        if fps is not None and fps != self.stats.fps:
            raise ValueError(f"control at {fps:g} Hz: the checkpoint was trained on {self.stats.fps:g} frames/s; call "
                             f"step at that rate, or resample the data and train again")
        steps = execute_steps if execute_steps is not None else max(1, k // 2) if background else k
        if not 1 <= steps <= k:
            raise ValueError(f"execute_steps {steps}: a chunk has {k} actions")
        self._end_episode()
        if background and self.pool is None:   # for all episodes: cuDNN tries its algorithms anew in every thread
            self.pool = ThreadPoolExecutor(1, "policy")
        self.run = Run(self, task, steps, background)

    def step(self, images, state):
        """One control step. images: view -> (H, W, 3) uint8, a missing camera left out; state (d_q,) in raw units
        -> action (d_a,) in raw units. ValueError before `reset`, or for an observation that cannot be used."""
        if self.run is None:
            raise ValueError("call reset(task) before the first step")
        return self.run.step(images, state)

    def timing(self):
        """Since `reset`: steps, plans, starved steps, latent cache hits, and p50, p99, max milliseconds of `step`."""
        if self.run is None or not self.run.seconds:
            raise ValueError("no step since reset: there is nothing to report (and close forgets)")
        return self.run.timing()

    def close(self):
        """Wait for what runs in the background and end its thread. If that failed, and no step has said so, it is
        raised here; the episode is over all the same."""
        pool, self.pool = self.pool, None
        try:
            self._end_episode()
        finally:
            if pool is not None:
                pool.shutdown()

    def _end_episode(self):
        run, self.run = self.run, None
        if run is not None:
            run.close()


class Picture:
    """A camera's picture (H, W, 3) uint8, letterboxed at most once per size.

    Copied, because a camera driver may reuse its buffer and a background plan reads it later.
    """

    def __init__(self, picture):
        self.picture, self.squares = np.array(picture), {}

    def letterboxed(self, size):
        """(3, size, size) uint8; support/data/letterbox.py asks for it."""
        if size not in self.squares:
            self.squares[size] = letterbox(self.picture, size)
        return self.squares[size]


class Run:
    """One episode of `Policy.step`.

    Step t looks at frame t; `queue` is the current chunk and `planned_at` the frame it was planned from, so the action
    of step t is queue[t - planned_at]. The next chunk is planned from frame `next_plan`, or later if the last one is
    still under way. In the background it arrives some steps later and is entered at its own place; until then the
    present one goes on to its end, and then its last action is held. So is the last action of a chunk that arrives when
    it is over: the newest intention there is.
    """

    def __init__(self, policy, task, execute_steps, background):
        self.policy, self.task, self.execute = policy, task, execute_steps
        self.m = policy.config.data.m
        self.t, self.next_plan, self.planned_at, self.queue = -1, 0, 0, []
        self.launched, self.period = 0, execute_steps   # the last plan's frame; frames between two plans, late ones too
        self.history = deque(maxlen=self.m + 1)   # images of the frames t-m to t; before the start the first is repeated
        self.latents, self.hits = {}, 0           # frame -> (views, z (1, V, 16, g, g)); frame 0 and those still to be used
        self.pool = policy.pool if background else None
        self.pending, self.ahead = None, []       # in the background: (frame, plan), and latents being computed
        self.plans, self.starved, self.seconds = 0, 0, []

    def step(self, images, state):
        began = time.perf_counter()
        images, state = self._checked(images, state)   # nothing has changed yet: after a refusal the next step goes on
        self.t += 1
        self.history.append(images)
        busy = self.pending is not None and not self.pending[1].done()   # one plan is under way at a time
        if self.t >= self.next_plan and not busy:
            self._launch(state)
        elif self._wants_latents(self.t):
            job = self._encode_ahead, self.t, images
            if self.pool is None:
                job[0](*job[1:])
            else:
                self.ahead.append(self.pool.submit(*job))
        while self.ahead and self.ahead[0].done():
            self.ahead.pop(0).result()   # which is None, unless it raises
        if self.pending is not None and self.pending[1].done():
            self._adopt()
        at = self.t - self.planned_at
        self.starved += at >= len(self.queue)
        self.seconds.append(time.perf_counter() - began)
        return self.queue[min(at, len(self.queue) - 1)]

    def _checked(self, images, state):
        """view -> Picture, and the state as float32. ValueError: one line."""
        known(images, "step")
        for view, picture in images.items():
            picture = np.asarray(picture)
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
                raise ValueError(f"step: {view} is {picture.dtype} {picture.shape}; give uint8 (H, W, 3)")
        state, d = np.array(state, np.float32), len(self.policy.stats.state_mean)
        if state.shape != (d,) or not np.isfinite(state).all():
            raise ValueError(f"step: the state is {np.array2string(state, threshold=8)} of shape {state.shape}; give {d} "
                             "finite numbers in raw units")
        return {view: Picture(picture) for view, picture in images.items()}, state

    def _launch(self, state):
        """Plan from frame t, in the background if there is a chunk to go on with, else here."""
        if self.pending is not None:
            self._adopt()
        past, now = self.history[0], self.history[-1]
        seen = {view: [past[view], now[view]] for view in VIEWS if view in past and view in now}
        seen = seen or {view: [now[view]] * 2 for view in VIEWS if view in now}   # all cameras are new, as at the start
        eps = self.policy.noise(1)
        job = self._plan, self.t, seen, state, eps
        if self.pool is None or not len(self.queue):
            self.queue, self.planned_at = job[0](*job[1:]), self.t
        else:
            self.pending = self.t, self.pool.submit(*job)
        # Only now: a plan that raises here is tried again at the next frame.
        self.next_plan, self.period = self.t + self.execute, max(self.execute, self.t - self.launched)
        self.launched = self.t

    def _adopt(self):
        (t, plan), self.pending = self.pending, None
        if plan.exception() is not None:   # the present chunk goes on at its own place, and the next step plans
            self.next_plan = self.t
        self.queue, self.planned_at = plan.result(), t

    def _plan(self, t, seen, state, eps):
        """Actions (k, d_a) from frame t."""
        policy, engine = self.policy, self.policy.engine
        views, z_past = self.latents.get(max(t - self.m, 0), (None, None))
        hit = views == tuple(seen)
        if hit:   # the engine will not read the pictures of t-m, so they need not be letterboxed: any others do
            seen = {view: [now, now] for view, (_, now) in seen.items()}
        batch = policy.batch([seen], state[None], [self.task])
        if engine is None:
            batch, eps = batch.to(policy.device), eps.to(policy.device)
            with torch.inference_mode():
                a, z = policy.model.sample_actions(batch, eps, policy.euler_steps), None
        else:
            a, z, _ = engine(batch, eps, z_past=z_past if hit else None)
            self.hits += hit
        self.plans += 1
        if z is not None:
            # Frame 0 stays: it is the t-m of every plan up to frame m.
            self.latents = {frame: kept for frame, kept in self.latents.items() if frame > t - self.m or frame == 0}
            self.latents[t] = tuple(seen), z
        return policy.stats.actions(a.cpu().numpy(), state[None])[0]

    def _wants_latents(self, t):
        """Will frame t be the t-m of a coming plan? Then its latents are computed now, off the critical path."""
        ahead = t + self.m - (self.launched + self.period)
        return ahead >= 0 and ahead % self.period == 0 and self.policy.engine is not None and \
            self.policy.config.model.gen_expert

    def _encode_ahead(self, t, images):
        engine, size = self.policy.engine, self.policy.config.model.frame_size
        views = tuple(view for view in VIEWS if view in images)
        frames = torch.stack([images[view].letterboxed(size) for view in views])[None, :, None]
        z = engine.to_latents(frames.to(self.policy.device))[:, :, 0]
        self.latents[t] = views, engine.all_views(z, [VIEWS.index(view) for view in views])

    def timing(self):
        p50, p99, most = np.percentile(1e3 * np.array(self.seconds), (50, 99, 100)).tolist()
        return {"steps": len(self.seconds), "plans": self.plans, "starved": self.starved, "latent_hits": self.hits,
                "p50_ms": p50, "p99_ms": p99, "max_ms": most}

    def close(self):
        """Wait for the episode's jobs; those that have not begun are dropped."""
        jobs = [*(self.pending or ())[1:], *self.ahead]   # what went wrong with a plan is said first
        for job in jobs:
            job.cancel()
        wait(jobs)
        for job in jobs:
            if not job.cancelled():
                job.result()   # what no step was told of
