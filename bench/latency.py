"""How long one action chunk takes: arms side by side in one process, phases, floors, memory, and a control loop's jitter.

`measure` builds a model of full size with random weights (speed does not depend on what they say), runs the plain arm
and the engine interleaved on the same inputs and noise, and compares the engine with what this machine could do at best
(bench/roofline.py). `control` drives support/inference/policy.py in real time. bench.py prints both.
"""

import resource
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from data import VIEWS
from bench import roofline
from support.inference.engine import Engine, random_batch
from bench.plain_arm import PlainArm
from support.inference.policy import Policy
from support.data.statistics import Statistics
from support.weights.loading import empty_model

PHASES = {"see": "ViT and words", "understand": "understanding", "latents": "VAE encode", "generate": "generation",
          "denoise": "Euler steps", "foresee": "decode: latents", "to_pictures": "decode: pictures"}
PLAIN, MISS, HIT = "plain arm", "engine, both frames encoded", "engine, latents of t-m kept"
FORESIGHT = "engine, kept, future decoded"
SEED = 0   # of the random weights and the noise


@torch.no_grad()
def random_model(config, device, dtype):
    """Full size in its final dtype, filled with the same million normal numbers over and over."""
    torch.manual_seed(SEED)
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


def cpu_seconds_of(call, device):
    """Processor time of this process until the call returns; on a GPU its work may still be going on."""
    synchronise(device)
    began = time.process_time()
    call()
    return time.process_time() - began


