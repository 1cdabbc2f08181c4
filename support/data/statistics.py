"""The model's units: mean and standard deviation of state and actions, and what of them does not move.
kept_statistics.py takes them over exactly the training windows."""

from dataclasses import asdict, dataclass, fields
from functools import cached_property

import numpy as np

from config import VIEWS
from support.data.robots import check_width
from support.files import must, numbers


class Alone:
    """One process: what is used here of support.training.ranks.Ranks."""

    first = True

    def gather(self, value):
        return [value]

    def agree(self, value):
        return self.gather(value)[0]


def gathered(ranks, of_own):
    """{dataset: value} of each rank's own datasets -> that of all, in order of the dataset's number."""
    everywhere = {i: value for own in ranks.gather(of_own) for i, value in own.items()}
    return dict(sorted(everywhere.items()))


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation per dimension, over the training windows, after the delta transform.
    A deviation below the floor is not divided by; an action dimension of that kind is idle: it is commanded as what it
    was in training, and masked like padding in training and at inference, so that what the model would say there
    reaches no other dimension. The embedded world's grippers hold the middle and the width of their range instead
    [ours]: standardised, a rare switch would let a timing error of one frame outweigh every error of position."""

    robot: str
    action_mode: str
    fps: float
    state_mean: tuple
    state_std: tuple
    action_mean: tuple
    action_std: tuple
    windows: int
    action_names: tuple = ()   # where the dataset names them
    unscaled: tuple = ()       # what was near-constant in training, "state 3" or "action 3": passed through unscaled
    relative: tuple = ()       # which dimensions delta mode takes relative to the state at t, where it is known
    sample: int = 0            # how many of the windows were looked at; 0: all
    inputs: tuple = ()         # which feature fills which slot: "head = observation.images.top", "state = ..."
    kinds: tuple = ()          # position, velocity or torque, of each action dimension; (): all are positions
    left_out: tuple = ()       # idle action dimensions that training masked as padding; none in older checkpoints

    @classmethod
    def from_dict(cls, stored):
        """What a checkpoint holds. ValueError: missing, damaged, or of another version."""
        try:
            stats = cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()})
            _check_fields(stats)
            return stats
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"the checkpoint's statistics are missing or not of this version ({error}): without them "
                             "actions have no units; train again, or import by python -m support.weights") from error

    def check(self, action_mode):
        """ValueError unless these are statistics of actions of that mode."""
        must(self.action_mode == action_mode, f"the statistics of robot '{self.robot}' are of {self.action_mode} "
             f"actions, the model acts in {action_mode} ones; take the checkpoint as it was written, or train again")
        return self

    def check_inputs(self, source):
        """ValueError unless a source measures what was trained on; fewer cameras may be. The robot's name counts only
        where the dataset gives it one: a folder that was moved or renamed is still the same robot."""
        must(source.robot == self.robot or source.robot.startswith("unnamed-"), f"dataset {source.name} is of robot "
             f"'{source.robot}', the checkpoint drives '{self.robot}': give the same --robot as in training")
        strange = [item for item in inputs_of(source) if item not in self.inputs] if self.inputs else ()
        must(not strange, f"dataset {source.name} gives {', '.join(strange)}; trained was on {', '.join(self.inputs)}: "
             "give the same --robot as in training")
        for what, found, known in (("action dimensions", tuple(source.action_names), self.action_names),
                                   ("frames/s", source.fps, self.fps)):
            must(not (found and known) or found == known, f"dataset {source.name} has {what} {found}; trained was on "
                 f"{known}: it is of another robot, or give the same --robot as in training")

    @cached_property
    def moving(self):
        """(d_a,) bool: the action dimensions that are not idle."""
        return np.array([f"action {d}" not in self.unscaled for d in range(len(self.action_mean))], bool)

    @cached_property
    def positions(self):
        """(d_a,) bool: action dimensions that are positions; the others are velocities or torques."""
        return np.array([kind == "position" for kind in self.kinds] or [True] * len(self.action_mean), bool)

    def stopped(self, action):
        """What is commanded while no new action comes: the last one, but 0 for a velocity or a torque."""
        return np.where(self.positions, action, np.float32(0))

    def holding(self, state):
        """Raw state (d_q,) -> the action (d_a,) that keeps a robot where it is: its positions, 0 for a velocity or a
        torque. If the widths differ, only relative dimensions are known to have a state; a position without one, such
        as a gripper's, is at its training mean. None: nothing is known of any dimension."""
        d_q, d_a = len(state), len(self.positions)
        of = [d for d in np.flatnonzero(self.positions) if d < d_q and (d_q == d_a or any(self.relative[d:d + 1]))]
        if not of and self.positions.all():
            return None
        held = np.where(self.positions, self.action_mean, 0.0)
        held[of] = state[of]
        return held

    def cameras(self):
        """Slots that trained pictures filled, such as ("head", "left_wrist"); () where that is not known."""
        return tuple(view for view in VIEWS if any(item.startswith(f"{view} = ") for item in self.inputs))

    def describe(self, m, k):
        """Lines for the start of a run: dimensions, windows, what m and k last, what is not scaled or does not move."""
        yield (f"robot {self.robot}: {len(self.state_mean)} state and {len(self.action_mean)} action dimensions, "
               f"{self.windows:,} windows, m = {m} frames = {m / self.fps:.2f} s, "
               f"chunk = {k} frames = {k / self.fps:.2f} s")
        yield f"it reads {', '.join(self.inputs)}"
        if self.sample:
            yield f"statistics over a seeded sample of {self.sample:,} of these windows"
        if not self.state_mean:
            yield "no state: the state token gets zeros"
        if states := [item for item in self.unscaled if item.startswith("state")]:
            yield f"near-constant dimensions, passed through unscaled: {', '.join(states)}"
        idle = []
        for d in np.flatnonzero(~self.moving):
            name = f"action {d}" + (f" ({self.action_names[d]})" if self.action_names else "")
            follows = self.action_mode == "delta" and any(self.relative[d:d + 1])
            idle.append(f"{name} = {'the state + ' if follows else ''}{self.action_mean[d]:.6g}")
        if idle:
            yield f"idle in training, so commanded as it was there and not in L_act: {', '.join(idle)}"

    def normalise(self, kind, x):
        """Raw units -> standardised, last axis, float32. kind "state" or "action"."""
        mean, std = np.float64(getattr(self, f"{kind}_mean")), np.float64(getattr(self, f"{kind}_std"))
        if x.shape[-1] != len(mean):
            raise ValueError(f"the {kind} has {x.shape[-1]} dimensions, robot '{self.robot}' has {len(mean)}")
        return ((x - mean) / std).astype(np.float32)

    def standardised(self, a, state):
        """Raw actions (..., k, d_a), states at t (..., d_q) -> standardised chunks (..., k, d_a) float32, 0 if idle."""
        moved = np.expand_dims(reference(self.relative, self.action_mode, state), -2)
        return np.where(self.moving, self.normalise("action", a - moved), np.float32(0))

    def actions(self, a, state):
        """Standardised (..., k, 32), raw state (..., d_q) -> actions (..., k, d_a) float32; idle ones: the mean."""
        mean, std = np.float64(self.action_mean), np.float64(self.action_std)
        a = np.where(self.moving, a[..., :len(mean)], 0) * std + mean
        return (a + np.expand_dims(reference(self.relative, self.action_mode, state), -2)).astype(np.float32)


