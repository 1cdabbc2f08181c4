"""Training tuples: xi = (a_{t:t+k}, o_{t-m}, o_t, o_{t+m}, q_t, l) of Sec. 3.3, drawn from a mixture (Table 3).

From disk to a batch, in the order of this file:

    open_source    episodes on disk: a plain folder or a LeRobot dataset, both with the same interface (support/)
    windows        which (episode, t) make a tuple; outside an episode frames and actions are clamped and masked
    Statistics     mean and standard deviation of state and actions over exactly those windows
    Example        one tuple as arrays; observation() makes the same arrays from a live robot
    Mixture        which tuple comes next: a pure function of (seed, rank, sample number), spread by lpt.py

m and k count frames of the source, whatever its rate. Human video has no actions: `has_action` is False, its
action mask is empty, and it trains L_gen alone.
"""

import json
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch

import flow
import lpt
from support.folder_source import FolderSource
from support.lerobot_reader import LeRobotSource
from support.letterbox import letterbox
from support.prompts import token_ids
from support.robots import ROBOTS, VIEWS, find_robot



@dataclass
class Batch:
    """What the model reads. B samples; V = 3 views (head, left wrist, right wrist); T = 3 times (t-m, t, t+m).

    Padding to 32 dimensions is zeros. At inference frames hold two times, and action, its mask and future_mask
    are absent.
    """

    image: torch.Tensor         # (B, V, 3, S, S) uint8, o_t as the understanding expert sees it
    frames: torch.Tensor        # (B, V, T, 3, s, s) uint8, as the generation expert sees them
    view_mask: torch.Tensor     # (B, V) bool, the camera exists
    text_ids: torch.Tensor      # (B, N_txt) int64
    text_mask: torch.Tensor     # (B, N_txt) bool
    state: torch.Tensor         # (B, 32) float32, q_t, standardised
    dim_mask: torch.Tensor      # (B, 32) bool, the action dimension exists
    action: torch.Tensor = None         # (B, k, 32) float32, a_{t:t+k}, standardised
    action_mask: torch.Tensor = None    # (B, k, 32) bool: has actions, step inside the episode, dimension exists
    future_mask: torch.Tensor = None    # (B,) bool, t+m lies inside the episode

    def to(self, device):
        """A copy on `device`."""
        return Batch(**{f.name: None if getattr(self, f.name) is None else getattr(self, f.name).to(device)
                        for f in fields(self)})


# ---- sources ----------------------------------------------------------------------------------------------------

def open_source(path, robot=None):
    """A dataset folder of either kind; robot: a support.robots.Robot, or None for what the dataset says of itself.

    ValueError: one line saying what was looked for.
    """
    path = Path(path)
    if (path / "meta" / "info.json").exists():
        return LeRobotSource(path, robot)
    if (path / "episode.npz").exists():
        return FolderSource(path, robot and robot.name)
    raise ValueError(f"{path} holds no dataset: expected mixture.json, meta/info.json (LeRobot) or episode.npz")


# ---- windows ----------------------------------------------------------------------------------------------------

def windows(source, m, full=False, episodes=None):
    """All tuples of a source, (n, 2) int64 rows (episode, t). `full`: t-m and t+m must lie inside the episode."""
    rows = []
    for e in range(len(source.lengths)) if episodes is None else episodes:
        T = int(source.lengths[e])
        t = np.arange(m, T - m) if full else np.arange(T)
        if getattr(source, "stored", None) is not None:
            t = t[np.logical_and.reduce([source.has_pictures(e, np.clip(t + d, 0, T - 1)) for d in (-m, 0, m)])]
        rows.append(np.stack([np.full(len(t), e), t], 1))
    return np.concatenate(rows) if rows else np.zeros((0, 2), np.int64)


def chunk_at(action, t, k):
    """a_{t:t+k} of an episode's actions (T, d_a), clamped, and which steps lie inside: (k, d_a), (k,) bool."""
    steps = t + np.arange(k)
    return action[np.minimum(steps, len(action) - 1)], steps < len(action)


