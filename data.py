"""Training tuples: xi = (a_{t:t+k}, o_{t-m}, o_t, o_{t+m}, q_t, l) of Sec. 3.3, drawn from a mixture (Table 3).

From disk to a batch, in the order of this file:

    open_source    episodes on disk: a plain folder or a LeRobot dataset, both with the same interface (support/)
    windows        which (episode, t) make a tuple; outside an episode frames and actions are clamped and masked
    statistics     mean and standard deviation of state and actions over exactly those windows (support/data/statistics.py)
    Example        one tuple as arrays; observation() makes the same arrays from a live robot
    Mixture        which tuple comes next: a pure function of (seed, rank, sample number), spread by lpt.py

m and k count frames of the source, whatever its rate. Human video has no actions: `has_action` is False, its
action mask is empty, and it trains L_gen alone.
"""

import sys
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch

import flow
import lpt
from support.data.folder import FolderSource
from support.data.lerobot import LeRobotSource
from support.data.letterbox import letterbox
from support.data.mixture import read_mixture
from support.data.prompts import token_ids
from support.data.robots import VIEWS, find_robot


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
    """A dataset folder of either kind; robot: a support.data.robots.Robot, or None for what the dataset says of itself.

    ValueError: one line saying what was looked for.
    """
    path = Path(path)
    if (path / "meta" / "info.json").exists():
        return LeRobotSource(path, robot)
    if (path / "episode.npz").exists():
        return FolderSource(path, robot)
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
        pad(stats.normalise("state", np.asarray(state)), model.state_dim, "the state")
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
        a = pad(stats.chunk(chunk, state[t]), model.action_dim, f"the action of {source.name}")
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
BAD_SHARE, AT_LEAST = 1e-3, 1000   # --on_bad_sample skip: of this share of samples, or of so many, may be bad
ATTEMPTS = 100                     # draws for one sample before a corpus counts as unreadable
STRETCHES = 128   # [ours] stretches of video that samples are drawn from by turns; the paper's batch holds one of each


def stream(seed, *key):
    """A generator that is a pure function of its key: nothing to save, resume is exact."""
    return np.random.default_rng([seed, *key])


