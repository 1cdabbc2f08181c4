"""Mean and standard deviation of state and actions over exactly the training windows: what the model's units are.

Sec. 3.3's tuples overlap: a frame's action is in up to k chunks, and in delta mode in each relative to another state.
Nothing is gathered for that. With c_j the number of windows whose chunk holds frame j, and n_t the steps of the chunk
at t that lie inside the episode, the sums over all windows and steps of x = a_j - r s_t are

    sum x   = sum_j c_j a_j   -  sum_t n_t r s_t
    sum x^2 = sum_j c_j a_j^2 - 2 sum_t r s_t (a_t + ... + a_{t+n_t-1}) + sum_t n_t (r s_t)^2

where c and the sums over a chunk are differences of cumulative sums. Per episode they are taken in float64 about the
episode's own mean, and episodes are merged by mean and squared deviation, so no digits cancel.

They are kept beside the dataset, in statistics/, under a hash of all that they depend on.
"""

import hashlib
import time
from dataclasses import asdict, dataclass, replace

import numpy as np

from support.data import file_hashes
from support.data.robots import ROBOTS, VIEWS

SAMPLE, SAMPLE_SEED = 2_000_000, 0   # above so many windows, so many of them, chosen by this seed
FORMAT = 2                           # of what is kept and how it is computed: raise it when either changes


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation per dimension, over the training windows, after the delta transform.

    A dimension whose deviation is below the floor is shifted but not scaled. The embedded world's grippers
    hold the middle and the width of their range instead [ours], because standardising a rarely used switch lets a
    timing error of one frame outweigh every error of position. JSON-able; stored in every checkpoint.
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
                             f"acts in {action_mode} ones: actions would be scaled wrongly; take the checkpoint "
                             f"as it was written, or train again")
        return self

    def check_inputs(self, source):
        """ValueError unless a source's cameras and features are those that were trained on; fewer cameras may be."""
        strange = [item for item in inputs_of([source]) if item not in self.inputs] if self.inputs else ()
        if strange:
            raise ValueError(f"dataset {source.name} gives {', '.join(strange)}; trained was on {', '.join(self.inputs)}: "
                             "give the same --robot as in training")

    def cameras(self):
        """Slots that trained pictures filled, such as ("head", "left_wrist"); () where that is not known."""
        return tuple(view for view in VIEWS if any(item.startswith(f"{view} = ") for item in self.inputs))

    def check_width(self, state_dim, action_dim):
        """ValueError if the model, which takes so many dimensions, is too narrow."""
        for kind, width, mean in (("state", state_dim, self.state_mean), ("action", action_dim, self.action_mean)):
            if len(mean) > width:
                raise ValueError(f"the {kind} of robot '{self.robot}' has {len(mean)} dimensions, the model takes at "
                                 f"most {width}; name fewer features in a --robot file")

    def describe(self, m, k):
        """Lines for the start of a run: dimensions, windows, what m and k last, what is not scaled."""
        yield (f"robot {self.robot}: {len(self.state_mean)} state and {len(self.action_mean)} action dimensions, "
               f"{self.windows:,} windows, m = {m} frames = {m / self.fps:.2f} s, chunk = {k} frames = "
               f"{k / self.fps:.2f} s")
        yield f"it reads {', '.join(self.inputs)}"
        if self.sample:
            yield f"statistics over a seeded sample of {self.sample:,} of these windows"
        if self.unscaled:
            names = dict(enumerate(self.action_names))
            said = [f"{kind} {d}" + (f" ({names[int(d)]})" if kind == "action" and names else "")
                    for kind, d in (item.split() for item in self.unscaled)]
            yield f"near-constant dimensions, passed through unscaled: {', '.join(said)}"

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


def inputs_of(sources):
    """Which feature fills which slot, in any of the sources: tuple of text such as "head = observation.images.top"."""
    found = []
    for source in sources:
        cameras = source.views if isinstance(source.views, dict) else dict(zip(source.views, source.views))
        found += [f"{slot} = {key}" for slot, key in cameras.items()]
        found += [f"{kind} = {' + '.join(keys)}" for kind in ("state", "action")
                  if (keys := getattr(source, f"{kind}_keys", ()))]
    return tuple(dict.fromkeys(found))


