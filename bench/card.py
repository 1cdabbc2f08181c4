"""python -m bench card: what a GPU gives, in one table. `--quick`: within 3 minutes. `--rehearse`: tiny, on a CPU.

Each part (bench/card_parts.py) is a process of its own with a time limit. A part that is slow, runs out of memory, dies
or finds a fault loses its own remaining rows and no other's. Rows are printed, and with --json written, as they come.
The end is exit code 1 if any part has a fault. Weights are random."""

import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time

import torch

from bench.saving import place, save
from support.files import must
from support.flags import Parser

# Seconds that a part may take: with --quick (0: left out), in full. What matters most comes first.
LIMITS = {"rates": (20, 40), "agreement": (20, 40), "chunk a1_2b": (60, 200), "training a1_2b": (60, 120),
          "chunk a1_3b": (60, 240), "control": (40, 60), "training a1_3b": (0, 150), "attention": (0, 60),
          "ranks": (0, 40), "tests": (0, 300), "chunk a1_3b_release": (0, 240), "conveyor": (0, 240)}
QUICK = 180   # seconds of all parts together


def run_part(command, limit, tell):
    """Run a part's process -> (status, {row: figures}). The status is "" when it ended well, else what was wrong.

    command: what prints one JSON line [row, figures] a row. limit: seconds. tell: called with each row."""
    rows, fault, slow = {}, "", threading.Event()
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)

        def stop():
            slow.set()
            os.killpg(child.pid, signal.SIGKILL)   # with all that it started
        timer = threading.Timer(limit, stop)
        timer.start()
        try:
            for line in child.stdout:
                row, figures = json.loads(line)
                rows[row] = figures
                tell(row, figures)
                fault = fault or wrong(row, figures)
            child.wait()
        finally:
            timer.cancel()
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
        errors.seek(0)
        said = errors.read().strip().splitlines() or [f"exit code {child.returncode}"]
    if slow.is_set():
        return f"stopped at its limit of {limit:.0f} s", rows
    return said[-1][:200] if child.returncode else fault, rows


def wrong(row, figures):
    """What is wrong with a row's figures, "" if nothing is."""
    numbers = {name: x for name, x in figures.items() if isinstance(x, (int, float))}
    if broken := [name for name, x in numbers.items() if not math.isfinite(x)]:
        return f"{row}: {broken[0]} is {numbers[broken[0]]}"
    if "allowed" in figures and figures["difference"] > figures["allowed"]:
        return f"{row}: differs by {figures['difference']:.1e}, {figures['allowed']:.0e} is allowed"
    return ""


def told(row, figures):
    """A row of the table."""
    shown = (f"{name} {x:.4g}" if isinstance(x, float) else f"{name} {x}" for name, x in figures.items())
    print(f"  {row:<46} {'   '.join(shown)}", flush=True)


def run(argv):
    parser = Parser(prog="python -m bench card", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"fewer parts and samples, {QUICK} s at most")
    parser.add_argument("--rehearse", action="store_true", help="the same code with tiny networks, on a CPU")
    parser.add_argument("--parts", help=f"only these, separated by commas: {', '.join(LIMITS)}")
    parser.add_argument("--part", choices=LIMITS, help="run this one here and print its rows as JSON")
    parser.add_argument("--json", help="file name under bench/results")
    parser.add_argument("--force", action="store_true", help="write over a finished result")
    args = parser.parse_args(argv)
    must(args.rehearse or torch.cuda.is_available(), "torch sees no GPU here; --rehearse runs the same code on a CPU")
    if args.part:
        from bench.card_parts import rows
        for row in rows(args.part, args.quick, args.rehearse):
            print(json.dumps(row), flush=True)
        return
    chosen = [name.strip() for name in args.parts.split(",")] if args.parts else list(LIMITS)
    unknown = [name for name in chosen if name not in LIMITS]
    must(not unknown, f"--parts {', '.join(unknown)}: they are {', '.join(LIMITS)}")
    path = place(args.json, args.force) if args.json is not None else None
    device = "CPU, a rehearsal" if args.rehearse else torch.cuda.get_device_name()
    report = {"command": "python -m bench card " + " ".join(argv), "device": device, "torch": torch.__version__,
              "python": platform.python_version(), "cpu_cores": os.cpu_count(), "parts": {}}
    print(", ".join(f"{key} {value}" for key, value in list(report.items())[1:-1]), flush=True)
    flags = [*(["--quick"] if args.quick else []), *(["--rehearse"] if args.rehearse else [])]
    began, faults = time.monotonic(), {}
    for name in chosen:
        limit = LIMITS[name][0 if args.quick else 1]
        if args.quick:
            limit = min(limit, QUICK - (time.monotonic() - began))
        if limit <= 0:
            print(f"{name}: left out by --quick", flush=True)
            continue
        print(name, flush=True)
        part, since = {"rows": {}}, time.monotonic()
        report["parts"][name] = part

        def tell(row, figures):
            told(row, figures)
            part["rows"][row] = figures
            if path:
                save(path, report | {"finished": False})
        fault, _ = run_part([sys.executable, "-m", "bench", "card", "--part", name, *flags], limit, tell)
        part |= {"seconds": round(time.monotonic() - since, 1), "fault": fault}
        if fault:
            faults[name] = fault
            print(f"  FAULT  {fault}", flush=True)
    if path:
        save(path, report | {"finished": True})
    print(f"{len(report['parts']) - len(faults)} of {len(report['parts'])} parts without a fault, "
          f"{time.monotonic() - began:.0f} s" + (f"; wrote {path}" if path else ""))
    if faults:
        raise ValueError("; ".join(f"{name}: {fault}" for name, fault in faults.items()))
