"""Success of a policy in closed loop, and of policies that are told or shown something wrong."""

import numpy as np

from worlds import conveyor

WRONG_ARM = {"left": "right", "right": "left"}
WRONG_COLOUR = {"red": "green", "green": "blue", "blue": "red"}


def possible(episodes, seed, flag):
    """ValueError, one line, for a number of episodes or a seed (given as --`flag`) that no evaluation can have."""
    if episodes is not None and episodes < 1:
        raise ValueError(f"--episodes must be at least 1, got {episodes}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"--{flag} must be at least 0 and below 2^32, got {seed}")


def closed_loop(policy, episodes, seed, record=0):
    """Both suites of the embedded world -> (report dict, {suite: Rollout}).

    The report has the keys static and dynamic, each with success (0 to 1), episodes, interval (Wilson, 95 %) and
    tasks. `episodes` None: the paper's 30 predefined settings; else that many seeded ones.
    """
    report, rollouts = {}, {}
    for suite in conveyor.SUITES:
        settings = conveyor.predefined_settings(suite) if episodes is None else \
            conveyor.sample_settings(suite, episodes, seed)
        rollouts[suite] = conveyor.rollout(policy, settings, record=record)
        report[suite] = conveyor.summarise(rollouts[suite])
    return report, rollouts


def wrong_text(policy, swap):
    """The policy, told something else. swap: word -> word, such as WRONG_ARM or WRONG_COLOUR."""
    return lambda past, now, states, tasks: policy(
        past, now, states, [" ".join(swap.get(word, word) for word in task.split()) for task in tasks])


def shuffled_images(policy):
    """The policy, shown another scene's pictures."""
    return lambda past, now, states, tasks: policy(np.roll(past, 1, 0), np.roll(now, 1, 0), states, tasks)
