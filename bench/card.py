"""python -m bench card: what a GPU gives, in one table. `--quick`: within 3 minutes. `--rehearse`: tiny, on a CPU.

Each part (bench/card_parts.py) is a process of its own with a time limit: one that is slow, dies or finds a fault costs
no other its rows, which are printed and written as they come. The exit code is then 2. Weights are random."""

import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time

import torch

from bench.saving import place, save
from support.files import must, read_json
from support.flags import Parser, value

# Seconds that a part may take: with --quick (0: left out), in full. What matters most comes first.
LIMITS = {"rates": (20, 40), "agreement": (20, 40), "chunk a1_2b": (60, 200), "training a1_2b": (60, 120),
          "chunk a1_3b": (60, 240), "control": (40, 60), "training a1_3b": (0, 150), "attention": (0, 60),
          "ranks": (0, 40), "tests": (0, 300), "chunk a1_3b_release": (0, 240)}
QUICK = 180   # seconds of all parts together


def run_part(command, limit, tell):
    """Run a part's process -> "" when it ended well, else what was wrong.

    command: what prints one JSON line [row, figures] a row. limit: seconds. tell: called with each row."""
    fault, began = "", time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
        timer = threading.Timer(limit, os.killpg, (child.pid, signal.SIGKILL))   # with all that it started
        timer.start()
        try:
            for line in child.stdout:
                row, figures = json.loads(line)
                tell(row, figures)
                fault = fault or wrong(row, figures)
            child.wait()
        finally:
            timer.cancel()
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
        errors.seek(0)
        said = errors.read().strip().splitlines() or [f"exit code {child.returncode}"]
    if child.returncode == -signal.SIGKILL and time.monotonic() - began >= limit:
        return f"stopped at its limit of {limit:.0f} s"
    return said[-1][:200] if child.returncode else fault


def wrong(row, figures):
    """What is wrong with a row's figures, "" if nothing is."""
    for name, x in figures.items():
        if not math.isfinite(x):
            return f"{row}: {name} is {x}"
    if "allowed" in figures and figures["difference"] > figures["allowed"]:
        return f"{row}: differs by {figures['difference']:.1e}, {figures['allowed']:.0e} is allowed"
    return ""


def run_parts(args, chosen, report, path):
    """Run the parts one after the other into the report -> {part that was run: its fault or ""}."""
    flags = [f"--{flag}" for flag in ("quick", "rehearse") if getattr(args, flag)]
    began, faults = time.monotonic(), {}
    for name in chosen:
        quick, full = LIMITS[name]
        limit = args.seconds or (quick if args.quick else full)
        if args.quick:
            limit = limit or full if args.parts else min(limit, QUICK - (time.monotonic() - began))
        if limit <= 0:
            print(f"{name}: left out by --quick", flush=True)
            continue
        print(name, flush=True)
        since, part = time.monotonic(), report["parts"].setdefault(name, {"rows": {}})

        def tell(row, figures):
            shown = (f"{key} {x:.4g}" if isinstance(x, float) else f"{key} {x}" for key, x in figures.items())
            print(f"  {row:<46} {'   '.join(shown)}", flush=True)
            part["rows"][row] = {key: x if math.isfinite(x) else None for key, x in figures.items()}   # JSON has no NaN
            save(path, report | {"finished": False})
        faults[name] = run_part([sys.executable, "-m", "bench", "card", "--part", name, *flags], limit, tell)
        part |= {"seconds": round(time.monotonic() - since, 1), "fault": faults[name]}
        if faults[name]:
            print(f"  FAULT  {faults[name]}", flush=True)
    return faults


def run(argv):
    parser = Parser(prog="python -m bench card", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"fewer parts and samples, {QUICK} s at most")
    parser.add_argument("--rehearse", action="store_true", help="the same code with tiny networks, on a CPU")
    parser.add_argument("--parts", help=f"only these, separated by commas: {', '.join(LIMITS)}; a result --json keeps "
                        "its other rows")
    parser.add_argument("--seconds", type=value(float, {"above": 0}), help="of a part at most (default: its own limit)")
    parser.add_argument("--part", choices=LIMITS, help="run this one here and print its rows as JSON")
    parser.add_argument("--json", help="file name under bench/results")
    parser.add_argument("--force", action="store_true", help="write over a finished result")
    args = parser.parse_args(argv)
    must(args.rehearse or torch.cuda.is_available(), "torch sees no GPU here; --rehearse runs the same code on a CPU")
    if args.part:
        from bench.card_parts import PARTS, Card
        name, *preset = args.part.split()
        for row in PARTS[name](Card(args.quick, args.rehearse), *preset):
            print(json.dumps(row), flush=True)
        return
    chosen = [name.strip() for name in args.parts.split(",")] if args.parts else list(LIMITS)
    unknown = [name for name in chosen if name not in LIMITS]
    must(not unknown, f"--parts {', '.join(unknown)}: they are {', '.join(LIMITS)}")
    path = None if args.json is None else place(args.json, args.force or args.parts)
    machine = {"device": "CPU, a rehearsal" if args.rehearse else torch.cuda.get_device_name(),
               "torch": torch.__version__, "python": platform.python_version(), "cpu_cores": os.cpu_count()}
    print(", ".join(f"{key} {x}" for key, x in machine.items()), flush=True)
    report, began = machine | {"commands": [], "parts": {}}, time.monotonic()
    if path and path.exists() and args.parts:
        report = read_json(path)
        must(all(report.get(key) == x for key, x in machine.items()),
             f"{path} is of another machine, or of another torch or python: choose another --json")
    report["commands"].append("python -m bench card " + shlex.join(argv))
    faults = run_parts(args, chosen, report, path)
    save(path, report | {"finished": True})
    found = [f"{name}: {fault}" for name, fault in faults.items() if fault]
    print(f"{len(faults) - len(found)} of {len(faults)} parts without a fault, "
          f"{time.monotonic() - began:.0f} s" + (f"; wrote {path}" if path else ""))
    must(not found, "; ".join(found))
