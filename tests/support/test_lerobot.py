"""support/data/lerobot.py on v2.1 and v3.0 datasets written here: exact frames and numbers, one line a fault.

Every frame carries its own index as a code of white and black columns, so a neighbouring frame cannot pass.
"""

import builtins
import copy
import json
import multiprocessing
import random
import time
import tracemalloc

import numpy as np
import pytest

from support.data import lerobot
from support.data.lerobot import LeRobotSource
from support.data.robots import guess_cameras
from support.data.robots import ROBOTS, Robot, find_robot

av = pytest.importorskip("av", reason="PyAV is not installed: pip install -r requirements-robot.txt")
pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install -r requirements-robot.txt")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

HEAD, WRIST = "observation.images.cam_high", "observation.images.cam_left_wrist"
LENGTHS = (40, 23)
FPS = 30


def coded(index, wrist):
    """A 64 x 64 picture: six columns with the bits of index; the lower half is red in the wrist view."""
    picture = np.zeros((64, 64, 3), np.uint8)
    for bit in range(6):
        picture[:32, bit * 10:bit * 10 + 10] = 255 * (index >> bit & 1)
    picture[32:, :, 0] = 255 * wrist
    return picture


def decoded(picture):
    """Index and view of a coded picture."""
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    index = sum(int(picture[16, bit * 10 + 5].mean() > 127) << bit for bit in range(6))
    red, _, blue = picture[48, 32].astype(int)
    return index, red - blue > 100


def write_video(path, n, wrist, codec, gop, b_frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 64, "yuv420p", gop
        stream.codec_context.max_b_frames = b_frames
        for t in range(n):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(coded(t, wrist), format="rgb24")))
        container.mux(stream.encode())


def numbers_of(e):
    state = np.arange(LENGTHS[e] * 3, dtype=np.float32).reshape(-1, 3) + 1000 * e
    return state, -state[:, :2]


def write_table(path, state, action, fixed=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"observation.state": pa.array(state.tolist(), pa.list_(pa.float32(), 3 if fixed else -1)),
               "frame_index": pa.array(range(len(state)))}
    if action is not None:
        columns["action"] = pa.array(action.tolist(), pa.list_(pa.float32(), 2 if fixed else -1))
    pq.write_table(pa.table(columns), path)


def parquet(root, e):
    return root / f"data/chunk-{e:03d}/episode_{e:06d}.parquet"  # chunks of one episode


def video(root, e, key=HEAD):
    return root / f"videos/chunk-{e:03d}/{key}/episode_{e:06d}.mp4"


def edit_info(root, **changes):
    path = root / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_dataset(root, codec="mpeg4", gop=2, b_frames=0, has_action=True):
    """A dataset of two episodes and two cameras in the layout of LeRobot v2.1."""
    features = {"observation.state": {"dtype": "float32", "shape": [3], "names": [["x", "y", "grip"]]},
                HEAD: {"dtype": "video", "shape": [64, 64, 3], "names": ["height", "width", "channel"]},
                WRIST: {"dtype": "video", "shape": [64, 64, 3], "names": ["height", "width", "channel"]},
                "frame_index": {"dtype": "int64", "shape": [1], "names": None}}
    if has_action:
        features["action"] = {"dtype": "float32", "shape": [2], "names": None}
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps({
        "codebase_version": "v2.1", "robot_type": "toy_arm", "fps": FPS, "chunks_size": 1,
        "total_episodes": 2,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features}))
    rows = [{"episode_index": e, "tasks": [f"task {e}"], "length": n} for e, n in enumerate(LENGTHS)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    for e, n in enumerate(LENGTHS):
        state, action = numbers_of(e)
        write_table(parquet(root, e), state, action if has_action else None, fixed=e == 1)
        for key in (HEAD, WRIST):
            write_video(video(root, e, key), n, key == WRIST, codec, gop, b_frames)
    return root


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "toy")


def all_exact(source):
    """Whether every frame of every view, asked for in random order, is the one asked for."""
    asked = [(view, e, t) for view in source.views for e, n in enumerate(source.lengths) for t in range(n)]
    random.Random(0).shuffle(asked)
    return all(decoded(source.frame(view, e, t)) == (t, view == "left_wrist") for view, e, t in asked)