# ---- statistics -------------------------------------------------------------------------------------------------

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

    @classmethod
    def from_dict(cls, stored):
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()})

    def normalise(self, kind, x):
        """Raw units -> standardised, last axis. kind "state" or "action"."""
        mean, std = np.float32(getattr(self, f"{kind}_mean")), np.float32(getattr(self, f"{kind}_std"))
        if x.shape[-1] != len(mean):
            raise ValueError(f"the {kind} has {x.shape[-1]} dimensions, robot '{self.robot}' has {len(mean)}")
        return (x - mean) / std

    def actions(self, a, state):
        """Standardised chunk (..., k, 32) and raw state (..., d_q) -> actions in raw units (..., k, d_a)."""
        mean, std = np.float32(self.action_mean), np.float32(self.action_std)
        a = a[..., :len(mean)] * std + mean
        return a + np.expand_dims(reference(self.relative, self.action_mode, state), -2)


def reference(relative, action_mode, state):
    """What a relative action is relative to: the state at t on relative dimensions, else 0. (..., d_a or 1)"""
    if action_mode == "absolute":
        return np.zeros(state.shape[:-1] + (1,), np.float32)
    if len(relative) != state.shape[-1]:
        raise ValueError(f"--action_mode delta: the robot's delta mask has {len(relative)} dimensions, its data "
                         f"{state.shape[-1]}; give --robot my_robot.json, see support/robots.py")
    return np.where(np.array(relative), state, 0).astype(np.float32)


def statistics(sources, window_lists, k, action_mode, std_floor):
    """Statistics over all windows of all sources with actions (one robot). ValueError: none, or unequal widths."""
    totals, ranges, count, with_actions = {}, {}, 0, [(s, w) for s, w in zip(sources, window_lists) if s.has_action]
    if not with_actions:
        raise ValueError("no dataset of the mixture has actions: nothing to standardise, nothing to act on")
    robots = {s.robot for s, _ in with_actions}
    if len(robots) > 1:
        raise ValueError(f"one run trains one robot, the mixture names {sorted(robots)}")
    robot = robots.pop()
    for source, rows in with_actions:
        for e in np.unique(rows[:, 0]):
            state, action = source.numbers(int(e))
            first, last = np.searchsorted(rows[:, 0], [e, e + 1])                  # rows are sorted by episode
            ts = rows[first:last, 1]
            steps = ts[:, None] + np.arange(k)
            inside = steps < len(action)
            a = action[np.minimum(steps, len(action) - 1)].astype(np.float64)
            a = a - np.expand_dims(reference(source.relative, action_mode, state[ts]), -2)
            for kind, x in (("state", state[ts].astype(np.float64)), ("action", a[inside])):
                add = np.array([x.sum(0), (x ** 2).sum(0)])
                n, total = totals.get(kind, (0, 0))
                totals[kind] = n + len(x), total + add
                low, high = ranges.get(kind, (np.inf, -np.inf))
                ranges[kind] = np.minimum(low, x.min(0)), np.maximum(high, x.max(0))
        count += len(rows)
    moments, unscaled = {}, []
    for kind, (n, (first, second)) in totals.items():
        mean = first / n
        std = np.sqrt(np.maximum(second / n - mean ** 2, 0))
        if robot in ROBOTS and ROBOTS[robot].grippers_by_range:
            joint, (low, high) = np.array(ROBOTS[robot].relative), ranges[kind]
            if len(mean) != len(joint):
                raise ValueError(f"robot '{robot}' has {len(joint)} dimensions in support/robots.py, "
                                 f"its data {len(mean)} of {kind}")
            mean, std = np.where(joint, mean, (low + high) / 2), np.where(joint, std, high - low)
        unscaled += [f"{kind} {d}" for d in np.flatnonzero(std < std_floor)]
        moments[f"{kind}_mean"] = tuple(mean.tolist())
        moments[f"{kind}_std"] = tuple(np.where(std < std_floor, 1.0, std).tolist())
    return Statistics(robot=robot, action_mode=action_mode, fps=with_actions[0][0].fps, windows=count,
                      action_names=tuple(with_actions[0][0].action_names), relative=with_actions[0][0].relative,
                      unscaled=tuple(unscaled), **moments)


