"""Training tuples, their statistics and the mixture they are drawn from (Sec. 3.3, 3.4, Table 3)."""

import json
import time
import tracemalloc
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

import data
import lpt
import support.data.kept_statistics
from config import get_config
from data import Mixture, example, open_corpus, windows
from support.data.folder import FolderSource
from support.data.kept_statistics import kept_statistics, sampled, statistics
from support.data.statistics import Statistics

WEIGHTS = tuple(row[2] for row in lpt.TABLE_3)
SIZES = tuple(row[1] for row in lpt.TABLE_3)


class Fake:
    """Episodes made of numbers; view v at frame t of episode e is a picture of 64 v + 8 e + t."""

    def __init__(self, name="fake", lengths=(40,), has_action=True, views=data.VIEWS, d=6, seed=0,
                 robot="conveyor", relative=(True, True, False, True, True, False)):
        self.name, self.lengths, self.has_action = name, np.array(lengths), has_action
        self.views = views if isinstance(views, dict) else {view: view for view in views}
        self.relative, self.cache, self.state_keys, self.action_keys = relative, None, (), ()
        self.indices = range(len(lengths))
        self.robot, self.fps, self.tasks = robot, 30.0, [f"pick {e}" for e in range(len(lengths))]
        self.action_names = [f"joint {i}" for i in range(d)]
        rng = np.random.default_rng(seed)
        self.rows = [tuple(rng.uniform(-1, 1, (2, T, d)).astype(np.float32)) for T in lengths]

    def numbers(self, e):
        state, action = self.rows[e]
        return (state, action) if self.has_action else (np.zeros_like(state), None)

    def frame(self, view, e, t):
        assert 0 <= t < self.lengths[e]
        return np.full((8, 8, 3), (64 * data.VIEWS.index(view) + 8 * e + t) % 256, np.uint8)

    def frames(self, view, e, times):
        return [self.frame(view, e, t) for t in times]

    def task(self, e, t):
        return self.tasks[e]

    def views_of(self, e):
        return list(self.views)

    def has_pictures(self, e, t):
        return np.ones(len(t), bool)

    def labels(self, e):
        return {}


class KeyFramesOnly(Fake):
    """As the embedded world stores them: numbers at every frame, pictures at 0, 15 and 30 of 31."""

    def has_pictures(self, e, t):
        return np.isin(t, (0, 15, 30))


def tiny(**flags):
    small = {"image_size": 32, "vae_size": 32, "batch_size": 4, "text_tokens": 8}
    return get_config("conveyor", small | flags)


def numbered(*lists):
    return [dict(enumerate(items)) for items in lists]


def mixture_of(sources, weights=None, config=None, seed=0, rank=0, world=1):
    config = config or tiny()
    frames = [int(sum(source.lengths)) for source in sources]
    sources, rows = numbered(sources, [windows(source, config.data.m) for source in sources])
    stats = statistics(sources, rows, config.model.chunk, config.data.action_mode, config.data.std_floor)
    weights = weights or [1 / len(sources)] * len(sources)
    dealt = lpt.deal(frames, weights, world, config.data.lpt_workers, config.data.balance)
    return Mixture(config, {stats.robot: stats}, sources, rows, dealt[rank], seed, rank)


def stats_of(*args, **kwargs):
    """The statistics of such a mixture's one robot."""
    [stats] = mixture_of(*args, **kwargs).by_robot.values()
    return stats


def table_3():
    """Five sources in Table 3's proportions; the human video has no actions and one view."""
    sources = [Fake(name, (frames,), d=2, robot="arm") for name, frames, _ in lpt.TABLE_3]
    sources[4] = Fake("EgoDex", (68,), has_action=False, views=("head",), d=2, robot="arm")
    return sources


# ---- windows -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("t, times, future", [
    (0, (0, 0, 15), True), (14, (0, 14, 29), True), (15, (0, 15, 30), True), (24, (9, 24, 39), True),
    (25, (10, 25, 39), False), (39, (24, 39, 39), False)])
