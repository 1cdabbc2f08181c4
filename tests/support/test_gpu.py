"""What only a GPU can show: recorded graphs, copies that nobody waits for, planning in the background.

    python -m pytest -q tests/support/test_gpu.py          a few minutes, most of them compiling
"""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from attention_mask import attention_bias
from conftest import VARIANTS, film
from config import VIEWS
from experts import attend
from support.inference.engine import Engine
from support.inference.engine import random_batch as example

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; tests/support/test_gpu.py")
NEAR = {"rtol": 0, "atol": 1e-3}


@pytest.fixture
def device(monkeypatch):
    """The last GPU, where there are several not the current one; without TF32, whose rounding is the algorithm's."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device("cuda", torch.cuda.device_count() - 1)


def observation(config, seed, cameras=(True, True, True), words=None):
    """A batch of one and its noise, on the CPU."""
    batch = example(config, seed=seed)
    batch.view_mask[:] = torch.tensor(cameras)
    batch.text_mask[:] = torch.arange(config.text_tokens) < (words or config.text_tokens)
    return batch, torch.randn(1, config.chunk, config.action_dim, generator=torch.Generator().manual_seed(seed))


def test_grouped_heads_with_a_mask_take_a_fused_kernel_forward_and_backward(device):
    """torch raises where the only kernels allowed cannot serve; the plain one would keep the scores."""
    heads = [torch.randn(2, n, 37, 64, dtype=torch.bfloat16, device=device, requires_grad=True) for n in (6, 2, 2)]
    bias = attention_bias(torch.rand(2, 37, 37, device=device) < 0.7, torch.bfloat16)
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        fused = attend(*heads, bias)
    fused.float().square().sum().backward()
    given = [x.grad.float() for x in heads]
    exact = [x.detach().float().requires_grad_() for x in heads]
    with sdpa_kernel(SDPBackend.MATH):
        plain = attend(*exact, bias.float())
    plain.square().sum().backward()
    for one, other in zip([fused.float(), *given], [plain, *(x.grad for x in exact)]):
        assert (one - other).norm() < 2e-2 * other.norm()


@pytest.mark.parametrize("backend", [None, "eager"])
def test_a_graph_gives_eagers_chunks(build, device, backend):
    """Two inputs in a row, and nothing waits between them: neither staged inputs nor outputs run into one another.
    Without a backend the regions are compiled as they are for use."""
    config = VARIANTS["qwen"]
    engine = Engine(build(config).to(device), "graph", backend=backend)
    eager, inputs = engine.eager(), [observation(config, seed) for seed in (3, 4)]
    pasts = [eager(*observation(config, seed)).z for seed in (5, 6)]
    for given in ((None, None), pasts):
        for imagine in (False, True):
            fast = [engine(*some, z_past, imagine) for some, z_past in zip(inputs, given)]
            for chunk, some, z_past in zip(fast, inputs, given):
                exact = eager(*some, z_past, imagine)
                assert chunk.actions.device == device
                torch.testing.assert_close(chunk.actions, exact.actions, **NEAR)
                torch.testing.assert_close(chunk.z, exact.z, **NEAR)
                if imagine:
                    torch.testing.assert_close(chunk.z_hat, exact.z_hat, **NEAR)
    assert (fast[0].actions - fast[1].actions).abs().max() > 0.1


def test_another_prompt_is_the_same_graph_and_other_cameras_are_another(build, tiny, device):
    engine = Engine(build(tiny).to(device), "graph", backend="eager")
    eager, three, two = engine.eager(), (True, True, True), (True, False, True)
    for words, cameras, captures in ((6, three, 2), (2, three, 2), (2, two, 3), (5, three, 3), (6, two, 3)):
        some = observation(tiny, words, cameras, words)
        torch.testing.assert_close(engine(*some).actions, eager(*some).actions, **NEAR)
        assert engine.captures == captures


@pytest.mark.parametrize("cameras", [(True, True, True), (True, False, True)])
def test_a_replay_waits_for_nothing(build, tiny, device, cameras):
    """Once its prompt is placed: torch raises where the CPU would wait for the GPU."""
    engine = Engine(build(tiny).to(device), "graph", backend="eager")
    eager, inputs = engine.eager(), [observation(tiny, seed, cameras) for seed in (3, 4)]
    z_past = engine(*inputs[0]).z
    engine(*inputs[0], z_past)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [engine(*some, given) for some in inputs for given in (None, z_past)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    exact = [eager(*some, given) for some in inputs for given in (None, z_past)]
    for chunk, other in zip(found, exact):
        torch.testing.assert_close(chunk.actions, other.actions, **NEAR)


def test_a_run_in_the_background_gives_the_plain_paths_actions(make, device, monkeypatch):
    """Pictures are decoded beside it. Steps at which a plan begins are left out: it may or may not be there at once."""
    monkeypatch.setattr("support.inference.engine.Engine", partial(Engine, backend="eager"))
    policy, plain = make(chunk=16, engine="graph", device=device), make(chunk=16, engine="plain")
    frames, states = film(33)
    seen = {t: {view: [frames[max(t - 15, 0)][view], frames[t][view]] for view in VIEWS} for t in (0, 8, 16, 24)}
    chunks = {t: plain.plan([pictures], states[None, t], ["go"])[0][0] for t, pictures in seen.items()}
    policy.reset("go", background=True, handover="cold")
    for t, (images, state) in enumerate(zip(frames, states)):
        action = policy.step(images, state)
        if policy.loop.pending:
            assert policy.to_pictures(torch.zeros(3, 16, 8, 8)).shape == (3, 3, 64, 64)
            policy.loop.pending[1].result(timeout=60)
        if t % 8:
            np.testing.assert_allclose(action, chunks[t - t % 8][t % 8], atol=1e-2)
    report, captures = policy.timing(), policy.engine.captures
    policy.close()
    assert (report["starved"], report["latent_hits"], captures) == (0, 4, 2)
