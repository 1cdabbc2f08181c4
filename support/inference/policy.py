"""From a checkpoint to actions: what a robot, a simulator or infer.py calls.

`plan` returns whole chunks for any number of scenes. `reset` and `step` drive one robot, frame by frame."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

import config as configs
from config import VIEWS
from data import collate, observation
from support import checkpoint
from support.data.statistics import of_checkpoint
from support.files import must, without_nul
from support.inference.control import ControlLoop, all_finite, check_pictures, checked_state, places_of
from support.inference.handover import Rest, guide_of, prepare
from support.weights.loading import empty_model, load_state, with_tokenizer


class Wanted(NamedTuple):
    """What a chunk is planned from, for those that plan the chunks of several robots at a time."""

    example: dict       # data.observation
    eps: torch.Tensor   # (1, k, d_a)
    q_t: np.ndarray     # (1, d_q), raw units
    imagine: bool
    rest: Rest          # or None

    def form(self):
        """Chunks of one form can be a batch: cameras, `imagine`, and what is left of the last chunk are alike."""
        rest = self.rest and (self.rest.handover, self.rest.delay, self.rest.actions.shape)
        return self.example["view_mask"].tolist(), self.imagine, rest


class Policy:
    """A model with the statistics it was trained with. model: InternVLA_A1; config: Config.

    engine: "plain" (the model as it is written), a mode of support/inference/engine.py, or None: the one for this
    device. cameras: those that `step` will be given; an engine compiles for them here, for others in the control loop.
    """

    def __init__(self, model, config, stats, seed=0, engine="plain", euler_steps=None, cameras=VIEWS):
        self.model, self.config, self.stats, self.seed, self.calls = model.eval(), config, stats, seed, 0
        self.device, self.euler_steps, self.engine = model.act.state_proj.weight.device, euler_steps, None
        self.loop, self.origin, views = None, None, places_of(cameras, "Policy")
        # One for all episodes, because cuDNN tries its algorithms anew in every thread. It starts when it is used.
        self.pool = ThreadPoolExecutor(1, "policy")
        if engine != "plain":
            from support.inference.engine import Engine, default_mode   # only here: the rest works without that file
            self.engine = Engine(model, engine or default_mode(self.device), euler_steps, views=views)

    @classmethod
    def load(cls, path, seed=0, tokenizer=None, robot=None, device="cpu", engine=None, **options):
        """path: a run or one checkpoint of it; bfloat16 if stored so. tokenizer: in place of its own.
        robot: which; it must be named if there are several. options: euler_steps, cameras (default: those of training).
        CheckpointError or ValueError: one line."""
        path = checkpoint.resolve(path)
        tensors, state = checkpoint.load(path)
        config = configs.from_dict(state.get("config"))
        config = replace(config, model=with_tokenizer(config.model, path, tokenizer))
        half = any(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
        model = empty_model(config.model, device, torch.bfloat16 if half else torch.float32)
        load_state(model, tensors, f"checkpoint {path}")
        by_robot = of_checkpoint(state)
        must(robot or len(by_robot) == 1, f"{path} was trained on {', '.join(by_robot)}: name one (--robot NAME)")
        must(not robot or robot in by_robot, f"--robot {robot}: {path} was trained on {', '.join(by_robot)}")
        stats = by_robot[robot or next(iter(by_robot))].check(config.data.action_mode)
        options.setdefault("cameras", stats.cameras() or VIEWS)
        policy = cls(model, config, stats, seed, engine, **options)
        policy.origin = path   # which checkpoint this is
        return policy

    # ---- whole chunks -------------------------------------------------------------------------------------------

    def batch(self, pictures, states, tasks):
        """pictures: per sample view -> [o_{t-m}, o_t] uint8 (H, W, 3); states (N, d_q) -> Batch, on the CPU."""
        return collate([observation(self.config.model, self.stats, *of) for of in zip(pictures, states, tasks)])

    def noise(self, n):
        """eps (n, k, d_a) on the CPU: a pure function of the seed and the number of calls so far."""
        generator, model = torch.Generator().manual_seed(self.seed * 1_000_003 + self.calls), self.config.model
        self.calls += 1
        return torch.randn(n, model.chunk, model.action_dim, generator=generator)

    def plan(self, pictures, states, tasks, imagine=True, rest=None):
        """Observations as in `batch`; a robot without a state may leave it out, None -> (actions (N, k, d_a) in raw
        units, z_hat (N, V, 16, g, g) or None). rest: a handover.Rest that the chunks go on from. ValueError, one line:
        an observation that cannot be used; an engine takes scenes of the same cameras in one call; or what came out is
        not finite."""
        q_t = self._checked(pictures, [None] * len(tasks) if states is None else states, tasks)
        return self._plan(self.batch(pictures, q_t, tasks), self.noise(len(tasks)), q_t, imagine, rest)

    def _checked(self, pictures, states, tasks):
        """States (N, d_q) float32. ValueError, one line: what `plan` is given cannot be used."""
        must(not isinstance(tasks, str) and all(isinstance(task, str) for task in tasks),
             f"plan: tasks are {tasks!r:.60}; give a list with one text for each scene")
        must(len(pictures) == len(states) == len(tasks) > 0,
             f"plan: {len(pictures)} scenes, {len(states)} states and {len(tasks)} tasks are given")
        for task in tasks:
            without_nul(task, "plan: a task")
        for scene in pictures:
            pairs = scene.values() if isinstance(scene, dict) else [None]
            must(all(isinstance(of, (list, tuple, np.ndarray, torch.Tensor)) and len(of) == 2 for of in pairs),
                 "plan: a scene is view -> two pictures, of t - m and of t")
            for seen in zip(*scene.values()) if scene else [()]:
                check_pictures(dict(zip(scene, seen)), "plan", self.stats.cameras())
        return np.stack([checked_state(q, len(self.stats.state_mean), "plan") for q in states])

    def wanted(self, pictures, state, task, imagine, rest):
        """One observation, as in `plan`, and this policy's next noise -> Wanted, for `plan_together`."""
        example = observation(self.config.model, self.stats, pictures, state, task)
        return Wanted(example, self.noise(1), np.asarray(state, np.float32)[None], imagine, rest)

    def plan_together(self, wanted):
        """Chunks of one form, as one batch -> of each: actions (k, d_a), z_hat (V, 16, g, g) or None, and milliseconds
        that all of them took; or its exception. Where the batch fails, each is planned alone: a fault is nobody else's.
        """
        began, (examples, eps, q_t, imagine, rests) = time.perf_counter(), zip(*wanted)
        rest = rests[0] and rests[0]._replace(actions=np.concatenate([of.actions for of in rests]))
        try:
            actions, z_hat = self._plan(collate(examples), torch.cat(eps), np.concatenate(q_t), imagine[0], rest)
        except Exception as error:
            return [error] if len(wanted) == 1 else [self.plan_together([each])[0] for each in wanted]
        took = 1e3 * (time.perf_counter() - began)
        return [(a, None if z_hat is None else z_hat[i], took) for i, a in enumerate(actions)]

    def _plan(self, batch, eps, q_t, imagine, rest):
        a, _, z_hat = self.chunk(batch, eps, imagine=imagine, guide=guide_of(self, rest, q_t))
        return self.finite(self.stats.actions(a.cpu().numpy(), q_t), None if z_hat is None else z_hat.cpu())

    def finite(self, actions, z=None):
        """(actions, latents), as they are given. ValueError, one line: they are not finite, and whose fault it is."""
        if all_finite(actions, z):
            return actions, z
        broken = next((name for name, p in self.model.named_parameters() if not p.isfinite().all()), None)
        must(not broken, f"the plan is not finite, because the weights are not ({broken}): use another checkpoint")
        raise ValueError("the plan is not finite, though all weights are: the state is out of range, or this machine "
                         f"computes wrongly in {self.model.dtype}; check the state, or use --engine plain")

    def chunk(self, batch, eps, z_past=None, imagine=False, guide=None):
        """What `Engine.__call__` gives: actions (standardised), z, z_hat. Without an engine z is None."""
        if self.engine is not None:
            return self.engine(batch, eps, z_past, imagine, guide)
        batch, eps = batch.to(self.device), eps.to(self.device)
        with torch.inference_mode(guide is None), torch.no_grad():   # infer.py shows these lines; "vjp" needs gradients
            prefix = self.model.prefill(batch)
            a = self.model.sample_actions(batch, eps, self.euler_steps, prefix, guide)
            z_hat = self.model.imagine(batch, prefix) if imagine and self.config.model.gen_expert else None
        return a, None, z_hat

    def to_pictures(self, z):
        """Latents (..., 16, g, g) -> pictures (..., 3, H, W) uint8 on the CPU."""
        return (self.engine or self.model).to_pictures(z.to(self.device)).cpu()

    # ---- one robot, frame by frame ------------------------------------------------------------------------------

    def reset(self, task, fps=None, execute_steps=None, background=False, handover="identity"):
        """Begin an episode; the one before is ended as by `close`. fps: the rate at which `step` will be called, which
        must be the checkpoint's. execute_steps: actions of a chunk before the next is planned (default: all; in the
        background half). background: plan beside the control loop; call `close` at the end. handover: how a chunk goes
        on from the last one, one of handover.HANDOVERS."""
        k = self.config.model.chunk
        must(isinstance(task, str), f"reset: the task is a {type(task).__name__}; give text")
        must(fps is None or isinstance(fps, (int, float, np.number)), f"reset: fps is {fps!r:.60}; give a number")
        if fps is not None and fps != self.stats.fps:
            raise ValueError(f"control at {fps:g} Hz: the checkpoint was trained on {self.stats.fps:g} frames/s, which "
                             "m and the chunk count; call step at that rate, or resample the data and train again")
        steps = execute_steps if execute_steps is not None else max(1, k // 2) if background else k
        must(isinstance(steps, (int, np.integer)) and 1 <= steps <= k,
             f"execute_steps {steps!r:.60}: a chunk has {k} actions; give how many of them")
        must(type(background) is bool, f"reset: background is {background!r:.60}; give True or False")
        without_nul(task, "reset: the task")
        prepare(self, handover)
        self._end_episode()
        self.loop = ControlLoop(self, task, steps, background, handover)

    def step(self, images, state):
        """images: view -> (H, W, 3) uint8, a missing camera left out; state (d_q,), or None for a robot without one
        -> action (d_a,), both in raw units. ValueError before `reset`, for an observation that cannot be used, or if
        the first plan is not finite; later the last good action is held."""
        must(self.loop is not None, "call reset(task) before the first step")
        return self.loop.step(images, state)

    def timing(self):
        """Since `reset`: steps, plans, starved steps, held ones (a plan was not finite), latent hits, and p50, p99 and
        max milliseconds of `step`."""
        loop = self.loop
        must(loop is not None and loop.seconds, "no step since reset: there is nothing to report (and close forgets)")
        p50, p99, most = np.percentile(1e3 * np.array(loop.seconds), (50, 99, 100)).tolist()
        return {"steps": len(loop.seconds), "plans": loop.plans, "starved": loop.starved, "held": loop.held,
                "latent_hits": loop.hits, "p50_ms": p50, "p99_ms": p99, "max_ms": most}

    def close(self):
        """End the episode and its thread. What failed in the background, and no step has said, is raised here."""
        try:
            self._end_episode()
        finally:
            self.pool.shutdown()
            self.pool = ThreadPoolExecutor(1, "policy")

    def _end_episode(self):
        loop, self.loop = self.loop, None
        if loop is not None:
            loop.close()