def first_call(call, device):
    """{"first_call_s"} and, on a GPU, {"peak_memory_gb"}: the allocator's during the call, all arms' weights included.

    A CUDA graph's own memory is counted where the graph is recorded, which for MISS and HIT is the engine's start-up.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    row = {"first_call_s": seconds_of(call, device)}
    return row | {"peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9} if device.type == "cuda" else row


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


def cases(euler):
    """Which phases each kind of call consists of."""
    common = [PHASES["see"], PHASES["understand"]]
    return {MISS: [*common, "VAE encode, 6 frames", PHASES["generate"], euler],
            HIT: [*common, "VAE encode, 3 frames", PHASES["generate"], euler],
            FORESIGHT: [*common, "VAE encode, 3 frames", "generation to the end", PHASES["foresee"], euler,
                        PHASES["to_pictures"]]}


def measure(config, device, dtype, mode="eager", blocks=4, compiled_arm=False, euler_steps=None):
    """All figures of one chunk as a dict that json can write. config: ModelConfig of a full-size preset."""
    device, made = torch.device(device), []
    model = random_model(replace(config, und_tail=True), device, dtype)   # the tail is for the plain arm alone
    plain = PlainArm(model)
    startup = first_call(lambda: made.append(Engine(model, mode)), device)
    batch, eps = random_batch(config), torch.randn(1, config.chunk, config.action_dim)   # the engine copies them itself
    there = batch.to(device), eps.to(device)
    z_past = torch.randn(1, 3, 16, config.latent_grid, config.latent_grid, device=device)

    def calls(engine):
        return {MISS: lambda: engine(batch, eps), HIT: lambda: engine(batch, eps, z_past),
                FORESIGHT: lambda: engine.to_pictures(engine(batch, eps, z_past, imagine=True).z_hat)}
    engine, = made
    arms = {PLAIN: lambda: plain(*there)} | calls(engine)
    if compiled_arm:
        squeezed = torch.compile(plain, mode="max-autotune")
        arms["plain arm, torch.compile"] = lambda: squeezed(*there)
    first = {name: first_call(arm, device) for name, arm in arms.items()}
    reference, ours = plain(*there), engine(batch, eps).actions
    report = {"engine": mode, "tokens": [model.layout.n_und, model.layout.n_gen, model.layout.n_act], "startup": startup,
              "action_rms": rms(reference), "difference_rms": rms(ours - reference), "engine_report": engine.report}
    seconds = interleaved(arms, blocks, device)
    report["arms"] = {name: first[name] | spread(found) | {"action_hz": config.chunk / float(np.median(found)),
                                                           "seconds": found} for name, found in seconds.items()}
    report["ratios"] = {name: ratio(found, seconds[PLAIN]) for name, found in seconds.items() if name != PLAIN}
    report["encode_ahead"] = spread([seconds_of(lambda: engine.to_latents(batch.frames[:, :, :1].to(device)), device)
                                     for _ in range(2 * blocks)])
    eager = engine.eager()
    parts = engine if mode == "compile" else eager   # a recorded graph has no phases: its parts, launched singly
    phases = timed(parts, calls(parts).values(), device, max(3, blocks // 2))
    if device.type == "cpu":
        report["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    report["probes"] = roofline.probes(device, dtype)
    ledgers = record(eager, calls(eager).values())
    report["phases"] = floors(ledgers, phases, report["probes"], device)
    report["totals"] = totals(report["phases"])
    for name, row in report["totals"].items():   # the whole call, as it is launched in this mode
        report["arms"][name]["peak_fraction"] = row["peak_floor_s"] / report["arms"][name]["p50_s"]
    if euler_steps:
        # In the same mode; compiled, a second engine with weights of its own, after every peak was taken.
        few = engine.eager(euler_steps) if mode == "eager" else Engine(model, mode, euler_steps)
        moved = rms(few(batch, eps).actions - ours)
        calls(few)[HIT]()
        report["fewer_steps"] = {"steps": euler_steps, "action_error_rms": moved} | spread(
            [seconds_of(calls(few)[HIT], device) for _ in range(2 * blocks)])
    if device.type == "cuda":
        add_gpu_figures(report, arms, ledgers, blocks, device, dtype)
    return report


def add_gpu_figures(report, arms, ledgers, blocks, device, dtype):
    """What a run on a GPU alone has: processor time and kernels of a call of each arm, and the prediction for an RTX 4090."""
    for name, arm in arms.items():
        seconds = [cpu_seconds_of(arm, device) for _ in range(2 * blocks)]
        report["arms"][name]["cpu_ms"] = 1e3 * float(np.median(seconds))
    for name, arm in arms.items():   # last of all: what runs after a profiler is slower
        report["arms"][name]["kernels"] = roofline.kernels(arm)
    if report["engine"] == "graph" and dtype == torch.bfloat16:   # launched singly, the CPU decides
        report["predicted_4090_s"] = predictions(ledgers, report["arms"])


def rms(x):
    return x.float().square().mean().sqrt().item()


def spread(seconds):
    """calls, p50_s, hz; p95_s from 20 samples on and p99_s from 100 on, else None: fewer do not say."""
    n, (p50, p95, p99) = len(seconds), np.percentile(seconds, (50, 95, 99)).tolist()
    return {"calls": n, "p50_s": p50, "p95_s": p95 if n >= 20 else None, "p99_s": p99 if n >= 100 else None, "hz": 1 / p50}


def floors(ledgers, phases, probes, device):
    """Per phase: times, operations that the eager engine launches, work and both floors -> {label: row}."""
    alone = roofline.shape_times([seen.work for seen in ledgers.values()], device)
    peak, copy = 1e12 * probes["large_gemm_tflop_s"], 1e9 * probes["copy_gb_s"]
    rows = {}
    for label, seen in ledgers.items():
        rows[label] = spread(phases[label]) | {
            "eager_ops": sum(seen.operations.values()), "gflop": roofline.total_flops(seen.work) / 1e9,
            "shape_floor_s": roofline.shape_floor(seen.work, alone),
            "peak_floor_s": roofline.peak_floor(seen.work, peak, copy)}
    return rows


def predictions(ledgers, arms):
    """Predicted seconds of the engine's arms on an RTX 4090, from their phases' work and the kernels counted here, if any."""
    return {name: roofline.predict_4090(sum((ledgers[label].work for label in labels), Counter()), arms[name]["kernels"])
            for name, labels in cases(PHASES["denoise"]).items() if arms[name]["kernels"]}


def totals(rows):
    """The phases of each kind of call, added up; fraction: the share of the measured time that the floor needs."""
    found = {}
    for name, labels in cases(PHASES["denoise"]).items():
        row = {key: sum(rows[label][key] for label in labels)
               for key in ("p50_s", "eager_ops", "gflop", "shape_floor_s", "peak_floor_s")}
        found[name] = row | {"shape_fraction": row["shape_floor_s"] / row["p50_s"],
                             "peak_fraction": row["peak_floor_s"] / row["p50_s"]}
    return found


# ---- printing ---------------------------------------------------------------------------------------------------

def ms(seconds, width=10):
    """A cell in milliseconds; blank where there is no figure."""
    return " " * width if seconds is None else f"{1e3 * seconds:{width}.2f}"


def lines(report):
    """The report as a table."""
    yield (f"{'arm':<30}{'calls':>6}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}{'chunks/s':>10}{'actions/s':>11}"
           f"{'of peak floor':>15}   time over the plain arm's [95 % interval]")
    for name, row in report["arms"].items():
        middle, low, high = report["ratios"].get(name, (None, None, None))
        shown = (f"   {middle:.3f}" if middle else "") + (f" [{low:.3f}, {high:.3f}]" if low else "")
        reached = f"{row['peak_fraction']:15.0%}" if "peak_fraction" in row else " " * 15
        yield (f"{name:<30}{row['calls']:6}{ms(row['p50_s'])}{ms(row['p95_s'])}{ms(row['p99_s'])}{row['hz']:10.3f}"
               f"{row['action_hz']:11.1f}{reached}{shown}".rstrip())
    yield "p95 from 20 calls on, p99 from 100, the interval from 8"
    for name, row in report["arms"].items():
        if "kernels" in row:
            yield (f"{name}: {row['cpu_ms']:.2f} ms of processor time a call, {row['kernels']:,} kernels, peak memory "
                   f"{row['peak_memory_gb']:.1f} GB with all arms' weights")
    ahead, hit = report["encode_ahead"], report["arms"][HIT]
    yield (f"latents kept: {ms(hit['p50_s'], 0)} ms on the critical path; where t-m was not itself planned from, its "
           f"frames are encoded ahead in {ms(ahead['p50_s'], 0)} ms: {ms(hit['p50_s'] + ahead['p50_s'], 0)} ms in all")
    yield (f"equality: actions of the engine and of the plain arm differ by {report['difference_rms']:.1e} rms, "
           f"their own rms is {report['action_rms']:.2f}")
    if report["engine_report"]:
        yield report["engine_report"]
    startup, probes = report["startup"], report["probes"]
    memory = f", peak memory {startup['peak_memory_gb']:.1f} GB" if "peak_memory_gb" in startup else \
        f"; peak memory of all arms together {report['peak_memory_gb']:.1f} GB"
    yield f"start-up of the engine {startup['first_call_s']:.1f} s{memory}"
    yield (f"this machine: copy {probes['copy_gb_s']:.1f} GB/s, large product {probes['large_gemm_tflop_s']:.2f} TFLOP/s, "
           f"51 x 1024 x 4096 product {probes['gemm_m51_tflop_s']:.2f} TFLOP/s")
    yield from phase_lines(report)
    if "fewer_steps" in report:
        few = report["fewer_steps"]
        yield (f"{few['steps']} Euler steps: {ms(few['p50_s'], 0)} ms with latents kept; actions move by "
               f"{few['action_error_rms']:.1e} rms (random weights)")
    for name, seconds in report.get("predicted_4090_s", {}).items():
        yield (f"prediction, not a measurement, for an RTX 4090: {ms(seconds, 0)} ms, {name}: each operation at 75 % of 165 "
               f"TFLOP/s or 85 % of 1008 GB/s, and 1.2 us for each of {report['arms'][name]['kernels']:,} kernels")


def phase_lines(report):
    yield "eager ops: operations that the eager engine launches" + (
        "; phases launched one by one, eagerly: the graph has none" if report["engine"] == "graph" else "")
    yield (f"{'phase':<32}{'calls':>6}{'p50 ms':>10}{'p95 ms':>10}{'eager ops':>11}{'GFLOP':>9}{'shape floor':>13}"
           f"{'reached':>9}{'peak floor':>12}{'reached':>9}")
    for label, row in [*report["phases"].items(), *((f"= {name}", row) for name, row in report["totals"].items())]:
        shape, peak = row["shape_floor_s"], row["peak_floor_s"]
        yield (f"{label:<32}{row.get('calls', ''):6}{ms(row['p50_s'])}{ms(row.get('p95_s'))}{row['eager_ops']:11,}"
               f"{row['gflop']:9.0f}{ms(shape, 13)}{shape / row['p50_s']:9.0%}{ms(peak, 12)}{peak / row['p50_s']:9.0%}")


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
        policy.loop.seconds.clear()
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