def test_a_tuple_holds_frames_t_minus_15_t_t_plus_15_clamped_and_masked_at_both_ends(t, times, future):
    """Sec. 3.3 (m = 15); outside the episode frames are clamped and masked."""
    source, config = Fake(lengths=(40, 40)), tiny()
    x = example(config.model, 15, stats_of([source]), source, 1, t)
    for v in range(3):
        assert x["frames"][v, :, 0, 16, 16].tolist() == [64 * v + 8 + time for time in times]
        assert x["image"][v, 0, 16, 16] == 64 * v + 8 + t
    assert bool(x["future_mask"]) == future
    assert bytes(x["text_ids"][x["text_mask"]].tolist()).decode() == "pick 1"   # l belongs to the trajectory


@pytest.mark.parametrize("t", [0, 7, 24, 25, 30, 39])
def test_actions_a_t_to_t_plus_k_beyond_the_episode_are_masked(t):
    """Sec. 3.3: a_{t:t+k}; the clamped steps count for nothing."""
    source, config = Fake(lengths=(40,)), tiny()
    chunk, inside = data.chunk_at(source.rows[0][1], t, 16)
    assert chunk.shape == (16, 6) and inside.tolist() == [t + i < 40 for i in range(16)]
    for i in range(16):
        assert (chunk[i] == source.rows[0][1][min(t + i, 39)]).all()
    mask = example(config.model, 15, stats_of([source]), source, 0, t)["action_mask"]
    assert mask.shape == (16, 32) and not mask[:, 6:].any()
    assert all((mask[:, d].numpy() == inside).all() for d in range(6))


def test_windows_are_all_frames_whose_three_pictures_exist_or_with_full_windows_lie_inside_the_episode():
    """Sec. 3.3: nothing of the data is thrown away; FolderSource's `stored`: windows without pictures are no windows."""
    assert windows(Fake(lengths=(3, 40, 1)), 15).tolist() == [[e, t] for e, T in enumerate((3, 40, 1)) for t in range(T)]
    assert windows(Fake(lengths=(3, 30, 31, 40)), 15, full=True).tolist() == [[2, 15], *([3, t] for t in range(15, 25))]
    assert windows(KeyFramesOnly(lengths=(31, 31)), 15).tolist() == [
        [e, t] for e in (0, 1) for t in (0, 15, 30)]               # 0 and 30 by clamping
    assert windows(KeyFramesOnly(lengths=(31, 31)), 15, full=True).tolist() == [[0, 15], [1, 15]]


def test_human_video_has_no_actions_and_masked_wrists():
    """Sec. 4.4: "we exclude human action labels during pre-training"; people wear one camera."""
    robot, human, config = Fake(), Fake("egodex", has_action=False, views=("head",)), tiny()
    stats = stats_of([robot])
    for model in (config.model, replace(config.model, noise_on_padding=True)):
        x = example(model, 15, stats, human, 0, 20)
        assert not x["action_mask"].any() and not x["dim_mask"].any() and not x["state"].any()
        assert x["view_mask"].tolist() == [True, False, False] and bool(x["future_mask"])
        assert not x["image"][1].any() and not x["frames"][1].any() and x["image"][0].any()
        assert example(model, 15, stats, robot, 0, 20)["action_mask"].any()


# ---- action modes and statistics ---------------------------------------------------------------------------

@pytest.mark.parametrize("t", [0, 12, 30])
def test_delta_actions_are_relative_to_the_state_at_t_and_grippers_stay_absolute(t):
    """Relative to the state at t for the whole chunk."""
    source, config = Fake(), tiny(action_mode="delta")
    stats = stats_of([source], config=config)
    x = example(config.model, 15, stats, source, 0, t)
    raw = x["action"][:, :6].numpy() * np.float32(stats.action_std) + np.float32(stats.action_mean)
    state, action = source.rows[0]
    for i in range(16):
        expected = action[min(t + i, 39)] - np.where([1, 1, 0, 1, 1, 0], state[t], 0)
        assert raw[i] == pytest.approx(expected, abs=1e-6)


