"""What train.py asks of the world that its data are of: the data, the least chunk, what to watch, how good it is."""

from functools import partial

import worlds
from support.inference.open_loop import trained_errors
from support.inference.policy import Policy
from support.training.validation import Marked
from worlds.closed_loop import closed_loop


def least_chunk(robot):
    """So many actions decide a scene of the world that a robot lives in; 0 where no world is known."""
    return worlds.find(robot).CHUNK if robot in worlds.NAMES else 0


def marked(source):
    """Marked of a world's held-out episodes. None: of other data, or of none."""
    if not source or source.robot not in worlds.NAMES or not suite(source, 0):
        return None
    world = worlds.find(source.robot)
    return Marked(partial(suite, source), partial(world.marks, source), world.HALF_WINDOW)


def suite(source, e):
    """The suite of recorded episode e of a support.data Source; "" where the dataset does not say."""
    return source.labels(e).get("suite", "")


def evaluate(checkpointer, corpus, episodes, seed):
    """Print how good a trained policy is -> its part of report.json: closed loop in the world of its robot, in the
    suites of the held-out episodes, with a film; without a world open loop on held-out episodes. All ranks call it."""
    config, model, robot = checkpointer.config, checkpointer.final(), corpus.held_out_robot
    if not checkpointer.ranks.first:
        return {}
    policy = Policy(model, config, checkpointer.by_robot[robot], config.train.seed)
    if policy.stats.robot in worlds.NAMES:
        world = worlds.find(policy.stats.robot)
        held_out = corpus.held_out and {suite(corpus.held_out, e) for e in range(len(corpus.held_out.lengths))}
        suites = [name for name in world.SUITES if not held_out or name in held_out]
        found, _ = closed_loop(policy, world, episodes or world.REPORTED, seed, suites,
                               "past" if world.foreseen else None, checkpointer.out / "rollouts.gif")
        found["eval_seed"] = seed
    else:
        found = trained_errors(policy, corpus)
    if not corpus.holds_out:
        print("nothing was held out (--hold_out none): no figure says how the policy does on what it has not seen")
    return found
