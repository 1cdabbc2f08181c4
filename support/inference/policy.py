"""From a checkpoint to actions: what a robot, a simulator or infer.py calls.

`plan` takes raw pictures and states of any number of scenes and returns whole chunks. `reset` and `step` drive one
robot, frame by frame (support/inference/control.py). All that a policy needs to know comes from the checkpoint.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

import config as configs
from data import VIEWS, collate, observation
from support import checkpoint
from support.data.statistics import of_checkpoint
from support.inference.control import ControlLoop, places_of
from support.weights.loading import empty_model, load_state


class Policy:
    """A model with the statistics it was trained with. model: InternVLA_A1; config: Config.

    engine: "plain" (the model as it is written), a mode of support/inference/engine.py, or None: the one for this
    device. cameras: those that `step` will be given; an engine compiles and records for them here, for others in the
    control loop.
    """

    def __init__(self, model, config, stats, seed=0, engine="plain", euler_steps=None, cameras=VIEWS):
        self.model, self.config, self.stats, self.seed, self.calls = model.eval(), config, stats, seed, 0
        self.device, self.euler_steps, self.engine = model.act.state_proj.weight.device, euler_steps, None
        self.loop, self.pool, views = None, None, places_of(cameras, "Policy")
        if engine != "plain":
            from support.inference.engine import Engine, default_mode   # only here: the rest works without that file
            self.engine = Engine(model, engine or default_mode(self.device), euler_steps, views=views)

    @classmethod
    def load(cls, path, seed=0, tokenizer=None, robot=None, device="cpu", engine=None, **options):
        """path: a run or one checkpoint of it; it computes in bfloat16 if its weights are stored so. tokenizer: where
        that lies now, if not where the checkpoint says. robot: which, if it was trained on several. options:
        euler_steps; cameras, those that it was trained with. CheckpointError or ValueError: one line.
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
        generator, model = torch.Generator().manual_seed(self.seed * 1_000_003 + self.calls), self.config.model
        self.calls += 1
        return torch.randn(n, model.chunk, model.action_dim, generator=generator)

    def plan(self, pictures, states, tasks, imagine=True):
        """Observations as in `batch` -> (actions (N, k, d_a) in raw units, z_hat (N, V, 16, g, g) or None).

        ValueError: an engine takes scenes of the same cameras in one call.
        """
        imagine = imagine and self.config.model.gen_expert
        batch, eps = self.batch(pictures, states, tasks), self.noise(len(tasks))
        if self.engine is None:
            batch, eps = batch.to(self.device), eps.to(self.device)
            with torch.inference_mode():   # infer.py shows these lines
                prefix = self.model.prefill(batch)
                a = self.model.sample_actions(batch, eps, self.euler_steps, prefix)
                z_hat = self.model.imagine(batch, prefix) if imagine else None
        else:
            a, _, z_hat = self.engine(batch, eps, imagine=imagine)
        actions = self.stats.actions(a.cpu().numpy(), np.asarray(states, np.float32))
        return actions, None if z_hat is None else z_hat.cpu()

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

    # ---- one robot, frame by frame ------------------------------------------------------------------------------

    def reset(self, task, fps=None, execute_steps=None, background=False):
        """Begin an episode. fps: the rate at which `step` will be called; another than the checkpoint's is refused,
        because m and the chunk count its frames. execute_steps: actions of a chunk before the next is planned (default:
        all; in the background half). background: plan beside the control loop; call `close` at the end. The episode
        before is ended as by `close`.
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
        self.loop = ControlLoop(self, task, steps, background)

    def step(self, images, state):
        """One control step. images: view -> (H, W, 3) uint8, a missing camera left out; state (d_q,) in raw units
        -> action (d_a,) in raw units. ValueError before `reset`, or for an observation that cannot be used."""
        if self.loop is None:
            raise ValueError("call reset(task) before the first step")
        return self.loop.step(images, state)

    def timing(self):
        """Since `reset`: steps, plans, starved steps, latent cache hits, and p50, p99, max milliseconds of `step`."""
        if self.loop is None or not self.loop.seconds:
            raise ValueError("no step since reset: there is nothing to report (and close forgets)")
        return self.loop.timing()

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
        loop, self.loop = self.loop, None
        if loop is not None:
            loop.close()