def test_delta_mode_refuses_a_robot_whose_relative_dimensions_are_unknown():
    """An error says what is missing and where it is to be given."""
    for source in (Fake(relative=()), Fake(d=5)):
        with pytest.raises(ValueError, match=r"delta mask has \d dimensions, its data \d; give --robot my_robot.json"):
            mixture_of([source], config=tiny(action_mode="delta"))


def brute_force(sources, window_lists, k, mode):
    """Every state and every valid action of every window, one by one, in float64."""
    states, actions = [], []
    for source, rows in zip(sources, window_lists):
        for e, t in rows if source.has_action else ():
            state, action = (x.astype(np.float64) for x in source.rows[e])
            states.append(state[t])
            for step in range(t, min(t + k, len(action))):
                actions.append(action[step] - (state[t] * [1, 1, 0, 1, 1, 0] if mode == "delta" else 0))
    return np.array(states), np.array(actions)


JOINTS, GRIPPERS = [0, 1, 3, 4], [2, 5]               # of the robot "conveyor"


@pytest.mark.parametrize("mode, robot", [
    ("absolute", "arm"), ("absolute", "conveyor"), ("delta", "conveyor")])
@pytest.mark.parametrize("many", [False, True], ids=["few_episodes", "1000_episodes"])
def test_statistics_are_taken_over_exactly_the_training_windows(mode, robot, many):
    """Statistics: after the delta transform; held-out episodes and human video do not count."""
    sources = [Fake(lengths=(40, 21, 3), robot=robot), Fake(lengths=(33, 40), seed=1, robot=robot),
               Fake(has_action=False, views=("head",))]
    rows = [windows(sources[0], 15, episodes=[0, 2]), windows(sources[1], 15, full=True),
            windows(sources[2], 15)]
    if many:
        sources[0] = Fake(lengths=(2, 1) * 500, robot=robot)
        rows[0] = windows(sources[0], 15, episodes=range(990))
    stats = statistics(*numbered(sources, rows), 16, mode, 1e-3)
    assert stats.windows == len(rows[0]) + len(rows[1])
    some = JOINTS if robot == "conveyor" else range(6)
    for kind, x in zip(("state", "action"), brute_force(sources, rows, 16, mode)):
        mean, std = (np.array(getattr(stats, f"{kind}_{what}")) for what in ("mean", "std"))
        for d in some:
            assert (mean[d], std[d]) == pytest.approx((x[:, d].mean(), x[:, d].std()))
        for d in GRIPPERS if robot == "conveyor" else ():
            assert (mean[d], std[d]) == pytest.approx(((x[:, d].min() + x[:, d].max()) / 2, np.ptp(x[:, d])))


def test_a_near_constant_dimension_is_shifted_but_not_scaled():
    """--std_floor: noise of a joint that never moves is not blown up."""
    source = Fake()
    for x in source.rows[0]:
        x[:, 1] = 0.7 + 1e-5 * np.arange(40) / 40
    stats = stats_of([source])
    assert stats.state_std[1] == stats.action_std[1] == 1 and stats.unscaled == ("state 1", "action 1")
    assert min(stats.state_std[0], stats.action_std[0]) > 0.3
    normal = stats.normalise("state", source.rows[0][0])
    assert np.abs(normal[:, 1]).max() < 1e-4 and normal[:, 0].std() == pytest.approx(1, abs=1e-5)


# ---- pictures and folders ----------------------------------------------------------------------------------

