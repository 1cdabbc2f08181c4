"""Tiny models, policies and random batches, shared by the tests.

    paper/      tests of the top-level files; support/ has those of support/ and bench/, worlds/ those of worlds/
    data/       what the authors' code computed, and the keys and shapes of published files
    chaos.py    a program, not a test: it tries to lose training runs; support/test_chaos.py runs a short version
    serving_load.py   another: it tries to disturb a policy server; serving_client.py is its client and the tests'

Fixtures that are functions: build(config), random_batch(config, B, ...). Weights are random everywhere, also
where training starts from zeros or ones, so that no term of the network is silent.
"""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from config import CONFIGS, VIEWS
from data import Batch
from model import InternVLA_A1
from support.inference.policy import Policy
from support.data.statistics import Statistics

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)   # the machine is shared, and results must not depend on it

TINY = replace(CONFIGS["conveyor"].model, layers=2, heads=2, kv_heads=2, head_dim=16,
               und_width=32, und_mlp=48, gen_width=32, gen_mlp=48, act_width=32, act_mlp=48,
               text_tokens=6, chunk=4, euler_steps=10)
VARIANTS = {
    "tiny": TINY,
    "qwen": replace(TINY, backbone="qwen3vl", kv_heads=1, und_width=48, learned_positions=False,
                    mrope_sections=(4, 2, 2), view_tokens=(250, 251),
                    vit_layers=1, vit_width=32, vit_mlp=48, vit_heads=2, vit_patch=16, vit_grid=3),
    "internvl": replace(TINY, backbone="internvl3", heads=4, kv_heads=2, qkv_bias=True, qk_norm=False,
                        learned_positions=False, view_tokens=(250, 251), image_size=56,
                        vit_layers=1, vit_width=32, vit_mlp=48, vit_heads=2, vit_patch=14, vit_grid=4),
    "no_gen": replace(TINY, gen_expert=False, learned_positions=False),
    "past": replace(TINY, gen_expert=False, und_frames=2),
}
CAMERAS = [[bool(n & 4), bool(n & 2), bool(n & 1)] for n in range(1, 8)]   # every subset with a view in it


def pytest_addoption(parser):
    parser.addoption("--seeds", type=int, default=40, help="of ALOHA's long test; docs/aloha.md gives it 200")


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture(scope="session")
def cameras():
    return CAMERAS


@pytest.fixture(scope="session", params=VARIANTS)
def variant(request):
    """Each of the five kinds of network in turn."""
    return VARIANTS[request.param]


@pytest.fixture(scope="session", params=[name for name, config in VARIANTS.items() if config.gen_expert])
def imagining(request):
    """Each of the three kinds that have a generation expert."""
    return VARIANTS[request.param]


@pytest.fixture(scope="session")
def build():
    """config -> model, every trainable weight random."""
    def make(config, seed=0):
        torch.manual_seed(seed)
        model = InternVLA_A1(config)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.1 * torch.randn_like(p))
        return model
    return make


@pytest.fixture(scope="session")
def random_batch():
    """(config, B, cameras, real, human, seed) -> Batch of noise.

    cameras: B rows of V flags, default all; real: action dimensions that exist; human: rows without actions.
    Texts end at different lengths, chunks too, and padding holds noise, except where data.py promises zeros.
    """
    def make(config, B, cameras=None, real=6, human=(), seed=0):
        random = torch.Generator().manual_seed(seed)

        def pixels(*shape):
            return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)

        def normal(*shape):
            return torch.randn(shape, generator=random)

        rows, size, frame = torch.arange(B), config.view_size, config.frame_size
        acts = torch.tensor([row not in human for row in range(B)])
        dim_mask = acts[:, None] & (torch.arange(config.action_dim) < real)
        inside = torch.arange(config.chunk) < config.chunk - (rows % 3)[:, None]
        text = torch.arange(config.text_tokens) < config.text_tokens - (rows % config.text_tokens)[:, None]
        return Batch(
            image=pixels(B, 3, 3 * config.und_frames, size, size), frames=pixels(B, 3, 3, 3, frame, frame),
            view_mask=torch.tensor(cameras or [[True] * 3] * B),
            text_ids=torch.randint(0, 250, (B, config.text_tokens), generator=random), text_mask=text,
            state=normal(B, config.state_dim) * dim_mask, dim_mask=dim_mask,
            action=normal(B, config.chunk, config.action_dim) * dim_mask[:, None],
            action_mask=inside[..., None] & dim_mask[:, None], future_mask=torch.ones(B, dtype=torch.bool))
    return make


@pytest.fixture(scope="session")
def noise():
    """(config, B, R) -> eps (B, R, k, d_a), tau (B, R)."""
    def draw(config, B, R=1, seed=1):
        random = torch.Generator().manual_seed(seed)
        return (torch.randn(B, R, config.chunk, config.action_dim, generator=random),
                torch.rand(B, R, generator=random))
    return draw


@pytest.fixture
def make(build, tiny):
    """(chunk, engine, action_mode, ...) -> a policy of the smallest network, of a robot at 30 Hz with six joints."""
    def policy(chunk=50, engine="eager", action_mode="absolute", device="cpu", und_frames=1, **options):
        config, d = replace(CONFIGS["conveyor"], model=replace(tiny, chunk=chunk, und_frames=und_frames)), 6
        numbers = (0.1,) * d, (0.5,) * d, (0.2,) * d, (2.0,) * d
        stats = Statistics("arm", action_mode, 30.0, *numbers, 1, relative=(True,) * d)
        return Policy(build(config.model).to(device), config, stats, seed=3, engine=engine, **options)
    return policy


@pytest.fixture
def script(monkeypatch):
    """(name, *argv): run a script of the top level in this process, as __main__: milliseconds instead of seconds."""
    def run(name, *argv):
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        runpy.run_path(str(ROOT / name), run_name="__main__")
    return run


@pytest.fixture
def refuses(script, monkeypatch, tmp_path, capfd):
    """(script, *argv) -> the one line on stderr of a script that ends with exit code 2."""
    def check(name, *argv):
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            script(name, *argv)
        line = capfd.readouterr().err
        assert end.value.code == 2 and len(line.splitlines()) == 1 and line.startswith(f"{name}: "), line
        return line
    return check


def film(T, views=VIEWS, seed=0):
    """T frames of noise and states: list of images dicts, (T, d_q)."""
    random = np.random.default_rng(seed)
    frames = [{view: random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for view in views} for _ in range(T)]
    return frames, random.standard_normal((T, 6)).astype(np.float32)


def static(run):
    """Stands for a CUDA graph: every call writes the same output tensors."""
    out = run()

    def replay():
        for mine, new in zip(out, run()):
            if mine is not None:
                mine.copy_(new)
        return out
    return replay
