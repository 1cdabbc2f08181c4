"""The figures of one action chunk: arms side by side, the engine phase by phase, and what its products need at least.

The model is of full size and its weights are random: speed does not depend on what they say. Two arms run interleaved
in one process on the same inputs and noise: model.py as it is read, and the engine. Then every phase of the engine is
timed by itself. bench/latency.py prints it all.
"""

import copy
import resource
from contextlib import contextmanager

import numpy as np
import torch

from bench.roofline import Ledger, floor, rates, seconds_of, total_bytes, total_flops
from support.inference.engine import Engine, random_batch
from support.weights.loading import empty_model

PHASES = {"see": "ViT and words", "understand": "understanding", "latents": "VAE encode", "generate": "generation",
          "denoise": "Euler steps", "foresee": "decode: latents", "to_pictures": "decode: pictures"}
COMMON = ["ViT and words", "understanding"]
READ, MISS, HIT = "model.py as it is read", "engine, both frames encoded", "engine, latents of t-m kept"
FORESIGHT = "engine, kept, future decoded"
CASES = {MISS: [*COMMON, "VAE encode, 6 frames", "generation", "Euler steps"],   # the phases of each kind of call
         HIT: [*COMMON, "VAE encode, 3 frames", "generation", "Euler steps"],
         FORESIGHT: [*COMMON, "VAE encode, 3 frames", "generation to the end", "decode: latents", "Euler steps",
                     "decode: pictures"]}
SEED = 0   # of the random weights and the noise


@torch.no_grad()
def random_model(config, device, dtype):
    """Full size in its final dtype, filled with the same million normal numbers over and over."""
    torch.manual_seed(SEED)
    model, pool = empty_model(config, device, dtype), (0.02 * torch.randn(1 << 20, device=device)).to(dtype)
    for name, p in model.named_parameters():
        if name.endswith("norm.weight"):
            p.fill_(1)
        else:
            for part in p.view(-1).split(len(pool)):
                part.copy_(pool[:len(part)])
    return model


# ---- phases -----------------------------------------------------------------------------------------------------

def label_of(name, args):
    """What a phase is called in the table; work that depends on the call has two names."""
    shape = getattr(args[0], "shape", None)
    if name == "latents":
        return f"VAE encode, {3 if shape.cached else 6} frames"
    if name == "generate" and shape.imagine:
        return "generation to the end"
    return PHASES[name]


@contextmanager
def watched(engine, around):
    """Inside, each of the engine's phases runs as around(label, phase, *args)."""
    def wrapped(name, phase):
        return lambda *args: around(label_of(name, args), phase, *args)
    for name in PHASES:
        setattr(engine, name, wrapped(name, getattr(engine, name)))
    try:
        yield
    finally:
        for name in PHASES:
            delattr(engine, name)


def record(engine, calls):
    """One run of each call -> {label: Ledger} of its phases."""
    found = {}

    def around(label, phase, *args):
        with Ledger() as found[label]:
            return phase(*args)
    with watched(engine, around):
        for call in calls:
            call()
    return found


def timed(engine, calls, device, repeats):
    """{label: seconds of each run}, every phase timed by itself; before them one round to touch buffers and compile."""
    found = {}

    def around(label, phase, *args):
        out = []
        found.setdefault(label, []).append(seconds_of(lambda: out.append(phase(*args)), device))
        return out[0]
    for call in calls:
        call()
    with watched(engine, around):
        for _ in range(repeats):
            for call in calls:
                call()
    return found


# ---- figures ----------------------------------------------------------------------------------------------------

def interleaved(arms, blocks, device):
    """Every arm `2 * blocks` times in the order A B C C B A: {name: seconds of each call}."""
    found = {name: [] for name in arms}
    for _ in range(blocks):
        for name in [*arms, *reversed(arms)]:
            found[name].append(seconds_of(arms[name], device))
    return found


def ratio(one, other, draws=2000):
    """Median of `one` over median of `other` with a bootstrapped 95 % interval: (ratio, low, high).

    Below 8 samples of either low and high are None: so few say nothing about their spread.
    """
    random, one, other = np.random.default_rng(0), np.array(one), np.array(other)
    middle = float(np.median(one) / np.median(other))
    if min(len(one), len(other)) < 8:
        return middle, None, None

    def medians(x):
        return np.median(x[random.integers(len(x), size=(draws, len(x)))], 1)
    low, high = np.percentile(medians(one) / medians(other), (2.5, 97.5))
    return middle, float(low), float(high)


