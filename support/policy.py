"""From a checkpoint to actions: what a robot, a simulator or infer.py calls.

`Policy.plan` takes raw pictures and states and returns actions in the robot's units. Everything it needs to know
(statistics, action mode, camera slots, m, k) comes from the checkpoint.
"""

from dataclasses import replace

import numpy as np
import torch

import config as configs
from data import VIEWS, collate, observation
from support import checkpoint
from support.statistics import of_checkpoint
from support.weights import empty_model, load_state


class Policy:
    """A model with the statistics it was trained with. model: InternVLA_A1 in eval mode; config: Config."""

    def __init__(self, model, config, stats, seed=0):
        self.model, self.config, self.stats, self.seed, self.calls = model.eval(), config, stats, seed, 0

    @classmethod
    def load(cls, path, seed=0, tokenizer=None, robot=None):
        """path: a run or one checkpoint of it; it computes in bfloat16 if its weights are stored so. tokenizer: where
        that lies now, if not where the checkpoint says. robot: which, if it was trained on several.

        CheckpointError or ValueError: one line.
        """
        tensors, state = checkpoint.load(checkpoint.resolve(path))
        config = configs.from_dict(state["config"])
        if tokenizer:
            config = replace(config, model=replace(config.model, tokenizer=tokenizer))
        half = any(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
        model = empty_model(config.model, dtype=torch.bfloat16 if half else torch.float32)
        load_state(model, tensors, f"checkpoint {path}")
        by_robot = of_checkpoint(state)
        robot = robot or next(iter(by_robot))
        if robot not in by_robot:
            raise ValueError(f"--robot {robot}: {path} was trained on {', '.join(by_robot)}")
        return cls(model, config, by_robot[robot].check(config.data.action_mode), seed)

    def batch(self, pictures, states, tasks):
        """pictures: per sample a dict view -> [o_{t-m}, o_t] uint8 (H, W, 3); states (N, d_q) or None -> Batch."""
        return collate([observation(self.config.model, self.stats, p, q, task)
                        for p, q, task in zip(pictures, states, tasks)])

    def noise(self, n):
        """eps (n, k, d_a): a pure function of the seed and the number of calls so far."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.calls)
        self.calls += 1
        return torch.randn(n, self.config.model.chunk, self.config.model.action_dim, generator=generator)

    def plan(self, pictures, states, tasks):
        """Observations as in `batch` -> (actions (N, k, d_a) in raw units, z_hat (N, V, 16, g, g) or None)."""
        device = next(self.model.parameters()).device
        batch = self.batch(pictures, states, tasks).to(device)
        with torch.inference_mode():
            prefix = self.model.prefill(batch)
            a = self.model.sample_actions(batch, self.noise(len(tasks)).to(device), prefix=prefix)
            z_hat = self.model.imagine(batch, prefix) if self.config.model.gen_expert else None
        return self.stats.actions(a.cpu().numpy(), np.asarray(states, np.float32)), z_hat

    def __call__(self, past, now, states, tasks):
        """conveyor's interface: past, now (N, 3, H, W, 3) uint8 -> actions (N, k, d_a)."""
        out = []
        for part in np.array_split(np.arange(len(tasks)), max(1, len(tasks) // 50)):
            pictures = [{view: [past[i, v], now[i, v]] for v, view in enumerate(VIEWS)} for i in part]
            out.append(self.plan(pictures, states[part], [tasks[i] for i in part])[0])
        return np.concatenate(out)