def write_folder(root, T=20, views=("head",), suffix=".png", **arrays):
    """An episode folder with one picture file per frame, filled with 10 v + t."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    numbers = {"state": rng.uniform(-1, 1, (T, 6)), "action": rng.uniform(-1, 1, (T, 6))}
    np.savez(root / "episode.npz", **numbers | {"task": np.array(["go"]), "fps": np.array(30)} | arrays)
    for v, view in enumerate(views):
        (root / view).mkdir(exist_ok=True)
        for t in range(T):
            Image.fromarray(np.full((12, 16, 3), 10 * v + t, np.uint8)).save(root / view / f"{t:06d}{suffix}")
    return root


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_episode_folder_of_picture_files_is_read_frame_by_frame(tmp_path, suffix):
    """episode.npz and one PNG or JPEG per frame and view."""
    source = FolderSource(write_folder(tmp_path / "ep", views=("head", "right_wrist"), suffix=suffix))
    assert tuple(source.views) == ("head", "right_wrist") and source.has_action and source.lengths.tolist() == [20]
    for t in (0, 7, 19):
        assert (source.frame("head", 0, t) == t).all() and (source.frame("right_wrist", 0, t) == 10 + t).all()


def test_the_last_episode_of_one_dataset_is_held_out_and_never_trained_on(tmp_path):
    """open_corpus: one dataset whose last episode is held out."""
    ends, tasks = np.array([8, 14, 20]), np.array(["a", "b", "c"])
    corpus = open_corpus(write_folder(tmp_path / "three", ends=ends, task=tasks), 15)
    assert set(corpus.windows[0][:, 0]) == {0, 1} and len(corpus.windows[0]) == 14
    assert set(corpus.held_out_windows[:, 0]) == {2} and len(corpus.held_out_windows) == 6
    corpus = open_corpus(tmp_path / "three", 15, hold_out=1)
    assert set(corpus.windows[0][:, 0]) == {0, 2} and set(corpus.held_out_windows[:, 0]) == {1}
    for wrong in (3, -4):
        with pytest.raises(ValueError, match=f"--hold_out {wrong}: dataset three has episodes 0 to 2"):
            open_corpus(tmp_path / "three", 15, hold_out=wrong)
    with pytest.raises(ValueError, match="one episode cannot be both trained on and held out"):
        open_corpus(write_folder(tmp_path / "one"), 15)


def test_a_held_out_episode_without_a_window_is_refused(tmp_path):
    """Validation over nothing would print zeros, and the report would have no episode."""
    root = write_folder(tmp_path / "two", ends=np.array([14, 20]), task=np.array(["a", "b"]))
    with pytest.raises(ValueError, match="dataset two: what is held out has no window.*--full_windows false.*--hold_out"):
        open_corpus(root, 3, full=True)
    assert len(open_corpus(root, 3, full=True, hold_out=0).held_out_windows) == 8
    assert len(open_corpus(root, 3).held_out_windows) == 6


# ---- the mixture -------------------------------------------------------------------------------------------

def test_a_loader_of_millions_of_steps_begins_at_once():
    """--stage pretrain: 44.8 million micro-batches, whose numbers are made one by one."""
    mixture = mixture_of(table_3(), WEIGHTS, tiny())
    tracemalloc.start()
    try:
        next(mixture.loader(0, 1_000_000))
        assert tracemalloc.get_traced_memory()[1] < 20e6      # bytes; a list of these would take 56 million
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_the_realised_mixture_is_table_3s_whatever_the_number_of_workers(workers):
    """Table 3, Sec. 3.4: no implicit re-weighting; chi-square with 4 degrees of freedom, p = 1e-5."""
    mixture = mixture_of(table_3(), WEIGHTS, tiny(lpt_workers=workers))
    draws = 6000
    seen = np.bincount([mixture.pick(n)[0] for n in range(draws)], minlength=5)
    wanted = np.array(WEIGHTS) * draws
    assert ((seen - wanted) ** 2 / wanted).sum() < 28.47


def test_replicated_datasets_are_read_with_independent_random_seeds():
    """Sec. 3.4: two replicas agree position by position no more often than chance, in 10,000 draws."""
    mixture = mixture_of([Fake(lengths=(200, 120, 80))], config=tiny(lpt_workers=2))
    assert mixture.worker_datasets == [[0], [0]]
    draws, chance = 10_000, 1 / 400
    agree = sum(mixture.pick_from(0, (n,)) == mixture.pick_from(1, (n,)) for n in range(draws))
    assert agree <= draws * chance + 5 * np.sqrt(draws * chance * (1 - chance))      # 25 + 25
    shifted = [mixture.pick_from(0, (n,)) for n in range(2000)], [mixture.pick_from(1, (n,)) for n in range(2000)]
    for lag in (1, 2, 3):                             # nor is one the other, delayed
        assert sum(a == b for a, b in zip(shifted[0][lag:], shifted[1])) <= 5 + 5 * np.sqrt(5)


def test_replicas_on_two_ranks_agree_no_more_often_than_chance():
    """Sec. 3.4: whatever the balance, (episode, frame) position by position, and (tau, eps) in every pair."""
    for balance in ("greedy", "exact"):
        ranks = [mixture_of([Fake(lengths=(200, 120, 80))], config=tiny(balance=balance), rank=rank, world=2)
                 for rank in (0, 1)]
        draws, chance = 10_000, 1 / 400
        agree = sum(ranks[0].pick(n) == ranks[1].pick(n) for n in range(draws))
        assert agree <= draws * chance + 5 * np.sqrt(draws * chance * (1 - chance))
        for n in range(1000):
            (eps, tau), (other, another) = ranks[0].noise(n), ranks[1].noise(n)
            assert (tau != another).all() and (eps == other).float().mean() < 0.01


@pytest.mark.parametrize("balance", ["greedy", "exact"])
def test_across_ranks_exact_balance_realises_table_3_and_greedy_does_not(balance):
    """Table 3 over three ranks that draw equally often; chi-square with 4 degrees of freedom, p = 1e-5."""
    ranks = [mixture_of(table_3(), WEIGHTS, tiny(balance=balance, lpt_workers=1), rank=rank, world=3)
             for rank in range(3)]
    draws = 2000
    seen = np.bincount([ranks[rank].pick(n)[0] for rank in range(3) for n in range(draws)], minlength=5)
    wanted = np.array(WEIGHTS) * 3 * draws
    assert (((seen - wanted) ** 2 / wanted).sum() < 28.47) == (balance == "exact")


def same(a, b):
    """Bit for bit the same nested arrays."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    if isinstance(a, data.Batch):
        return same(vars(a), vars(b))
    return a.dtype == b.dtype and torch.equal(a, b)