# ---- one example ------------------------------------------------------------------------------------------------

def pad(x, width, what):
    """(..., d) -> (..., width) float32 with zeros; ValueError when d is larger."""
    if x.shape[-1] > width:
        raise ValueError(f"{what} has {x.shape[-1]} dimensions, the model takes at most {width}")
    out = np.zeros(x.shape[:-1] + (width,), np.float32)
    out[..., :x.shape[-1]] = x
    return out


def observation(model, stats, pictures, state, task):
    """One live observation as the arrays of a Batch (inference half).

    pictures: view -> list of (H, W, 3) uint8 at the times t-m, t (and t+m in training); missing views absent.
    state (d_q,) in raw units, or None (human video); task: the instruction.
    """
    views, first = [], next(iter(pictures.values()), None)
    if first is None:
        raise ValueError("an observation needs the picture of at least one view")
    T = len(first)
    blank_view = torch.zeros(3, model.view_size, model.view_size, dtype=torch.uint8)
    blank = torch.zeros(T, 3, model.frame_size, model.frame_size, dtype=torch.uint8)
    frames = []
    for view in VIEWS:
        if view not in pictures:
            views.append(blank_view)
            frames.append(blank)
            continue
        frames.append(torch.stack([letterbox(p, model.frame_size) for p in pictures[view]]))
        same = model.view_size == model.frame_size
        views.append(frames[-1][1] if same else letterbox(pictures[view][1], model.view_size))
    ids, mask = token_ids(task, model.text_tokens, model.tokenizer)
    q_t = np.zeros(model.state_dim, np.float32) if state is None else \
        pad(stats.normalise("state", np.asarray(state, np.float32)), model.state_dim, "the state")
    d_a = 0 if state is None else len(stats.action_mean)
    return {"image": torch.stack(views), "frames": torch.stack(frames),
            "view_mask": torch.tensor([view in pictures for view in VIEWS]),
            "text_ids": torch.from_numpy(ids), "text_mask": torch.from_numpy(mask),
            "state": torch.from_numpy(q_t), "dim_mask": torch.arange(model.action_dim) < d_a}


def times(source, m, e, t):
    """The frames t-m, t, t+m of episode e, clamped to it."""
    return [min(max(t + d, 0), int(source.lengths[e]) - 1) for d in (-m, 0, m)]


def example(model, m, stats, source, e, t, pictures=None):
    """The training tuple at frame t of episode e, as the arrays of a Batch. pictures: as in observation, if at hand."""
    T = int(source.lengths[e])
    pictures = pictures or {view: source.frames(view, e, times(source, m, e, t)) for view in source.views}
    state, action = source.numbers(e)
    arrays = observation(model, stats, pictures, state[t] if source.has_action else None, source.task(e, t))
    a = np.zeros((model.chunk, model.action_dim), np.float32)
    mask = np.zeros((model.chunk, model.action_dim), bool)
    if source.has_action:
        chunk, inside = chunk_at(action, t, model.chunk)
        chunk = chunk - reference(stats.relative, stats.action_mode, state[t])
        a = pad(stats.normalise("action", chunk), model.action_dim, f"the action of {source.name}")
        mask = inside[:, None] & (arrays["dim_mask"].numpy() | model.noise_on_padding)
    arrays.update(action=torch.from_numpy(a), action_mask=torch.from_numpy(mask),
                  future_mask=torch.tensor(t + m < T))
    return arrays


def examples(model, m, stats, source, e, ts):
    """The training tuples at all frames `ts` of episode e: what lies between them in a video is decoded once."""
    wanted = sorted({time for t in ts for time in times(source, m, e, t)})
    seen = {view: dict(zip(wanted, source.frames(view, e, wanted))) for view in source.views}
    return [example(model, m, stats, source, e, t,
                    {view: [at[time] for time in times(source, m, e, t)] for view, at in seen.items()}) for t in ts]


