"""What train.py asks of the world that its data are of: the data, the least chunk, what to watch, the last report."""

import json
import time
from functools import partial

import worlds
from support.inference.open_loop import mean_errors, open_loop
from support.inference.policy import Policy
from support.training.preflight import refuse
from support.training.validation import Watched
from worlds.closed_loop import closed_loop


def dataset(root):
    """The embedded world's dataset at `root`, written first if absent. ValueError: another version wrote it."""
    worlds.find("conveyor").prepare(root)


def least_chunk(robot):
    """So many actions decide a scene of the world that a robot lives in; 0 where no world is known."""
    return worlds.find(robot).CHUNK if robot in worlds.NAMES else 0


def watched(source):
    """Watched of a world's held-out episodes. None: of other data, or of none."""
    if source is None or source.robot not in worlds.NAMES or "suite" not in source.labels(0):
        return None
    world = worlds.find(source.robot)
    return Watched(partial(world.suite, source), partial(world.marks, source), world.HALF_WINDOW)


def evaluate(policy, corpus, episodes, seed):
    """What a trained policy does -> (part of report.json, lines to print): in closed loop in the world of its robot, on
    held-out episodes in open loop where it has none."""
    if policy.stats.robot in worlds.NAMES:
        world = worlds.find(policy.stats.robot)
        report, _ = closed_loop(policy, world, episodes, seed)
        return {"eval_seed": seed} | report, [
            f"{suite:<8} success {row['success']:.1%}  (95 % interval {row['interval'][0]:.1%} to "
            f"{row['interval'][1]:.1%}, {row['episodes']} episodes)" for suite, row in report.items()]
    if not any(source.has_action and source.robot == policy.stats.robot for source in corpus.sources.values()):
        return {}, [f"no open loop: the first rank was dealt no dataset of robot '{policy.stats.robot}'; infer.py "
                    "--open-loop makes one"]
    lines = []
    if len(corpus.sources) < len(corpus.listed):
        lines = [f"rivals of the open loop are fitted on the first rank's {len(corpus.sources)} datasets alone"]
    errors = mean_errors(open_loop(policy, corpus)[0])
    return {"open_loop": errors}, [*lines, "held-out actions, mean squared error in training standard deviations: "
                                   + "  ".join(f"{name} {value:.4f}" for name, value in errors.items())]


def report(checkpointer, corpus, episodes, seed, held_out, began):
    """Evaluate what was trained, print it and write report.json: the last thing that a run does. All ranks call it.

    held_out: the last validation's dict; began: time.time() when the run did.
    """
    config, model = checkpointer.config, checkpointer.final()
    if not checkpointer.ranks.first:
        return
    policy = Policy(model, config, checkpointer.by_robot[corpus.held_out_robot], config.train.seed)
    evaluated, lines = evaluate(policy, corpus, episodes, seed)
    print(*lines, sep="\n")
    seconds, path = round(time.time() - began, 1), checkpointer.out / "report.json"
    found = {"config": config.name, "steps": config.train.steps, "seed": config.train.seed, "held_out": held_out,
             "seconds": seconds} | evaluated
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{seconds:.0f} s in all; report in {path}")
    if checkpointer.problem:
        refuse(f"the last step is not on disk: {checkpointer.problem}")