def test_a_sample_is_a_pure_function_of_seed_rank_and_number():
    """Nothing to save, resume is exact; another seed or rank gives other samples."""
    sources = [Fake(lengths=(40, 40)), Fake("other", seed=1)]
    mixture, again = mixture_of(sources), mixture_of(sources)
    forwards = [mixture[n] for n in range(8)]
    np.random.seed(5), torch.manual_seed(5)           # the global generators play no part
    assert all(same(again[n], forwards[n]) for n in reversed(range(8)))
    for other in (mixture_of(sources, seed=1), mixture_of(sources, rank=1, world=2)):
        assert not any(same(other[n][1:], forwards[n][1:]) for n in range(8))
        assert [other.pick(n) for n in range(50)] != [mixture.pick(n) for n in range(50)]


def test_the_batches_of_a_step_do_not_depend_on_where_the_run_began():
    """--resume: steps 3 and 4 of a resumed run are those of an uninterrupted one, micro-batches included."""
    mixture = mixture_of([Fake(lengths=(40, 40))], config=tiny(accumulate=2, batch_size=3))
    whole, rest = list(mixture.loader(0, 5)), list(mixture.loader(3, 5))
    assert len(whole) == 10 and same(whole[6:], rest)
    assert same(whole[1][1], torch.stack([mixture.noise(n)[0] for n in (3, 4, 5)]))


def test_a_dataset_without_a_window_is_refused_by_name():
    """An error names the dataset."""
    source = Fake("short", lengths=(10,))
    with pytest.raises(ValueError, match="dataset short has no window"):
        Mixture(tiny(), {}, {0: source}, {0: windows(source, 15, full=True)}, ([[0]], [[1.0]]), 0)


# ---- statistics: exactness, samples, what is kept ----------------------------------------------------------

