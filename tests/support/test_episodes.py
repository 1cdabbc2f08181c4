"""Episodes are chosen and held out by the numbers that their dataset gives them, and nothing held out is trained on."""

import json
import shutil

import numpy as np
import pytest

import infer
import train
from data import open_corpus
from support.data.episodes import chosen, spans

from test_bad_input import RUN, write_folder
from test_lerobot import HEAD, WRIST, parquet, video, write_dataset

GAPS = [0, 3, 4, 9, 12]   # numbers of five episodes
THREE = {"T": 18, "ends": np.array([6, 12, 18]), "task": np.array(["a", "b", "c"]), "robot": np.array("tiny")}


@pytest.mark.parametrize("text, numbers", [
    ("", GAPS), ("none", []), ("3", [3]), ("12,0", [0, 12]), ("3-9", [3, 4, 9]), ("0-3,12", [0, 3, 12]),
    ("1-4", [3, 4]), ("1-11", [3, 4, 9]), ("-1", [12]), ("-1,-5", [0, 12]), ("4,4,3-4", [3, 4])])
def test_a_choice_is_by_the_datasets_own_numbers(text, numbers):
    assert [GAPS[e] for e in chosen(text, GAPS, range(5), "--hold_out", "toy")] == numbers


@pytest.mark.parametrize("text", ["1", "13", "0-13", "5-8", "-6", "3,1"])
def test_an_episode_that_does_not_exist_is_refused_with_those_that_do(text):
    part = text.split(",")[-1]
    with pytest.raises(ValueError, match=f"^--hold_out {part}: dataset toy has episodes 0, 3 to 4, 9, 12$"):
        chosen(text, GAPS, range(5), "--hold_out", "toy")
    assert spans(range(40)) == "0 to 39"
    with pytest.raises(ValueError, match="^--only_episodes 9-3: the range runs backwards; write 3-9$"):
        chosen("0,9-3", GAPS, range(5), "--only_episodes", "toy")


def of(corpus):
    """Episodes that are trained on, of each row, and held out."""
    held_out = set() if corpus.held_out is None else set(corpus.held_out_windows[:, 0].tolist())
    return [set(rows[:, 0].tolist()) for rows in corpus.windows.values()], held_out


@pytest.fixture
def mixed(tmp_path):
    """mixed(rows, ...) -> the opened corpus. Datasets a and b of three episodes; the others are a, by other paths."""
    for name in "ab":
        write_folder(tmp_path / name, **THREE | {"task": np.array([name] * 3)})
    (tmp_path / "link").symlink_to("a")
    for folder, link in (("linked", "symlink_to"), ("copy", "hardlink_to")):
        (tmp_path / folder).mkdir()
        getattr(tmp_path / folder / "episode.npz", link)(tmp_path / "a/episode.npz")
        (tmp_path / folder / "head").symlink_to(tmp_path / "a/head")
    (tmp_path / "some.txt").write_text("0\n2\n")

    def opened(*rows, validation=None, **flags):
        rows = [row if isinstance(row, dict) else {"path": row} for row in rows]
        (tmp_path / "mixture.json").write_text(json.dumps({"datasets": rows, "validation": validation}))
        return open_corpus(tmp_path, 1, **flags)
    return opened


@pytest.mark.parametrize("path", ["a", "./a", "a/", "../{}/a", "link", "linked", "copy"])
def test_a_folder_that_is_listed_twice_is_one_dataset_with_one_hold_out(mixed, tmp_path, path):
    path = path.format(tmp_path.name)
    assert of(mixed("a", path)) == ([{0, 1}, {0, 1}], {2})
    assert of(mixed({"path": path, "kind": "human"}, "b", "a")) == ([{0, 1, 2}, {0, 1}, {0, 1, 2}], {2})   # of b
    assert of(mixed({"path": "a", "hold_out": 0}, "b", path)) == ([{1, 2}, {0, 1, 2}, {1, 2}], {0})
    both = mixed({"path": "a", "only_episodes": [0, 2]}, {"path": path, "only_episodes": "1-2"})
    assert of(both) == ([{0}, {1}], {2})
    assert of(mixed("a", path, hold_out="none")) == ([{0, 1, 2}, {0, 1, 2}], set())
    for rows, more, words in (
            ([{"path": "a", "hold_out": 0}, {"path": path, "hold_out": 1}], {}, "names 2 hold_out: what is held out is"),
            (["a", "b"], {"validation": path}, f"{path} is trained on and held out"),
            ([{"path": "a", "only_episodes": 2}, {"path": path, "only_episodes": 2}], {}, "record a second one")):
        with pytest.raises(ValueError, match=words):
            mixed(*rows, **more)


