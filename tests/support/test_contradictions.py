"""Data and files that contradict each other or themselves: what would train, silently, on something else is refused."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install -r requirements-robot.txt")
pytest.importorskip("av", reason="PyAV is not installed: pip install -r requirements-robot.txt")

import train   # noqa: E402
from data import open_corpus, windows   # noqa: E402
from support.data.kept_statistics import statistics   # noqa: E402
from support.data.lerobot_episodes import instructions   # noqa: E402
from support.data.robots import find_robot   # noqa: E402
from support.data.source import open_source   # noqa: E402
from support.weights.__main__ import parse as weights   # noqa: E402

from test_bad_input import RUN, write_folder   # noqa: E402
from test_lerobot import HEAD, edit_info, parquet, pq, write_dataset, write_table   # noqa: E402


def named(root, **names):
    """A LeRobot dataset of 3 state and 2 action dimensions with these names of `state` and `action`."""
    write_dataset(root)
    features = json.loads((root / "meta" / "info.json").read_text())["features"]
    for kind, of in names.items():
        features["observation.state" if kind == "state" else "action"]["names"] = of
    edit_info(root, features=features)
    return root


def taken(sources, mode="absolute"):
    return statistics(dict(enumerate(sources)), {i: windows(of, 4) for i, of in enumerate(sources)}, 4, mode, 1e-3)


@pytest.mark.parametrize("kind, names, others", [
    ("action", ["shoulder", "gripper"], ["gripper", "shoulder"]),
    ("state", ["x", "y", "gripper"], ["gripper", "x", "y"])])
def test_datasets_of_one_robot_that_name_its_dimensions_in_another_order_are_refused(tmp_path, kind, names, others):
    """Their statistics would mix joints. Other names, or none, contradict nothing."""
    a, b, c, d = (open_source(named(tmp_path / name, **{kind: of})) for name, of in (
        ("a", names), ("b", others), ("c", ["other", *names[1:]]), ("d", None)))
    taken([a, c, d])
    with pytest.raises(ValueError, match=rf"has the {kind} dimensions .*{names[0]}.* in dataset a and .* in b: name them"):
        taken([d, a, c, b])


def test_what_a_robot_file_puts_in_order_is_not_refused_for_the_names_that_its_reader_made(tmp_path):
    """Of a dataset without names they are numbers of columns, which say nothing of joints."""
    row = {"name": "arm", "cameras": {"head": HEAD}}
    for n, state in enumerate(([[0, 3]], [[1, 3], [0, 1]])):
        (tmp_path / f"{n}.json").write_text(json.dumps(row | {"state": [["observation.state", *state]]}))
    a, b = (open_source(named(tmp_path / f"set_{n}", state=None), find_robot(str(tmp_path / f"{n}.json"))) for n in (0, 1))
    assert a.state_names != b.state_names and sorted(a.state_names) == sorted(b.state_names)
    taken([a, b])


def test_delta_mode_against_the_state_of_another_joint_is_refused_by_the_names(tmp_path):
    root = named(tmp_path / "set", state=["gripper", "shoulder", "elbow"], action=["shoulder", "elbow"])
    row = {"name": "arm", "cameras": {"head": HEAD}, "delta": [2]}

    def of(**more):
        (tmp_path / "arm.json").write_text(json.dumps(row | more))
        return open_source(root, find_robot(str(tmp_path / "arm.json")))
    with pytest.raises(ValueError, match="action 0 of dataset set is 'shoulder': that is state 1, it would be relative to 0"):
        taken([of()], "delta")
    taken([of(delta=[-2])], "delta")
    taken([of()])
    assert taken([of(state=[["observation.state", [1, 3], [0, 1]]])], "delta").relative == (True, True)


@pytest.mark.parametrize("more, words", [
    ({"state": []}, "state of the --robot file would be ignored"), ({"instruction": "task"}, "instruction of the"),
    ({"action": [["action", [0, 2]]], "cameras": {"head": "left_wrist"}}, "action, cameras of the --robot file"),
    ({"delta": [5, -2]}, "has a delta mask of 7 dimensions, the actions have 6")])
def test_what_a_plain_folder_does_not_read_of_a_robot_file_is_refused(tmp_path, more, words):
    path, root = tmp_path / "arm.json", write_folder(tmp_path / "set")
    path.write_text(json.dumps({"name": "arm", "delta": [5, -1]} | more))
    with pytest.raises(ValueError, match=words):
        open_source(root, find_robot(str(path)))
    path.write_text(json.dumps({"name": "arm", "delta": [5, -1], "kind": "position"}))
    assert open_source(root, find_robot(str(path))).relative == (True,) * 5 + (False,)


@pytest.mark.parametrize("write", [write_folder, write_dataset])
def test_a_copy_of_a_dataset_is_the_same_dataset_so_what_is_held_out_of_one_is_trained_on_in_neither(tmp_path, write):
    write(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    (tmp_path / "mixture.json").write_text(json.dumps({"datasets": [{"path": "a"}, {"path": "copy"}]}))
    corpus = open_corpus(tmp_path, 4)
    assert set(corpus.held_out_windows[:, 0]) == {1} and [set(rows[:, 0]) for rows in corpus.windows.values()] == [{0}, {0}]
    assert f"{tmp_path / 'a'} and {tmp_path / 'copy'} are one dataset" in "\n".join(corpus.notes())
    (tmp_path / "mixture.json").write_text(json.dumps({"datasets": [{"path": "a"}], "validation": "copy"}))
    with pytest.raises(ValueError, match="copy is trained on and held out, by this or another path"):
        open_corpus(tmp_path, 4)


def hidden(root):
    for path in ("meta", "data/chunk-000", "head"):
        if (root / path).is_dir():
            (root / path / "._junk.parquet").write_bytes(b"x")
            (root / path / ".DS_Store").write_bytes(b"x")


def beside(root):
    if (root / "meta").is_dir():
        (root / "meta" / "README.md").write_text("# about")
        (root / "meta" / "info.json.bak").write_text("{}")


def spelt_anew(root):
    """JSON on lines of another kind, another robot_type, parquet and npz of another compression and order."""
    if (root / "episode.npz").exists():
        arrays = dict(np.load(root / "episode.npz"))
        return np.savez_compressed(root / "episode.npz", **dict(reversed(arrays.items())))
    info = json.loads((root / "meta" / "info.json").read_text())
    (root / "meta" / "info.json").write_text(json.dumps(info | {"robot_type": "other"}, indent=3, sort_keys=True))
    lines = root / "meta" / "episodes.jsonl"
    lines.write_bytes(lines.read_bytes().replace(b"\n", b"\r\n"))
    for path in root.glob("data/*/*.parquet"):
        pq.write_table(pq.read_table(path), path, compression="gzip", row_group_size=7)


def other_pictures(root):
    if (root / "head").is_dir():
        pictures = [np.asarray(Image.open(path)) for path in sorted((root / "head").iterdir())]
        shutil.rmtree(root / "head")
        np.save(root / "head.npy", np.stack(pictures))


@pytest.mark.parametrize("change", [hidden, beside, spelt_anew, other_pictures])
@pytest.mark.parametrize("write", [write_folder, write_dataset])
def test_a_copy_that_was_written_again_is_still_the_same_recording(tmp_path, write, change):
    write(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    change(tmp_path / "copy")
    (tmp_path / "mixture.json").write_text(json.dumps({"datasets": [{"path": "a"}, {"path": "copy"}]}))
    corpus = open_corpus(tmp_path, 4)
    assert [set(rows[:, 0]) for rows in corpus.windows.values()] == [{0}, {0}]
    one, other = corpus.listed
    assert one.lists == other.lists or change is spelt_anew   # what a resumed run and a frame cache compare


def test_two_recordings_that_say_the_same_of_themselves_stay_two_datasets(tmp_path):
    """Simulators make episodes of one length and one instruction: meta/ does not tell their datasets apart."""
    for name in ("a", "b"):
        write_dataset(tmp_path / name)
    for e, n in enumerate((40, 23)):
        write_table(parquet(tmp_path / "b", e), np.ones((n, 3), np.float32), np.ones((n, 2), np.float32))
    (tmp_path / "mixture.json").write_text(json.dumps({"datasets": [{"path": "a"}], "validation": "b"}))
    corpus = open_corpus(tmp_path, 4)
    assert corpus.listed[0].lists == corpus.validation.lists and set(corpus.windows[0][:, 0]) == {0, 1}


def test_an_m_that_no_episode_is_long_enough_for_is_refused(tmp_path, refuses):
    """L_gen would be 0 at every step, and the generation expert never trained."""
    run = ["--data", str(write_folder(tmp_path / "set")), *(flag for flag in RUN if flag[:4] != "--m=")]
    assert "--m 8: the longest episode has 8 frames" in refuses("train.py", *run, "--out", tmp_path / "run", "--m", 8)
    train.run([*run, "--out", str(tmp_path / "seven"), "--m", "7"])
    train.run([*run, "--out", str(tmp_path / "alone"), "--m", "8", "--gen_expert", "false"])


def test_an_instruction_with_nul_characters_is_refused_where_it_is_read(tmp_path):
    """UTF-16 that is read as UTF-8: every second byte is NUL, and the tokens are of another text."""
    assert instructions([b"pick", "up"], "x") == ("pick", "up")
    for task in ("p\0u\0t\0", "put".encode("utf-16-le")):
        with pytest.raises(ValueError, match="^episode 0 holds NUL characters, as UTF-16"):
            instructions(["pick", task], "episode 0")


@pytest.mark.parametrize("fps, words", [("0", "--fps must be above 0, got 0.0"), ("-3", "--fps must be above 0, got -3.0"),
                                        ("nan", "--fps: expected a finite number, got 'nan'")])
def test_published_weights_of_no_frame_rate_are_refused(capsys, fps, words):
    with pytest.raises(SystemExit):
        weights(["import", "a", "b", f"--fps={fps}"])
    assert words in capsys.readouterr().err