def reference(relative, action_mode, state):
    """What a relative action is relative to: the state at t on relative dimensions, else 0. (..., d_a or 1) float64"""
    if action_mode == "absolute":
        return np.zeros(state.shape[:-1] + (1,))
    if len(relative) != state.shape[-1]:
        raise ValueError(f"--action_mode delta: the robot's delta mask has {len(relative)} dimensions, its data "
                         f"{state.shape[-1]}; give --robot my_robot.json, see support/data/robots.py")
    return np.where(np.array(relative), state, 0).astype(np.float64)


# ---- sums ---------------------------------------------------------------------------------------

class Moments:
    """Count, mean, sum of squared deviations, lowest and highest value per dimension of what was added so far."""

    def __init__(self):
        self.n, self.mean, self.squares, self.low, self.high = 0, 0.0, 0.0, np.inf, -np.inf

    def add(self, n, mean, squares, low, high):
        """Merge n more values of that mean and sum of squared deviations."""
        total, shift = self.n + n, mean - self.mean
        self.squares = self.squares + squares + shift ** 2 * (self.n * n / total)
        self.mean = self.mean + shift * (n / total)
        self.n, self.low, self.high = total, np.minimum(self.low, low), np.maximum(self.high, high)

    def std(self):
        return np.sqrt(self.squares / self.n)


def moments_of(x):
    """x (n, d) float64 -> n, mean, squared deviations, lowest, highest."""
    mean = x.mean(0)
    return len(x), mean, ((x - mean) ** 2).sum(0), x.min(0), x.max(0)


def action_moments(action, moved, ts, k):
    """The same of a_j - moved_t over the windows at ts (n, sorted) and their steps inside the episode.

    action (T, d), moved (T, d or 1) float64. Lowest and highest are of a_j: they are used for absolute dimensions only.
    """
    T, shift = len(action), action.mean(0)
    base = np.where((moved == 0).all(0), 0.0, shift)      # what is relative is centred together with its reference
    a, s = action - shift, moved - base
    starts = np.zeros(T + 1)
    starts[ts + 1] = 1
    started = np.cumsum(starts)                            # windows that begin before frame j
    c = started[1:] - started[np.maximum(np.arange(T) - k + 1, 0)]
    end = np.minimum(ts + k, T)
    steps, sums = (end - ts)[:, None], np.concatenate([np.zeros((1, a.shape[1])), np.cumsum(a, 0)])
    inside, s = sums[end] - sums[ts], s[ts]
    n = c.sum()
    mean = (c @ a - (steps * s).sum(0)) / n
    squares = c @ a ** 2 - 2 * (s * inside).sum(0) + (steps * s ** 2).sum(0) - n * mean ** 2
    used = action[c > 0]
    return n, mean + shift - base, np.maximum(squares, 0), used.min(0), used.max(0)


# ---- over all windows ---------------------------------------------------------------------------

def sampled(window_lists, size=None):
    """Window lists, thinned by SAMPLE_SEED to `size` windows in all when they are more; sorted as they were."""
    counts, size = [len(rows) for rows in window_lists], size or SAMPLE
    if sum(counts) <= size:
        return window_lists
    chosen = np.random.default_rng(SAMPLE_SEED).choice(sum(counts), size, replace=False, shuffle=False)
    first = np.cumsum([0, *counts])
    chosen.sort()
    cuts = np.searchsorted(chosen, first)
    return [rows[chosen[low:high] - begin] for rows, low, high, begin in
            zip(window_lists, cuts, cuts[1:], first)]