def collate(examples):
    """List of example arrays -> Batch."""
    return Batch(**{key: torch.stack([x[key] for x in examples]) for key in examples[0]})


# ---- the mixture ------------------------------------------------------------------------------------------------

ORDER, WORKER, NOISE = range(3)   # independent random streams
PLACES = 128   # [ours] stretches of video that samples are drawn from by turns; the paper's batch holds one of each


def stream(seed, *key):
    """A generator that is a pure function of its key: nothing to save, resume is exact."""
    return np.random.default_rng([seed, *key])


class Mixture(torch.utils.data.Dataset):
    """Datasets spread over LPT workers and drawn by weight. Item n is sample number n of this rank.

    sources, weights, window_lists: parallel lists. Sample n is a pure function of (seed, rank, n).

    [ours] With `stretch` above 1 a draw stands for so many neighbouring windows, decoded together, because a video
    whose key frames lie far apart decodes most of what lies between them for each window alone. The order is a shuffle
    buffer made arithmetic: PLACES places are visited in turn, each delivers one window of its own stretch a visit and
    draws the next one when that is used up. Every window of a dataset is equally likely as sample n for every n.
    """

    def __init__(self, config, stats, sources, weights, window_lists, seed, rank=0):
        for source, rows in zip(sources, window_lists):
            if len(rows) == 0:
                raise ValueError(f"dataset {source.name} has no window: every episode is shorter than m needs")
            if getattr(source, "cache", None):
                source.cache.require({config.model.view_size, config.model.frame_size})
        self.config, self.stats, self.seed, self.rank = config, stats, seed, rank
        self.sources, self.window_lists = sources, window_lists
        self.sizes = [int(np.sum(source.lengths)) for source in sources]
        total = sum(weights)
        self.weights = [weight / total for weight in weights]
        self.held = lpt.assign(self.sizes, config.data.lpt_workers)
        self.shares = [np.array(mine) for mine in lpt.shares(self.weights, self.held)]
        self.mass = np.array([mine.sum() for mine in self.shares])
        self.ready = {}   # sample number -> arrays, decoded along with an earlier sample

    def place(self, n):
        """Sample number n -> (number of its draw, which of that draw's windows it is)."""
        turn, place = divmod(n, PLACES)
        turn, j = divmod(turn + place % self.config.data.stretch, self.config.data.stretch)   # they end by turns too
        return turn * PLACES + place, j

    def draw(self, n):
        """Sample number n -> (dataset index, episode, t)."""
        number, j = self.place(n)
        worker = stream(self.seed, ORDER, self.rank, number).choice(len(self.mass), p=self.mass / self.mass.sum())
        return self.draw_from(worker, number, j)

    def draw_from(self, worker, number, j=0):
        """Window j of what a worker delivers as a draw; replicas of one dataset have independent streams."""
        rng = stream(self.seed, WORKER, self.rank, worker, number)
        i = self.held[worker][rng.choice(len(self.shares[worker]), p=self.shares[worker] / self.mass[worker])]
        rows = self.window_lists[i]
        first, order = rng.integers(len(rows)), rng.permutation(self.config.data.stretch)
        e, t = rows[(first + order[j]) % len(rows)]
        return i, int(e), int(t)

    def noise(self, n):
        """(eps (R, k, d_a) standard normal, tau (R,)) of sample n, float32."""
        model, rng = self.config.model, stream(self.seed, NOISE, self.rank, n)
        eps = rng.standard_normal((model.action_draws, model.chunk, model.action_dim), np.float32)
        tau = flow.tau_from_uniform(rng.random(model.action_draws), model.tau_density)
        return torch.from_numpy(eps), torch.from_numpy(tau.astype(np.float32))

    def arrays(self, n):
        """Sample n as the arrays of a Batch; what is left of its stretch is decoded along and kept until its turn."""
        if n not in self.ready:
            i, e, t = self.draw(n)
            ts = {n: t}
            for later in range(n + PLACES, n + (self.config.data.stretch - self.place(n)[1]) * PLACES, PLACES):
                *where, t = self.draw(later)
                if where == [i, e]:   # a stretch may run into the next episode
                    ts[later] = t
            make = partial(examples, self.config.model, self.config.data.m, self.stats, self.sources[i], e)
            try:
                made = dict(zip(ts, make(list(ts.values()))))
            except ValueError:   # who asks for a bad frame shall hear of it, not its neighbours
                made = {n: make([ts[n]])[0]}
            # What another loader process delivered instead, or a run that starts anew, is of no use any more.
            self.ready = {number: x for number, x in self.ready.items() if number > n} | made
        return self.ready.pop(n)

    def __getitem__(self, n):
        arrays = self.arrays(n)
        eps, tau = self.noise(n)
        return arrays, eps, tau

    def loader(self, first_step, last_step):
        """Iterator of (Batch, eps, tau) for the micro-batches of steps first_step .. last_step - 1."""
        train = self.config.train
        size = train.batch_size
        count = range(first_step * train.accumulate, last_step * train.accumulate)
        numbers = [range(micro * size, (micro + 1) * size) for micro in count]
        return torch.utils.data.DataLoader(self, batch_sampler=numbers, collate_fn=_collate_with_noise,
                                           num_workers=self.config.data.loaders)