def rms(x):
    return x.float().square().mean().sqrt().item()


def spread(seconds):
    return {"calls": len(seconds), "p50_s": float(np.median(seconds)), "min_s": min(seconds), "max_s": max(seconds)}


def calls_of(engine, batch, eps, z_past):
    """The three ways in which a control loop calls an engine: {name: function}."""
    return {MISS: lambda: engine(batch, eps), HIT: lambda: engine(batch, eps, z_past),
            FORESIGHT: lambda: engine.to_pictures(engine(batch, eps, z_past, imagine=True).z_hat)}


def as_read(model, batch, eps):
    """A function that samples as infer.py --engine plain does. The VAE is a copy, since an engine changes its layout;
    all other weights are the model's own."""
    shared = {id(p): p for name, p in model.named_parameters() if not name.startswith("vae.")}
    model = copy.deepcopy(model, shared)

    @torch.inference_mode()
    def call():
        return model.sample_actions(batch, eps, prefix=model.prefill(batch))
    return call


def measure(config, device, dtype, mode="eager", blocks=4, euler_steps=None):
    """All figures of one chunk as a dict that json can write. config: ModelConfig."""
    device, made = torch.device(device), []
    model = random_model(config, device, dtype)
    batch, eps = random_batch(config), torch.randn(1, config.chunk, config.action_dim)   # the engine copies them itself
    z_past = torch.randn(1, 3, 16, config.latent_grid, config.latent_grid, device=device)
    plain = as_read(model, batch.to(device), eps.to(device))
    startup = seconds_of(lambda: made.append(Engine(model, mode)), device)
    engine, = made
    calls = calls_of(engine, batch, eps, z_past)
    arms = {READ: plain} | calls
    for arm in arms.values():
        arm()
    reference, ours = plain(), engine(batch, eps).actions
    report = {"engine": mode, "tokens": [model.layout.n_und, model.layout.n_gen, model.layout.n_act],
              "startup_s": startup, "action_rms": rms(reference), "difference_rms": rms(ours - reference),
              "engine_report": engine.report}
    seconds = interleaved(arms, blocks, device)
    report["arms"] = {name: spread(found) | {"seconds": found} for name, found in seconds.items()}
    report["ratios"] = {name: ratio(seconds[name], seconds[READ]) for name in calls}
    report["encode_ahead"] = spread([seconds_of(lambda: engine.to_latents(batch.frames[:, :, :1].to(device)), device)
                                     for _ in range(2 * blocks)])
    report |= phases(engine, (batch, eps, z_past), device, dtype, max(3, blocks // 2))
    if euler_steps:   # in the same mode; compiled, a second engine with weights of its own
        few = engine.eager(euler_steps) if mode == "eager" else Engine(model, mode, euler_steps)
        moved, call = rms(few(batch, eps).actions - ours), calls_of(few, batch, eps, z_past)[HIT]
        call()
        report["fewer_steps"] = {"steps": euler_steps, "action_error_rms": moved} | spread(
            [seconds_of(call, device) for _ in range(2 * blocks)])
    return report | {"peak_memory_gb": peak_memory(device)}


def phases(engine, inputs, device, dtype, repeats):
    """{"rates", "phases", "totals"}: each phase's times, work and floor, and their sums for each kind of call."""
    eager = engine.eager()
    parts = engine if engine.mode == "compile" else eager   # a recorded graph has no phases: its parts, launched singly
    seconds = timed(parts, calls_of(parts, *inputs).values(), device, repeats)
    (peak, copying), rows = rates(device, dtype), {}
    for label, seen in record(eager, calls_of(eager, *inputs).values()).items():
        rows[label] = spread(seconds[label]) | {
            "operations": sum(seen.operations.values()), "gflop": total_flops(seen.work) / 1e9,
            "gb": total_bytes(seen.work) / 1e9, "floor_s": floor(seen.work, peak, copying)}
    totals = {name: {key: sum(rows[label][key] for label in labels)
                     for key in ("p50_s", "operations", "gflop", "gb", "floor_s")} for name, labels in CASES.items()}
    return {"rates": {"tflop_s": peak / 1e12, "gb_s": copying / 1e9}, "phases": rows, "totals": totals}


def peak_memory(device):
    """GB of 1e9 bytes: the allocator's on a GPU, this process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