@pytest.mark.parametrize("mode", ["absolute", "delta"])
def test_statistics_lose_no_digits_far_from_zero(mode):
    """Cumulative sums about each episode's mean: encoder counts near 1e5, moves of 1e-2, to nine digits."""
    source = Fake(lengths=(40, 60), robot="arm")
    for state, action in source.rows:
        state[:], action[:] = 1e5 + state.round(2), 1e5 + action.round(2)
    rows = windows(source, 15)
    stats = statistics({0: source}, {0: rows}, 16, mode, 1e-6)
    for kind, x in zip(("state", "action"), brute_force([source], [rows], 16, mode)):
        assert getattr(stats, f"{kind}_mean") == pytest.approx(x.mean(0), rel=1e-12, abs=1e-9)
        assert getattr(stats, f"{kind}_std") == pytest.approx(x.std(0), rel=1e-9)


@pytest.mark.parametrize("mode", ["absolute", "delta"])
def test_above_the_limit_statistics_are_of_a_seeded_sample_of_windows(monkeypatch, mode):
    """2 million in the code, 50 here: the same windows every time, without repetition, and the size is stored."""
    monkeypatch.setattr(support.data.kept_statistics, "SAMPLE", 50)
    sources = [Fake(lengths=(40, 21), robot="arm"), Fake(lengths=(33,), seed=1, robot="arm"),
               Fake("egodex", has_action=False)]
    rows = [windows(source, 15) for source in sources]
    chosen = sampled(dict(enumerate(map(len, rows[:2]))))
    some = [part[chosen[i]] for i, part in enumerate(rows[:2])]
    assert sum(map(len, some)) == 50 and all(len(np.unique(part, axis=0)) == len(part) > 5 for part in some)
    assert all({*map(tuple, part)} < {*map(tuple, whole)} for part, whole in zip(some, rows))
    both = numbered(sources, rows)
    stats = statistics(*both, 16, mode, 1e-3)
    assert (stats.windows, stats.sample) == (94, 50) and stats == statistics(*both, 16, mode, 1e-3)
    for kind, x in zip(("state", "action"), brute_force(sources[:2], some, 16, mode)):
        assert getattr(stats, f"{kind}_mean") == pytest.approx(x.mean(0))
        assert getattr(stats, f"{kind}_std") == pytest.approx(x.std(0))
    monkeypatch.setattr(support.data.kept_statistics, "SAMPLE", 94)
    assert statistics(*both, 16, mode, 1e-3).sample == 0


def kept(corpus, k=16, mode="absolute", floor=1e-3, m=15):
    return kept_statistics(corpus.root, corpus.sources, corpus.windows, m, k, mode, floor)


def test_statistics_are_kept_beside_the_dataset_under_all_that_they_depend_on(tmp_path):
    """Files, m, k, action mode, floor, windows: another one of these is another file, the same ones are read back."""
    root = write_folder(tmp_path / "arm", ends=np.array([8, 14, 20]), task=np.array(["a", "b", "c"]),
                        robot=np.array("conveyor"))
    corpus, (first, line) = open_corpus(root, 3), kept(open_corpus(root, 3))
    path = next((root / "statistics").iterdir())
    assert "computed" in line and str(path) in line
    again, line = kept(open_corpus(root, 3))
    assert again == first == statistics(corpus.sources, corpus.windows, 16, "absolute", 1e-3)
    assert line == f"statistics: {path}"
    for other in (lambda: kept(corpus, k=8), lambda: kept(corpus, mode="delta"), lambda: kept(corpus, floor=1e-2),
                  lambda: kept(corpus, m=4), lambda: kept(replace(corpus, windows={0: corpus.windows[0][1:]}))):
        before = len(list((root / "statistics").iterdir()))
        other()
        assert len(list((root / "statistics").iterdir())) == before + 1
    write_folder(root, ends=np.array([8, 14, 20]), task=np.array(["a", "b", "c"]), state=np.zeros((20, 6)))
    assert "computed" in kept(open_corpus(root, 3))[1]


@pytest.mark.parametrize("spoil", [lambda text: text[:-20], lambda text: text.replace('"absolute"', '"delta"'),
                                   lambda text: text.replace("0.", "1.", 1)])
