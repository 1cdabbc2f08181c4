"""python -m bench latency: how long one action chunk takes, or with --control what a control loop feels.

A chunk is timed as model.py computes it and as the engine does, and then phase by phase (bench/chunk.py). The floor
of a phase is the time that its products take at this machine's own rates (bench/roofline.py). All weights are random.
"""

import os
import platform
import re
from pathlib import Path

import torch

from bench.chunk import HIT, SEED, measure, random_model
from bench.control import control
from bench.saving import place, save
from config import get_config
from support.flags import Parser
from support.inference.engine import MODES, default_mode


def ms(seconds, width=0):
    return f"{1e3 * seconds:{width}.2f}"


def lines(report):
    """The report as tables."""
    yield (f"{'arm':<30}{'calls':>6}{'p50 ms':>11}{'min':>11}{'max':>11}{'chunks/s':>10}"
           "   time over model.py's [95 % interval]")
    for name, row in report["arms"].items():
        middle, low, high = report["ratios"].get(name, (None, None, None))
        shown = (f"   {middle:.3f}" if middle else "") + (f" [{low:.3f}, {high:.3f}]" if low else "")
        yield (f"{name:<30}{row['calls']:6}{ms(row['p50_s'], 11)}{ms(row['min_s'], 11)}{ms(row['max_s'], 11)}"
               f"{1 / row['p50_s']:10.3f}{shown}")
    ahead, hit = report["encode_ahead"]["p50_s"], report["arms"][HIT]["p50_s"]
    yield (f"latents kept: {ms(hit)} ms. Where t-m was not itself planned from, its frames are encoded ahead in "
           f"{ms(ahead)} ms: {ms(hit + ahead)} ms in all.")
    yield (f"equality: actions of the engine and of model.py differ by {report['difference_rms']:.1e} rms; their own "
           f"rms is {report['action_rms']:.2f}")
    if report["engine_report"]:
        yield report["engine_report"]
    yield f"start-up of the engine {report['startup_s']:.1f} s; peak memory {report['peak_memory_gb']:.1f} GB in all"
    if "fewer_steps" in report:
        few = report["fewer_steps"]
        yield (f"{few['steps']} Euler steps: {ms(few['p50_s'])} ms with latents kept; actions move by "
               f"{few['action_error_rms']:.1e} rms (random weights)")
    found = report["rates"]
    yield (f"\nfloor: each product at this machine's {found['tflop_s']:.2f} TFLOP/s or {found['gb_s']:.1f} GB/s, the "
           "slower of the two")
    if report["engine"] == "graph":
        yield "phases are launched one by one: a recorded graph has none"
    yield f"{'phase':<32}{'p50 ms':>10}{'operations':>12}{'GFLOP':>9}{'GB':>8}{'floor ms':>10}{'reached':>9}"
    for label, row in [*report["phases"].items(), *((f"= {name}", row) for name, row in report["totals"].items())]:
        yield (f"{label:<32}{ms(row['p50_s'], 10)}{row['operations']:12,}{row['gflop']:9.0f}{row['gb']:8.2f}"
               f"{ms(row['floor_s'], 10)}{row['floor_s'] / row['p50_s']:9.0%}")


# ---- the command ------------------------------------------------------------------------------------------------

def processor():
    """The CPU's model as Linux names it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def conditions(args, config):
    """What the figures depend on. ONEDNN_MAX_CPU_ISA, where it is set, decides about every product on a CPU."""
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {"command": "python -m bench latency " + " ".join(args.argv), "config": args.config, "dtype": args.dtype,
            "device": where, "processor": processor(), "torch": torch.__version__, "engine": args.engine,
            "euler_steps": config.model.euler_steps, "weights_seed": SEED,
            "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA")}


def check_flags(args):
    """ValueError, one line, for what cannot be measured."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here; leave it out")
    if args.engine == "graph" and args.device != "cuda":
        raise ValueError("--engine graph records a CUDA graph: add --device cuda, or use eager or compile")
    for flag in ("blocks", "euler_steps"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise ValueError(f"--{flag} must be at least 1, got {getattr(args, flag)}")
        if args.control is not None and getattr(args, flag):
            raise ValueError(f"--control times a control loop, without --{flag}: leave it out")
    if args.control is not None and not args.control >= 1 / 30:
        raise ValueError(f"--control {args.control:g}: give the seconds to drive, at least one step of 1/30")


def parse(argv):
    parser = Parser(prog="python -m bench latency", description=__doc__)
    parser.add_argument("--config", default="a1_3b_release", help="preset (default: a1_3b_release)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--engine", choices=MODES, help="default: graph on a GPU, eager on a CPU")
    parser.add_argument("--blocks", type=int, help="each arm runs twice as often (default: 30 on a GPU, 4 on a CPU)")
    parser.add_argument("--euler_steps", type=int, help="also time fewer steps, and how far the actions move")
    parser.add_argument("--control", type=float, metavar="SECONDS", help="drive a control loop at 30 Hz instead")
    parser.add_argument("--json", help="file name under bench/results")
    parser.add_argument("--force", action="store_true", help="write over a finished result")
    args = parser.parse_args(argv)
    args.argv, args.engine = argv, args.engine or default_mode(args.device)
    return args


def run(argv):
    args = parse(argv)
    check_flags(args)
    path = args.json and place(args.json, args.force)
    config, dtype = get_config(args.config), getattr(torch, args.dtype)
    report = conditions(args, config)
    print(", ".join(f"{key} {value}" for key, value in report.items() if key != "command" and value is not None),
          flush=True)
    if args.control is not None:
        model = random_model(config.model, torch.device(args.device), dtype)
        report["control"] = control(model, config, args.engine, args.control)
        for name, row in report["control"].items():
            print(f"{name:<26} step p50 {row['p50_ms']:7.2f} ms  p99 {row['p99_ms']:8.2f}  max {row['max_ms']:8.2f}   "
                  f"{row['steps']} steps, {row['plans']} plans, {row['starved']} starved, {row['late']} late")
        print("without the first step of each, which waits for its plan")
    else:
        blocks = args.blocks or (30 if args.device == "cuda" else 4)
        report |= measure(config.model, args.device, dtype, args.engine, blocks, args.euler_steps)
        print(f"{' + '.join(map(str, report['tokens']))} tokens; every arm {2 * blocks} times, interleaved")
        print("\n".join(lines(report)))
    if path:
        save(path, report)
