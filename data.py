"""Training tuples (a_{t:t+k}, o_{t-m}, o_t, o_{t+m}, q_t, l), xi_1 and xi_2 of Sec. 3.3 in one, from a mixture.

A window is (episode, t). An example is its tuple as arrays. Sample n is the n-th example that a rank trains on. From
disk to a batch, in the order of this file:

    windows        which (episode, t) make a tuple; outside the episode all is clamped, and behind its end masked
    example        one tuple as arrays; observation() makes the same arrays from a live robot
    Mixture        which tuple comes next: a pure function of (seed, rank, sample number), of what lpt.py deals

What it stands on, in support/data:

    source.py      what is read of a dataset
    corpus.py      which datasets a rank opens
    statistics.py  mean and deviation of state and actions over the training windows; in delta mode it subtracts q_t

m and k count frames of the source, whatever its rate. Human video has no actions: `has_action` is False, its
action mask is empty, and it trains L_gen alone."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

import flow
from config import VIEWS
from support.data import loader
from support.data.corpus import Corpus
from support.data.letterbox import letterbox
from support.data.prompts import token_ids
from support.data.statistics import pad


@dataclass
class Batch:
    """What the model reads. B samples; V = 3 views (head, left wrist, right wrist); T = 3 times (t-m, t, t+m).

    Padding to 32 dimensions is zeros. At inference T = 2 (t-m, t), and action, its mask and future_mask are absent."""

    image: torch.Tensor         # (B, V, 3 und_frames, S, S) uint8, o_t for the understanding expert, or o_{t-m}, o_t
    frames: torch.Tensor        # (B, V, T, 3, s, s) uint8, as the generation expert sees them
    view_mask: torch.Tensor     # (B, V) bool, the camera exists
    text_ids: torch.Tensor      # (B, N_txt) int64
    text_mask: torch.Tensor     # (B, N_txt) bool
    state: torch.Tensor         # (B, 32) float32, q_t, standardised
    dim_mask: torch.Tensor      # (B, 32) bool, the action dimension exists, and moved in training
    action: torch.Tensor = None         # (B, k, 32) float32, a_{t:t+k}, standardised
    action_mask: torch.Tensor = None    # (B, k, 32) bool: has actions, inside the episode, dim_mask or noise_on_padding
    future_mask: torch.Tensor = None    # (B,) bool, t+m lies inside the episode

    def to(self, device):
        """A copy on `device`."""
        return Batch(**{name: x if x is None else x.to(device) for name, x in vars(self).items()})

    def rows(self, rows):
        """Some of its samples: a slice."""
        return Batch(**{name: x if x is None else x[rows] for name, x in vars(self).items()})


# ---- windows ----------------------------------------------------------------------------------------------------

def windows(source, m, full=False, episodes=None):
    """All windows of a source whose three frames have pictures, (n, 2) int64 rows (episode, t). `full`: t-m and t+m
    must lie inside the episode."""
    rows = []
    for e in range(len(source.lengths)) if episodes is None else episodes:
        L = int(source.lengths[e])
        t = np.arange(m, L - m) if full else np.arange(L)
        t = t[np.logical_and.reduce([source.has_pictures(e, np.clip(t + d, 0, L - 1)) for d in (-m, 0, m)])]
        rows.append(np.stack([np.full(len(t), e), t], 1))
    return np.concatenate(rows) if rows else np.zeros((0, 2), np.int64)


def open_corpus(path, m, full=False, robot=None, hold_out="-1", only_episodes="", timestamps="check"):
    """All datasets that --data names, opened at once: a support.data.corpus.Corpus. train.py opens those that lpt.py
    deals to a rank. ValueError: one line."""
    return Corpus.read(path, robot, hold_out, only_episodes, timestamps).open(partial(windows, m=m, full=full))


def chunk_at(action, t, k):
    """a_{t:t+k} of an episode's actions (L, d_a), clamped, and which steps lie inside: (k, d_a), (k,) bool."""
    steps = t + np.arange(k)
    return action[np.minimum(steps, len(action) - 1)], steps < len(action)


# ---- one example ------------------------------------------------------------------------------------------------

