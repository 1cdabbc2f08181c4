"""Statistics over exactly the training windows, taken once: they are kept beside the dataset, in statistics/, under a
hash of all that they depend on. Each rank sums over the datasets that it was dealt; what is gathered is small.

Sec. 3.3's tuples overlap: a frame's action is in up to k chunks, and in delta mode in each relative to another state.
With c_j the number of windows whose chunk holds frame j, and n_t the steps of the chunk at t that lie inside the
episode, the sums over all windows and steps of x = a_j - r s_t are

    sum x   = sum_j c_j a_j   -  sum_t n_t r s_t
    sum x^2 = sum_j c_j a_j^2 - 2 sum_t r s_t (a_t + ... + a_{t+n_t-1}) + sum_t n_t (r s_t)^2

where c and the sums over a chunk are differences of cumulative sums, in float64 about the episode's own mean. Episodes,
and ranks, are merged by mean and squared deviation, so no digits cancel."""

import hashlib
import re
import time
from dataclasses import asdict, dataclass
from itertools import combinations
from types import SimpleNamespace

import numpy as np

from support.data import file_hashes
from support.data.robots import ROBOTS
from support.data.statistics import Alone, Statistics, gathered, inputs_of, kinds_of, reference
from support.files import must

FORMAT = 4   # of what is kept, how it is computed and what is refused before: raise it when one of them changes
SAMPLE, SAMPLE_SEED = 2_000_000, 0   # above so many windows, so many of them, chosen by this seed
ROUNDING = float(np.finfo(np.float32).eps)   # what float32 leaves of a difference of numbers near 1 that should be 0
STALLED = 1e-3   # deviation of a state, in its unit and of its command's, below which it is not divided by: a finger
#                  that was told 1.5 rad and stalled at 0 +- 2e-4 would blow up where it is free to move


def statistics_by_robot(corpus, *settings, ranks=Alone()):
    """An opened Corpus -> {robot: Statistics} of those with actions, lines that say where each is kept.
    settings: as of kept_statistics, from m to bad."""
    found, lines = {}, []
    for robot in corpus.robots:
        own = {i: corpus.sources[i] for i in corpus.counted if corpus.sources[i].robot == robot}
        found[robot], line = kept_statistics(corpus.root, own, corpus.windows, *settings, ranks=ranks)
        lines.append(line)
    must(found, "no dataset of the mixture has actions: nothing to standardise, nothing to act on")
    return found, lines


