"""Bad LeRobot data: one line with dataset, episode, frame and key before training starts, or skipped and counted."""

import json
import shutil
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import lpt
import train
from config import get_config
from data import Mixture, open_corpus, windows
from support.data.lerobot import LeRobotSource
from support.data.lerobot_metadata import picture_shape
from support import checkpoint
from support.training.ranks import Ranks
from support.inference.policy import Policy
from support.owner import contents
from support.training.journal import nonfinite_samples
from support.data.kept_statistics import statistics

from test_bad_input import RUN, SMALL, save_checkpoint, write_folder
from test_data import Fake, same, tiny
from test_lerobot import (FPS, HEAD, LENGTHS, WRIST, edit_info, numbers_of, pa, parquet, pq, truncate, video,
                          write_dataset, write_table, write_v30, write_video)


def write_rows(root, e, **columns):
    """The data file of episode e as LeRobot writes it; `columns` replace, shorter ones cut all."""
    state, action = numbers_of(e)
    T = LENGTHS[e]
    table = {"observation.state": state, "action": action, "timestamp": np.arange(T) / FPS, "frame_index": np.arange(T),
             "episode_index": np.full(T, e)} | columns
    rows = min(map(len, table.values()))
    pq.write_table(pa.table({key: pa.array(np.asarray(x, np.float32)[:rows].tolist()) for key, x in table.items()}),
                   parquet(root, e))


@pytest.fixture
def dataset(tmp_path):
    """v2.1, two episodes, two cameras, with every column that the format promises."""
    root = write_dataset(tmp_path / "toy")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    for key in ("timestamp", "episode_index"):
        features[key] = {"dtype": "float32", "shape": [1], "names": None}
    edit_info(root, features=features, total_frames=sum(LENGTHS))
    for e in (0, 1):
        write_rows(root, e)
    return root


def with_value(array, row, value):
    array = np.array(array, np.float32)
    array[row] = value
    return array


def edit_feature(root, key, **changes):
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features[key] |= changes
    edit_info(root, features=features)


def widen(root):
    edit_feature(root, "action", shape=[33])
    for e in (0, 1):
        write_rows(root, e, action=np.random.default_rng(e).normal(size=(LENGTHS[e], 33)))


def edit_episode(root, old, new):
    path = root / "meta/episodes.jsonl"
    path.write_bytes(path.read_bytes().replace(old, new))


def cut_start(root):
    """Of the rows, not of the film: both begin, but not together."""
    write_rows(root, 1, timestamp=np.arange(5, 28) / FPS)
    write_video(video(root, 1), 28, False, "mpeg4", 2, 0)


def empty(root):
    (root / "meta/episodes.jsonl").write_text("")
    edit_info(root, total_episodes=0, total_frames=0)