def test_kept_statistics_that_were_changed_are_refused(tmp_path, spoil):
    root = write_folder(tmp_path / "arm", ends=np.array([10, 20]), task=np.array(["a", "b"]))
    kept(open_corpus(root, 3))
    path = next((root / "statistics").iterdir())
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ValueError, match="is damaged or was edited: delete it to have it made again"):
        kept(open_corpus(root, 3))


def test_a_dataset_that_cannot_be_written_to_trains_all_the_same(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "arm", ends=np.array([10, 20]), task=np.array(["a", "b"]))
    (root / "statistics").write_text("in the way")     # as good as a read-only disk, also for root
    stats, line = kept(open_corpus(root, 3))
    assert "not kept" in line and "cannot be written" in line and stats.windows == 10


@pytest.mark.parametrize("mode", ["absolute", "delta"])
def test_a_million_frames_take_seconds(mode):
    """4,000 episodes, 14 dimensions, chunks of 50."""
    source = Fake(lengths=(250,) * 4000, d=14, robot="arm", relative=(True,) * 14)
    began = time.perf_counter()
    stats = statistics({0: source}, {0: windows(source, 15)}, 50, mode, 1e-3)
    seconds = time.perf_counter() - began
    print(f"statistics over a million frames, {mode}: {seconds:.1f} s")
    assert stats.windows == 1_000_000 and seconds < 60


@pytest.mark.parametrize("other, message", [
    ({"d": 7, "relative": (True,) * 7}, "has a delta mask of"), ({"d": 5}, "has state and action dimensions"),
    ({"relative": (False,) * 6}, "has a delta mask of"), ({"fps": 15.0}, "has frames/s 30.0 in dataset one and 15.0 in two")])
def test_what_differs_is_not_one_robot(other, message):
    """Sums over different dimensions, masks or rates would be statistics of nothing."""
    fps, other = other.get("fps", 30.0), {key: x for key, x in other.items() if key != "fps"}
    sources = [Fake("one", robot="arm"), Fake("two", robot="arm", **other)]
    sources[1].fps = fps
    with pytest.raises(ValueError, match=message):
        statistics(*numbered(sources, [windows(source, 15) for source in sources]), 16, "absolute", 1e-3)


def test_statistics_know_which_cameras_and_features_they_are_of():
    """A robot file that swaps two cameras changes no number, and everything."""
    source = Fake(views={"head": "cam_top", "left_wrist": "cam_wrist"})
    stats = statistics({0: source}, {0: windows(source, 15)}, 16, "absolute", 1e-3)
    assert stats.inputs == ("head = cam_top", "left_wrist = cam_wrist")
    assert Statistics.from_dict(json.loads(json.dumps(asdict(stats)))) == stats
    stats.check_inputs(Fake(views={"head": "cam_top"}))
    with pytest.raises(ValueError, match="dataset fake gives head = cam_wrist, left_wrist = cam_top; trained was on head = cam_top"):
        stats.check_inputs(Fake(views={"head": "cam_wrist", "left_wrist": "cam_top"}))


# ---- windows that are decoded together -------------------------------------------------------------------------

class Counting(Fake):
    """A Fake that notes what is asked of it; frame `bad` of episode 0 cannot be read."""

    bad = None

    def frames(self, view, e, times):
        self.asked = getattr(self, "asked", []) + [(view, e, tuple(times))]
        if e == 0 and self.bad in times:
            raise ValueError(f"episode 0, frame {self.bad} is torn")
        return super().frames(view, e, times)


