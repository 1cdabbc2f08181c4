"""python -m bench causal: the same trained policy shown the true past, a frozen and a reversed one (docs/evidence.md).

Nothing else differs: scenes, present frame, state, words and noise are the same. So what changes is caused by the past.
Several checkpoints are several training seeds; their results are written as they come in, to bench/results."""

import numpy as np
import torch

from bench.saving import begin, save
from support import checkpoint
from support.files import must
from support.flags import COUNT, SEED, Parser, value
from support.inference.policy import Policy
from support.pictures import BLUE, PALE, Panel, figure
from worlds import conveyor
from worlds.closed_loop import closed_loop

PASTS = ("true past", "frozen past", "reversed past")   # the last two are of World.controls


def agreement(pasts):
    """Does the hand follow the picture? Pearson's correlation of "imagined" and "lead" over the episodes that have
    both -> {past: r, ..., "over pasts": r}; "over pasts" is of all of them together."""
    both = {past: np.array([pair for pair in zip(row["each"]["imagined"], row["each"]["lead"]) if None not in pair])
            for past, row in pasts.items() if {"imagined", "lead"} <= row["each"].keys()}
    both = {past: pairs for past, pairs in both.items() if len(pairs) > 2}
    every = {"over pasts": np.concatenate(list(both.values()))} if both else {}
    return {name: float(np.corrcoef(pairs.T)[0, 1]) for name, pairs in (both | every).items()}


def draw(runs, path):
    """Dots: of every moving episode the lead of the hand, and of the imagined target, under each past; of each seed a
    line at its median -> RGB image. What lies beyond -2 or 2 is drawn there."""
    shake, panels = np.random.RandomState(0), []
    ticks = [((lead + 2) / 4, text) for lead, text in ((-1, "-1 reversed"), (0, "0 present"), (1, "+1 foresaw"))]
    for past in PASTS:
        rows = [run["suites"]["dynamic"][past] for run in runs]
        for key, title in (("lead", "where the hand closed"), ("imagined", "where it was imagined")):
            leads = [lead for row in rows for lead in row["each"].get(key, ()) if lead is not None]
            dots = [([(min(max((lead + 2) / 4, 0), 1), shake.uniform(0.1, 0.9))], PALE) for lead in leads]
            medians = [(row[key]["median"] + 2) / 4 for row in rows if key in row]
            panels.append(Panel(f"{past}: {title}", dots + [([(x, 0), (x, 1)], BLUE) for x in medians], [(0, "")],
                                [ticks], tuple(share for share, _ in ticks)))
    return figure(panels, 2, (330, 64), [("an episode", PALE), ("the median of a training seed", BLUE)], path)


def run(argv):
    parser = Parser(prog="python -m bench causal", description=__doc__)
    parser.add_argument("--checkpoint", required=True, nargs="+", help="runs of preset conveyor, one a training seed")
    parser.add_argument("--episodes", type=value(int, COUNT), default=200, help="scenes a suite (default: 200)")
    parser.add_argument("--seed", type=value(int, SEED), default=1, help="of the scenes (default: 1)")
    parser.add_argument("--euler_steps", type=value(int, COUNT), help="of the sampler (default: the checkpoint's)")
    parser.add_argument("--picture", help="draw every episode's lead into this file")
    args, path, report = begin(parser, argv, "causal.json")
    paths = [checkpoint.resolve(one) for one in args.checkpoint]
    must(len(set(paths)) == len(paths), "--checkpoint names a run twice")
    torch.set_num_threads(1)
    report |= {"world": conveyor.version(), "conditions": "one thread, model.py as it is read", "scene_seed": args.seed,
               "finished": False, "runs": []}
    for one in paths:
        state, policy = checkpoint.load(one)[1], Policy.load(one, seed=0, engine="plain", euler_steps=args.euler_steps)
        found, _ = closed_loop(policy, conveyor, args.episodes, args.seed, controls="past")
        pasts = {"true past": found, **found["controls"]}
        suites = {suite: {past: pasts[past][suite] for past in PASTS} for suite in conveyor.SUITES}
        correlation = agreement(suites["dynamic"])
        report["runs"].append({"trained": {"steps": state["step"], "seed": state["config"]["train"]["seed"]},
                               "suites": suites, "agreement": correlation})
        save(path, report)
        if correlation:   # a model without generation imagines nothing
            print("correlation of imagined and lead:", *(f"{name} {r:+.2f}" for name, r in correlation.items()))
    save(path, report | {"finished": True})
    if args.picture:
        draw(report["runs"], args.picture)