state, action = numbers_of(1)
FAULTS = {
    "no info": (lambda root: (root / "meta/info.json").unlink(), ["holds no dataset: expected mixture.json, meta/info.json"]),
    "no parquet": (lambda root: parquet(root, 1).unlink(), ["episode 1", "parquet is missing"]),
    "no column": (lambda root: write_table(parquet(root, 1), numbers_of(1)[0], None), ["episode 1", "no column 'action'"]),
    "narrow action": (lambda root: write_rows(root, 1, action=numbers_of(1)[1][:, :1]),
                      ["'action' has 1 values in a row, meta/info.json says 2"]),
    "short mp4": (lambda root: write_video(video(root, 1), 15, False, "mpeg4", 2, 0),
                  [f"episode 1: '{HEAD}'", "has 15 pictures from 0.000 to 0.467 s for 23 rows"]),
    "torn mp4": (lambda root: truncate(video(root, 1, WRIST), 97), [f"episode 1, frame 22, '{WRIST}'"]),
    "fewer rows": (lambda root: write_rows(root, 1, timestamp=np.arange(20) / FPS),
                   ["episode 1", "has 20 rows, meta/ says 23"]),
    "missing camera file": (lambda root: (video(root, 0, WRIST).unlink(), edit_info(root, total_videos=4)),
                            ["episode 0", WRIST, "episode_000000.mp4 is missing"]),
    "NaN state": (lambda root: write_rows(root, 0, **{"observation.state": with_value(numbers_of(0)[0], (4, 1),
                                                                                       np.nan)}),
                  ["episode 0, frame 4", "'observation.state' is not finite in dimension 1"]),
    "wide action": (widen, ["the action of robot 'toy_arm' has 33 dimensions", "at most 32"]),
    "zero-length episode": (lambda root: edit_episode(root, b'"length": 23', b'"length": 0'),
                            ["line 2: length is 0, expected a whole number from 1"]),
    "empty dataset": (empty, ["it is empty"]),
    "wrong codebase_version": (lambda root: edit_info(root, codebase_version="v1.6"),
                               ["LeRobot format 'v1.6' is not supported", "v2.0, v2.1 and v3.0"]),
    "wrong channel count": (lambda root: edit_feature(root, HEAD, shape=[64, 64, 1]), [f"'{HEAD}' has 1 channels"]),
    "fps NaN": (lambda root: edit_info(root, fps=float("nan")), ["fps is nan", "info.json"]),
    "non-UTF-8 task": (lambda root: edit_episode(root, b"task 1", b"t\xe9che 1"),
                       ["episodes.jsonl, line 2 is no JSON ('utf-8' codec"]),
    "surrogate in a task": (lambda root: edit_episode(root, b"task 1", b"\\ud83d"),
                            ["episodes.jsonl, line 2 is no JSON ('utf-8' codec"]),
    "duplicate timestamps": (lambda root: write_rows(root, 1, timestamp=with_value(np.arange(23) / FPS, 7, 6 / FPS)),
                             ["episode 1, frame 7", "'timestamp' is 0.2 s, 0 s after", "lost or repeated"]),
    "lost frames": (lambda root: write_rows(root, 1, timestamp=np.arange(23) / FPS + (np.arange(23) > 9) / FPS),
                    ["episode 1, frame 10", "'timestamp' is 0.3667 s", "it should be 0.0333"]),
    "a start cut off": (cut_start, ["episode 1, frame", "has not one picture a row", "time stamps of the rows do not"]),
    "rows out of order": (lambda root: write_rows(root, 1, frame_index=np.arange(23)[::-1]),
                          ["episode 1, frame 0", "'frame_index' is 22, expected 0"]),
    "frames lost in meta": (lambda root: edit_info(root, total_frames=64), ["lists 63 frames", "says 64"]),
}


def test_the_dataset_of_these_tests_has_no_fault(dataset):
    """What follows is refused for its one fault."""
    source = LeRobotSource(dataset)
    assert [len(source.numbers(e)[0]) for e in (0, 1)] == list(LENGTHS)
    assert source.frame("head", 1, 22).shape == (64, 64, 3)


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_data_are_one_line_before_training_starts(refuses, dataset, fault):    # noqa: F811
    """Dataset, episode, frame and key, whichever apply; nothing is written, no step is made."""
    damage, words = FAULTS[fault]
    damage(dataset)
    line = refuses("train.py", "--data", dataset, "--out", dataset.parent / "run", *RUN)
    assert all(word in line for word in [*words, "toy"]), line
    assert not contents(dataset.parent / "run")


def test_statistics_of_another_action_mode_are_refused(tmp_path):
    """A checkpoint whose statistics are of absolute actions cannot drive a robot in delta mode, nor without any."""
    config = get_config("conveyor", SMALL | {"action_mode": "delta"})
    path = save_checkpoint(tmp_path / "run", config.model, json.loads(json.dumps(
        {"name": "x", "model": vars(config.model), "data": vars(config.data), "train": vars(config.train)})))
    with pytest.raises(ValueError, match="statistics of robot 'arm' are of absolute actions, the model acts in delta"):
        Policy.load(path)
    tensors, stored = checkpoint.load(path)
    of = stored["statistics"]
    for other in ({"arm": of | {"state_mean": [777.0] * 6}}, {"leg": of}, {"leg": of | {"robot": "leg"}},
                  {"arm": of, "leg": of}):
        with pytest.raises(ValueError, match="statistics and statistics_by_robot differ: it was edited"):
            Policy.load(checkpoint.save(tmp_path / "edited", 1, tensors, {}, stored | {"statistics_by_robot": other}))
    stored.pop("statistics")
    with pytest.raises(ValueError, match="statistics are missing .* without them actions have no units"):
        Policy.load(checkpoint.save(tmp_path / "none", 1, tensors, {}, stored))


