"""The closed loop of the embedded world and its controls measure what they say."""

import numpy as np

from worlds import conveyor
from worlds.closed_loop import WRONG_ARM, WRONG_COLOUR, closed_loop, shuffled_images, wrong_text


def test_the_policy_looks_once_and_its_whole_chunk_runs_open_loop():
    """A second look would show how far the target has moved to a policy that sees one frame at a time."""
    looks = []

    def policy(past, now, states, tasks):
        looks.append(len(now))
        return np.repeat(states[:, None], conveyor.CHUNK, 1)

    report, rollouts = closed_loop(policy, 5, seed=1)
    assert looks == [5, 5]   # once a suite
    assert all(not report[suite]["success"] and not rollouts[suite].closed.any() for suite in conveyor.SUITES)


def test_closed_loop_counts_what_the_expert_takes():
    report, _ = closed_loop(conveyor.scripted_action, 100, seed=2)
    assert all(report[suite]["success"] >= 0.98 and report[suite]["episodes"] == 100 for suite in conveyor.SUITES)


def test_the_controls_change_the_text_or_the_pictures_and_nothing_else():
    """A policy that gets a wrong text and one whose images are shuffled."""
    seen = []
    past, now = np.arange(3), np.arange(3) + 10
    states, tasks = np.zeros((3, 6)), ["left pick red disc", "right pick green cross", "left pick blue square"]

    def policy(*what):
        seen.append(what)

    wrong_text(policy, WRONG_ARM)(past, now, states, tasks)
    wrong_text(policy, WRONG_COLOUR)(past, now, states, tasks)
    shuffled_images(policy)(past, now, states, tasks)
    assert seen[0][3] == ["right pick red disc", "left pick green cross", "right pick blue square"]
    assert seen[1][3] == ["left pick green disc", "right pick blue cross", "left pick red square"]
    assert seen[2][3] == tasks and all(what[2] is states for what in seen)
    assert all(np.array_equal(what[0], past) and np.array_equal(what[1], now) for what in seen[:2])
    assert (seen[2][0] != past).all() and (seen[2][1] != now).all() and (seen[2][1] - seen[2][0] == 10).all()
