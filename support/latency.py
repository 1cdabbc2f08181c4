"""How long one action chunk takes: arms side by side in one process, phases, floors, memory, and a control loop's jitter.

`measure` builds a model of full size with random weights (speed does not depend on what they say), runs the plain arm
and the engine interleaved on the same inputs and noise, and compares the engine with what this machine could do at best
(support/roofline.py). `control` drives support/policy.py in real time. bench.py prints both.
"""

import resource
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from data import VIEWS
from support import roofline
from support.engine import Engine, random_batch
from support.plain_arm import PlainArm
from support.policy import Policy
from support.statistics import Statistics
from support.weights import empty_model

PHASES = {"see": "ViT and words", "understand": "understanding", "latents": "VAE encode", "generate": "generation",
          "denoise": "Euler steps", "foresee": "decode: latents", "to_pictures": "decode: pictures"}
PLAIN, MISS, HIT = "plain arm", "engine, both frames encoded", "engine, latents of t-m kept"
FORESIGHT = "engine, kept, future decoded"


@torch.no_grad()
def random_model(config, device, dtype):
    """Full size in its final dtype, filled with the same million normal numbers over and over."""
    model, pool = empty_model(config, device, dtype), 0.02 * torch.randn(1 << 20, device=device)
    pool = pool.to(dtype)
    for name, p in model.named_parameters():
        if name.endswith("norm.weight"):
            p.fill_(1)
        else:
            flat = p.view(-1)
            for first in range(0, len(flat), len(pool)):
                part = flat[first:first + len(pool)]
                part.copy_(pool[:len(part)])
    return model


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(call, device):
    synchronise(device)
    began = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - began


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
    """One run of each call -> {label: roofline.Ledger} of its phases."""
    found = {}

    def around(label, phase, *args):
        with roofline.Ledger() as found[label]:
            return phase(*args)
    with watched(engine, around):
        for call in calls:
            call()
    return found


def timed(engine, calls, device, repeats):
    """{label: seconds of each run}, every phase timed by itself."""
    found = {}

    def around(label, phase, *args):
        out = []
        found.setdefault(label, []).append(seconds_of(lambda: out.append(phase(*args)), device))
        return out[0]
    with watched(engine, around):
        for _ in range(repeats):
            for call in calls:
                call()
    return found


def interleaved(arms, blocks, device):
    """Every arm `2 * blocks` times in the order A B C C B A: {name: seconds of each call}."""
    found = {name: [] for name in arms}
    for _ in range(blocks):
        for name in [*arms, *reversed(arms)]:
            found[name].append(seconds_of(arms[name], device))
    return found


def ratio(one, other, draws=2000):
    """Median of `one` over median of `other` with a bootstrapped 95 % interval: (ratio, low, high)."""
    random = np.random.default_rng(0)
    one, other = np.array(one), np.array(other)

    def medians(x):
        return np.median(x[random.integers(len(x), size=(draws, len(x)))], 1)
    low, high = np.percentile(medians(one) / medians(other), (2.5, 97.5))
    return float(np.median(one) / np.median(other)), float(low), float(high)


