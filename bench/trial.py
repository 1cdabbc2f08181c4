"""One run of `python -m bench claims`, as a process: train.py, then the closed loop with 1, 2 and 10 Euler steps.

    python -m bench.trial OUT EVAL_SEED EPISODES [flags of train.py]

OUT/trial.json is the last thing written. An outcome is stored as its first letters, one episode after the other."""

import json
import runpy
import statistics
import sys
from pathlib import Path
from unittest.mock import patch

import torch

import model
from bench.naming import NamesPlace
from bench.saving import save
from support.entry import command
from support.inference.policy import Policy
from support.weights import loading
from worlds import conveyor
from worlds.closed_loop import closed_loop

EULER = (1, 2, 10)
NAMING = "--name_place"   # of bench/naming.py, and the weight
LETTERS = {"took it": "t", "near miss": "m", "wrong object": "o", "wrong arm": "a", "never closed": "n"}


def run(argv):
    if NAMING not in argv:
        return trial(argv)
    at = argv.index(NAMING)
    # What train.py and checkpoints build meanwhile: no flag of theirs, because it is no network of the paper.
    with (patch.object(model, "InternVLA_A1", NamesPlace), patch.object(loading, "InternVLA_A1", NamesPlace),
          patch.object(NamesPlace, "weight", float(argv[at + 1]))):
        trial(argv[:at] + argv[at + 2:], naming=True)


def trial(argv, naming=False):
    out, (eval_seed, episodes), flags = Path(argv[0]), map(int, argv[1:3]), argv[3:]
    steps = flags[flags.index("--steps") + 1]
    # Its own report is cut short: what counts is measured below.
    sys.argv = ["train.py", *flags, "--out", str(out), "--resume", "--threads", "1", "--episodes", "1", "--eval_every",
                steps, "--save_every", steps]
    runpy.run_path("train.py", run_name="__main__")
    report, timing = json.loads((out / "report.json").read_text()), (out / "timing.jsonl").read_text().splitlines()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {"device": torch.cuda.get_device_name() if device == "cuda" else "CPU", "steps": report["steps"],
             "held_out": report["held_out"], "seconds": report["seconds"],
             "ms_a_step": round(1e3 * statistics.median(json.loads(line)["seconds"] for line in timing), 1)}
    if naming:   # the cross entropy of late in training
        late = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()][-20:]
        found["loss_place"] = statistics.mean(row["loss_gen"] for row in late if "loss_gen" in row) / NamesPlace.weight
    policy = Policy.load(out, device=device, engine="plain") if episodes else None
    for euler in EULER if episodes else ():
        policy.euler_steps, policy.calls = euler, 0
        rows, _ = closed_loop(policy, conveyor, episodes, eval_seed)
        found[f"euler {euler}"] = {suite: {"success": row["success"], "outcomes": "".join(
            LETTERS[outcome] for outcome in row["each"]["outcome"])} for suite, row in rows.items()}
    save(out / "trial.json", found)


if __name__ == "__main__":
    command("bench.trial", run)