def _check_fields(stats):
    """ValueError for a field of another type, or numbers that cannot be statistics."""
    for item in fields(stats):
        value, of = getattr(stats, item.name), {"relative": bool, "left_out": int}.get(item.name, str)
        moments = item.name.endswith(("_mean", "_std"))
        if moments or item.type is float:
            numbers(value, item.name, int(moments))
        elif type(value) is not item.type or item.type is tuple and {*map(type, value)} - {of}:
            raise ValueError(f"{item.name} is {value!r:.60}")
    for kind in ("state", "action"):
        mean, std = getattr(stats, f"{kind}_mean"), getattr(stats, f"{kind}_std")
        if len(mean) != len(std) or min(std, default=1) <= 0 or not stats.action_mean or stats.fps <= 0:
            raise ValueError(f"{kind}: {len(mean)} mean and {len(std)} std, none 0 or below; {stats.fps:g} frames/s")
    for name in ("action_names", "kinds"):   # a delta mask is looked at where it is used
        if len(of := getattr(stats, name)) not in (0, len(stats.action_mean)) or any(len(str(x)) > 200 for x in of):
            raise ValueError(f"{name}: {len(of)} for {len(stats.action_mean)} actions, none over 200 letters")


def in_checkpoint(by_robot):
    """{robot: Statistics} -> what a checkpoint's state holds of it."""
    rows = {robot: asdict(of) for robot, of in by_robot.items()}
    return {"statistics": next(iter(rows.values())), "statistics_by_robot": rows}


def of_checkpoint(state):
    """A checkpoint's state -> {robot: Statistics}, the first the one that it was validated on. ValueError: missing."""
    first, more = Statistics.from_dict(state.get("statistics")), state.get("statistics_by_robot", {})
    rows = {name: Statistics.from_dict(row) for name, row in (more.items() if isinstance(more, dict) else [("", None)])}
    must(not rows or rows.get(first.robot) == first and all(name == stats.robot for name, stats in rows.items()),
         "the checkpoint's statistics and statistics_by_robot differ: it was edited; take it as it was written")
    return {first.robot: first} | rows


def kinds_of(source):
    """What a source says of its action dimensions: position, velocity or torque; (): all are positions."""
    kinds = tuple(getattr(source, "kinds", ()))
    return kinds if set(kinds) - {"position"} else ()


def inputs_of(source):
    """Which feature fills which slot: list of text such as "head = observation.images.top"."""
    features = {"state": source.state_keys, "action": source.action_keys,
                "instruction": filter(None, [getattr(source, "instruction", "")])}
    return [f"{slot} = {key}" for slot, key in source.views.items()] + \
        [f"{kind} = {joined}" for kind, keys in features.items() if (joined := " + ".join(keys))]


def reference(relative, action_mode, state):
    """What a relative action is relative to: the state at t on relative dimensions, else 0. (..., d_a or 1) float64"""
    if action_mode == "absolute":
        return np.zeros(state.shape[:-1] + (1,))
    of, d_q = np.flatnonzero(relative), state.shape[-1]
    if of.max(initial=-1) >= d_q:
        raise ValueError(f"--action_mode delta: action {of[-1]} would be relative to state {of[-1]}, the data have "
                         f"{d_q} state dimensions; give --robot my_robot.json, see support/data/robots.py")
    moved = np.zeros(state.shape[:-1] + (len(relative),))
    moved[..., of] = state[..., of]
    return moved


def pad(x, width, what):
    """(..., d) -> (..., width) float32 with zeros; ValueError when d is larger."""
    check_width(what, x.shape[-1], width)
    return np.pad(np.asarray(x, np.float32), [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])
