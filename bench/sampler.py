"""python -m bench sampler: Euler's method beside Heun's and the midpoint's, at equal numbers of evaluations of v_theta.

Of each the success in closed loop, in scenes that are drawn for this table alone, and the spread: how far chunks that
are drawn for one held-out window differ, in training standard deviations. Eq. (3) is `euler` in flow.py."""

from functools import partial
from unittest import mock

import numpy as np
import torch

import flow
from bench.saving import begin, save
from data import open_corpus
from support import checkpoint
from support.files import must
from support.flags import COUNT, SEED, Parser, value
from support.inference.policy import Policy
from support.training.validation import held_out_batches
from worlds import conveyor
from worlds.closed_loop import closed_loop

EVALUATIONS, DRAWS = (1, 2, 4, 10), 8


def second_order(v_theta, eps, steps, share):
    """Runge-Kutta with two evaluations a step: at its beginning, and where a `share` of an Euler step leads."""
    a, dtau = eps, 1 / steps
    for step in range(steps):
        v = v_theta(a, step * dtau)
        ahead = v_theta(a + share * dtau * v, (step + share) * dtau)
        a = a + dtau * (v + (ahead - v) / (2 * share))
    return a


# name: method, evaluations a step
SAMPLERS = {"euler": (flow.euler, 1), "midpoint": (partial(second_order, share=0.5), 2),
            "heun": (partial(second_order, share=1), 2)}


@torch.no_grad()
def spread(policy, corpus, windows):
    """Standard deviation of DRAWS chunks of one window, its mean over windows, actions and moving dimensions."""
    model, moving, found = policy.model, policy.stats.moving, []
    for batch, *_ in held_out_batches(policy.config, policy.stats, corpus.held_out, corpus.held_out_windows, windows):
        prefix, noise = model.prefill(batch), [policy.noise(len(batch.state)) for _ in range(DRAWS)]
        drawn = torch.stack([model.sample_actions(batch, eps, policy.euler_steps, prefix) for eps in noise])
        found.append(drawn.std(0)[..., :len(moving)][..., moving].mean())
    return float(np.mean(found))


def table(rows):
    """Markdown rows: a sampler and its evaluations, with the figures of every run."""
    yield "| sampler | evaluations | still: each run | moving: each run | spread: each run |"
    yield "|---|---|---|---|---|"
    for name, evaluations in dict.fromkeys((row["sampler"], row["evaluations"]) for row in rows):
        own = [row for row in rows if (row["sampler"], row["evaluations"]) == (name, evaluations)]
        cells = [", ".join(f"{100 * row[suite]:.1f}" for row in own) for suite in conveyor.SUITES]
        cells.append(", ".join(f"{row['spread']:.3f}" for row in own))
        yield f"| {name} | {evaluations} | {' | '.join(cells)} |"


def run(argv):
    parser = Parser(prog="python -m bench sampler", description=__doc__)
    parser.add_argument("--checkpoint", required=True, nargs="+", help="runs of preset conveyor, one a training seed")
    parser.add_argument("--data", default="data/conveyor", help="whose held-out windows are taken for the spread")
    parser.add_argument("--windows", type=value(int, COUNT), default=256, help="of them at most")
    parser.add_argument("--episodes", type=value(int, COUNT), default=200, help="scenes a suite")
    parser.add_argument("--seed", type=value(int, SEED), default=87000, help="of the scenes")
    args, path, report = begin(parser, argv, "sampler.json")
    paths = [checkpoint.resolve(one) for one in args.checkpoint]
    must(len(set(paths)) == len(paths), "--checkpoint names a run twice")
    torch.set_num_threads(1)
    conveyor.prepare(args.data)
    report |= {"world": conveyor.version(), "scene_seed": args.seed, "episodes": args.episodes, "finished": False,
               "rows": []}
    for one in paths:
        policy = Policy.load(one, engine="plain")
        corpus = open_corpus(args.data, policy.config.data.m, full=True)
        for name, (method, each) in SAMPLERS.items():
            for evaluations in (n for n in EVALUATIONS if n % each == 0):
                policy.euler_steps, policy.calls = evaluations // each, 0
                print(f"{one.parent.name}: {name}, {evaluations} evaluations")
                with mock.patch.object(flow, "euler", method):
                    rows, _ = closed_loop(policy, conveyor, args.episodes, args.seed)
                    row = {"trained": policy.config.train.seed, "sampler": name, "evaluations": evaluations,
                           "spread": spread(policy, corpus, args.windows)}
                report["rows"].append(row | {suite: rows[suite]["success"] for suite in conveyor.SUITES})
                save(path, report)
    save(path, report | {"finished": True})
    print(*table(report["rows"]), f"wrote {path}", sep="\n")