def kept_statistics(folder, sources, window_lists, m, k, action_mode, std_floor, bad=None, ranks=Alone()):
    """`statistics`, taken from `folder`/statistics where they were computed before -> Statistics, a line that says so.
    The first rank reads and writes. ValueError, also: a kept file is damaged or was edited."""
    began, problems = time.perf_counter(), []
    identities = gathered(ranks, {i: source.identity() | {
        "robot": source.robot, "relative": list(source.relative), "inputs": inputs_of(source),
        "kinds": kinds_of(source), "windows": hashlib.sha256(np.ascontiguousarray(window_lists[i])).hexdigest()}
        for i, source in sources.items() if source.has_action})
    depends = {"format": FORMAT, "m": m, "k": k, "action_mode": action_mode, "std_floor": std_floor,
               "sample": [SAMPLE, SAMPLE_SEED], "sources": list(identities.values())}
    path = folder / file_hashes.FOLDER / f"{action_mode}_{file_hashes.digest(depends)[:16]}.json"
    stored = ranks.agree(file_hashes.read_json(path)["statistics"] if ranks.first and path.exists() else None)
    if stored:
        return Statistics.from_dict(stored), f"statistics: {path}"

    def count(error):
        problems.append(error)
        bad(error)
    stats = statistics(sources, window_lists, k, action_mode, std_floor, bad and count, ranks)
    line = f"statistics: computed in {time.perf_counter() - began:.1f} s"
    if any(ranks.gather(len(problems))):
        return stats, f"{line}, not kept because of bad episodes"
    try:
        if ranks.first:
            file_hashes.write_json(path, {"depends_on": depends, "statistics": asdict(stats)})
    except OSError as error:
        return stats, f"{line}, not kept: {path.parent} cannot be written ({error.strerror})"
    return stats, f"{line}, kept in {path}"


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
    sources, window_lists: {dataset: ...} of those that this rank alone counts. bad: called with the error of
    an episode that cannot be read and so does not count; None: raise it. ValueError: unequal widths, masks or rates."""
    sources = {i: source for i, source in sources.items() if source.has_action}
    about = gathered(ranks, {i: SimpleNamespace(
        name=source.name, robot=source.robot, fps=source.fps, relative=tuple(source.relative), inputs=inputs_of(source),
        kinds=kinds_of(source), action_names=tuple(source.action_names), windows=len(window_lists[i]),
        state_names=tuple(getattr(source, "state_names", ()))) for i, source in sources.items()})
    for what, key in (("frames/s", "fps"), ("a delta mask of", "relative"), ("the kinds of action", "kinds")):
        _alike(about, what, {i: getattr(of, key) for i, of in about.items()})
    for what in ("state", "action"):
        for (a, i), (b, j) in combinations({getattr(of, f"{what}_names"): i for i, of in about.items()}.items(), 2):
            _alike(about, f"the {what} dimensions", {i: a, j: b} if misplaced(a, b) else {})
    rows = list(about.values())
    for of in rows if action_mode == "delta" else ():
        for d in (d for d in misplaced(of.action_names, of.state_names) if any(of.relative[d:d + 1])):
            raise ValueError(f"--action_mode delta: action {d} of dataset {of.name} is '{of.action_names[d]}': "
                             f"that is state {of.state_names.index(of.action_names[d])}, it would be relative to {d}: "
                             'put "state" in the order of "action" in a --robot file')
    for d, (kind, relative) in enumerate(zip(rows[0].kinds, rows[0].relative)):
        if action_mode == "delta" and relative and kind != "position":
            raise ValueError(f"--action_mode delta: action {d} of robot '{rows[0].robot}' is a {kind}, which is "
                             'relative to no state: --action_mode absolute, or absolute in "delta" of a robot file')
    chosen = ranks.agree(sampled({i: of.windows for i, of in about.items()}) if ranks.first else None)
    own = {i: window_lists[i] if chosen is None else window_lists[i][chosen[i]] for i in sources}
    moments = gathered(ranks, _sums(sources, own, k, action_mode, bad))
    _alike(about, "state and action dimensions", {i: (np.size(states.mean), np.size(actions.mean))
                                                  for i, (states, actions, _) in moments.items() if states.n})
    merged = [Moments() for _ in range(3)]   # by dataset: the same to the bit on any number of ranks, as resume asks
    for part in moments.values():
        for sums, more in zip(merged, part):
            sums.merge(more)
    return _finished(merged, rows, action_mode, std_floor)


def _alike(about, what, values):
    """Refuse datasets of one robot that differ in what must be the same in all of them. values: {dataset: value}"""
    first = next(iter(values), None)
    for i, value in values.items():
        must(value == values[first], f"robot '{about[i].robot}' has {what} {values[first]} in dataset "
             f"{about[first].name} and {value} in {about[i].name}: name them apart, or make them alike, with a robot "
             "file for each")


def misplaced(names, others):
    """Which d of `names` stand at another place among `others`. What a reader made of places says nothing."""
    return [d for d, name in enumerate(names) if name in others and others[d:d + 1] != (name,)
            and not re.fullmatch(r"(state|action)_\d+", str(name))]


def _sums(sources, window_lists, k, action_mode, bad):
    """This rank's part of `statistics` -> {dataset: Moments of the state, of the action and of the action before the
    delta transform}."""
    found = {}
    for i, source in sources.items():
        rows, (states, actions, commanded) = window_lists[i], found.setdefault(i, [Moments() for _ in range(3)])
        cuts = np.flatnonzero(np.diff(rows[:, 0], prepend=-1))                     # rows are sorted by episode
        for first, last in zip(cuts, [*cuts[1:], len(rows)]):
            try:
                state, action = (x.astype(np.float64) for x in source.numbers(int(rows[first, 0])))
            except ValueError as error:
                if bad is None:
                    raise
                bad(error)
                continue
            ts = rows[first:last, 1]
            states.merge(moments_of(state[ts]))
            if action_mode == "delta" and len(source.relative) != action.shape[1]:
                raise ValueError(f"--action_mode delta: the robot's delta mask has {len(source.relative)} dimensions, "
                                 f"its data {action.shape[1]}; give --robot my_robot.json, see support/data/robots.py")
            moved = reference(source.relative, action_mode, state)
            for sums, more in zip((actions, commanded), action_moments(action, moved, ts, k)):
                sums.merge(more)
    return found


def near_constant(std, magnitude, floor):
    """Which dimensions do not move: their deviation is at most `floor` times their magnitude, or is float32 rounding.
    All (d,). The unit does not matter: a joint at 0.7 +- 1e-5 rad is near-constant, a force of 1e-4 +- 3e-5 is not."""
    return std <= np.maximum(floor * np.abs(magnitude), ROUNDING)


def _finished(moments, about, action_mode, std_floor):
    """Moments of all datasets, as of `_sums` -> Statistics, with the floor and the embedded world's grippers."""
    found, unscaled, one, total = {}, [], about[0], sum(of.windows for of in about)
    robot, relative, (states, actions, commanded) = one.robot, one.relative, moments
    for kind, sums in (("state", states), ("action", actions)):
        must(sums.n, f"robot '{robot}': no episode of its training windows could be read")
        mean, std = sums.mean, sums.std()
        if robot in ROBOTS and ROBOTS[robot].grippers_by_range:
            joint = np.array(ROBOTS[robot].relative)
            must(len(mean) == len(joint), f"robot '{robot}' has {len(joint)} dimensions in support/data/robots.json, "
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


@dataclass
class Moments:
    """Count, mean, sum of squared deviations, lowest and highest value, each per dimension; of nothing at first."""

    n: float = 0
    mean: np.ndarray = 0.0
    squares: np.ndarray = 0.0
    low: np.ndarray = np.inf
    high: np.ndarray = -np.inf

    def merge(self, other):
        """Add what other Moments hold."""
        if other.n:
            total, shift = self.n + other.n, other.mean - self.mean
            self.squares = self.squares + other.squares + shift ** 2 * (self.n * other.n / total)
            self.mean = self.mean + shift * (other.n / total)
            self.n, self.low, self.high = total, np.minimum(self.low, other.low), np.maximum(self.high, other.high)

    def std(self):
        return np.sqrt(self.squares / self.n)


def moments_of(x):
    """Values x (n, d) float64 -> Moments."""
    mean = x.mean(0)
    return Moments(len(x), mean, ((x - mean) ** 2).sum(0), x.min(0), x.max(0))


def action_moments(action, moved, ts, k):
    """Moments of a_j - moved_t over the windows at ts (n, sorted) and their steps inside the episode, and of a_j alone.
    action (L, d), moved (L, d or 1) float64. Lowest and highest are of a_j: only absolute dimensions use them."""
    L, shift = len(action), action.mean(0)
    base = np.where((moved == 0).all(0), 0.0, shift)      # what is relative is centred together with its reference
    a, s = action - shift, moved - base
    starts = np.zeros(L + 1)
    starts[ts + 1] = 1
    started = np.cumsum(starts)                            # windows that begin before frame j
    c = started[1:] - started[np.maximum(np.arange(L) - k + 1, 0)]
    end = np.minimum(ts + k, L)
    steps, sums = (end - ts)[:, None], np.concatenate([np.zeros((1, a.shape[1])), np.cumsum(a, 0)])
    inside, s = sums[end] - sums[ts], s[ts]
    n, once, twice = c.sum(), c @ a, c @ a ** 2
    mean = (once - (steps * s).sum(0)) / n
    squares = twice - 2 * (s * inside).sum(0) + (steps * s ** 2).sum(0) - n * mean ** 2
    used = action[c > 0]
    alone = Moments(n, once / n + shift, np.maximum(twice - n * (once / n) ** 2, 0), used.min(0), used.max(0))
    return Moments(n, mean + shift - base, np.maximum(squares, 0), alone.low, alone.high), alone
