"""Where nothing is to move: which dimensions were idle in training, and what holds a robot still.

An idle action dimension is commanded as what it was in training, whatever the model says, and is masked like padding in
training and at inference, so that what the model would say there reaches no other dimension.
"""

import numpy as np

ROUNDING = float(np.finfo(np.float32).eps)   # what float32 leaves of a difference of numbers near 1 that should be 0
STALLED = 1e-3   # deviation of a state, in its unit and of its command's, below which it is not divided by: a finger
#                  that was told 1.5 rad and stalled at 0 +- 2e-4 would blow up where it is free to move


def near_constant(std, magnitude, floor):
    """Which dimensions do not move: their deviation is at most `floor` times their magnitude, or is float32 rounding.
    All (d,). The unit does not matter: a joint at 0.7 +- 1e-5 rad is near-constant, a force of 1e-4 +- 3e-5 is not."""
    return std <= np.maximum(floor * np.abs(magnitude), ROUNDING)


def kinds_of(source):
    """What a source says of its action dimensions: position, velocity or torque; (): all are positions."""
    kinds = tuple(getattr(source, "kinds", ()))
    return kinds if set(kinds) - {"position"} else ()


def holding(stats, state):
    """Raw state (d_q,) -> the action (d_a,) that keeps a robot where it is: its positions, and 0 for a velocity or a
    torque. If the widths differ, only relative dimensions are known to have a state; a position without one, such as a
    gripper's, is at its training mean. None: nothing is known of any dimension."""
    d_q, d_a = len(state), len(stats.positions)
    of = [d for d in np.flatnonzero(stats.positions) if d < d_q and (d_q == d_a or any(stats.relative[d:d + 1]))]
    if not of and stats.positions.all():
        return None
    held = np.where(stats.positions, stats.action_mean, 0.0)
    held[of] = state[of]
    return held
