"""Mean and standard deviation of state and actions over exactly the training windows: what the model's units are.

Each rank sums over the datasets that it was dealt (support/data/moments.py). What is gathered is small.
"""

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from types import SimpleNamespace

import numpy as np

from config import VIEWS
from support.data.moments import Moments, action_moments, moments_of
from support.data.robots import ROBOTS, check_width
from support.files import numbers

SAMPLE, SAMPLE_SEED = 2_000_000, 0   # above so many windows, so many of them, chosen by this seed
ROUNDING = float(np.finfo(np.float32).eps)   # what float32 leaves of a difference of numbers near 1 that should be 0
STALLED = 1e-3   # deviation of a state, in its unit and of its command's, below which it is not divided by: a finger
#                  that was told 1.5 rad and stalled at 0 +- 2e-4 would blow up where it is free to move


class Alone:
    """One process: what is used here of support.training.ranks.Ranks."""

    first = True

    def gather(self, value):
        return [value]

    def agree(self, value):
        return value


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
    [ours]: standardised, a rarely used switch would let a timing error of one frame outweigh every error of position.
    """

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
            raise ValueError(f"the statistics are missing or not of this version ({error}): without them actions have "
                             f"no units; train again, or import the weights with python -m support.weights") from error

    def check(self, action_mode):
        """ValueError unless these are statistics of actions of that mode."""
        if self.action_mode != action_mode:
            raise ValueError(f"the statistics of robot '{self.robot}' are of {self.action_mode} actions, the model "
                             f"acts in {action_mode} ones; take the checkpoint as it was written, or train again")
        return self

    def check_inputs(self, source):
        """ValueError unless a source measures what was trained on; fewer cameras may be. The robot's name counts only
        where the dataset gives it one: a folder that was moved or renamed is still the same robot."""
        if source.robot != self.robot and source.robot != source.root.name and not source.robot.startswith("unnamed-"):
            raise ValueError(f"dataset {source.name} is of robot '{source.robot}', the checkpoint drives "
                             f"'{self.robot}': give the same --robot as in training")
        strange = [item for item in inputs_of(source) if item not in self.inputs] if self.inputs else ()
        if strange:
            raise ValueError(f"dataset {source.name} gives {', '.join(strange)}; trained was on "
                             f"{', '.join(self.inputs)}: give the same --robot as in training")
        for what, found, known in (("action dimensions", tuple(source.action_names), self.action_names),
                                   ("frames/s", source.fps, self.fps)):
            if found and known and found != known:
                raise ValueError(f"dataset {source.name} has {what} {found}; trained was on {known}: it is of another "
                                 "robot, or give the same --robot as in training")

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
        states = [item for item in self.unscaled if item.startswith("state")]
        if states:
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

    def chunk(self, a, state):
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


def in_checkpoint(by_robot):
    """{robot: Statistics} -> what a checkpoint's state holds of it."""
    rows = {robot: asdict(of) for robot, of in by_robot.items()}
    return {"statistics": next(iter(rows.values())), "statistics_by_robot": rows}


def of_checkpoint(state):
    """A checkpoint's state -> {robot: Statistics}, the first the one that it was validated on. ValueError: missing."""
    first = Statistics.from_dict(state.get("statistics"))
    more = state.get("statistics_by_robot", {})
    rows = [Statistics.from_dict(row) for row in (more.values() if isinstance(more, dict) else [None])]
    return {stats.robot: stats for stats in (first, *rows)}


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


# ---- over all windows ---------------------------------------------------------------------------

def sampled(counts):
    """{dataset: windows} -> {dataset: which of its windows, sorted}, SAMPLE in all. None: all of them."""
    total = sum(counts.values())
    if total <= SAMPLE:
        return None
    chosen = np.sort(np.random.default_rng(SAMPLE_SEED).choice(total, SAMPLE, replace=False, shuffle=False))
    first = np.cumsum([0, *counts.values()])
    cuts = np.searchsorted(chosen, first)
    return {i: chosen[low:high] - begin for i, low, high, begin in zip(counts, cuts, cuts[1:], first)}


def statistics(sources, window_lists, k, action_mode, std_floor, bad=None, ranks=Alone()):
    """Statistics over all windows of one robot's sources with actions, or over SAMPLE of them if there are more.
    sources, window_lists: lists, or {dataset: ...} of those that this rank alone counts. bad: called with the error of
    an episode that cannot be read and so does not count; None: raise it. ValueError: unequal widths, masks or rates."""
    if not isinstance(sources, dict):
        sources, window_lists = dict(enumerate(sources)), dict(enumerate(window_lists))
    sources = {i: source for i, source in sources.items() if source.has_action}
    about = gathered(ranks, {i: SimpleNamespace(
        name=source.name, robot=source.robot, fps=source.fps, relative=tuple(source.relative), inputs=inputs_of(source),
        kinds=kinds_of(source), action_names=tuple(source.action_names), windows=len(window_lists[i]))
        for i, source in sources.items()})
    for what, key in (("frames/s", "fps"), ("a delta mask of", "relative"), ("the kinds of action", "kinds")):
        _alike(about, what, {i: getattr(of, key) for i, of in about.items()})
    rows = list(about.values())
    for d, (kind, relative) in enumerate(zip(rows[0].kinds, rows[0].relative)):
        if action_mode == "delta" and relative and kind != "position":
            raise ValueError(f"--action_mode delta: action {d} of robot '{rows[0].robot}' is a {kind}, which is "
                             'relative to no state: --action_mode absolute, or absolute in "delta" of a robot file')
    chosen = ranks.agree(sampled({i: of.windows for i, of in about.items()}) if ranks.first else None)
    own = {i: window_lists[i] if chosen is None else window_lists[i][chosen[i]] for i in sources}
    moments, widths = _sums(sources, own, k, action_mode, bad)
    widths = gathered(ranks, widths)
    _alike(about, "state and action dimensions", widths)
    merged = [Moments() for _ in moments]   # of one rank these are its own, to the bit
    for part in ranks.gather(moments):
        for sums, more in zip(merged, part):
            sums.merge(more)
    return _finished(merged, rows, action_mode, std_floor)