def _collate_with_noise(items):
    arrays, eps, tau = zip(*items)
    return collate(arrays), torch.stack(eps), torch.stack(tau)


@dataclass
class Corpus:
    """Everything `--data` names: training datasets with weights and windows, and held-out windows."""

    sources: list
    weights: list
    kinds: list
    windows: list
    held_out: object
    held_out_windows: np.ndarray


def open_corpus(path, m, full=False, robot=None):
    """A folder with mixture.json, such a file itself, or one dataset. ValueError: one line.

    mixture.json: {"datasets": [{"path", "weight", "kind"}], "robot", "validation"}; paths are relative to it. `robot`
    (a name or a file) and `validation` (a dataset, all of it held out) may be absent. Without a validation dataset the
    last episode of the first dataset with actions is held out.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"--data {path}: no such folder or mixture file")
    listing = path / "mixture.json" if path.is_dir() else path
    rows, robot, validation = [{"path": "."}], find_robot(robot) if robot else None, None
    if listing.exists():
        try:
            stored = json.loads(listing.read_text())
            rows, validation, named = stored["datasets"], stored.get("validation"), stored.get("robot")
            robot = robot or (find_robot(named) if named else None)
            weights = [float(row.get("weight", 1)) for row in rows]
            sources = [open_source(listing.parent / row["path"], robot) for row in rows]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{listing} is no mixture ({error!r}): it holds datasets, a list of path, weight, kind")
        if not rows or min(weights) <= 0:
            raise ValueError(f"{listing}: it needs at least one dataset, and weights above 0")
    else:
        weights, sources = [1.0], [open_source(path, robot)]
    kinds = [row.get("kind", "human" if not source.has_action else "robot") for row, source in zip(rows, sources)]
    kept = [range(len(source.lengths)) for source in sources]
    if validation:
        held_out = open_source(listing.parent / validation, robot)
        held_out_windows = windows(held_out, m, full)
    else:
        first = next((i for i, source in enumerate(sources) if source.has_action), 0)
        held_out, last = sources[first], len(sources[first].lengths) - 1
        if last == 0:
            raise ValueError(f"--data {path}: one episode cannot be both trained on and held out; record a second one")
        held_out_windows, kept[first] = windows(held_out, m, full, [last]), range(last)
    trained = [windows(source, m, full, episodes) for source, episodes in zip(sources, kept)]
    return Corpus(sources, weights, kinds, trained, held_out, held_out_windows)
