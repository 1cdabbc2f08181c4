"""Mean and standard deviation of state and actions over exactly the training windows: what the model's units are.

Each rank sums over the datasets that it was dealt (support/data/moments.py). What is gathered is small.
"""

from dataclasses import asdict, dataclass
from types import SimpleNamespace

import numpy as np

from config import VIEWS
from support.data.moments import Moments, action_moments, moments_of
from support.data.robots import ROBOTS

SAMPLE, SAMPLE_SEED = 2_000_000, 0   # above so many windows, so many of them, chosen by this seed


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation per dimension, over the training windows, after the delta transform.

    A deviation below the floor is not divided by. The embedded world's grippers hold the middle and the width of their
    range instead [ours]: standardised, a rarely used switch would let a timing error of one frame outweigh every error
    of position. JSON-able; stored in every checkpoint.
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

    @classmethod
    def from_dict(cls, stored):
        """What a checkpoint holds. ValueError: missing, damaged, or of another version."""
        try:
            return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()})
        except (AttributeError, TypeError) as error:
            raise ValueError(f"the statistics are missing or not of this version ({error}): without them actions have "
                             f"no units; train again, or import the weights with python -m support.weights") from error

    def check(self, action_mode):
        """ValueError unless these are statistics of actions of that mode."""
        if self.action_mode != action_mode:
            raise ValueError(f"the statistics of robot '{self.robot}' are of {self.action_mode} actions, the model "
                             f"acts in {action_mode} ones; take the checkpoint as it was written, or train again")
        return self

    def check_inputs(self, source):
        """ValueError unless a source's cameras and features are those that were trained on; fewer cameras may be."""
        strange = [item for item in inputs_of(source) if item not in self.inputs] if self.inputs else ()
        if strange:
            raise ValueError(f"dataset {source.name} gives {', '.join(strange)}; trained was on "
                             f"{', '.join(self.inputs)}: give the same --robot as in training")

    def stopped(self, action):
        """What is commanded while there is no new action: the last one."""
        return action

    def cameras(self):
        """Slots that trained pictures filled, such as ("head", "left_wrist"); () where that is not known."""
        return tuple(view for view in VIEWS if any(item.startswith(f"{view} = ") for item in self.inputs))

    def describe(self, m, k):
        """Lines for the start of a run: dimensions, windows, what m and k last, what is not scaled."""
        yield (f"robot {self.robot}: {len(self.state_mean)} state and {len(self.action_mean)} action dimensions, "
               f"{self.windows:,} windows, m = {m} frames = {m / self.fps:.2f} s, "
               f"chunk = {k} frames = {k / self.fps:.2f} s")
        yield f"it reads {', '.join(self.inputs)}"
        if self.sample:
            yield f"statistics over a seeded sample of {self.sample:,} of these windows"
        if self.unscaled:
            names = {f"action {d}": f" ({name})" for d, name in enumerate(self.action_names)}
            shown = ", ".join(item + names.get(item, "") for item in self.unscaled)
            yield f"near-constant dimensions, passed through unscaled: {shown}"

    def normalise(self, kind, x):
        """Raw units -> standardised, last axis, float32. kind "state" or "action"."""
        mean, std = np.float64(getattr(self, f"{kind}_mean")), np.float64(getattr(self, f"{kind}_std"))
        if x.shape[-1] != len(mean):
            raise ValueError(f"the {kind} has {x.shape[-1]} dimensions, robot '{self.robot}' has {len(mean)}")
        return ((x - mean) / std).astype(np.float32)

    def chunk(self, a, state):
        """Actions (k, d_a) and state at t (d_q,) in raw units -> the standardised chunk (k, d_a) float32."""
        return self.normalise("action", a - reference(self.relative, self.action_mode, state)[None])

    def actions(self, a, state):
        """Standardised chunk (..., k, 32) and raw state (..., d_q) -> actions in raw units (..., k, d_a) float32."""
        mean, std = np.float64(self.action_mean), np.float64(self.action_std)
        a = a[..., :len(mean)] * std + mean
        return (a + np.expand_dims(reference(self.relative, self.action_mode, state), -2)).astype(np.float32)


def in_checkpoint(by_robot):
    """{robot: Statistics} -> what a checkpoint's state holds of it."""
    rows = {robot: asdict(of) for robot, of in by_robot.items()}
    return {"statistics": next(iter(rows.values())), "statistics_by_robot": rows}


def of_checkpoint(state):
    """A checkpoint's state -> {robot: Statistics}, the first the one that it was validated on. ValueError: missing."""
    first = Statistics.from_dict(state.get("statistics"))
    return {first.robot: first} | {name: Statistics.from_dict(row)
                                   for name, row in state.get("statistics_by_robot", {}).items()}


def inputs_of(source):
    """Which feature fills which slot: list of text such as "head = observation.images.top"."""
    features = {"state": source.state_keys, "action": source.action_keys}
    return [f"{slot} = {key}" for slot, key in source.views.items()] + \
        [f"{kind} = {' + '.join(keys)}" for kind, keys in features.items() if keys]


def reference(relative, action_mode, state):
    """What a relative action is relative to: the state at t on relative dimensions, else 0. (..., d_a or 1) float64"""
    if action_mode == "absolute":
        return np.zeros(state.shape[:-1] + (1,))
    if len(relative) != state.shape[-1]:
        raise ValueError(f"--action_mode delta: the robot's delta mask has {len(relative)} dimensions, its data "
                         f"{state.shape[-1]}; give --robot my_robot.json, see support/data/robots.py")
    return np.where(np.array(relative), state, 0).astype(np.float64)