def observation(model, stats, pictures, state, task):
    """What a Batch holds of one moment, recorded or live: all but the actions and the future's mask.

    model: ModelConfig. pictures: view -> list of (H, W, 3) uint8 at the times t-m, t (and t+m in training); missing
    views absent. state (d_q,) in raw units, or None (human video); task: the instruction. An idle dimension is masked
    like padding."""
    T, S, s = len(next(iter(pictures.values()))), model.view_size, model.frame_size
    image = torch.zeros(len(VIEWS), 3 * model.und_frames, S, S, dtype=torch.uint8)   # black where a view is missing
    frames = torch.zeros(len(VIEWS), T, 3, s, s, dtype=torch.uint8)
    for v, view in enumerate(VIEWS):
        if view in pictures:
            frames[v] = torch.stack([letterbox(p, s) for p in pictures[view]])
            image[v, -3:] = frames[v, 1] if S == s else letterbox(pictures[view][1], S)
            if model.und_frames == 2:
                image[v, :3] = frames[v, 0]
    ids, mask = token_ids(task, model.text_tokens, model.tokenizer)
    standardised = np.zeros(model.state_dim, np.float32) if state is None else \
        pad(stats.normalise("state", np.asarray(state)), model.state_dim, "the state")
    acting = () if state is None else set(range(len(stats.action_mean))).difference(stats.left_out)
    return {"image": image, "frames": frames,
            "view_mask": torch.tensor([view in pictures for view in VIEWS]),
            "text_ids": torch.from_numpy(ids), "text_mask": torch.from_numpy(mask),
            "state": torch.from_numpy(standardised),
            "dim_mask": torch.tensor([d in acting for d in range(model.action_dim)])}


def times(source, m, e, t):
    """The frames t-m, t, t+m of episode e, clamped to it."""
    return [min(max(t + d, 0), int(source.lengths[e]) - 1) for d in (-m, 0, m)]


def example(model, m, stats, source, e, t, pictures=None):
    """The training tuple at frame t of episode e, as the arrays of a Batch. pictures: as in observation, if at hand."""
    pictures = pictures or {view: source.frames(view, e, times(source, m, e, t)) for view in source.views_of(e)}
    state, action = source.numbers(e)
    arrays = observation(model, stats, pictures, state[t] if source.has_action else None, source.task(e, t))
    a = np.zeros((model.chunk, model.action_dim), np.float32)
    mask = np.zeros((model.chunk, model.action_dim), bool)
    if source.has_action:
        raw, inside = chunk_at(action, t, model.chunk)
        a = stats.standardised(raw, state[t])   # in delta mode relative to q_t, but for grippers
        a = pad(a, model.action_dim, f"the action of {source.name}")
        mask = inside[:, None] & (arrays["dim_mask"].numpy() | model.noise_on_padding)
    arrays.update(action=torch.from_numpy(a), action_mask=torch.from_numpy(mask),
                  future_mask=torch.tensor(bool(t + m < source.lengths[e])))
    return arrays


def examples(model, m, stats, source, e, ts):
    """The training tuples at all frames `ts` of episode e: what lies between them in a video is decoded once."""
    wanted = sorted({time for t in ts for time in times(source, m, e, t)})
    seen = {view: dict(zip(wanted, source.frames(view, e, wanted))) for view in source.views_of(e)}
    return [example(model, m, stats, source, e, t,
                    {view: [at[time] for time in times(source, m, e, t)] for view, at in seen.items()}) for t in ts]


def collate(examples):
    """List of example arrays -> Batch."""
    return Batch(**{key: torch.stack([x[key] for x in examples]) for key in examples[0]})


# ---- the mixture ------------------------------------------------------------------------------------------------

ORDER, WORKER, NOISE = range(3)   # independent random generators
ATTEMPTS = 100                     # picks for one sample before a corpus counts as unreadable
STRETCHES = 128   # [ours] open at once. Sample n is of stretch n mod 128: a batch of 128 has one window of each


def generator(seed, *key):
    """A generator that is a pure function of its key: nothing to save, resume is exact."""
    return np.random.default_rng([seed, *key])


