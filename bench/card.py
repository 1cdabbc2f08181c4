"""python -m bench card: what a GPU gives, in one table. `--quick`: within 3 minutes. `--rehearse`: tiny, on a CPU.

Each part (bench/card_parts.py) is a process of its own with a time limit. A part that is slow, runs out of memory, dies
or finds a fault loses its own remaining rows and no other's. Rows are printed, and with --json written, as they come.
The end is exit code 2 if any part has a fault. Weights are random."""

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
from support.files import must, read_json
from support.flags import Parser, value

# Seconds that a part may take: with --quick (0: left out), in full. What matters most comes first.
LIMITS = {"rates": (20, 40), "agreement": (20, 40), "chunk a1_2b": (60, 200), "training a1_2b": (60, 120),
          "chunk a1_3b": (60, 240), "control": (40, 60), "training a1_3b": (0, 150), "attention": (0, 60),
          "ranks": (0, 40), "tests": (0, 300), "chunk a1_3b_release": (0, 240), "conveyor": (0, 240)}
QUICK = 180   # seconds of all parts together


def run_part(command, limit, tell):
    """Run a part's process -> "" when it ended well, else what was wrong.

    command: what prints one JSON line [row, figures] a row. limit: seconds. tell: called with each row."""
    fault, slow = "", threading.Event()
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
        return f"stopped at its limit of {limit:.0f} s"
    return said[-1][:200] if child.returncode else fault


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


def run_parts(args, chosen, report, path):
    """Run the parts one after the other into the report -> ({part: its fault}, how many were run)."""
    flags = [*(["--quick"] if args.quick else []), *(["--rehearse"] if args.rehearse else [])]
    began, faults, tried = time.monotonic(), {}, 0
    for name in chosen:
        quick, full = LIMITS[name]
        limit = args.seconds or (quick or full if args.quick and args.parts else quick if args.quick else full)
        if args.quick and not args.parts:
            limit = min(limit, QUICK - (time.monotonic() - began))
        if limit <= 0:
            print(f"{name}: left out by --quick", flush=True)
            continue
        print(name, flush=True)
        tried += 1
        part, since = {"rows": report["parts"].get(name, {}).get("rows", {})}, time.monotonic()
        report["parts"][name] = part

        def tell(row, figures):
            told(row, figures)
            part["rows"][row] = {key: None if isinstance(x, float) and not math.isfinite(x) else x   # JSON has no NaN
                                 for key, x in figures.items()}
            if path:
                save(path, report | {"finished": False})
        fault = run_part([sys.executable, "-m", "bench", "card", "--part", name, *flags], limit, tell)
        part |= {"seconds": round(time.monotonic() - since, 1), "fault": fault}
        if fault:
            faults[name] = fault
            print(f"  FAULT  {fault}", flush=True)
    return faults, tried


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
        from bench.card_parts import rows
        for row in rows(args.part, args.quick, args.rehearse):
            print(json.dumps(row), flush=True)
        return
    chosen = [name.strip() for name in args.parts.split(",")] if args.parts else list(LIMITS)
    unknown = [name for name in chosen if name not in LIMITS]
    must(not unknown, f"--parts {', '.join(unknown)}: they are {', '.join(LIMITS)}")
    path = place(args.json, args.force or args.parts) if args.json is not None else None
    device = "CPU, a rehearsal" if args.rehearse else torch.cuda.get_device_name()
    report = {"device": device, "torch": torch.__version__, "python": platform.python_version(),
              "cpu_cores": os.cpu_count(), "commands": [], "parts": {}}
    print(", ".join(f"{key} {x}" for key, x in list(report.items())[:4]), flush=True)
    if path and path.exists() and args.parts:
        old = read_json(path)
        must([old.get(key) for key in list(report)[:4]] == list(report.values())[:4],
             f"{path} is of another machine, or of another torch or python: choose another --json")
        report = old
    report["commands"].append("python -m bench card " + " ".join(argv))
    began = time.monotonic()
    faults, tried = run_parts(args, chosen, report, path)
    if path:
        save(path, report | {"finished": True})
    print(f"{tried - len(faults)} of {tried} parts without a fault, "
          f"{time.monotonic() - began:.0f} s" + (f"; wrote {path}" if path else ""))
    if faults:
        raise ValueError("; ".join(f"{name}: {fault}" for name, fault in faults.items()))
