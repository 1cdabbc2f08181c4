"""python -m bench latency: how long one action chunk takes, or with --control what a control loop feels. A chunk is
timed as model.py computes it, as the engine does, and phase by phase (bench/chunk.py). Weights are random."""

import os
import platform
import re
import time
from pathlib import Path

import numpy as np
import torch

from bench.chunk import HIT, READ, measure, random_model
from bench.saving import begin, save
from config import VIEWS, get_config
from support.data.statistics import Statistics
from support.files import must
from support.flags import COUNT, Parser, value
from support.inference.engine import MODES, default_mode
from support.inference.policy import Policy

FPS = 30.0   # of the control loop


def lines(report):
    """The report as tables."""
    yield f"{'call':<30}{'samples':>8}{'p50 ms':>11}{'min':>11}{'max':>11}{'chunks/s':>10}{'of model.py':>13}"
    for name, row in report["calls"].items():
        median, low, high = row["p50_s"], row["min_s"], row["max_s"]
        yield (f"{name:<30}{row['samples']:8}{1e3 * median:11.2f}{1e3 * low:11.2f}{1e3 * high:11.2f}"
               f"{1 / median:10.3f}{median / report['calls'][READ]['p50_s']:13.3f}")
    ahead, hit = 1e3 * report["encode_ahead"]["p50_s"], 1e3 * report["calls"][HIT]["p50_s"]
    yield f"latents kept: {hit:.2f} ms, and where no plan was made at t-m {ahead:.2f} ms to encode its frames ahead"
    share = report["difference_rms"] / report["action_rms"]
    yield f"equality: actions of the engine differ from those of model.py by {share:.1e} of their size (rms)"
    if report["engine_report"]:
        yield report["engine_report"]
    yield f"start-up of the engine {report['startup_s']:.1f} s; peak memory {report['peak_memory_gb']:.1f} GB in all"
    if report["engine"] == "graph":
        yield "phases are launched one by one: a recorded graph has none"
    product = report["product_tflop_s"]
    yield f"\na large matrix product reaches {product:.2f} TFLOP/s here; share: of that rate"
    for name, rows in report["phases"].items():
        yield f"{name:<32}{'p50 ms':>10}{'GFLOP':>9}{'TFLOP/s':>9}{'share':>7}"
        for label, row in rows.items():
            rate = row["gflop"] / row["p50_s"] / 1e3
            yield f"  {label:<30}{1e3 * row['p50_s']:10.2f}{row['gflop']:9.1f}{rate:9.2f}{rate / product:7.0%}"


def control(model, config, mode, seconds):
    """policy.step in real time, without and with replanning in the background -> {name: timing dict}. `late` counts
    the steps that take longer than 1 / FPS. The first step of an episode, which waits for its plan, is left out."""
    zeros, ones = (0.0,) * 14, (1.0,) * 14
    stats = Statistics("bench", "absolute", FPS, zeros, ones, zeros, ones, 0)
    policy, random = Policy(model, config, stats, engine=mode), np.random.default_rng(0)
    pictures, found = {view: random.integers(0, 256, (240, 320, 3), dtype=np.uint8) for view in VIEWS}, {}
    for name, background in (("planned in the step", False), ("planned in the background", True)):
        policy.reset("go", fps=FPS, execute_steps=config.model.chunk // 2, background=background)
        policy.step(pictures, np.zeros(14))   # the first plan has to be waited for
        policy.loop.seconds.clear()
        due, late = time.perf_counter(), 0
        for _ in range(round(seconds * FPS)):
            policy.step(pictures, np.zeros(14))
            due += 1 / FPS
            left = due - time.perf_counter()
            late += left < 0
            time.sleep(max(left, 0))
            due = max(due, time.perf_counter() - 1 / FPS)
        found[name] = policy.timing() | {"late": late}
        policy.close()
    return found


def processor():
    """The CPU's model as Linux names it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def run(argv):
    parser = Parser(prog="python -m bench latency", description=__doc__)
    parser.add_argument("--config", default="a1_3b_release", help="preset (default: a1_3b_release)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--engine", choices=MODES, help="default: graph on a GPU, eager on a CPU")
    parser.add_argument("--blocks", type=value(int, COUNT), help="calls run twice as often (default: 4, on a GPU 30)")
    parser.add_argument("--control", type=value(float, {"at_least": 0.1}), help="seconds of a control loop at 30 Hz")
    args, path, report = begin(parser, argv)
    cuda, engine = args.device == "cuda", args.engine or default_mode(args.device)
    must(not cuda or torch.cuda.is_available(), "--device cuda: torch sees no GPU here; leave it out")
    must(cuda or engine != "graph", "--engine graph records a CUDA graph: add --device cuda, or use eager or compile")
    config, dtype = get_config(args.config), getattr(torch, args.dtype)
    # ONEDNN_MAX_CPU_ISA, where it is set, decides about every product on a CPU.
    report |= {"config": args.config, "dtype": args.dtype, "processor": processor(), "engine": engine,
               "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
               "euler_steps": config.model.euler_steps, "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA")}
    print(", ".join(f"{key} {x}" for key, x in report.items() if key != "command" and x is not None), flush=True)
    if args.control is not None:
        model = random_model(config.model, torch.device(args.device), dtype)
        report["control"] = control(model, config, engine, args.control)
        for name, row in report["control"].items():
            print(f"{name:<26} step p50 {row['p50_ms']:7.2f} ms  p99 {row['p99_ms']:8.2f}  max {row['max_ms']:8.2f}   "
                  f"{row['steps']} steps, {row['plans']} plans, {row['starved']} starved, {row['late']} late")
        print("without the first step of each, which waits for its plan")
    else:
        blocks = args.blocks or (30 if cuda else 4)
        report |= measure(config.model, args.device, dtype, engine, blocks)
        print(f"{' + '.join(map(str, report['tokens']))} tokens; every call {2 * blocks} times, interleaved")
        print("\n".join(lines(report)))
    save(path, report)