@pytest.mark.parametrize("g", [2, 3, 8])
def test_windows_of_a_stretch_are_neighbours_in_a_random_order_and_128_samples_apart(g):
    """--stretch: each of the paper's batches of 128 holds one window of 128 different stretches."""
    mixture = mixture_of([Fake(lengths=(5000,), views=("head",))], config=tiny(stretch=g))
    turns = np.array([[mixture.pick(turn * 128 + place)[2] for turn in range(4 * g)] for place in (0, 1, 5, 127)])
    for place, ts in zip((0, 1, 5, 127), turns):
        whole = ts[g - place % g:][:3 * g].reshape(3, g) if place % g else ts[:3 * g].reshape(3, g)
        for stretch in whole:
            assert sorted((stretch - stretch.min()) % 5000) == list(range(g))
    orders = {tuple(np.argsort(ts[:g])) for ts in turns[:1].reshape(4, g)}
    assert len(orders) > 1 or g == 2
    numbers = [mixture.stretch_of(n)[0] for n in range(128 * 3 * g)]
    for batch in range(3 * g):
        assert len(set(numbers[batch * 128:(batch + 1) * 128])) == 128
    ends = [n % 128 for n in range(128, 256) if numbers[n] != numbers[n - 128]]
    assert len(ends) == len(range(g - 1, 128, g))                     # not all at once: every visit renews a share of them


def test_every_window_is_drawn_equally_often_in_stretches_too():
    """Sec. 3.4: uniform effective sampling; 5 standard deviations of the correlated count, and each sample by itself."""
    mixture = mixture_of([Fake(lengths=(15, 10))], config=tiny(lpt_workers=2, stretch=4))
    seen = np.zeros((2, 15))
    for n in range(12800):
        seen[mixture.pick(n)[1:]] += 1
    rows = np.concatenate([seen[0], seen[1, :10]])
    assert (seen[1, 10:] == 0).all() and rows.sum() == 12800
    assert abs(rows - 512).max() < 5 * np.sqrt(4 * 3200 * 0.04 * 0.96)
    first = np.zeros(25)                                               # sample 7 alone, over seeds
    for seed in range(2500):
        mixture.seed = seed
        _, e, t = mixture.pick(7)
        first[15 * e + t] += 1
    assert abs(first - 100).max() < 5 * np.sqrt(2500 * 0.04 * 0.96)


@pytest.mark.parametrize("batch_size, loaders", [(4, 0), (5, 2)])
def test_samples_of_a_stretch_are_what_they_are_alone_from_wherever_the_run_begins(batch_size, loaders):
    """Order and content do not depend on what was decoded along, nor on the loaders, and resume needs nothing saved."""
    source, config = Fake(lengths=(40, 33)), tiny(stretch=3, batch_size=batch_size, loaders=loaders)
    mixture = mixture_of([source], config=config)
    alone = [example(config.model, 15, next(iter(mixture.by_robot.values())), source, *mixture.pick(n)[1:]) for n in range(400)]
    for begin in (0, 31):
        for step, (batch, eps, _) in enumerate(mixture.loader(begin, 400 // batch_size), begin):
            numbers = range(step * batch_size, (step + 1) * batch_size)
            assert torch.equal(batch.frames, torch.stack([alone[n]["frames"] for n in numbers]))
            assert torch.equal(batch.action, torch.stack([alone[n]["action"] for n in numbers]))
            assert torch.equal(eps, torch.stack([mixture.noise(n)[0] for n in numbers]))


def test_a_stretch_is_decoded_once_and_what_waits_is_bounded():
    source = Counting(lengths=(4000,), views=("head",))
    mixture, waiting = mixture_of([source], config=tiny(stretch=4)), []
    for n in range(128 * 12):
        mixture[n]
        waiting.append(len(mixture.decoded))
    assert len(source.asked) <= 128 * (12 / 4 + 1) and max(waiting) <= 128 * 3
    assert np.mean(waiting[512:]) < 1.1 * 128 * 1.5
    mixture[100_000]                                                   # a run that begins elsewhere keeps nothing old
    assert len(mixture.decoded) < 4


def test_a_bad_frame_stops_only_the_samples_that_need_it():
    source = Counting(lengths=(60,), views=("head",))
    mixture = mixture_of([source], config=tiny(stretch=8))
    source.bad = 30
    for n in range(128):
        _, _, t = mixture.pick(n)
        if 30 in data.times(source, 15, 0, t):
            with pytest.raises(ValueError, match="frame 30 is torn"):
                mixture[n]
        else:
            assert mixture[n][0]["frames"][0, 1, 0, 16, 16] == t % 256