# With B-frames, mpeg4 seeks can land behind the target.
@pytest.mark.parametrize("codec, gop, b_frames", [("mpeg4", 2, 0), ("mpeg4", 12, 2), ("libx264", 2, 0),
                                                  ("libx264", 12, 2)])
def test_every_frame_is_exact(tmp_path, codec, gop, b_frames):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    assert all_exact(LeRobotSource(write_dataset(tmp_path / "toy", codec, gop, b_frames)))


def test_metadata_and_numbers(dataset):
    source = LeRobotSource(str(dataset))
    assert (source.name, source.robot, source.fps) == ("toy", "toy_arm", 30.0)
    assert source.lengths == list(LENGTHS) and source.tasks == ["task 0", "task 1"] and source.has_pictures(0, [0, 3]).all()
    assert source.views == {"head": HEAD, "left_wrist": WRIST} and source.has_action
    assert source.state_names == ["x", "y", "grip"] and source.action_names == ["action_0", "action_1"]
    for e in (0, 1, 0):
        state, action = source.numbers(e)
        assert state.dtype == action.dtype == np.float32
        assert (state == numbers_of(e)[0]).all() and (action == numbers_of(e)[1]).all()
    turned = LeRobotSource(dataset, Robot("mine", cameras={"right_wrist": WRIST}))
    assert turned.views == {"right_wrist": WRIST} and turned.robot == "mine"


def test_a_robot_file_may_call_its_actions_anything(dataset):
    """Only a dataset without a feature of that name is human video."""
    features = json.loads((dataset / "meta/info.json").read_text())["features"]
    features["control"] = features.pop("action")
    edit_info(dataset, features=features)
    for e in (0, 1):
        table = pq.read_table(parquet(dataset, e))
        pq.write_table(table.rename_columns([name.replace("action", "control") for name in table.column_names]),
                       parquet(dataset, e))
    source = LeRobotSource(dataset, Robot("mine", action=("control",)))
    assert source.has_action and (source.numbers(1)[1] == numbers_of(1)[1]).all()
    assert not LeRobotSource(dataset).has_action
    with pytest.raises(ValueError, match="no feature 'contrl'; name the action features in a --robot file"):
        LeRobotSource(dataset, Robot("mine", action=("contrl",)))
    features["action.joints"] = features.pop("control")
    edit_info(dataset, features=features)
    with pytest.raises(ValueError, match="no feature 'action'; name the action features in a --robot .*action.joints"):
        LeRobotSource(dataset)


def test_a_known_robot_without_its_head_camera_has_its_cameras_guessed(dataset):
    """Half of the table's names would leave the head out without a word."""
    features = json.loads((dataset / "meta/info.json").read_text())["features"]
    features["observation.images.top"], features["action"]["shape"] = features.pop(HEAD), [14]
    edit_info(dataset, features=features, robot_type="aloha")
    for e in (0, 1):
        video(dataset, e, "observation.images.top").parent.mkdir(parents=True, exist_ok=True)
        video(dataset, e).rename(video(dataset, e, "observation.images.top"))
    assert LeRobotSource(dataset).views == {"head": "observation.images.top", "left_wrist": WRIST}
    with pytest.raises(ValueError, match="one camera in two slots"):
        LeRobotSource(dataset, Robot("mine", cameras={"head": WRIST, "left_wrist": WRIST}))


def test_robots_that_nobody_named_are_told_apart_by_their_datasets(dataset):
    """By what they measure, so that a dataset that was moved is still of the robot that a checkpoint knows."""
    edit_info(dataset, robot_type="unknown")
    name = LeRobotSource(dataset).robot
    assert name.startswith("unnamed-3q2a-")
    moved = dataset.rename(dataset.parent / "moved")
    edit_info(moved, robot_type=None)
    assert LeRobotSource(moved).robot == name
    for change in ({"fps": 15}, {"features": {**json.loads((moved / "meta/info.json").read_text())["features"], "action":
                                              {"dtype": "float32", "shape": [2], "names": ["pan", "tilt"]}}}):
        edit_info(moved, **change)
        assert LeRobotSource(moved).robot not in (name, "")
        name = LeRobotSource(moved).robot