def test_faults_of_v30_name_episode_frame_and_key(tmp_path):
    """Pictures inside parquet of another size."""
    for shape, size in (((32, 64, 3), "32 x 64 x 3"), ((32, 64), "32 x 64 x 3")):
        root, stream = write_v30(tmp_path / f"toy {len(shape)}", kind="image"), BytesIO()
        Image.fromarray(np.zeros(shape, np.uint8)).save(stream, "PNG")
        path = root / "data/chunk-000/file-001.parquet"
        table = pq.read_table(path)
        pictures = pa.array([{"bytes": stream.getvalue(), "path": None}] * len(table))
        pq.write_table(table.set_column(table.column_names.index(HEAD), HEAD, pictures), path)
        with pytest.raises(ValueError, match=f"episode 3, frame 2, '{HEAD}': the picture is {size}"):
            LeRobotSource(root).frame("head", 3, 2)


@pytest.mark.parametrize("shape, names, expected", [
    ([48, 64, 3], ["height", "width", "channels"], (48, 64, 3)), ([3, 48, 64], ["channels", "height", "width"],
                                                                   (48, 64, 3)),
    ([3, 48, 64], None, (48, 64, 3)), ([48, 64, 3], None, (48, 64, 3)), ([48, 64, 1], None, (48, 64, 1))])
def test_pictures_are_described_in_either_order(shape, names, expected):
    assert picture_shape({"shape": shape, "names": names}) == expected


# ---- --on_bad_sample --------------------------------------------------------------------------------------

class Grey(Fake):
    """As Fake, with as many episodes as one likes."""

    def frame(self, view, e, t):
        return np.full((8, 8, 3), (7 * e + t) % 256, np.uint8)


class Torn(Grey):
    """Frame 7 of episode 3 cannot be read; it is in some 3 of 1,000 windows' pictures."""

    def frame(self, view, e, t):
        if (e, t) == (3, 7):
            raise ValueError(f"dataset torn, episode {e}, frame {t}, 'cam': no picture")
        return super().frame(view, e, t)


def mixture_of(source, **flags):
    config = tiny(**flags)
    rows = windows(source, 3)
    stats = statistics({0: source}, {0: rows}, config.model.chunk, "absolute", 1e-3)
    config = replace(config, data=replace(config.data, m=3))
    return Mixture(config, {stats.robot: stats}, {0: source}, {0: rows}, ([[0]], [[1.0]]), 0)


MANY = (40,) * 100


def test_a_skipped_sample_is_replaced_by_a_pure_function_of_its_number(capfd):
    """--on_bad_sample skip: all other samples stay what they were, whatever the loaders and the first step."""
    good, torn = mixture_of(Grey(lengths=MANY)), mixture_of(Torn(lengths=MANY), on_bad_sample="skip")
    touched = [n for n in range(1200) if (draw := good.pick(n))[1] == 3
               and 7 in (max(draw[2] - 3, 0), draw[2], min(draw[2] + 3, 39))]
    assert 0 < len(touched) <= 2                       # the seed of this test meets the bad frame
    n = touched[0]
    assert good.pick(n) != torn.pick(n, 1) and torn[n][3] == ["dataset torn, episode 3, frame 7, 'cam': no picture"]
    again = mixture_of(Torn(lengths=MANY), on_bad_sample="skip")
    assert all(same(good[i], torn[i]) for i in (n - 1, n + 1)) and same(torn[n][:3], again[n][:3])
    assert all(same(a, b) for a, b in zip(good[n][1:3], torn[n][1:3]))             # its noise is its own
    size = 4
    step, alone = n // size, []
    for loaders in (0, 1):
        mixture = mixture_of(Torn(lengths=MANY), on_bad_sample="skip", loaders=loaders)
        alone.append(list(mixture.loader(step, step + 2)))
        assert mixture.bad_samples == 1
    assert same(*alone) and "bad sample, another is drawn: dataset torn, episode 3" in capfd.readouterr().err


def test_a_sample_that_stood_in_for_a_bad_one_is_named_itself(capfd):
    """nonfinite_samples: where the loss is not finite, it is not the one that could not be read."""
    mixture = mixture_of(Torn(lengths=MANY), on_bad_sample="skip")
    n = next(n for n in range(1200) if mixture[n][3])
    sound, noise = mixture_of(Grey(lengths=MANY)), mixture.noise(n)[0]

    def model(batch, eps, tau):
        return SimpleNamespace(act_sum=torch.tensor(float("nan") if torch.equal(eps[0], noise) else 0.0), gen_sum=0.0)
    done = n // mixture.config.train.batch_size + 1
    places = [f"fake episode {e} frame {t}" for _, e, t in (sound.pick(n), mixture.pick(n, 1))]
    assert nonfinite_samples(model, [sound, mixture], done, Ranks()) == f"not finite: {'; '.join(places)}"
    assert "each of its samples alone has a finite loss" in nonfinite_samples(model, [mixture], done + 3, Ranks())


