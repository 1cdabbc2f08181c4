"""python -m worlds.robotwin: synthetic demonstrations of known colours, and the table of results."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image

import worlds.robotwin.__main__ as robotwin
from config import VIEWS
from support.data.source import open_source

h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install -r requirements-robotwin.txt")


# ---- demonstrations ---------------------------------------------------------------------------------------------

COLOURS = {"head": (200, 40, 60), "left_wrist": (20, 180, 90), "right_wrist": (30, 70, 210)}


def jpeg(colour, size=(64, 48)):
    """What OpenCV makes of an RGB array that it takes for BGR: red and blue are exchanged in the file."""
    file = io.BytesIO()
    Image.new("RGB", size, colour[::-1]).save(file, "JPEG", quality=95)
    return file.getvalue()


def joints(T, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (T, 14))


def parts(rows, names):
    return {name: rows[:, columns] for name, columns in zip(names, (slice(0, 6), 6, slice(7, 13), 13))}


def demonstration(path, T=4, layout="stable", seed=0, change=None):
    """A synthetic episode, its pictures padded with zeros as RoboTwin's. change: key -> value, None: left out."""
    rows = joints(T, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    if layout == "stable":
        values = {f"joint_action/{name}": x for name, x in parts(
            rows, ("left_arm", "left_gripper", "right_arm", "right_gripper")).items()}
        cameras, n = [f"observation/{name}_camera/rgb" for name in ("head", "left", "right")], T
        texts = path.parents[1] / "instructions" / f"{path.stem}.json"
        texts.parent.mkdir(exist_ok=True)
        texts.write_text('{"seen": ["one", "two"], "unseen": ["no"]}')
    else:
        names = [f"{part}_joint_states" for part in ("left_arm", "left_ee", "right_arm", "right_ee")]
        values = {f"{group}/{name}": x if x.ndim == 2 else x[:, None] for group, of in
                  (("state", rows[:-1]), ("action", rows[1:])) for name, x in parts(of, names).items()}
        values |= {"instructions": '["one", "two"]', "additional_info/frequency": 15}
        cameras, n = [f"vision/cam_{view}/colors" for view in VIEWS], T - 1
    values |= {key: np.array([jpeg(colour)] * n, "S2000") for key, colour in zip(cameras, COLOURS.values())}
    with h5py.File(path, "w") as file:
        for key, value in (values | (change or {})).items():
            if value is not None:
                file[key] = value
    return rows


@pytest.mark.parametrize("layout, path", [("stable", "bell/demo_{}/data/episode{}.hdf5"),
                                          ("main", "demo_{}/bell/aloha_agilex/data/episode_{:07d}.hdf5")])
def test_clean_and_randomised_demonstrations_become_one_folder_with_the_right_colours(tmp_path, capsys, layout, path):
    """Known colours come out as they were; action t is the state at t + 1; 250 / 15 frames a second; 10 after 2."""
    made = [demonstration(tmp_path / "data" / path.format(kind, n), 4 + n, layout, seed=n)
            for kind, numbers in (("clean", (2, 10)), ("randomized", (0,))) for n in numbers]
    robotwin.main(["convert", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    assert "3 episodes (2 clean, 1 randomized), 21 frames at 16.67 frames/s" in capsys.readouterr().out
    source = open_source(tmp_path / "out")
    assert (source.robot, source.fps, list(source.lengths)) == ("aloha", 250 / 15, [5, 13, 3])
    assert source.relative == ((True,) * 6 + (False,)) * 2 and source.action_names[6] == "left_gripper_0"
    assert [source.labels(e)["suite"] for e in range(3)] == ["clean", "clean", "randomized"]
    for e, rows in enumerate(made):
        state, action = source.numbers(e)
        assert np.array_equal(state, rows[:-1].astype(np.float32)) and np.array_equal(action[:-1], state[1:])
        assert np.array_equal(action[-1], rows[-1].astype(np.float32))
        assert {source.task(e, t) for t in range(3)} == {"one", "two"}
        for view, colour in COLOURS.items():
            picture = source.frame(view, e, len(state) - 1)
            assert picture.shape == (48, 64, 3) and np.abs(picture.astype(int) - colour).max() <= 3
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["out"]   # nothing is left beside it


@pytest.mark.parametrize("change, words", [
    ({"observation/left_camera/rgb": None}, "observation/left_camera/rgb is missing; does the task's config collect"),
    ({"joint_action/left_arm": None}, "joint_action/left_arm is missing"),
    ({"joint_action/left_arm": np.zeros((4, 7))}, r"shape \(4, 7\), expected 6 in a row"),
    ({"joint_action/right_arm": np.zeros((5, 6))}, r"shape \(5, 6\), expected .* as many rows"),
    ({"joint_action/right_arm": np.full((4, 6), np.nan)}, "right_arm, row 0: nan is not finite"),
    ({"joint_action/right_gripper": np.array([b"a"] * 4)}, "right_gripper holds no rows"),
    ({"observation/head_camera/rgb": np.array([jpeg((1, 2, 3))] * 3)}, "has 3 pictures for 4 frames"),
    ({"observation/head_camera/rgb": np.array([jpeg((1, 2, 3))[:200]] * 4)}, "head, frame 0 cannot be read"),
    ({"observation/head_camera/rgb": np.array([b"GIF"] * 4)}, "no PNG, JPEG"),
    ({"observation/head_camera/rgb": np.array([jpeg((1, 2, 3))] * 3 + [jpeg((1, 2, 3), (32, 32))])[[0, 3, 0, 0]]},
     r"head, frame 1 is \(32, 32\), before it are \(48, 64\)"),
    ({"observation/head_camera/rgb": np.zeros((4, 48, 64, 3), np.uint8)}, "no rows of one episode"),
    ({"joint_action/left_arm": np.zeros((0, 6))}, "no rows of one episode")], ids=range(12))
def test_what_is_wrong_with_a_demonstration_is_one_line_and_nothing_is_written(tmp_path, change, words):
    demonstration(tmp_path / "data/episode0.hdf5", change=change)
    with pytest.raises(ValueError, match=words) as error:
        robotwin.main(["convert", str(tmp_path), "--out", str(tmp_path / "out")])
    assert len(str(error.value).splitlines()) == 1 and "episode0.hdf5" in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "instructions"}


def test_torn_foreign_and_missing_files_and_folders_are_one_line(tmp_path, monkeypatch):
    data = tmp_path / "data/episode0.hdf5"

    def refused(words, *argv):
        with pytest.raises((ValueError, ImportError), match=words) as error:
            robotwin.main(["convert", str(tmp_path), *argv, "--out", str(tmp_path / "out")])
        assert len(str(error.value).splitlines()) == 1
    refused(r"holds no data/episode\*.hdf5: give RoboTwin's data/TASK")
    demonstration(data)
    whole = data.read_bytes()
    data.write_bytes(whole[:len(whole) // 2])
    refused("episode0.hdf5: it cannot be read .*truncated")
    data.write_bytes(b"no HDF5")
    refused("episode0.hdf5: it cannot be read")
    data.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    refused("is a Git LFS pointer")
    demonstration(data, layout="main", change={"state": None, "action": None} | {
        f"{group}/{part}_joint_states": None for group in ("state", "action")
        for part in ("left_arm", "left_ee", "right_arm", "right_ee")})
    refused("no demonstration of RoboTwin 2.0")
    demonstration(data, layout="main", change={"instructions": "not json"})
    refused("instructions is no JSON")
    demonstration(data)
    refused("an episode is found twice", str(tmp_path / "data"))
    (tmp_path / "instructions/episode0.json").write_text('{"seen": []}')
    refused("the seen instructions are")
    (tmp_path / "instructions/episode0.json").unlink()
    refused("episode0.json is missing")
    (tmp_path / "out/a").mkdir(parents=True)
    refused("holds files, or is a link: name a new folder")
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused("pip install -r requirements-robotwin.txt")


def test_a_suite_is_of_the_folders_that_were_given_and_no_pipe_or_link_is_waited_for(tmp_path, capsys):
    for given, suite in (("random_stuff/bell", "other"), ("cleanup/demo_randomized", "randomized"),
                         ("x/demo_clean/data", "clean")):
        folder, out = tmp_path / given, tmp_path / f"out_{suite}"
        demonstration((folder if folder.name == "data" else folder / "data") / "episode0.hdf5")
        robotwin.main(["convert", str(folder), "--out", str(out)])
        assert f"1 episodes (1 {suite})" in capsys.readouterr().out
    os.mkfifo(folder / "episode1.hdf5")
    (tmp_path / "empty").mkdir()
    for name, to in (("link", "nowhere"), ("linked", "empty")):
        (tmp_path / name).symlink_to(tmp_path / to)
    for out, words in ((tmp_path / "new", "episode1.hdf5 cannot be read .no file."),
                       (tmp_path / "link", "or is a link: name a new folder"),
                       (tmp_path / "linked", "or is a link: name a new folder"),
                       ("/proc/x", "--out /proc/x cannot be made")):
        with pytest.raises(ValueError, match=words):
            robotwin.main(["convert", str(folder), "--out", str(out)])


def test_the_command_has_two_jobs(tmp_path):
    for argv, words in ((["report", "a", "b"], "report takes one folder"), (["convert", "a"], "--out is missing"),
                        (["report", "a", "--out", "b"], "--out would be ignored: it is for convert")):
        with pytest.raises(ValueError, match=words):
            robotwin.main(argv)


# ---- the table --------------------------------------------------------------------------------------------------

def result(root, task, config, text, time="2026-01-02 03:04:05"):
    path = root / task / "internvla_a1" / config / "runs/mine" / time / "_result.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"Timestamp: {time}\n\nInstruction Type: unseen\n\n{text}")


def test_the_report_is_the_papers_table_with_intervals_and_says_what_is_missing(tmp_path, capsys):
    """The newest result of a task counts, as main's batches write it too; Wilson's interval of 90 of 100."""
    for task, easy, hard in (("click_bell", 0.9, 1.0), ("stamp_seal", 0.5, 0.0)):
        result(tmp_path, task, "demo_clean", easy)
        result(tmp_path, task, "demo_randomized", f"Batch Workers: 4\nSkipped Seeds: 7\n{hard}")
    result(tmp_path, "click_bell", "demo_clean", 0.1, "2025-01-02 03:04:05")
    robotwin.main(["report", str(tmp_path)])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "internvla_a1, runs/mine, unseen instructions, 100 trials a task"
    assert "click_bell 90.0% [82.6%, 94.5%] 100.0% [96.3%, 100.0%]" in lines
    assert "mean of the tasks 70.0% [63.3%, 75.9%] 50.0% [43.1%, 56.9%]" in lines
    assert any(line.startswith("easy: 2 of 50 tasks; not adjust_bottle, beat_block_hammer") for line in lines)


@pytest.mark.parametrize("change, words", [
    ({"text": "0.905"}, "does not end in the success of 100 trials"), ({"text": ""}, "does not end in"),
    ({"text": "0.9\nno rate"}, "does not end in"), ({"task": "click_bel"}, "is not TASK/POLICY"),
    ({"config": "demo_other"}, "demo_clean or demo_randomized"), (None, "holds no _result.txt")])
def test_what_is_no_result_is_one_line(tmp_path, change, words):
    if change is not None:
        result(tmp_path, **{"task": "click_bell", "config": "demo_clean", "text": "0.9"} | change)
    with pytest.raises(ValueError, match=words) as error:
        robotwin.main(["report", str(tmp_path)])
    assert len(str(error.value).splitlines()) == 1