@pytest.mark.parametrize("rows, flags, found", [
    (["a"], {"only_episodes": "0-1"}, ([{0}], {1})),
    (["a"], {"only_episodes": "1", "hold_out": "none"}, ([{1}], set())),
    (["a"], {"hold_out": "0,-1"}, ([{1}], {0, 2})),
    ([{"path": "a", "only_episodes": "some.txt"}, "b"], {}, ([{0}, {0, 1, 2}], {2})),
    (["a", {"path": "b", "hold_out": [1]}], {}, ([{0, 1, 2}, {0, 2}], {1})),
    ([{"path": "a", "hold_out": "none"}], {}, ([{0, 1, 2}], set())),
    (["a"], {"only_episodes": "0", "hold_out": "2"}, "--hold_out 2: dataset a has episodes 0"),
    (["a"], {"only_episodes": "none"}, "no episode of dataset a is used"),
    (["a"], {"hold_out": "0-2"}, "no episode is left to train on"),
    (["a", "b"], {"only_episodes": "0"}, "--only_episodes counts in one dataset"),
    ([{"path": "a", "hold_out": 1}], {"hold_out": "0"}, "--hold_out 0: the mixture holds out 1 of a"),
    ([{"path": "a", "hold_out": 1}, {"path": "b", "hold_out": 1}], {}, "what is held out is of one dataset"),
    ([{"path": "a", "hold_out": 1}], {"validation": "b"}, "names 1 hold_out and a validation"),
    *(([{"path": "a", "only_episodes": wrong}], {}, "a: only_episodes must be text such as")
      for wrong in ([], "", {}, 1.5, True, [[1]], "x", 10**12))])
def test_a_mixture_and_the_flags_choose_episodes(mixed, rows, flags, found):
    if isinstance(found, tuple):
        assert of(mixed(*rows, **flags)) == found
    else:
        with pytest.raises(ValueError, match=found):
            mixed(*rows, **flags)


def test_one_episode_trains_when_nothing_is_held_out_and_no_figure_pretends_otherwise(tmp_path, capfd, refuses):
    data, out = write_folder(tmp_path / "one", ends=np.array([12]), task=np.array(["go"])), tmp_path / "run"
    argv = ["--data", str(data), *RUN, "--hold_out", "none"]
    for flag in ("--eval_windows", "--eval_every"):
        assert f"{flag} would be ignored: it is for a run that holds out data" in refuses("train.py", *argv, flag, 3)
    train.run([*argv, "--out", str(out)])
    printed, report = capfd.readouterr().out, json.loads((out / "report.json").read_text())
    assert "nothing was held out" in printed and "2 held out:" not in printed and "held-out actions" not in printed
    assert report["held_out"] is None and "open_loop" not in report and (out / "curves.png").exists()
    assert not any("held_out" in line for line in (out / "log.jsonl").read_text().splitlines())
    train.run([*argv, "--out", str(out), "--resume"])
    line = refuses("infer.py", "--checkpoint", out, "--open-loop", "--data", data)
    assert "nothing was held out" in line and "validation" in line


def test_episodes_with_gaps_keep_their_numbers_in_messages_plots_and_cuts(tmp_path, capfd, refuses):
    root, out = write_dataset(tmp_path / "toy"), tmp_path / "out"
    files = [[parquet(root, e), video(root, e, HEAD), video(root, e, WRIST)] for e in (1, 7)]
    for old, new in zip(*files):
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(old, new)
    listing = root / "meta/episodes.jsonl"
    listing.write_text(listing.read_text().replace('"episode_index": 1', '"episode_index": 7'))
    argv = ["--data", str(root), "--m", "3", "--out", str(tmp_path / "run"), *RUN]
    assert "--hold_out 1: dataset toy has episodes 0, 7" in refuses("train.py", *argv, "--hold_out", 1)
    train.run([*argv, "--hold_out", "7"])
    assert "held out of dataset toy: episodes 7" in capfd.readouterr().out
    infer.main(["--checkpoint", str(tmp_path / "run"), "--open-loop", "--data", str(root), "--out", str(out)])
    assert "\nepisode 7: mean squared error" in capfd.readouterr().out and (out / "episode_7.png").exists()
    assert list(json.loads((out / "open_loop.json").read_text())) == ["7"]
    infer.main(["--cut", str(root), "--episode", "7", "--image-dir", str(tmp_path / "cut")])
    assert "of episode 7, t = 15" in capfd.readouterr().out
    assert "--episode 1: dataset" in refuses("infer.py", "--cut", root, "--episode", 1, "--image-dir", tmp_path / "new")