def _child(source, queue):
    queue.put(all_exact(source))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_travels_to_workers(dataset, method):
    source = LeRobotSource(dataset)
    source.frame("head", 0, 7), source.numbers(0)  # files are open and arrays held when the worker starts
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=_child, args=(source, queue))
    worker.start()
    assert all_exact(source) and queue.get(timeout=120)
    worker.join()
    assert decoded(copy.deepcopy(source).frame("head", 1, 5)) == (5, False)


@pytest.mark.parametrize("keys, expected", [
    (["images.rgb.head", "images.rgb.hand_left", "images.rgb.hand_right"],
     {"head": "images.rgb.head", "left_wrist": "images.rgb.hand_left",
      "right_wrist": "images.rgb.hand_right"}),
    (["observation.images.camera_front", "observation.images.camera_right_wrist"],
     {"head": "observation.images.camera_front", "right_wrist": "observation.images.camera_right_wrist"}),
    (["observation.images.cam_high", "observation.images.cam_low"], {"head": "observation.images.cam_high"}),
    (["image", "wrist_image"], {"head": "image", "left_wrist": "wrist_image"}),
    (["observation.image"], {"head": "observation.image"}),
    (["cam_top", "leftWrist", "wrist_bright_right"], {"head": "cam_top", "left_wrist": "leftWrist",
                                                      "right_wrist": "wrist_bright_right"}),
    (["image", "wrist_bright"], {"head": "image", "left_wrist": "wrist_bright"}),
    (["front", "handheld", "wrist_r"], {"head": "front", "right_wrist": "wrist_r"}),
])
def test_cameras_are_guessed(keys, expected):
    assert guess_cameras(keys) == expected


@pytest.mark.parametrize("keys", [["image", "image2"], ["wrist"], ["top", "front"],
                                  ["cam_left_high", "cam_right_high"], ["laptop", "phone"]])
def test_ambiguous_cameras_are_listed(keys):
    with pytest.raises(ValueError, match=", ".join(keys)):
        guess_cameras(keys)