class Mixture(torch.utils.data.Dataset):
    """Datasets spread over LPT workers and drawn by weight. Item n is sample number n of this rank.

    stats: the robot's Statistics, or {robot: Statistics} of all robots. sources, weights, window_lists: parallel lists.
    rank draws from its own part of what lpt.deal gives to `world` ranks. Sample n is a pure function of (seed, rank,
    n).

    [ours] With `stretch` above 1 a draw stands for so many neighbouring windows, decoded together, because a video
    whose key frames lie far apart decodes most of what lies between them for each window alone. The order is a shuffle
    buffer made arithmetic: STRETCHES places are visited in turn, each delivers one window of its own stretch a visit
    and draws the next one when that is used up. Every window of a dataset is equally likely as sample n for every n.
    """

    def __init__(self, config, stats, sources, weights, window_lists, seed, rank=0, world=1):
        for source, rows in zip(sources, window_lists):
            if len(rows) == 0:
                raise ValueError(f"dataset {source.name} has no window: every episode is shorter than m needs")
        self.by_robot = stats if isinstance(stats, dict) else {stats.robot: stats}
        for of in self.by_robot.values():
            of.check_width(config.model.state_dim, config.model.action_dim)
        self.bad_samples = 0   # replaced so far
        self.config, self.seed, self.rank = config, seed, rank
        self.sources, self.window_lists = sources, window_lists
        self.sizes = [int(np.sum(source.lengths)) for source in sources]
        total = sum(weights)
        self.weights = [weight / total for weight in weights]
        self.ranks = lpt.deal(self.sizes, self.weights, world, config.data.lpt_workers, config.data.balance)
        self.held, own = self.ranks[rank]
        self.shares = [np.array(mine) for mine in own]
        self.mass = np.array([mine.sum() for mine in self.shares])
        self.ready = {}   # sample number -> arrays, decoded along with an earlier sample

    def place(self, n):
        """Sample number n -> (number of its draw, which of that draw's windows it is)."""
        turn, place = divmod(n, STRETCHES)
        turn, j = divmod(turn + place % self.config.data.stretch, self.config.data.stretch)   # they end by turns too
        return turn * STRETCHES + place, j

    def draw(self, n, *attempt):
        """Sample number n -> (dataset index, episode, t). attempt: 1, 2, ... for what stands in for a bad sample."""
        number, j = (n, 0) if attempt else self.place(n)
        chance = self.mass / self.mass.sum()
        worker = stream(self.seed, ORDER, self.rank, number, *attempt).choice(len(self.mass), p=chance)
        return self.draw_from(worker, number, j, *attempt)

    def draw_from(self, worker, number, j=0, *attempt):
        """Window j of what a worker delivers as a draw; replicas of one dataset have independent streams."""
        rng = stream(self.seed, WORKER, self.rank, worker, number, *attempt)
        i = self.held[worker][rng.choice(len(self.shares[worker]), p=self.shares[worker] / self.mass[worker])]
        rows = self.window_lists[i]
        first, order = rng.integers(len(rows)), rng.permutation(self.config.data.stretch)
        e, t = rows[(first + order[j]) % len(rows)]
        return i, int(e), int(t)

    def noise(self, n):
        """(eps (R, k, d_a) standard normal, tau (R,)) of sample n, float32."""
        model, rng = self.config.model, stream(self.seed, NOISE, self.rank, n)
        eps = rng.standard_normal((model.action_draws, model.chunk, model.action_dim), np.float32)
        tau = flow.sample_tau(rng, model.action_draws, model.tau_density)
        return torch.from_numpy(eps), torch.from_numpy(tau.astype(np.float32))

    def stand_in(self, n, attempt):
        """The arrays of what is delivered as sample n in place of a bad one."""
        i, e, t = self.draw(n, attempt)
        source = self.sources[i]
        return example(self.config.model, self.config.data.m, self.by_robot.get(source.robot), source, e, t)

    def arrays(self, n):
        """Sample n as the arrays of a Batch; what is left of its stretch is decoded along and kept until its turn."""
        if n not in self.ready:
            i, e, t = self.draw(n)
            ts = {n: t}
            for later in range(n + STRETCHES, n + (self.config.data.stretch - self.place(n)[1]) * STRETCHES, STRETCHES):
                *where, t = self.draw(later)
                if where == [i, e]:   # a stretch may run into the next episode
                    ts[later] = t
            source = self.sources[i]
            stats = self.by_robot.get(source.robot)
            make = partial(examples, self.config.model, self.config.data.m, stats, source, e)
            try:
                made = dict(zip(ts, make(list(ts.values()))))
            except ValueError:   # who asks for a bad frame shall hear of it, not its neighbours
                made = {n: make([ts[n]])[0]}
            # What another loader process delivered instead, or a run that starts anew, is of no use any more.
            self.ready = {number: x for number, x in self.ready.items() if number > n} | made
        return self.ready.pop(n)

    def __getitem__(self, n):
        """Sample n -> (arrays of a Batch, eps, tau, what was wrong with samples that this one stands in for)."""
        faults = []
        for attempt in range(ATTEMPTS):
            try:
                arrays = self.stand_in(n, attempt) if attempt else self.arrays(n)
                return arrays, *self.noise(n), faults
            except ValueError as error:
                if self.config.data.on_bad_sample == "stop":
                    raise
                faults.append(str(error))
        raise ValueError(f"--on_bad_sample skip: {ATTEMPTS} draws in a row were bad; the last: {faults[-1]}")

    def loader(self, first_step, last_step, worker_init_fn=None):
        """Iterator of (Batch, eps, tau) for the micro-batches of steps first_step .. last_step - 1.

        Its processes start here, and each keeps the memory of this one as it is now: call it before the model is
        built, or what training overwrites is held twice. Names and counts the samples that were replaced; ValueError
        when they are too many.
        """
        train = self.config.train
        size = train.batch_size
        count = range(first_step * train.accumulate, last_step * train.accumulate)

        def numbers():   # one by one: pre-training has 45 million micro-batches
            return (range(micro * size, (micro + 1) * size) for micro in count)
        batches = torch.utils.data.DataLoader(self, batch_sampler=numbers(), collate_fn=collate_with_noise,
                                              num_workers=self.config.data.loaders, worker_init_fn=worker_init_fn)
        return self._counted(numbers(), iter(batches))

    def _counted(self, parts, batches):
        """What loader() returns."""
        for part, (*batch, faults) in zip(parts, batches):
            for fault in faults:
                print(f"bad sample, another is drawn: {fault}", file=sys.stderr)
            self.bad_samples += len(faults)
            if faults and self.bad_samples > BAD_SHARE * max(part.stop, AT_LEAST):
                raise ValueError(f"--on_bad_sample skip: {self.bad_samples} of {part.stop} samples were bad, more than "
                                 f"{BAD_SHARE:.1%}; repair the data; the last: {faults[-1]}")
            yield tuple(batch)