def _alike(about, what, values):
    """Refuse datasets of one robot that differ in what must be the same in all of them. values: {dataset: value}"""
    first = next(iter(values), None)
    for i, value in values.items():
        if value != values[first]:
            raise ValueError(f"robot '{about[i].robot}' has {what} {values[first]} in dataset {about[first].name} and "
                             f"{value} in {about[i].name}: name them apart, with a robot file for each")


def _sums(sources, window_lists, k, action_mode, bad):
    """This rank's part of `statistics` -> Moments of the state, of the action and of the action before the delta
    transform, and {dataset: dimensions of state and action}."""
    states, actions, commanded, widths = Moments(), Moments(), Moments(), {}
    for i, source in sources.items():
        rows = window_lists[i]
        cuts = np.flatnonzero(np.diff(rows[:, 0], prepend=-1))                     # rows are sorted by episode
        for first, last in zip(cuts, [*cuts[1:], len(rows)]):
            try:
                state, action = (x.astype(np.float64) for x in source.numbers(int(rows[first, 0])))
            except ValueError as error:
                if bad is None:
                    raise
                bad(error)
                continue
            widths[i] = state.shape[1], action.shape[1]
            if widths[i] != next(iter(widths.values())):   # all ranks refuse it, when they have met
                break
            ts = rows[first:last, 1]
            states.merge(moments_of(state[ts]))
            if action_mode == "delta" and len(source.relative) != action.shape[1]:
                raise ValueError(f"--action_mode delta: the robot's delta mask has {len(source.relative)} dimensions, "
                                 f"its data {action.shape[1]}; give --robot my_robot.json, see support/data/robots.py")
            moved = reference(source.relative, action_mode, state)
            for sums, more in zip((actions, commanded), action_moments(action, moved, ts, k)):
                sums.merge(more)
    return (states, actions, commanded), widths


def near_constant(std, magnitude, floor):
    """Which dimensions do not move: their deviation is at most `floor` times their magnitude, or is float32 rounding.
    All (d,). The unit does not matter: a joint at 0.7 +- 1e-5 rad is near-constant, a force of 1e-4 +- 3e-5 is not."""
    return std <= np.maximum(floor * np.abs(magnitude), ROUNDING)


def _finished(moments, about, action_mode, std_floor):
    """Moments as of `_sums` -> Statistics, with the floor and the embedded world's grippers."""
    found, unscaled, one, total = {}, [], about[0], sum(of.windows for of in about)
    robot, relative, (states, actions, commanded) = one.robot, one.relative, moments
    for kind, sums in (("state", states), ("action", actions)):
        if not sums.n:
            raise ValueError(f"robot '{robot}': no episode of its training windows could be read")
        mean, std = sums.mean, sums.std()
        if robot in ROBOTS and ROBOTS[robot].grippers_by_range:
            joint = np.array(ROBOTS[robot].relative)
            if len(mean) != len(joint):
                raise ValueError(f"robot '{robot}' has {len(joint)} dimensions in support/data/robots.py, "
                                 f"its data {len(mean)} of {kind}")
            mean, std = np.where(joint, mean, (sums.low + sums.high) / 2), np.where(joint, std, sums.high - sums.low)
        still = near_constant(std, mean, std_floor)
        if kind == "state" and len(mean) == len(commanded.mean):
            still |= std < STALLED * np.minimum(np.abs(commanded.mean), 1)
        if kind == "action" and action_mode == "delta":   # told one posture: absolute, however the state moved
            fixed = near_constant(commanded.std(), commanded.mean, std_floor)
            mean, still = np.where(fixed, commanded.mean, mean), still | fixed
            relative = tuple(bool(of and not told) for of, told in zip(relative, fixed))
        unscaled += [f"{kind} {d}" for d in np.flatnonzero(still)]
        found[f"{kind}_mean"] = tuple(mean.tolist())
        found[f"{kind}_std"] = tuple(np.where(still, 1.0, std).tolist())
    return Statistics(robot=robot, action_mode=action_mode, fps=one.fps, windows=total, action_names=one.action_names,
                      relative=relative, unscaled=tuple(unscaled), sample=SAMPLE if total > SAMPLE else 0,
                      inputs=tuple(dict.fromkeys(item for of in about for item in of.inputs)), kinds=one.kinds,
                      left_out=tuple(np.flatnonzero(still).tolist()), **found)
