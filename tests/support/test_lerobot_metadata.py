"""meta/ of LeRobot datasets and robot files, as people have them and as nobody should: read by value, or one line."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from config import get_config
from data import example, examples, windows
from support.data import inspection
from support.data.corpus import Corpus
from support.data.frame_cache import cache_for, fill
from support.data.lerobot import LeRobotSource
from support.data.lerobot_metadata import dimension_names
from support.data.robots import Robot, action_kinds, find_robot
from support.data.source import glance, open_source
from support.data.kept_statistics import statistics

from test_bad_input import RUN, write_folder
from test_lerobot import (HEAD, LENGTHS, WRIST, all_exact, edit_info, give_tasks, numbers_of, pa, parquet, pq, video,
                          write_dataset, write_v30)


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "toy")


@pytest.fixture
def v30(tmp_path):
    return write_v30(tmp_path / "thirty")


def robot_file(folder, **row):
    path = folder / "mine.json"
    path.write_text(json.dumps({"name": "mine"} | row))
    return find_robot(str(path))


def edit_features(root, changes):
    features = json.loads((root / "meta/info.json").read_text())["features"]
    for key, change in changes.items():
        features[key] = features.get(key, {}) | change
    edit_info(root, features=features)


def edit_rows(root, change):
    """change(rows) of the list of episodes, v2.1 or v3.0."""
    path = root / "meta/episodes.jsonl"
    if path.exists():
        rows = list(map(json.loads, path.read_text().splitlines()))
        path.write_text("".join(json.dumps(row) + "\n" for row in change(rows) or rows))
    else:
        path = root / "meta/episodes/chunk-000/file-000.parquet"
        rows = pq.read_table(path).to_pylist()
        pq.write_table(pa.Table.from_pylist(change(rows) or rows), path)


def with_column(root, key, values, feature):
    """Add a column to v2.1: values(e, T)."""
    for e, n in enumerate(LENGTHS):
        table = pq.read_table(parquet(root, e))
        pq.write_table(table.append_column(key, pa.array(values(e, n))), parquet(root, e))
    edit_features(root, {key: feature})


TEXT, INDEX = ({"dtype": kind, "shape": [1], "names": None} for kind in ("string", "int64"))


# ---- dimensions -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("state, expected, names", [
    ([["observation.state", [1, 3]]], [1, 2], ["y", "grip"]),
    ([["observation.state", "grip", [0, 1]], "observation.state"], [2, 0, 0, 1, 2], ["grip", "x", "x", "y", "grip"]),
    ([], [], [])])
def test_a_robot_file_takes_dimensions_by_slice_and_by_name_in_its_order(dataset, state, expected, names):
    source = LeRobotSource(dataset, robot_file(dataset, state=state, action=[["action", "action_1"]]))
    q, a = source.numbers(1)
    assert (q == numbers_of(1)[0][:, expected]).all() and q.shape == (LENGTHS[1], len(expected))
    assert a.tolist() == numbers_of(1)[1][:, 1:].tolist()
    assert source.state_names == names and source.action_names == ["action_1"]
    assert LeRobotSource(dataset).identity() != source.identity()   # kept statistics are not those of all dimensions
    text = "\n".join(inspection.inspect(source, [0]))
    assert "action[action_1], 1 dimensions" in text and text.count("\nstate ") == 1 + len(names)


def test_more_than_32_dimensions_are_refused_before_statistics_with_the_way_to_choose(dataset, refuses):
    edit_features(dataset, {"action": {"shape": [33]}})
    for e, n in enumerate(LENGTHS):
        table = pq.read_table(parquet(dataset, e)).drop_columns("action")
        pq.write_table(table.append_column("action", pa.array(np.zeros((n, 33)).tolist())), parquet(dataset, e))
    line = refuses("train.py", "--data", dataset, "--out", dataset.parent / "run", *RUN)
    assert "'toy_arm' has 33 dimensions, the model takes at most 32; choose some in a --robot file" in line
    assert not (dataset / "statistics").exists()
    assert "more than the model's 32" in "\n".join(inspection.inspect(LeRobotSource(dataset, check_files=False), [0]))


@pytest.mark.parametrize("names, expected", [
    (["x", "y", "z"], "xyz"), ([["x", "y", "z"]], "xyz"), ({"motors": ["x", "y", "z"]}, "xyz"),
    ({"y": 1, "x": 0, "z": 2}, "xyz"), ({"left": ["x"], "right": ["y", "z"]}, "xyz"),
    ({"2": "z", "0": "x", "1": "y"}, "xyz"), ({"motors": {"z": 3, "x": 1, "y": 2}}, "xyz"),
    ({"hand": {"z": 2}, "arm": {"y": 1, "x": 0}}, "xyz"), ({"hand": {"x": 0}, "arm": {"z": 1, "y": 0}}, "xyz"),
    (None, None), (["state"], None), ("state", None)])
def test_names_of_dimensions_are_found_in_every_form(names, expected):
    found = dimension_names("observation.state", {"shape": [3], "names": names})
    assert found == (list(expected) if expected else ["state_0", "state_1", "state_2"])


def test_numbers_that_are_no_places_name_no_dimension():
    for names in ({"x": 0, "y": 5, "z": 1}, {"x": 0, "y": 0, "z": 1}, {"motors": {"0": "x", "1": "y", "4": "z"}}):
        with pytest.raises(ValueError, match="the names of 'action' are .*, expected text; correct them"):
            dimension_names("action", {"shape": [3], "names": names})


# ---- kinds ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("key, name, kind", [
    ("action", "joint_0_vel", "velocity"), ("action", "leftArmVelocity", "velocity"), ("action", "x.vel", "velocity"),
    ("action.velocity", "velocity_3", "velocity"), ("action.velocity", "elbow", "velocity"),
    ("action.velocity", "gripper", "position"), ("action", "tau_3", "torque"), ("action.effort", "hip", "torque"),
    ("action", "velcro_strap", "position"), ("action", "taupe", "position"), ("action", "level", "position")])
def test_velocity_and_torque_are_seen_in_names(key, name, kind):
    assert action_kinds(Robot("x"), [key], [name]) == ((kind,), kind != "position")


def test_a_guessed_kind_is_said_and_a_robot_file_decides(dataset, capfd):
    edit_features(dataset, {"action": {"names": ["pan_vel", "gripper"]}})
    source = LeRobotSource(dataset)
    assert source.kinds == ("velocity", "position") and "pan_vel (velocity)" in capfd.readouterr().err
    assert "pan_vel" in "\n".join(inspection.inspect(source, [0])) and "velocity?" in "\n".join(inspection.inspect(source, [0]))
    told = LeRobotSource(dataset, robot_file(dataset, kind="position", delta=[2]))
    assert told.kinds == ("position",) * 2 and not told.guessed and not capfd.readouterr().err
    assert LeRobotSource(dataset, robot_file(dataset, kind=["torque", "position"])).kinds == ("torque", "position")


def test_a_plain_folder_that_nobody_named_is_known_by_what_it_measures(tmp_path):
    """Moved, it is still the robot of the checkpoint; at another rate it is not."""
    here, there, other = (write_folder(tmp_path / name, fps=np.array(fps)) for name, fps in (("a", 30), ("b", 30), ("c", 15)))
    names = [open_source(root).robot for root in (here, there, other)]
    assert names[0] == names[1] != names[2] and names == [glance(root)[1] for root in (here, there, other)]


# ---- instructions ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tasks", ["pick", ["pick"], [None, "pick"], ["", "pick"], b"pick", [b"pick"]])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_tasks_are_text_or_bytes_alone_or_listed(dataset, v30, version, tasks):
    root = v30 if version == "v3.0" or b"pick" in (tasks, tasks[0]) else dataset   # JSON has no bytes
    edit_rows(root, lambda rows: [row.update(tasks=tasks) for row in rows] and rows)
    assert LeRobotSource(root).task(0, 3) == "pick"


@pytest.mark.parametrize("tasks", [[], None, [""]])
def test_where_the_list_of_episodes_is_silent_the_row_says_the_task(dataset, tasks):
    give_tasks(dataset, "v2.1", None)
    edit_info(dataset, total_tasks=1)
    (dataset / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "pick"}))
    edit_rows(dataset, lambda rows: [row.update(tasks=tasks) for row in rows] and rows)
    assert LeRobotSource(dataset).task(1, 4) == "pick"


@pytest.mark.parametrize("column, feature, expected", [
    (lambda e, n: [f"pick {e}" if t < 5 else "wait" for t in range(n)], TEXT, ["pick 1", "wait"]),
    (lambda e, n: [f"pick {e}".encode() if t < 5 else b"" for t in range(n)], TEXT, ["pick 1", ""]),
    (lambda e, n: [int(t >= 5) for t in range(n)], INDEX, ["pick", "place \u00e9"])], ids=["text", "bytes", "index"])
def test_a_robot_file_names_the_column_of_the_instruction(dataset, column, feature, expected):
    """Of frame t: it may change within an episode."""
    with_column(give_tasks(dataset, "v2.1", None), "annotation", column, feature)
    source = LeRobotSource(dataset, robot_file(dataset, instruction="annotation"))
    assert [source.task(1, 4), source.task(1, 5)] == expected
    assert "column 'annotation' of its row" in "\n".join(inspection.inspect(source, [0, 1]))


@pytest.mark.parametrize("values, feature", [(["pick", None], TEXT), ([0, None], INDEX)])
def test_a_null_is_no_instruction(dataset, values, feature):
    with_column(give_tasks(dataset, "v2.1", None), "annotation", lambda e, n: [values[t >= 5] for t in range(n)], feature)
    source = LeRobotSource(dataset, robot_file(dataset, instruction="annotation"))
    assert source.task(1, 4) == "pick"
    with pytest.raises(ValueError, match="episode 1, frame 5: 'annotation' is null"):
        source.task(1, 5)


@pytest.mark.parametrize("columns", [
    {"task": list("abc"), "task_index": [0, 1, 2]}, {"__index_level_0__": list("abc"), "task_index": [0, 1, 2]},
    {"n": [7, 8, 9], "task_index": [0.0, 1.0, 2.0], "words": [b"a", b"b", b"c"]}])
def test_the_table_of_tasks_has_its_text_as_index_or_column(v30, columns):
    give_tasks(v30, "v3.0", "task")
    pq.write_table(pa.table(columns), v30 / "meta/tasks.parquet")
    assert [LeRobotSource(v30).task(0, t) for t in (0, 5)] == ["a", "b"]


def test_two_columns_of_text_do_not_say_which_is_the_task(v30):
    give_tasks(v30, "v3.0", "task")
    pq.write_table(pa.table({"uuid": ["x0", "x1"], "task_index": [0, 1], "words": ["a", "b"]}), v30 / "meta/tasks.parquet")
    with pytest.raises(ValueError, match=r"several columns of text \(uuid, words\)"):
        LeRobotSource(v30).task(0, 0)


def test_empty_instructions_are_said_before_training(dataset, capfd):
    edit_rows(dataset, lambda rows: [row.update(tasks=[""]) for row in rows] and rows)
    corpus = Corpus.read(dataset).open(lambda source, episodes: windows(source, 3, episodes=episodes))
    assert list(corpus.preflight(3)) == [] and "every instruction that was looked at is empty" in capfd.readouterr().err
    edit_rows(dataset, lambda rows: rows[0].update(tasks=["pick"]))
    assert list(Corpus.read(dataset).open(lambda source, episodes: windows(source, 3, episodes=episodes)).preflight(3)) == []
    assert not capfd.readouterr().err


# ---- cameras --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("key, change", [
    ("observation.images.wrist_depth", {}), ("wristDepth", {}), ("wrist", {"video_info": {"video.is_depth_map": True}}),
    ("wrist", {"info": {"video.is_depth_map": True}}), ("wrist", {"info": {"is_depth_map": "yes"}}),
    ("wrist", {"info": {"is_depth": 1.0}}), ("wrist", {"info": {"video": {"is_depth_map": True}}}),
    ("wrist", {"video_info": {"video.pix_fmt": "gray16le"}}), ("wrist", {"info": {"video.channels": 1}}),
    ("wrist", {"shape": [64, 64, 1]}), ("wrist", {"shape": [64, 64], "dtype": "image", "names": None})])
def test_depth_and_one_channel_never_fill_a_slot(dataset, key, change):
    features = json.loads((dataset / "meta/info.json").read_text())["features"]
    features[key] = features.pop(WRIST) | change
    edit_info(dataset, features=features)
    source = LeRobotSource(dataset)
    assert source.views == {"head": HEAD} and key in source.not_colour
    assert f"cameras not read: {key} (" in "\n".join(inspection.inspect(source, [0]))
    with pytest.raises(ValueError, match=f"camera '{key}' (is a depth camera|has 1 channels).*name another camera"):
        LeRobotSource(dataset, Robot("mine", cameras={"head": HEAD, "left_wrist": key}))


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_camera_that_an_episode_lacks_is_a_missing_view_there(dataset, v30, version, capfd):
    """v3.0 says so with nulls, v2.1 by having no film that nobody counts. Also out of a frame cache."""
    root = dataset if version == "v2.1" else v30
    if version == "v2.1":
        video(root, 1, WRIST).unlink()
    else:
        edit_rows(root, lambda rows: rows[1].update({f"videos/{WRIST}/{key}": None for key in
                                                     ("chunk_index", "file_index", "from_timestamp")}))
    plain = LeRobotSource(root)
    assert f"camera '{WRIST}' has no pictures of 1 of its" in capfd.readouterr().err and inspection.faults(plain)[0] == []
    assert "\n".join(inspection.inspect(plain, [0])).count("has no pictures of 1 of its") == 1
    out = root.parent / "cached"
    fill(plain, cache_for(plain, out, [64]), 0)
    model = get_config("conveyor").model
    for source in (plain, LeRobotSource(out)):
        assert list(source.views) == ["head", "left_wrist"]
        assert [source.views_of(e) for e in (0, 1)] == [["head", "left_wrist"], ["head"]]
        stats = statistics({0: source}, {0: windows(source, 3)}, 4, "absolute", 1e-3)
        masks = [example(model, 3, stats, source, e, 4)["view_mask"].tolist() for e in (0, 1)]
        assert masks == [[True, True, False], [True, False, False]]
        assert examples(model, 3, stats, source, 1, [4, 5])[1]["view_mask"].tolist() == masks[1]


def test_a_lost_film_is_no_missing_camera(dataset):
    """Counted in total_videos, or the last picture of an episode, or of a camera."""
    video(dataset, 1, WRIST).unlink()
    edit_info(dataset, total_videos=4)
    with pytest.raises(ValueError, match="episode 1: .*episode_000001.mp4 is missing"):
        LeRobotSource(dataset)
    edit_info(dataset, total_videos=3)
    assert LeRobotSource(dataset).lacking == {"left_wrist": {1}}
    video(dataset, 1, HEAD).unlink()
    with pytest.raises(ValueError, match=r"episode 1: .*episode_000001.mp4 is missing \(and 1 more files\)"):
        LeRobotSource(dataset)


def test_no_more_films_are_taken_for_not_recorded_than_total_videos_lacks(dataset):
    for e, key in ((0, WRIST), (1, HEAD)):
        video(dataset, e, key).unlink()
    edit_info(dataset, total_videos=3)
    with pytest.raises(ValueError, match=r"mp4 is missing \(and 1 more files\)"):
        LeRobotSource(dataset)
    edit_info(dataset, total_videos=2)
    assert LeRobotSource(dataset).lacking == {"head": {1}, "left_wrist": {0}}


@pytest.mark.parametrize("lost", ["data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"])
def test_a_pipe_in_the_place_of_a_table_is_not_waited_for(v30, lost):
    (v30 / lost).unlink()
    os.mkfifo(v30 / lost)
    with pytest.raises(ValueError, match="file-000.parquet is missing"):
        LeRobotSource(v30).numbers(0)


def test_a_folder_may_be_called_anything(v30):
    root = Path(os.fsdecode(os.fsencode(v30) + b"\xff x"))
    v30.rename(root)
    source = LeRobotSource(root)
    assert source.numbers(0)[0].shape == (source.lengths[0], 3) and source.frame("head", 0, 2).shape == (64, 64, 3)


def test_a_shape_of_whole_floats_is_one_of_whole_numbers(dataset):
    edit_features(dataset, {HEAD: {"shape": [64.0, 64.0, 3.0]}, "action": {"shape": [2.0]}})
    source = LeRobotSource(dataset)
    assert source.numbers(0)[1].shape[1] == 2 and source.frame("head", 0, 0).shape == (64, 64, 3)


def test_pictures_of_two_recorders_are_not_one_folders_pictures(tmp_path):
    """The last parts of an absolute path count: of /a/frames/3.png and /b/frames/3.png they are the same."""
    root = write_v30(tmp_path / "toy", kind="image")
    (root / "frames").mkdir()
    for file in sorted(root.glob("data/*/*.parquet")):
        table = pq.read_table(file)
        for key in (HEAD, WRIST):
            names = [f"{key[-4:]}{n}.png" for n in table["index"].to_pylist()]
            for name, cell in zip(names, table[key].to_pylist()):
                (root / "frames" / name).write_bytes(cell["bytes"])
            recorders = ["b" if key == WRIST and file.stem == "file-001" and n > 9 else "a" for n in range(len(names))]
            table = table.set_column(table.column_names.index(key), key, pa.array(
                [f"/rec/{recorder}/frames/{name}" for recorder, name in zip(recorders, names)]))
        pq.write_table(table, file, row_group_size=9)
    source = LeRobotSource(root)
    assert source.frame("head", 0, 5).shape == (64, 64, 3) and source.frame("left_wrist", 2, 9).shape == (64, 64, 3)
    for e, t in ((2, 10), (3, 0), (3, 6)):   # in whatever order they are asked for
        for reader in (source, LeRobotSource(root)):
            with pytest.raises(ValueError, match="names '/rec/b/frames/.*', the first picture one in '/rec/a/'"):
                reader.frame("left_wrist", e, t)


# ---- what is wrong ----------------------------------------------------------------------------------------------------

BIG = 10 ** 400
WRONG_INFO = [
    {"fps": "30"}, {"fps": None}, {"fps": True}, {"fps": BIG}, {"fps": 1e-300}, {"features": []}, {"features": {"a": None}},
    {"features": {"a": {"dtype": 5}}}, {"total_frames": BIG}, {"total_episodes": "2"}, {"total_tasks": 1.5},
    {"chunks_size": 0}, {"chunks_size": [1]}, {"robot_type": {}}, {"robot_type": "a\nb"},
    *({key: value} for key in ("data_path", "video_path") for value in (
        None, "{episode_index:>1000000000d}", "{episode_index.__class__}", "{episode_index!r}", "{foo}/{episode_index}",
        "{}", "one.file", "../{episode_index}.{video_key}", "/etc/{episode_index}.{video_key}",
        "{episode_index", "a\0{episode_index}{video_key}", "a\n{episode_index}{video_key}",
        "d" * 5000 + "{episode_index}{video_key}"))]
WRONG_FEATURES = [
    ("frame_index", {"shape": [2]}),
    *((key, {"shape": shape}) for key in ("observation.state", HEAD, "frame_index") for shape in (
        None, 3, "3", [-3], [0], [2.5], [[3]], [10 ** 12], [BIG], [True], [None])),
    *(("observation.state", {"names": names}) for names in (["x"] * 2, [1, 2, 3], ["x", None, "z"], ["x", "y\n", "z"], 5))]
WRONG_ROWS = [("episode_index", value) for value in (None, 0.5, -1, BIG, [0], True, 0)] + [
    ("length", value) for value in (None, "23", -1, 0, 10 ** 12)] + [
    ("tasks", value) for value in (5, [["pick"]], {"a": 1})]
WRONG_ROWS_30 = [(key, value) for key in ("data/chunk_index", "dataset_from_index", f"videos/{HEAD}/file_index")
                 for value in (None, -1, 0.5, 2 ** 62, float("nan"))] + [
    (f"videos/{HEAD}/from_timestamp", value) for value in (None, -1.0, float("nan"), float("inf"))] + [
    ("dataset_from_index", 3), ("episode_index", None), ("length", 8.5), ("tasks", [b"pi\xff"])]


def one_line(read, *words):
    with pytest.raises(ValueError) as caught:
        read()
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600 and all(word in line for word in words), line
    line.encode()
    assert "is damaged or not of this format" not in line, line    # it names what is wrong, and where


def test_wrong_metadata_are_one_line_that_names_file_key_and_row(dataset, v30):
    info = (dataset / "meta/info.json").read_text()
    for change in WRONG_INFO:
        edit_info(dataset, **change)
        one_line(lambda: LeRobotSource(dataset), *(key.split("_")[-1].rstrip("s") for key in change))
        (dataset / "meta/info.json").write_text(info)
    for key, change in WRONG_FEATURES:
        edit_features(dataset, {key: change})
        one_line(lambda: LeRobotSource(dataset), f"'{key}'", "info.json")
        (dataset / "meta/info.json").write_text(info)
    for root, wrong in ((dataset, WRONG_ROWS), (v30, WRONG_ROWS_30)):
        path = next(path for path in sorted((root / "meta").rglob("*")) if path.is_file() and "info" not in path.name)
        good = path.read_bytes()
        for key, value in wrong:
            rows = [{"tasks": [b"pick"]}] if value == [b"pi\xff"] else [{}]
            edit_rows(root, lambda r: [row.update(rows[0]) for row in r] and r[1].update({key: value}))
            named = key in ("length", "episode_index", "dataset_from_index") and value in (0, 3, -1)
            one_line(lambda: LeRobotSource(root), *([] if named else [key if key != "tasks" else "task", path.name,
                                                                    "line 2" if root == dataset else "row 1"]))
            path.write_bytes(good)
    edit_rows(v30, lambda rows: rows[1].update(dataset_from_index=0, dataset_to_index=9))
    one_line(lambda: LeRobotSource(v30), "episode 0: meta/episodes gives it rows of episode 1")


@pytest.mark.parametrize("content, words", [
    ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ["git lfs pull"]), ("", ["no JSON"]),
    ("[" * 100_000, ["no JSON"]), ('{"fps": ' + "1" * 5000 + "}", ["no JSON"]), ("[1]", ["list"])])
@pytest.mark.parametrize("name", ["info.json", "episodes.jsonl", "tasks.jsonl"])
def test_a_metadata_file_of_another_kind_is_named(dataset, name, content, words):
    give_tasks(dataset, "v2.1", None)
    (dataset / "meta" / name).write_text(content)
    empty = content == "" and name != "info.json"
    one_line(lambda: LeRobotSource(dataset).task(0, 0), *([] if empty else [name, *words]))


@pytest.mark.parametrize("rows", [
    [{"task_index": 0, "task": "a"}, {"task_index": 0, "task": "b"}], [{"task_index": None, "task": "a"}], [[0, "a"]],
    [{"task_index": 0.5, "task": "a"}], [{"task_index": 0}], [{"task_index": 0, "task": 5}], [{"task_index": BIG}]])
def test_a_wrong_table_of_tasks_is_named_by_its_line(dataset, rows):
    give_tasks(dataset, "v2.1", None)
    (dataset / "meta/tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one_line(lambda: LeRobotSource(dataset).task(0, 0), "tasks.jsonl, line ")


@pytest.mark.parametrize("row", [
    {"delta": [10 ** 12]}, {"delta": [BIG]}, {"delta": [1000] * 1000}, {"delta": [True]}, {"delta": [6.0]}, {"delta": None},
    {"kind": "speed"}, {"kind": [["velocity"]]}, {"kind": 5}, {"kind": "velocity", "delta": [2]}, {"kind": ["velocity"]},
    {"name": ""}, {"name": "a\nb"}, {"name": "\ud800"}, {"name": 5}, {"cameras": {"head": [HEAD]}}, {"cameras": []},
    {"cameras": {"head": "action"}}, {"action": []}, {"action": [["action", [0, 1], "action_0"]]}, {"instruction": "nope"},
    {"instruction": 5}, *({"state": [entry]} for entry in (
        5, [], {"a": 1}, None, ["observation.state", [0, 4]], ["observation.state", [-1, 2]], ["observation.state", [2, 1]],
        ["observation.state", [0, 10 ** 12]], ["observation.state", "q"], ["observation.state", [0, 1, 2]],
        ["observation.state", *[[0, 3]] * 1000], HEAD, "nope"))])
def test_a_robot_file_that_cannot_be_meant_is_one_line(dataset, row):
    one_line(lambda: LeRobotSource(dataset, robot_file(dataset, **row)))


@pytest.mark.parametrize("name, dimensions", [("g1", 1), ("gr1", 26), ("cr5", 1)])
def test_the_example_robot_files_can_be_meant(name, dimensions):
    """gr1: as many masks as chosen dimensions, of both kinds; cr5: six velocities and a gripper."""
    robot = find_robot(str(Path(__file__).parents[2] / "examples" / f"{name}.json"))
    chosen = sum(part[1] - part[0] for entry in robot.action for part in (entry[1:] if isinstance(entry, tuple) else [(0, 1)]))
    assert chosen == dimensions and robot.state[0][1:] == robot.action[0][1:] or name != "gr1"
    assert name != "gr1" or len(robot.relative) == dimensions
    assert name != "cr5" or robot.kinds == ("velocity",) * 6 + ("position",)


def test_v20_is_read_as_v21(dataset):
    """Its layout is the same, only the statistics moved."""
    edit_info(dataset, codebase_version="v2.0")
    assert all_exact(LeRobotSource(dataset)) and LeRobotSource(dataset).task(1, 0) == "task 1"
    shutil.move(dataset / "meta/info.json", dataset / "meta/info.txt")
    one_line(lambda: LeRobotSource(dataset), "info.json is missing")