def pad(x, width, what):
    """(..., d) -> (..., width) float32 with zeros; ValueError when d is larger."""
    if x.shape[-1] > width:
        raise ValueError(f"{what} has {x.shape[-1]} dimensions, the model takes at most {width}; name fewer features "
                         "in a --robot file")
    out = np.zeros(x.shape[:-1] + (width,), np.float32)
    out[..., :x.shape[-1]] = x
    return out


# ---- over all windows ---------------------------------------------------------------------------

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


def sampled(counts):
    """{dataset: windows} -> {dataset: which of its windows, sorted}, SAMPLE in all. None: all of them."""
    total = sum(counts.values())
    if total <= SAMPLE:
        return None
    chosen = np.sort(np.random.default_rng(SAMPLE_SEED).choice(total, SAMPLE, replace=False, shuffle=False))
    first = np.cumsum([0, *counts.values()])
    cuts = np.searchsorted(chosen, first)
    return {i: chosen[low:high] - begin for i, low, high, begin in zip(counts, cuts, cuts[1:], first)}


def alike(robot, what, values):
    """Refuse datasets of one robot that differ in what must be the same in all of them. values: [(name, value), ...]"""
    first, expected = values[0]
    for name, value in values:
        if value != expected:
            raise ValueError(f"robot '{robot}' has {what} {expected} in dataset {first} and {value} in {name}: "
                             "they are not one robot; name them apart with a robot file for each")


def statistics(sources, window_lists, k, action_mode, std_floor, bad=None, ranks=Alone()):
    """Statistics over all windows of one robot's sources with actions, or over SAMPLE of them if there are more.

    sources, window_lists: lists, or {dataset: ...} of those that this rank alone counts. bad: called with the error of
    an episode that cannot be read and so does not count; None: raise it. ValueError: unequal widths, masks or rates.
    """
    if not isinstance(sources, dict):
        sources, window_lists = dict(enumerate(sources)), dict(enumerate(window_lists))
    sources = {i: source for i, source in sources.items() if source.has_action}
    about = gathered(ranks, {i: SimpleNamespace(
        name=source.name, robot=source.robot, fps=source.fps, relative=tuple(source.relative), inputs=inputs_of(source),
        action_names=tuple(source.action_names), windows=len(window_lists[i])) for i, source in sources.items()})
    rows = list(about.values())
    robot = rows[0].robot
    alike(robot, "frames/s", [(of.name, of.fps) for of in rows])
    alike(robot, "a delta mask of", [(of.name, of.relative) for of in rows])
    chosen = ranks.agree(sampled({i: of.windows for i, of in about.items()}) if ranks.first else None)
    own = {i: window_lists[i] if chosen is None else window_lists[i][chosen[i]] for i in sources}
    moments, widths = _sums(sources, own, k, action_mode, bad)
    widths = gathered(ranks, widths)
    alike(robot, "state and action dimensions", [(about[i].name, width) for i, width in widths.items()])
    merged = Moments(), Moments()   # of one rank these are its own, to the bit
    for part in ranks.gather(moments):
        for sums, more in zip(merged, part):
            sums.merge(more)
    return _finished(dict(zip(("state", "action"), merged)), rows, action_mode, std_floor)


def _sums(sources, window_lists, k, action_mode, bad):
    """This rank's part of `statistics` -> Moments of the state, of the action, and {dataset: their dimensions}."""
    states, actions, widths = Moments(), Moments(), {}
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
            moved = reference(source.relative, action_mode, state)
            actions.merge(action_moments(action, np.broadcast_to(moved, (len(moved), moved.shape[1])), ts, k))
    return (states, actions), widths


def _finished(moments, about, action_mode, std_floor):
    """Moments -> Statistics, with the floor and the embedded world's grippers."""
    found, unscaled, one, total = {}, [], about[0], sum(of.windows for of in about)
    robot = one.robot
    for kind, sums in moments.items():
        if not sums.n:
            raise ValueError(f"robot '{robot}': no episode of its training windows could be read")
        mean, std = sums.mean, sums.std()
        if robot in ROBOTS and ROBOTS[robot].grippers_by_range:
            joint = np.array(ROBOTS[robot].relative)
            if len(mean) != len(joint):
                raise ValueError(f"robot '{robot}' has {len(joint)} dimensions in support/data/robots.py, "
                                 f"its data {len(mean)} of {kind}")
            mean, std = np.where(joint, mean, (sums.low + sums.high) / 2), np.where(joint, std, sums.high - sums.low)
        unscaled += [f"{kind} {d}" for d in np.flatnonzero(std < std_floor)]
        found[f"{kind}_mean"] = tuple(mean.tolist())
        found[f"{kind}_std"] = tuple(np.where(std < std_floor, 1.0, std).tolist())
    return Statistics(robot=robot, action_mode=action_mode, fps=one.fps, windows=total, action_names=one.action_names,
                      relative=one.relative, unscaled=tuple(unscaled), sample=SAMPLE if total > SAMPLE else 0,
                      inputs=tuple(dict.fromkeys(item for of in about for item in of.inputs)), **found)