def truncate(path, percent=50):
    path.write_bytes(path.read_bytes()[:path.stat().st_size * percent // 100])


def test_frames_outside_the_episode_are_refused(dataset):
    source = LeRobotSource(dataset)
    for t in (-1, 23):
        with pytest.raises(ValueError, match=f"episode 1, frame {t}, .*: the episode has frames 0 to 22"):
            source.frame("head", 1, t)


def test_missing_packages_are_named(dataset, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] in ("av", "pyarrow"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    source = LeRobotSource(dataset)
    monkeypatch.setattr(builtins, "__import__", without)
    for read in (lambda: source.numbers(0), lambda: source.frame("head", 0, 0)):
        with pytest.raises(ImportError, match="pip install -r requirements-robot.txt"):
            read()


# ---- v3.0: several episodes in each file ----

LENGTHS_30 = (12, 9, 20, 7)      # episodes 0 and 1 share the first files, 2 and 3 the second
FILES_30 = (0, 0, 1, 1)
BEFORE_30 = (0, 12, 0, 20)       # frames that precede each episode in its file


def write_v30(root, codec="mpeg4", gop=2, kind="video", fps=FPS, row_group=None):
    """A dataset of four episodes in two data files and two videos a camera, in the layout of LeRobot v3.0."""
    picture = {"dtype": kind, "shape": [64, 64, 3], "names": ["height", "width", "channels"]}
    features = {"observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "grip"]},
                "action": {"dtype": "float32", "shape": [1], "names": ["grip"]}, HEAD: picture,
                WRIST: {**picture, "shape": [3, 64, 64], "names": ["channels", "height", "width"]}}
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps({
        "codebase_version": "v3.0", "robot_type": None, "fps": fps, "chunks_size": 1000, "total_episodes": 4,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features}))
    first, rows = np.concatenate([[0], np.cumsum(LENGTHS_30)]).tolist(), []
    for file in (0, 1):
        mine = [e for e in range(4) if FILES_30[e] == file]
        names = [(e, t) for e in mine for t in range(LENGTHS_30[e])]
        state = [[100.0 * e + t, t, 1] for e, t in names]
        columns = {"observation.state": pa.array(state, pa.list_(pa.float32(), 3)),
                   "action": pa.array([-x[0] for x in state], pa.float32()),   # shape [1]: a plain column
                   "index": pa.array([first[e] + t for e, t in names])}
        start = 0.0
        for e in mine:
            row = {"episode_index": e, "tasks": [f"task {e % 3}"], "length": LENGTHS_30[e], "data/chunk_index": 0,
                   "data/file_index": file, "dataset_from_index": first[e], "dataset_to_index": first[e + 1]}
            for key in (HEAD, WRIST):
                row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": file,
                        f"videos/{key}/from_timestamp": start}
            start += LENGTHS_30[e] / fps
            rows.append(row)
        for key in (HEAD, WRIST):
            pictures = [coded(n, key == WRIST) for n in range(len(names))]   # its place in the file: episodes differ
            if kind == "image":
                columns[key] = pa.array([{"bytes": png(x), "path": None} for x in pictures])
            else:
                path = root / f"videos/{key}/chunk-000/file-{file:03d}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                with av.open(str(path), "w") as container:
                    stream = container.add_stream(codec, rate=fps)
                    stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 64, "yuv420p", gop
                    for x in pictures:
                        container.mux(stream.encode(av.VideoFrame.from_ndarray(x, format="rgb24")))
                    container.mux(stream.encode())
        path = root / f"data/chunk-000/file-{file:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, row_group_size=row_group)
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    return root


def all_exact_30(source):
    """Whether every frame is the one of its own episode, asked for in random order."""
    asked = [(view, e, t) for view in source.views for e, n in enumerate(LENGTHS_30) for t in range(n)]
    random.Random(0).shuffle(asked)
    return all(decoded(source.frame(view, e, t)) == (BEFORE_30[e] + t, view == "left_wrist") for view, e, t in asked)


def test_v30_in_several_chunks_and_lists_of_episodes(tmp_path):
    root = write_v30(tmp_path / "toy")
    for path in [*root.glob("data/*/file-001.parquet"), *root.glob("videos/*/*/file-001.mp4")]:
        to = path.parents[1] / "chunk-001" / path.name.replace("001", "000")
        to.parent.mkdir()
        path.rename(to)
    listed = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(listed).to_pylist()
    for row in rows[2:]:
        row |= {key: {"chunk_index": 1, "file_index": 0}[key.split("/")[-1]] for key in row
                if key.endswith(("chunk_index", "file_index"))}
    pq.write_table(pa.Table.from_pylist(rows[:3]), listed)
    (root / "meta/episodes/chunk-001").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[3:]), root / "meta/episodes/chunk-001/file-000.parquet")
    assert all_exact_30(LeRobotSource(root))


@pytest.mark.parametrize("keys", [["episode_index"], ["episode_index", "frame_index"], ["frame_index"], []])
def test_rows_are_no_other_episodes_where_one_was_deleted_from_the_list_whatever_info_json_says_of_columns(tmp_path, keys):
    root = write_v30(tmp_path / "toy")
    for path in root.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        mine = [(e, t) for e in range(4) if f"{FILES_30[e]}.parquet" in path.name for t in range(LENGTHS_30[e])]
        for key in keys:
            table = table.append_column(key, pa.array([pair[key == "frame_index"] for pair in mine]))
        pq.write_table(table, path)
    assert all_exact_30(LeRobotSource(root))
    listed = root / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(listed).slice(1), listed)
    edit_info(root, total_episodes=3)
    source = LeRobotSource(root)
    source.numbers(1)   # of the other file
    told = "'episode_index' is 0, expected 1" if "episode_index" in keys else \
        "file-000.parquet has 21 rows and meta/ lists 9, but no column episode_index says whose they are"
    with pytest.raises(ValueError, match=f"episode 1.*{told}"):
        source.numbers(0)


