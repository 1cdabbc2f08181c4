"""What train.py asks of the embedded world: its data, the least chunk, what to watch held out, and the last report."""

import json
import time

import numpy as np

from support.inference.open_loop import mean_errors, open_loop
from support.inference.policy import Policy
from support.training.journal import bar
from support.training.preflight import refuse
from support.training.validation import Watched
from worlds import conveyor
from worlds.closed_loop import closed_loop


def dataset(root):
    """The embedded world's dataset at `root`, written first if absent. ValueError: another version wrote it."""
    written = root / "world"
    if not (root / "mixture.json").exists():
        print(f"writing the embedded world's five datasets to {root} (about 1 GB)", flush=True)
        with bar(None) as drawn:
            def progress(done, total):
                drawn.total = total
                drawn.update(done - drawn.n)
            conveyor.write_dataset(root, progress=progress)
    if not written.exists() or written.read_text().strip() != conveyor.version():
        raise ValueError(f"{root} was written by another version of conveyor.py: delete it, and it is written anew")


def least_chunk(source):
    """So many actions decide a scene of the world that a dataset is of; 0 where no world is known."""
    return conveyor.CHUNK if source.robot == "conveyor" else 0


def watched(source):
    """Watched of the embedded world's held-out episodes: both objects of moving scenes. Other data: None."""
    extra = getattr(source, "extra", {})
    if "suite" not in extra:
        return None

    def marks(e, t):
        for name in ("target", "distractor") if extra["suite"][e] == "dynamic" else ():
            x, y = extra[name][source.starts[e] + t]
            if np.isfinite(x) and abs(x) <= 1 and abs(y) <= 1:
                yield name, (x + 1) / 2, (1 - y) / 2
    return Watched(lambda e: extra["suite"][e], marks, conveyor.RADIUS / 2)


def evaluate(policy, corpus, episodes, seed):
    """What a trained policy does -> (part of report.json, lines to print): in closed loop in the embedded world, on
    held-out episodes in open loop elsewhere."""
    if policy.stats.robot != "conveyor":
        errors = mean_errors(open_loop(policy, corpus)[0])
        return {"open_loop": errors}, ["held-out actions, mean squared error in training standard deviations: "
                                       + "  ".join(f"{name} {value:.4f}" for name, value in errors.items())]
    report = {"eval_seed": seed} | closed_loop(policy, episodes, seed)[0]
    return report, [f"{suite:<8} success {report[suite]['success']:.1%}  (95 % interval "
                    f"{report[suite]['interval'][0]:.1%} to {report[suite]['interval'][1]:.1%}, "
                    f"{report[suite]['episodes']} episodes)" for suite in conveyor.SUITES]


def report(checkpointer, corpus, episodes, seed, held_out, began):
    """Evaluate what was trained, print it and write report.json: the last thing that a run does. All ranks call it.

    held_out: the last validation's dict; began: time.time() when the run did.
    """
    config, model = checkpointer.config, checkpointer.final()
    if not checkpointer.ranks.first:
        return
    policy = Policy(model, config, checkpointer.by_robot[corpus.held_out.robot], config.train.seed)
    evaluated, lines = evaluate(policy, corpus, episodes, seed)
    print(*lines, sep="\n")
    seconds, path = round(time.time() - began, 1), checkpointer.out / "report.json"
    found = {"config": config.name, "steps": config.train.steps, "seed": config.train.seed, "held_out": held_out,
             "seconds": seconds} | evaluated
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{seconds:.0f} s in all; report in {path}")
    if checkpointer.problem:
        refuse(f"the last step is not on disk: {checkpointer.problem}")
