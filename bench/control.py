"""What a control loop feels: policy.step in real time, with planning in the step and beside it."""

import time

import numpy as np

from data import VIEWS
from support.data.statistics import Statistics
from support.inference.policy import Policy


def control(model, config, mode, seconds, fps=30.0):
    """policy.step in real time at `fps`, without and with replanning in the background -> {name: timing dict}.

    A step that takes longer than 1 / fps makes the loop late; `late` counts them. The first step of an episode, which
    waits for its plan, is not among the figures. config: Config of a preset.
    """
    d = 14
    stats = Statistics("bench", "absolute", fps, (0.0,) * d, (1.0,) * d, (0.0,) * d, (1.0,) * d, 0)
    policy, random = Policy(model, config, stats, engine=mode), np.random.default_rng(0)
    pictures = [{view: random.integers(0, 256, (240, 320, 3), dtype=np.uint8) for view in VIEWS} for _ in range(8)]
    found = {}
    for name, background in (("planned in the step", False), ("planned in the background", True)):
        policy.reset("go", fps=fps, execute_steps=config.model.chunk // 2, background=background)
        policy.step(pictures[0], np.zeros(d))   # the first plan has to be waited for
        policy.loop.seconds.clear()
        due, late = time.perf_counter(), 0
        for t in range(round(seconds * fps)):
            policy.step(pictures[t % 8], np.zeros(d))
            due += 1 / fps
            left = due - time.perf_counter()
            late += left < 0
            time.sleep(max(left, 0))
            due = max(due, time.perf_counter() - 1 / fps)
        found[name] = policy.timing() | {"late": late}
        policy.close()
    return found