def test_of_a_large_data_file_only_the_row_groups_of_the_episode_are_read(tmp_path, monkeypatch):
    """v3.0 puts hundreds of episodes in a file; a random window must not read them all."""
    whole, asked = LeRobotSource(write_v30(tmp_path / "one" / "toy")), []
    source = LeRobotSource(write_v30(tmp_path / "five" / "toy", row_group=5))
    read = lerobot.read_columns

    def noted(path, sizes, where, group, also):
        asked.append(group)
        return read(path, sizes, where, group, also)
    monkeypatch.setattr(lerobot, "read_columns", noted)
    # Rows 0 to 11 and 12 to 20 of one file, whose group 2 is held by then; 0 to 19 and 20 to 26 of the other.
    for e, groups in ((0, [0, 1, 2]), (1, [3, 4]), (2, [0, 1, 2, 3]), (3, [4, 5])):
        asked.clear()
        mine = source.numbers(e)
        assert asked == groups
        assert all((array == other).all() for array, other in zip(mine, whole.numbers(e)))


def png(picture):
    from io import BytesIO

    from PIL import Image
    stream = BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("codec, gop, fps", [("mpeg4", 2, 30), ("libx264", 30, 15), ("libsvtav1", 2, 30), ("libsvtav1", 30, 30)])