def test_a_worker_whose_only_dataset_is_unreadable_is_stood_in_for_by_the_others():
    """The worker is drawn anew, too."""
    good, bad = Grey("good", lengths=(40,)), Grey("bad", lengths=(40,))
    bad.frame = lambda view, e, t: (_ for _ in ()).throw(ValueError("dataset bad is unreadable"))
    config = tiny(on_bad_sample="skip")
    sources = {0: good, 1: bad}
    rows = {i: windows(source, 15) for i, source in sources.items()}
    stats = statistics(sources, rows, config.model.chunk, "absolute", 1e-3)
    mixture = Mixture(config, {stats.robot: stats}, sources, rows, ([[0], [1]], [[0.5], [0.5]]), 0)
    assert any(mixture.pick(n)[0] == 1 for n in range(8)) and all(len(mixture[n]) == 4 for n in range(8))


def test_a_resumed_run_skips_the_same_sample_and_writes_the_same_log(tmp_path, capfd):
    """--on_bad_sample skip, end to end: the count is in the log and in the checkpoint, so resume stays exact."""
    root = write_folder(tmp_path / "arm", T=200)
    flags = ["--data", str(root), *RUN, "--steps", "4", "--save_every", "2", "--log_every", "1", "--m", "1"]
    config = get_config("conveyor", SMALL | {"batch_size": 8, "m": 1})
    corpus = open_corpus(root, 1)
    stats = statistics(corpus.sources, corpus.windows, 4, "absolute", 1e-3)
    dealt = lpt.deal(corpus.frames, corpus.weights, 1, config.data.lpt_workers)
    mixture = Mixture(config, {stats.robot: stats}, corpus.sources, corpus.windows, dealt[0], 0)
    drawn = [mixture.pick(n)[2] for n in range(32)]
    torn = next(t for t in drawn[8:16] if sum(abs(t - other) <= 1 for other in drawn) == 1)    # met once, in step 2
    (root / "head" / f"{torn:06d}.png").write_bytes(b"torn")
    with pytest.raises(ValueError, match=f"{torn:06d}.png cannot be read"):
        train.run([*flags, "--out", str(tmp_path / "stopped")])
    assert checkpoint.newest(tmp_path / "stopped").name == "step_00000001"      # what was learned before it
    train.run([*flags, "--out", str(tmp_path / "whole"), "--on_bad_sample", "skip"])
    assert f"another is drawn: picture {root}/head/{torn:06d}.png" in capfd.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [row.get("bad_samples", 0) for row in rows if "loss" in row] == [0, 1, 1, 1]
    shutil.copytree(tmp_path / "whole", tmp_path / "again", ignore=shutil.ignore_patterns("step_00000004"))
    train.run([*flags, "--out", str(tmp_path / "again"), "--on_bad_sample", "skip", "--resume"])
    train.run([*flags, "--out", str(tmp_path / "stopped"), "--on_bad_sample", "skip", "--resume"])
    for name in ("again", "stopped"):
        assert (tmp_path / name / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


def test_more_than_one_bad_sample_in_a_thousand_stops_a_skipping_run():
    mixture = mixture_of(Torn(lengths=(10,) * 4), on_bad_sample="skip")
    with pytest.raises(ValueError, match=r"2 of \d+ samples were bad, more than 0.1%; .* episode 3, frame 7"):
        list(mixture.loader(0, 100))


def test_a_bad_episode_does_not_count_in_the_statistics_of_a_skipping_run():
    """Its windows are never trained on."""
    source, seen = Fake(lengths=(40, 40)), []
    rows = windows(source, 15)
    alone = statistics({0: source}, {0: rows[rows[:, 0] == 0]}, 16, "absolute", 1e-3)
    numbers = source.numbers
    source.numbers = lambda e: numbers(e) if e == 0 else (_ for _ in ()).throw(ValueError("episode 1 is bad"))
    found = statistics({0: source}, {0: rows}, 16, "absolute", 1e-3, seen.append)
    assert str(seen[0]) == "episode 1 is bad" and found.action_mean == alone.action_mean
    with pytest.raises(ValueError, match="episode 1 is bad"):
        statistics({0: source}, {0: rows}, 16, "absolute", 1e-3)