def collate_with_noise(items):
    """List of Mixture items -> (Batch, eps (B, R, k, d_a), tau (B, R), what was wrong with replaced samples)."""
    arrays, eps, tau, faults = zip(*items)
    return collate(arrays), torch.stack(eps), torch.stack(tau), sum(faults, [])


@dataclass
class Corpus:
    """Everything `--data` names: training datasets with weights and windows, and held-out windows."""

    sources: list
    weights: list
    kinds: list
    windows: list
    held_out: object
    held_out_windows: np.ndarray
    root: Path = None   # the folder that --data names

    def look(self, m, episodes=16):
        """Read what statistics() does not, so that it is named before training starts: the numbers of held-out
        episodes, and instructions and the last picture of some of all, where a torn video is seen.

        Yields what is wrong, one line each, and whether it is held out: validation skips nothing. episodes: of all
        datasets together, but at least one of each.
        """
        pairs = [*zip(self.sources, self.windows), (self.held_out, self.held_out_windows)]
        for source, rows in pairs:
            last = np.flatnonzero(np.diff(rows[:, 0], append=-1))                  # the last window of each episode
            some = np.linspace(0, len(last) - 1, min(len(last), max(1, episodes // len(pairs)))).astype(int)
            pictures = [(source.frame, view, e, min(t + m, int(source.lengths[e]) - 1))
                        for e, t in rows[last[some]].tolist() for view in source.views]
            tasks = [(source.task, e, t) for e, t in rows[last[some]].tolist()]
            held_out = rows[last, 0].tolist() if rows is self.held_out_windows else ()
            for read, *where in [*((source.numbers, e) for e in held_out), *tasks, *pictures]:
                try:
                    read(*where)
                except ValueError as error:
                    yield str(error), rows is self.held_out_windows


def open_corpus(path, m, full=False, robot=None, hold_out=-1):
    """A folder with mixture.json, such a file itself, or one dataset. ValueError: one line.

    Without a validation dataset (support/data/mixture.py) episode `hold_out` of the first dataset with actions is held out.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"--data {path}: no such folder or mixture file")
    listing = path / "mixture.json" if path.is_dir() else path
    robot = find_robot(robot) if robot else None
    rows, validation = read_mixture(listing, robot) if listing.exists() else ([{"path": ".", "robot": robot}], None)
    weights, sources = [float(row.get("weight", 1)) for row in rows], []
    for row in rows:
        sources.append(open_source(listing.parent / row["path"], row["robot"]))
        sources[-1].name = row.get("name") or sources[-1].name
        if row.get("kind") == "human":
            sources[-1].has_action = False   # Sec. 4.4: labels of human video are not used
    kinds = [row.get("kind") or ("robot" if source.has_action else "human") for row, source in zip(rows, sources)]
    kept = [range(len(source.lengths)) for source in sources]
    if validation:
        held_out = open_source(listing.parent / validation["path"], validation["robot"])
        held_out_windows = windows(held_out, m, full)
    else:
        first = next((i for i, source in enumerate(sources) if source.has_action), 0)
        held_out, episodes = sources[first], len(sources[first].lengths)
        if episodes == 1:
            raise ValueError(f"--data {path}: one episode cannot be both trained on and held out; record a second one")
        if not -episodes <= hold_out < episodes:
            raise ValueError(f"--hold_out {hold_out}: dataset {held_out.name} has episodes 0 to {episodes - 1}")
        held_out_windows = windows(held_out, m, full, [hold_out % episodes])
        kept[first] = [e for e in range(episodes) if e != hold_out % episodes]
    trained = [windows(source, m, full, episodes) for source, episodes in zip(sources, kept)]
    if not len(held_out_windows):
        choose = "" if validation else ", --hold_out another episode"
        raise ValueError(f"dataset {held_out.name}: what is held out has no window, it is shorter than m needs: "
                         f"--full_windows false{choose}, or a smaller --m")
    robots = {source.robot for source in sources if source.has_action}
    if robots and not (held_out.has_action and held_out.robot in robots):
        what = f"of robot '{held_out.robot}'" if held_out.has_action else "human video, without actions"
        raise ValueError(f"dataset {held_out.name}: what is held out is {what}, trained is "
                         f"{', '.join(sorted(robots))}: hold out data of such a robot")
    return Corpus(sources, weights, kinds, trained, held_out, held_out_windows, listing.parent)