def test_every_frame_of_v30_is_exact(tmp_path, codec, gop, fps):
    """Episodes share an mp4: each begins at its own second, whatever the rate."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    source = LeRobotSource(write_v30(tmp_path / "toy", codec, gop, fps=fps))
    assert source.version == "v3.0" and source.lengths == list(LENGTHS_30) and all_exact_30(source)


def test_of_pictures_inside_parquet_only_the_row_groups_asked_for_are_read(tmp_path, monkeypatch):
    """LeRobot writes one an episode; the whole file may be 100 MB."""
    root, read = write_v30(tmp_path / "toy", kind="image", row_group=5), []
    original = lerobot.read_table
    monkeypatch.setattr(lerobot, "read_table", lambda path, columns, where, group=None: read.append(group)
                        or original(path, columns, where, group))
    source = LeRobotSource(root)
    read.clear()
    for t in (6, 7, 3):                                     # rows 18, 19 and 15 of the file: its fourth group
        assert decoded(source.frame("head", 1, t)) == (BEFORE_30[1] + t, False)
    assert read == [3] and all_exact_30(source)


# ---- several tasks in an episode ----

TEXTS = ("pick", "place \u00e9", "wait")


def give_tasks(root, version, index_name):
    """task_index = t // 5 % 3 at frame t of every episode, and the table of texts, in an order of its own."""
    for path in (root / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        frame = table["frame_index"].to_pylist() if version == "v2.1" else [t % 7 for t in range(len(table))]
        pq.write_table(table.append_column("task_index", pa.array([t // 5 % 3 for t in frame])), path)
    order = (2, 0, 1)
    if version == "v2.1":
        (root / "meta/tasks.jsonl").write_text("".join(
            json.dumps({"task_index": i, "task": TEXTS[i]}, ensure_ascii=False) + "\n" for i in order), encoding="utf-8")
    else:
        pq.write_table(pa.table({"task_index": list(order), index_name: [TEXTS[i] for i in order]}),
                       root / "meta/tasks.parquet")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    edit_info(root, total_tasks=3, features=features | {"task_index": {"dtype": "int64", "shape": [1], "names": None}})
    return root


@pytest.mark.parametrize("version, index_name", [("v2.1", None), ("v3.0", "__index_level_0__"), ("v3.0", "task")])
def test_the_task_of_a_frame_is_that_of_its_row(tmp_path, version, index_name):
    """An episode may change its instruction midway: task_index is a column of the data, its text is in meta/tasks."""
    write = write_dataset if version == "v2.1" else write_v30
    source = LeRobotSource(give_tasks(write(tmp_path / "toy"), version, index_name))
    for e, n in enumerate(source.lengths):
        for t in range(n):
            row = t if version == "v2.1" else (BEFORE_30[e] + t) % 7
            assert source.task(e, t) == TEXTS[row // 5 % 3]
    edit_info(tmp_path / "toy", total_tasks=1)     # which nothing depends on: three are listed
    assert LeRobotSource(tmp_path / "toy").task(1, 6) == source.task(1, 6)
    edit_info(tmp_path / "toy", total_tasks=3)
    for path in (tmp_path / "toy/meta").glob("tasks.*"):
        path.unlink()
    with pytest.raises(ValueError, match="meta/tasks.* is missing"):
        LeRobotSource(tmp_path / "toy").task(0, 0)


def test_a_task_that_is_not_listed_is_named_by_its_frame(tmp_path):
    root = give_tasks(write_dataset(tmp_path / "toy"), "v2.1", None)
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "pick"}))
    source = LeRobotSource(root)
    assert source.task(1, 4) == "pick"
    with pytest.raises(ValueError, match="episode 1, frame 5: its task_index 1 is not listed in meta/tasks"):
        source.task(1, 5)


def test_vectors_of_two_axes_are_flattened(dataset):
    """LeRobot allows a shape of [2, 3]; its column is a list of lists."""
    features = json.loads((dataset / "meta/info.json").read_text())["features"]
    edit_info(dataset, features=features | {"action": {"dtype": "float32", "shape": [2, 3], "names": None}})
    for e, n in enumerate(LENGTHS):
        values = np.arange(n * 6).reshape(n, 2, 3).tolist()
        table = pq.read_table(parquet(dataset, e)).drop_columns("action")
        pq.write_table(table.append_column("action", pa.array(values, pa.list_(pa.list_(pa.float32())))),
                       parquet(dataset, e))
    source = LeRobotSource(dataset)
    assert source.numbers(1)[1][2].tolist() == [12, 13, 14, 15, 16, 17] and len(source.action_names) == 6


def test_numbers_and_tasks_of_v30(tmp_path):
    source = LeRobotSource(write_v30(tmp_path / "toy"))
    assert source.robot.startswith("unnamed") and source.tasks == ["task 0", "task 1", "task 2", "task 0"]
    for e in (3, 0, 2, 1):
        state, action = source.numbers(e)
        assert state[:, 0].tolist() == [100.0 * e + t for t in range(LENGTHS_30[e])]
        assert action.shape == (LENGTHS_30[e], 1) and (action[:, 0] == -state[:, 0]).all()


def test_a_v30_dataset_without_a_file_is_refused(tmp_path):
    root = write_v30(tmp_path / "toy")
    for path, message in ((f"videos/{WRIST}/chunk-000/file-001.mp4", "episode 2: .*file-001.mp4 is missing"),
                          ("meta/episodes/chunk-000/file-000.parquet", "holds no parquet file")):
        (root / path).unlink()
        with pytest.raises(ValueError, match=message):
            LeRobotSource(root)


def many_episodes_v30(root):
    """4,000 episodes of 250 frames in one file, each with statistics of its own."""
    write_v30(root)
    episodes = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    many = [{**episodes[0], "episode_index": e, "length": 250, "dataset_from_index": 250 * e,
             "dataset_to_index": 250 * e + 250, **{f"stats/action/{i}": [0.5] * 16 for i in range(10)}} for e in range(4000)]
    pq.write_table(pa.Table.from_pylist(many), root / "meta/episodes/chunk-000/file-000.parquet")
    edit_info(root, total_episodes=4000)


def many_episodes_v21(root):
    """4,000 episodes of 250 frames, each with a parquet and two mp4 files of its own."""
    write_dataset(root)
    edit_info(root, total_episodes=4000, chunks_size=1000)
    rows = (json.dumps({"episode_index": e, "tasks": ["reach"], "length": 250}) for e in range(4000))
    (root / "meta/episodes.jsonl").write_text("\n".join(rows))
    for e in range(4000):   # empty: nothing is read of them
        for path in (f"data/chunk-{e // 1000:03d}/episode_{e:06d}.parquet",
                     *(f"videos/chunk-{e // 1000:03d}/{key}/episode_{e:06d}.mp4" for key in (HEAD, WRIST))):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()


@pytest.mark.parametrize("write", [many_episodes_v21, many_episodes_v30])
def test_a_million_frames_open_in_two_seconds(tmp_path, write):
    """Only metadata is read, and of that only what is needed."""
    write(tmp_path / "toy")
    began = time.process_time()                                         # the disk may be busy with other work
    LeRobotSource(tmp_path / "toy")
    seconds = time.process_time() - began
    held, source = [], None
    for _ in range(2):                                                  # Python's table of names may grow at the first
        source = None
        tracemalloc.start()
        source = LeRobotSource(tmp_path / "toy")
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    held = min(held)
    assert sum(source.lengths) == 1_000_000 and held < 8 << 20          # 2 kB an episode, nothing a frame
    print(f"a million frames in 4,000 episodes, {source.version}: opened in {seconds:.2f} s, {held / 1e6:.1f} MB held")
    assert seconds < 2


# ---- robots ----

def two_arms(root, robot_type):
    """v2.1 with the four state and four action features, and the three cameras, of InternData-A1."""
    write_dataset(root)
    row, features = ROBOTS["arx_lift2"], {}
    for key, width in [*zip(row.state, row.widths), *zip(row.action, row.widths)]:
        features[key] = {"dtype": "float32", "shape": [width], "names": None}
    for key in row.cameras.values():
        features[key] = {"dtype": "video", "shape": [64, 64, 3], "names": ["height", "width", "channel"]}
    edit_info(root, features=features, robot_type=robot_type)
    for e, n in enumerate(LENGTHS):
        columns, offset = {}, 0
        for key, feature in features.items():
            if feature["dtype"] != "video":
                width = feature["shape"][0]
                values = np.arange(n)[:, None] + 100 * (offset + np.arange(width))
                columns[key] = pa.array(values.tolist(), pa.list_(pa.float32())) if width > 1 else \
                    pa.array(values[:, 0].tolist(), pa.float32())
                offset += width
        pq.write_table(pa.table(columns), parquet(root, e))
        for key in row.cameras.values():
            write_video(video(root, e, key), n, "hand" in key, "mpeg4", 2, 0)
    return root


def test_a_robot_of_the_table_is_recognised_by_its_type(tmp_path):
    """Table 3's sources name their features each in its own way; they are concatenated in the table's order."""
    source = LeRobotSource(two_arms(tmp_path / "toy", "ARX Lift-2"))
    assert source.views == ROBOTS["ARX Lift-2"].cameras
    assert source.relative == tuple(([True] * 6 + [False]) * 2)
    state, action = source.numbers(1)
    assert state.shape == action.shape == (23, 14)
    assert state[2].tolist() == [100 * d + 2 for d in range(14)] and action[0, 0] == 1400
    with pytest.raises(ValueError, match="no feature 'observation.state'; name the state features in a --robot file"):
        LeRobotSource(two_arms(tmp_path / "unknown", "something else"))


def test_a_users_own_robot_is_a_json_file(tmp_path):
    """Camera slots, features and delta mask without code."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mine", "cameras": {"head": "images.rgb.hand_left"}, "delta": [6, -1],
                                "state": ["states.left_joint.position", "states.left_gripper.position"],
                                "action": ["actions.left_joint.position", "actions.left_gripper.position"]}))
    source = LeRobotSource(two_arms(tmp_path / "toy", None), find_robot(str(path)))
    assert source.robot == "mine" and source.views == {"head": "images.rgb.hand_left"}
    assert source.numbers(0)[0].shape == (40, 7) and source.relative == (True,) * 6 + (False,)
    with pytest.raises(ValueError, match="delta mask of 14 dimensions, the actions have 7"):
        LeRobotSource(tmp_path / "toy", Robot("mine", (True,) * 14, source.state_keys, source.action_keys))


@pytest.mark.parametrize("content, message", [
    ("{", "is no JSON"), ('{"nam": "x"}', "nam is missing, unknown"), ('{"cameras": {}}', "name is missing"),
    ('{"name": "x", "cameras": {"top": "a"}}', "cameras are head, left_wrist, right_wrist, not top"),
    ('{"name": "x", "delta": [0]}', "delta counts dimensions")])
def test_a_wrong_robot_file_is_one_line(tmp_path, content, message):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        find_robot(tmp_path / "mine.json")
    with pytest.raises(ValueError, match="unknown; did you mean genie1"):
        find_robot("genie_1")
