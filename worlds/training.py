"""What train.py asks of the world that its data are of: the data, the least chunk, what to watch, the last report."""

import json
import time
from functools import partial

import worlds
from support.files import written
from support.inference.open_loop import trained_errors
from support.inference.policy import Policy
from support.training.preflight import refuse
from support.training.validation import Watched
from worlds.closed_loop import closed_loop


def least_chunk(robot):
    """So many actions decide a scene of the world that a robot lives in; 0 where no world is known."""
    return worlds.find(robot).CHUNK if robot in worlds.NAMES else 0


def watched(source):
    """Watched of a world's held-out episodes. None: of other data, or of none."""
    if source and source.robot in worlds.NAMES:
        world = worlds.find(source.robot)
        if suite(source, 0):
            return Watched(partial(suite, source), partial(world.marks, source), world.HALF_WINDOW)
    return None


def suite(source, e):
    """The suite of recorded episode e of a support.data Source; "" where the dataset does not say."""
    return source.labels(e).get("suite", "")


def evaluate(policy, corpus, episodes, seed, out):
    """Print what a trained policy does, and return its part of report.json: success in closed loop in the world of its
    robot, in the suites of the held-out episodes, and a film into the folder `out`; or where it has no world errors of
    the actions in open loop on held-out episodes. episodes None: as many as the world asks for."""
    robot = policy.stats.robot
    if robot in worlds.NAMES:
        world = worlds.find(robot)
        held_out = corpus.held_out and {suite(corpus.held_out, e) for e in range(len(corpus.held_out.lengths))}
        suites = [name for name in world.SUITES if not held_out or name in held_out]
        report, _ = closed_loop(policy, world, episodes or world.REPORTED, seed, suites,
                                "past" if world.foreseen else None, out / "rollouts.gif")
        return {"eval_seed": seed} | report
    return trained_errors(policy, corpus)


def report(checkpointer, corpus, episodes, seed, held_out, began):
    """Evaluate what was trained and write report.json: the last thing that a run does. All ranks call it. held_out: the
    last validation's dict; began: time.time() when the run did."""
    config, model = checkpointer.config, checkpointer.final()
    if not checkpointer.ranks.first:
        return
    policy = Policy(model, config, checkpointer.by_robot[corpus.held_out_robot], config.train.seed)
    evaluated = evaluate(policy, corpus, episodes, seed, checkpointer.out)
    if not corpus.holds_out:
        print("nothing was held out (--hold_out none): no figure says how the policy does on what it has not seen")
    seconds, path = round(time.time() - began, 1), checkpointer.out / "report.json"
    found = {"config": config.name, "steps": config.train.steps, "seed": config.train.seed,
             "held_out": held_out or None, "seconds": seconds}
    with written(path) as file:
        file.write_text(json.dumps(found | evaluated, indent=1) + "\n")
    print(f"{seconds:.0f} s in all; report in {path}")
    if checkpointer.problem:
        refuse(f"the last step is not on disk: {checkpointer.problem}")