def peak_memory(device):
    """Gigabytes at the highest point so far, all arms together: of the GPU's allocator, or of this whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def cases(euler):
    """Which phases each kind of call consists of."""
    common = [PHASES["see"], PHASES["understand"]]
    return {MISS: [*common, "VAE encode, 6 frames", PHASES["generate"], euler],
            HIT: [*common, "VAE encode, 3 frames", PHASES["generate"], euler],
            FORESIGHT: [*common, "VAE encode, 3 frames", "generation to the end", PHASES["foresee"], euler,
                        PHASES["to_pictures"]]}


def measure(config, device, dtype, mode="eager", blocks=5, compiled_arm=False, euler_steps=None):
    """All figures of one chunk as a dict that json can write. config: ModelConfig of a full-size preset."""
    device = torch.device(device)
    torch.manual_seed(0)
    model = random_model(replace(config, und_tail=True), device, dtype)   # the tail is for the plain arm alone
    plain, engine = PlainArm(model), Engine(model, mode)
    parts = engine if mode == "compile" else engine.eager()   # a recorded graph has no phases: its parts, launched singly
    batch, eps = random_batch(config), torch.randn(1, config.chunk, config.action_dim)   # the engine copies them itself
    there = batch.to(device), eps.to(device)
    z_past = parts(batch, eps).z   # as if o_t were o_{t-m}: the values do not matter here

    arms = {PLAIN: lambda: plain(*there), MISS: lambda: engine(batch, eps), HIT: lambda: engine(batch, eps, z_past)}
    if compiled_arm:
        squeezed = torch.compile(plain, mode="max-autotune")
        arms["plain arm, torch.compile"] = lambda: squeezed(*there)
    first = {name: seconds_of(arm, device) for name, arm in arms.items()}
    reference, ours = plain(*there), engine(batch, eps).actions
    report = {"engine": mode, "tokens": [model.layout.n_und, model.layout.n_gen, model.layout.n_act], "first_call_s": first,
              "action_rms": rms(reference), "difference_rms": rms(ours - reference), "engine_report": engine.report}
    seconds = interleaved(arms, blocks, device)
    report["arms"] = {name: spread(found) | {"action_hz": config.chunk / float(np.median(found)), "seconds": found}
                      for name, found in seconds.items()}
    report["ratios"] = {name: ratio(found, seconds[PLAIN]) for name, found in seconds.items() if name != PLAIN}
    report["encode_ahead"] = spread([seconds_of(lambda: engine.to_latents(batch.frames[:, :, :1].to(device)), device)
                                     for _ in range(2 * blocks)])

    def foresee():
        parts.to_pictures(parts(batch, eps, z_past, imagine=True).z_hat)
    calls = [lambda: parts(batch, eps), lambda: parts(batch, eps, z_past), foresee]
    phases = timed(parts, calls, device, max(2, 1 + blocks // 2))
    report["peak_memory_gb"] = peak_memory(device)
    report["probes"] = roofline.probes(device, dtype)
    eager = engine.eager()
    ledgers = record(eager, [lambda: eager(batch, eps), lambda: eager(batch, eps, z_past),
                             lambda: eager.to_pictures(eager(batch, eps, z_past, imagine=True).z_hat)])
    report["phases"] = floors(ledgers, phases, report["probes"], device)
    report["totals"] = totals(report["phases"])
    for name in (MISS, HIT):   # the whole call, as it is launched in this mode
        report["arms"][name]["peak_fraction"] = report["totals"][name]["peak_floor_s"] / report["arms"][name]["p50_s"]
    if device.type == "cuda":
        report["predicted_4090_s"] = predictions(ledgers, report["arms"])
    if euler_steps:
        few = engine.eager(euler_steps)
        report["fewer_steps"] = {"steps": euler_steps, "action_error_rms": rms(few(batch, eps).actions - ours)} | spread(
            [seconds_of(lambda: few(batch, eps, z_past), device) for _ in range(blocks)])
    return report


def rms(x):
    return x.float().square().mean().sqrt().item()


def spread(seconds):
    p50, p95 = np.percentile(seconds, (50, 95)).tolist()
    return {"p50_s": p50, "p95_s": p95, "hz": 1 / p50}


def floors(ledgers, phases, probes, device):
    """Per phase: times, launches, work and both floors -> {label: row}."""
    alone = roofline.shape_times([seen.work for seen in ledgers.values()], device)
    peak, copy = 1e12 * probes["large_gemm_tflop_s"], 1e9 * probes["copy_gb_s"]
    rows = {}
    for label, seen in ledgers.items():
        rows[label] = spread(phases[label][1:]) | {   # the first run touches new buffers, or compiles
            "launches": sum(seen.operations.values()), "gflop": roofline.total_flops(seen.work) / 1e9,
            "shape_floor_s": roofline.shape_floor(seen.work, alone),
            "peak_floor_s": roofline.peak_floor(seen.work, peak, copy)}
    return rows


def predictions(ledgers, arms):
    """Seconds of the engine's arms on an RTX 4090, each from the fraction of its peak floor that it reached here."""
    return {name: sum(roofline.predict_4090(ledgers[label].work, arms[name]["peak_fraction"])
                      for label in cases(PHASES["denoise"])[name]) for name in (MISS, HIT)}


def totals(rows):
    """The phases of each kind of call, added up; fraction: the share of the measured time that the floor needs."""
    found = {}
    for name, labels in cases(PHASES["denoise"]).items():
        row = {key: sum(rows[label][key] for label in labels)
               for key in ("p50_s", "launches", "gflop", "shape_floor_s", "peak_floor_s")}
        found[name] = row | {"shape_fraction": row["shape_floor_s"] / row["p50_s"],
                             "peak_fraction": row["peak_floor_s"] / row["p50_s"]}
    return found


# ---- printing ---------------------------------------------------------------------------------------------------