class Mixture(torch.utils.data.Dataset):
    """The datasets of a rank's LPT workers, drawn by weight. Item n is sample number n of this rank.

    by_robot: {robot: Statistics}. sources, window_lists: {dataset: ...} of those that this rank has opened.
    dealt: this rank's (datasets by worker, their sampling weights) of `lpt.deal`.
    Sample n is a pure function of (seed, rank, n).

    [ours] --stretch: a video with few key frames decodes much for one window and little more for its neighbours. A
    stretch is `stretch` neighbouring windows, decoded at once. STRETCHES of them are open, and sample n comes from
    stretch n mod STRETCHES. A stretch that is used up is followed by a new one. Nothing of this is stored: it is
    computed from n. Every window of a dataset is equally likely as sample n."""

    def __init__(self, config, by_robot, sources, window_lists, dealt, seed, rank=0):
        for i, source in sources.items():
            if len(window_lists[i]) == 0:
                raise ValueError(f"dataset {source.name} has no window: every episode is shorter than m needs")
        self.bad_samples = 0   # replaced so far
        self.config, self.by_robot, self.seed, self.rank = config, by_robot, seed, rank
        self.sources, self.window_lists, (self.worker_datasets, weights) = sources, window_lists, dealt
        self.worker_weights = [np.array(each) for each in weights]
        self.mass = np.array([each.sum() for each in self.worker_weights])
        self.decoded = {}   # sample number -> arrays, decoded along with an earlier sample

    def stretch_of(self, n):
        """Sample number n -> (number of its pick, which of that pick's windows it is)."""
        turn, place = divmod(n, STRETCHES)
        turn, j = divmod(turn + place % self.config.data.stretch, self.config.data.stretch)   # they end by turns too
        return turn * STRETCHES + place, j

    def pick(self, n, attempt=0):
        """Sample number n -> (dataset index, episode, t). attempt: 1, 2, ... for what stands in for a bad sample."""
        number, j = (n, 0) if attempt else self.stretch_of(n)
        key = (number, attempt) if attempt else (number,)
        chance = self.mass / self.mass.sum()
        worker = generator(self.seed, ORDER, self.rank, *key).choice(len(self.mass), p=chance)
        return self.pick_from(worker, key, j)

    def pick_from(self, worker, key, j=0):
        """Window j of what a worker delivers; replicas of one dataset have independent generators."""
        rng = generator(self.seed, WORKER, self.rank, worker, *key)
        weights = self.worker_weights[worker]
        i = self.worker_datasets[worker][rng.choice(len(weights), p=weights / self.mass[worker])]
        rows = self.window_lists[i]
        first, order = rng.integers(len(rows)), rng.permutation(self.config.data.stretch)
        e, t = rows[(first + order[j]) % len(rows)]
        return i, int(e), int(t)

    def noise(self, n):
        """(eps (R, k, d_a) standard normal, tau (R,)) of sample n, float32.

        --rtc_delay D (arXiv 2512.05964): tau is (R, k), and 1 for the first d actions of a draw, d uniform in 0 .. D:
        those that a robot would be committed to when it asks for this chunk."""
        model, rng = self.config.model, generator(self.seed, NOISE, self.rank, n)
        eps = rng.standard_normal((model.action_draws, model.chunk, model.action_dim), np.float32)
        tau = flow.sample_tau(rng, model.action_draws, model.tau_density)
        if most := self.config.train.rtc_delay:   # drawn last, so that the rest is what it is without
            given = np.arange(model.chunk) < rng.integers(most + 1, size=(model.action_draws, 1))
            tau = np.where(given, 1, tau[:, None])
        return torch.from_numpy(eps), torch.from_numpy(tau.astype(np.float32))

    def read(self, i, e, ts):
        """The tuples at frames ts of episode e of dataset i."""
        source = self.sources[i]
        return examples(self.config.model, self.config.data.m, self.by_robot.get(source.robot), source, e, ts)

    def arrays(self, n, attempt=0):
        """Sample n as the arrays of a Batch; what is left of its stretch is decoded along and kept until its turn.
        attempt: above 0, of what is delivered in place of a bad sample."""
        if attempt:
            i, e, t = self.pick(n, attempt)
            return self.read(i, e, [t])[0]
        if n not in self.decoded:
            i, e, t = self.pick(n)
            ts, end = {n: t}, n + (self.config.data.stretch - self.stretch_of(n)[1]) * STRETCHES
            for later in range(n + STRETCHES, end, STRETCHES):
                *where, t = self.pick(later)
                if where == [i, e]:   # a stretch may run into the next episode
                    ts[later] = t
            try:
                made = dict(zip(ts, self.read(i, e, list(ts.values()))))
            except ValueError:   # a bad frame is the fault of the sample that needs it, not of its neighbours
                made = {n: self.read(i, e, [ts[n]])[0]}
            # Samples up to n are past: another loader process delivered them.
            self.decoded = {number: x for number, x in self.decoded.items() if number > n} | made
        return self.decoded.pop(n)

    def __getitem__(self, n):
        """Sample n -> (arrays of a Batch, eps, tau, what was wrong with samples that this one stands in for)."""
        faults = []
        for attempt in range(ATTEMPTS):
            try:
                return self.arrays(n, attempt), *self.noise(n), faults
            except ValueError as error:
                if self.config.data.on_bad_sample == "stop":
                    raise
                faults.append(str(error))
        raise ValueError(f"--on_bad_sample skip: {ATTEMPTS} picks in a row were bad; the last: {faults[-1]}")

    def loader(self, first_step, last_step, worker_init_fn=None):
        """Iterator of (Batch, eps, tau) for the micro-batches of steps first_step .. last_step - 1.

        Call it before the model is built: loader processes are forked here, and would keep a copy of the model."""
        return loader.micro_batches(self, collate_with_noise, first_step, last_step, worker_init_fn)


def collate_with_noise(items):
    """List of Mixture items -> (Batch, eps (B, R, k, d_a), tau (B, R) or (B, R, k), what was wrong with replaced ones).
    """
    arrays, eps, tau, faults = zip(*items)
    return collate(arrays), torch.stack(eps), torch.stack(tau), sum(faults, [])