def statistics(sources, window_lists, k, action_mode, std_floor, bad=None):
    """Statistics over all windows of all sources with actions (one robot), or over SAMPLE of them if there are more.

    bad: called with the error of an episode that cannot be read, which then does not count; None: the error is raised.
    ValueError: no source with actions, several robots, or one robot with unequal widths, delta masks or rates.
    """
    with_actions = [(s, w) for s, w in zip(sources, window_lists) if s.has_action]
    if not with_actions:
        raise ValueError("no dataset of the mixture has actions: nothing to standardise, nothing to act on")
    robots = {s.robot for s, _ in with_actions}
    if len(robots) > 1:
        raise ValueError(f"statistics are of one robot, these datasets are of {sorted(robots)}")
    shared = {}   # (name, value) of the first dataset, by what must be the same in all

    def same(what, source, value):
        name, first = shared.setdefault(what, (source.name, value))
        if value != first:
            raise ValueError(f"robot '{source.robot}' has {what} {first} in dataset {name} and {value} in {source.name}: "
                             "they are not one robot; name them apart with a robot file for each")
    for source, _ in with_actions:
        same("frames/s", source, source.fps)
        same("a delta mask of", source, tuple(map(int, source.relative)))
    moments, total = {"state": Moments(), "action": Moments()}, sum(len(rows) for _, rows in with_actions)
    for (source, _), rows in zip(with_actions, sampled([rows for _, rows in with_actions])):
        cuts = np.flatnonzero(np.diff(rows[:, 0], prepend=-1))                     # rows are sorted by episode
        for first, last in zip(cuts, [*cuts[1:], len(rows)]):
            try:
                state, action = (x.astype(np.float64) for x in source.numbers(int(rows[first, 0])))
            except ValueError as error:
                if bad is None:
                    raise
                bad(error)
                continue
            same("state and action dimensions", source, (state.shape[1], action.shape[1]))
            ts = rows[first:last, 1]
            moments["state"].add(*moments_of(state[ts]))
            moved = reference(source.relative, action_mode, state)
            moments["action"].add(*action_moments(action, np.broadcast_to(moved, (len(moved), moved.shape[1])), ts, k))
    found = _finished(moments, with_actions[0][0], action_mode, std_floor, total)
    return replace(found, inputs=inputs_of([source for source, _ in with_actions]))


def _finished(moments, source, action_mode, std_floor, total):
    """Moments -> Statistics, with the floor and the embedded world's grippers."""
    found, unscaled, robot = {}, [], source.robot
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
    return Statistics(robot=robot, action_mode=action_mode, fps=source.fps, windows=total,
                      action_names=tuple(source.action_names), relative=source.relative, unscaled=tuple(unscaled),
                      sample=SAMPLE if total > SAMPLE else 0, **found)


# ---- kept beside the dataset --------------------------------------------------------------------

def statistics_by_robot(folder, sources, window_lists, *settings):
    """kept_statistics of each robot that has actions -> {robot: Statistics}, lines that say where they are kept."""
    found, lines = {}, []
    for robot in dict.fromkeys(source.robot for source in sources if source.has_action):
        mine = [i for i, source in enumerate(sources) if source.robot == robot]
        found[robot], line = kept_statistics(folder, [sources[i] for i in mine], [window_lists[i] for i in mine],
                                             *settings)
        lines.append(line)
    if not found:
        raise ValueError("no dataset of the mixture has actions: nothing to standardise, nothing to act on")
    return found, lines


def kept_statistics(folder, sources, window_lists, m, k, action_mode, std_floor, bad=None):
    """`statistics`, taken from `folder`/statistics where they were computed before -> Statistics, a line that says so.

    A folder that cannot be written to is said and passed over. ValueError, also: a kept file is damaged or was edited.
    """
    began, problems = time.perf_counter(), []
    depends = {"format": FORMAT, "m": m, "k": k, "action_mode": action_mode, "std_floor": std_floor,
               "sample": [SAMPLE, SAMPLE_SEED], "sources": [
                   source.identity() | {"robot": source.robot, "relative": list(source.relative),
                                        "inputs": list(inputs_of([source])),
                                        "windows": hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()}
                   for source, rows in zip(sources, window_lists) if source.has_action]}
    path = folder / file_hashes.FOLDER / f"{action_mode}_{file_hashes.digest(depends)[:16]}.json"
    if path.exists():
        stored = file_hashes.read_json(path)
        if stored.get("depends_on") != depends:
            raise ValueError(f"{path} holds statistics of something else: delete it to have it made again")
        return Statistics.from_dict(stored["statistics"]).check(action_mode), f"statistics: {path}"

    def count(error):
        problems.append(error)
        bad(error)
    stats = statistics(sources, window_lists, k, action_mode, std_floor, bad and count)
    line = f"statistics: computed in {time.perf_counter() - began:.1f} s"
    if problems:
        return stats, f"{line}, not kept because of bad episodes"
    try:
        file_hashes.write_json(path, {"depends_on": depends, "statistics": asdict(stats)})
    except OSError as error:
        return stats, f"{line}, not kept: {path.parent} cannot be written ({error.strerror})"
    return stats, f"{line}, kept in {path}"