def lines(report):
    """The report as a table."""
    yield (f"{'arm':<32}{'p50 s':>8}{'p95 s':>8}{'chunks/s':>10}{'actions/s':>11}{'of peak floor':>15}   "
           f"time over the plain arm's [95 % interval]")
    for name, row in report["arms"].items():
        against = report["ratios"].get(name)
        shown = f"   {against[0]:.3f} [{against[1]:.3f}, {against[2]:.3f}]" if against else ""
        reached = f"{row['peak_fraction']:15.0%}" if "peak_fraction" in row else " " * 15
        yield f"{name:<32}{row['p50_s']:8.3f}{row['p95_s']:8.3f}{row['hz']:10.3f}{row['action_hz']:11.1f}{reached}{shown}"
    ahead, hit = report["encode_ahead"], report["arms"][HIT]
    yield (f"latents kept: {hit['p50_s']:.3f} s on the critical path; where t-m was not itself planned from, its "
           f"frames are encoded ahead in {ahead['p50_s']:.3f} s: {hit['p50_s'] + ahead['p50_s']:.3f} s in all")
    yield (f"equality: actions of the engine and of the plain arm differ by {report['difference_rms']:.1e} rms, "
           f"their own rms is {report['action_rms']:.2f}")
    if report["engine_report"]:
        yield report["engine_report"]
    probes = report["probes"]
    yield (f"this machine: copy {probes['copy_gb_s']:.1f} GB/s, large product {probes['large_gemm_tflop_s']:.2f} TFLOP/s, "
           f"51 x 1024 x 4096 product {probes['gemm_m51_tflop_s']:.2f} TFLOP/s; peak memory of all arms "
           f"together {report['peak_memory_gb']:.1f} GB")
    if report["engine"] == "graph":
        yield "phases, launched one by one, eagerly: the graph has none"
    yield (f"{'phase':<32}{'p50 s':>8}{'p95 s':>8}{'launches':>10}{'GFLOP':>9}{'shape floor':>13}{'reached':>9}"
           f"{'peak floor':>12}{'reached':>9}")
    for label, row in [*report["phases"].items(), *((f"= {name}", row) for name, row in report["totals"].items())]:
        p95 = f"{row['p95_s']:8.3f}" if "p95_s" in row else " " * 8
        shape, peak = row["shape_floor_s"], row["peak_floor_s"]
        yield (f"{label:<32}{row['p50_s']:8.3f}{p95}{row['launches']:10,}{row['gflop']:9.0f}{shape:13.3f}"
               f"{shape / row['p50_s']:9.0%}{peak:12.3f}{peak / row['p50_s']:9.0%}")
    if "fewer_steps" in report:
        few = report["fewer_steps"]
        yield (f"{few['steps']} Euler steps: {few['p50_s']:.3f} s with latents kept; actions move by "
               f"{few['action_error_rms']:.1e} rms (random weights)")
    for name, seconds in report.get("predicted_4090_s", {}).items():
        yield (f"prediction, not a measurement, for an RTX 4090: {1e3 * seconds:.1f} ms, {name}: its floor at 165 TFLOP/s "
               f"and 1008 GB/s over the {report['arms'][name]['peak_fraction']:.0%} of the floor reached here")


# ---- a control loop ---------------------------------------------------------------------------------------------

def control(config, device, dtype, mode, seconds, fps=30.0):
    """policy.step in real time at `fps`, without and with replanning in the background -> {name: timing dict}.

    A step that takes longer than 1 / fps makes the loop late; `late` counts them. The first step of an episode, which
    waits for its plan, is not among the figures. config: Config of a preset.
    """
    model, d = random_model(config.model, torch.device(device), dtype), 14
    stats = Statistics("bench", "absolute", fps, (0.0,) * d, (1.0,) * d, (0.0,) * d, (1.0,) * d, 0)
    policy, random = Policy(model, config, stats, engine=mode), np.random.default_rng(0)
    pictures = [{view: random.integers(0, 256, (240, 320, 3), dtype=np.uint8) for view in VIEWS} for _ in range(8)]
    found = {}
    for name, background in (("planned in the step", False), ("planned in the background", True)):
        policy.reset("go", fps=fps, execute_steps=config.model.chunk // 2, background=background)
        policy.step(pictures[0], np.zeros(d))   # the first plan has to be waited for
        policy.run.seconds.clear()
        due, late = time.perf_counter(), 0
        for t in range(round(seconds * fps)):
            policy.step(pictures[t % 8], np.zeros(d))
            due += 1 / fps
            left = due - time.perf_counter()
            late += left < 0
            time.sleep(max(left, 0))
            due = max(due, time.perf_counter() - 1 / fps)
        found[name] = policy.timing() | {"late": late}
        policy.close()
    return found
