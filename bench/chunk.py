"""The figures of one action chunk: model.py as it is read beside the engine, and the engine phase by phase.

Weights are random: speed does not depend on them. All calls run interleaved in one process, on the same inputs and
noise. Then every phase of the engine runs by itself, and so does one large product."""

import copy
import statistics
from functools import partial
from unittest import mock

import torch
from torch.utils.benchmark import timer   # the wall clock, after all that was started on a GPU
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from support.inference.engine import Engine, random_batch
from support.training.memory import peak
from support.weights.loading import empty_model

PHASES = {"see": "ViT and words", "understand": "understanding", "latents": "VAE encode", "generate": "generation",
          "denoise": "Euler steps", "foresee": "decode: latents", "to_pictures": "decode: pictures"}
READ, MISS, HIT = "model.py as it is read", "engine, both frames encoded", "engine, latents of t-m kept"
FORESIGHT = "engine, kept, future decoded"


@torch.no_grad()
def random_model(config, device, dtype):
    """Full size in its final dtype, of normal numbers: about 1 the weights of norms, about 0 the others."""
    torch.manual_seed(0)
    model = empty_model(config, device, dtype)
    for name, p in model.named_parameters():
        p.normal_(float(name.endswith("norm.weight")), 0.02)
    return model


def random_inputs(config, device):
    """What an engine is called with: (Batch, eps, latents of t-m). It copies the first two to the device itself."""
    z_past = torch.randn(1, 3, 16, config.latent_grid, config.latent_grid, device=device)
    return random_batch(config), torch.randn(1, config.chunk, config.action_dim), z_past


def as_read(model, batch, eps):
    """A function that samples as infer.py --engine plain does. The VAE, whose layout an engine changes, is a copy."""
    model = copy.deepcopy(model, {id(p): p for name, p in model.named_parameters() if not name.startswith("vae.")})
    device = model.act.state_proj.weight.device
    batch, eps = batch.to(device), eps.to(device)

    @torch.inference_mode()
    def call():
        return model.sample_actions(batch, eps, prefix=model.prefill(batch))
    return call


def calls_of(engine, batch, eps, z_past):
    """The three ways in which a control loop calls an engine: {name: function}."""
    return {MISS: lambda: engine(batch, eps), HIT: lambda: engine(batch, eps, z_past),
            FORESIGHT: lambda: engine.to_pictures(engine(batch, eps, z_past, imagine=True).z_hat)}


def seconds_of(call):
    began = timer()
    call()
    return timer() - began


def interleaved(calls, blocks):
    """Every call `2 * blocks` times in the order A B C C B A: {name: seconds of each}."""
    found = {name: [] for name in calls}
    for name in blocks * [*calls, *reversed(calls)]:
        found[name].append(seconds_of(calls[name]))
    return found


def spread(seconds):
    return {"samples": len(seconds), "p50_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds)}


def product_rate(device, dtype):
    """FLOP/s of a large matrix product, best of four: what this machine can do."""
    side = 8192 if device.type == "cuda" else 2048
    x = torch.ones(side, side, device=device, dtype=dtype)
    return 2 * side ** 3 / min(seconds_of(lambda: x @ x.T) for _ in range(4))


def flop_counter():
    """torch's counter, with the formula that it lacks: that of the CPU's attention kernel."""
    return FlopCounterMode(display=False, custom_mapping={
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)})


def flop_of(call):
    with flop_counter() as counter:
        call()
    return counter.get_total_flops()


def watch(engine, call, figure):
    """Run the call; meanwhile each of the engine's phases runs inside figure(function) -> {label: the figure}."""
    found = {}

    def around(label, phase, *args):
        out = []
        found[label] = figure(lambda: out.append(phase(*args)))
        return out[0]
    with mock.patch.multiple(engine, **{name: partial(around, label, getattr(engine, name))
                                        for name, label in PHASES.items()}):
        call()
    return found


def phases(engine, inputs, repeats):
    """Every phase of every call by itself -> {call: {phase: its times and "gflop"}}."""
    eager, rows = engine.eager(), {}
    parts = engine if engine.mode == "compile" else eager   # a recorded graph has no phases: its parts, launched singly
    for name, call in calls_of(parts, *inputs).items():
        flop = watch(eager, calls_of(eager, *inputs)[name], flop_of)
        call()   # buffers are made, regions compiled
        times = [watch(parts, call, seconds_of) for _ in range(repeats)]
        rows[name] = {label: spread([one[label] for one in times]) | {"gflop": n / 1e9} for label, n in flop.items()}
    return rows


def measure(config, device, dtype, mode, blocks):
    """All figures of one chunk as a dict that json can write. config: ModelConfig; mode: one of engine.MODES."""
    device = torch.device(device)
    model, inputs = random_model(config, device, dtype), random_inputs(config, device)
    batch, eps, _ = inputs
    plain, began = as_read(model, batch, eps), timer()
    engine = Engine(model, mode)
    startup = timer() - began
    calls = {READ: plain} | calls_of(engine, *inputs)
    for call in calls.values():   # buffers are made
        call()
    reference, ours = plain().float(), engine(batch, eps).actions.float()
    seconds = interleaved(calls, blocks)
    frame = batch.frames[:, :, :1].to(device)
    ahead = [seconds_of(lambda: engine.to_latents(frame)) for _ in range(2 * blocks)]
    return {"engine": mode, "tokens": [model.layout.n_und, model.layout.n_gen, model.layout.n_act],
            "startup_s": startup, "engine_report": engine.report, "action_rms": float(reference.square().mean().sqrt()),
            "difference_rms": float((ours - reference).square().mean().sqrt()),
            "calls": {name: spread(found) | {"seconds": found} for name, found in seconds.items()},
            "encode_ahead": spread(ahead), "product_tflop_s": product_rate(device, dtype) / 1e12,
            "phases": phases(engine, inputs, max(3, blocks // 2)), "peak_memory_gb": peak(device)}
