"""LeRobot v2.1 and v3.0 datasets, read directly from disk: the robot-data counterpart of FolderSource.

Sec. 4 Data Corpus names no file format; much robot data is published in this one. Numbers are in parquet
(pyarrow), pictures in mp4 (PyAV) or as PNG inside parquet; both packages are imported on first use, so that all
else runs without. Building a source reads metadata and checks that the files exist; the rest is read when asked for.

v2.1 has one parquet and one mp4 file an episode, v3.0 many episodes in each; from `_read_episodes` on both are the
same: an episode has rows of a data file from `first_rows` on, and per camera a video file and the second at which it
begins there. Frame t is shown t / fps seconds later, and the decoded frame nearest to that time must lie within half
a frame of it.

The lerobot package is not needed. Not thread-safe: parallel reading is done by processes.
"""

import io
import json
import math
import shutil
from bisect import bisect_left, bisect_right
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from support.data import frame_cache
from support.data.parquet import arrow, damage, read_columns, read_table, row_groups
from support.data.file_hashes import files_digest
from support.data.robots import ROBOTS, VIEWS, Robot, guess_cameras
from support.data.video import LRU, read_frames

# What is held of all datasets of this process, in bytes, however many a mixture has.
_NUMBERS = LRU(512 << 20, lambda arrays: sum(array.nbytes for array in arrays.values()))   # by row group
_PICTURES = LRU(256 << 20, lambda column: column.nbytes)                                   # by row group of a data file
_ROW_GROUPS = LRU(1024)


# ---- what meta/info.json says of a feature ---------------------------------------------------------

def dimension_names(key, feature):
    """Names of a vector feature's dimensions, list[str]; key_0, key_1, ... where info.json has none."""
    size, names = int(np.prod(feature["shape"])), feature.get("names")
    if isinstance(names, dict):  # {"motors": [...]}
        names = list(names.values())
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):  # [[...]]
        names = names[0]
    if isinstance(names, list) and len(names) == size and all(isinstance(name, str) for name in names):
        return names
    return [f"{key.split('.')[-1]}_{i}" for i in range(size)]


def picture_shape(feature):
    """A camera feature -> (height, width, channels) as info.json promises them, in whichever order it lists them."""
    names, shape = feature.get("names"), [int(n) for n in feature["shape"]]
    if isinstance(names, list) and len(names) == 3 and all(isinstance(name, str) for name in names):
        channels = next((i for i, name in enumerate(names) if name.startswith("channel")), 2)
    else:
        channels = 0 if shape[0] == 3 != shape[2] else 2
    height, width = (n for i, n in enumerate(shape) if i != channels)
    return height, width, shape[channels]


# ---- the source ----------------------------------------------------------------------------------

# Columns that say which frame a row is, where the dataset has them: wrong or repeated rows are seen by them.
ROW_KEYS = ("episode_index", "frame_index", "timestamp")


class LeRobotSource:
    """One LeRobot dataset folder, v2.1 or v3.0.

    Attributes: name (the folder's), version, robot (info.json's robot_type, or name), fps; per episode indices,
    lengths (frames) and tasks (the first task's text, or ""); views {slot: feature key} with slots head, left_wrist
    and right_wrist, missing ones absent; state_names, action_names; has_action. stored is None: every frame has its
    pictures. cache: where the folder was made by --cache, the letterboxed pictures that it holds instead of video.

    robot: a Robot whose features and cameras are taken; None: that of the dataset's robot_type where the table knows it
    and its features are there, else LeRobot's usual names and guess_cameras. A dataset without any action feature is
    human video (has_action False). Faults are ValueError with one line saying what, where and what to do;
    ImportError, also one line, where a package is missing. check_files: refuse a dataset of which a file is missing.
    """

    stored = None

    def __init__(self, root, robot=None, check_files=True):
        self.root, self.name = Path(root), frame_cache.dataset_name(Path(root))
        self.where = f"dataset {self.root}"
        with damage(self.where, "meta/ is damaged or not of this format"):
            self.info = self._read_info()
            self.version = self.info["codebase_version"]
            robot = robot or self._known_robot()
            self.robot, self.fps = robot.name, float(self.info["fps"])
            self._choose_features(robot)
            self.views = self._choose_cameras(robot.cameras)
            self.row_keys = tuple(key for key in ROW_KEYS if key in self.info["features"])
            self._read_episodes()
        self.cache = frame_cache.FrameCache.open(self.root, self.views.values(), self.lengths)
        if check_files:
            self._check_files()
        self._checked = set()   # episodes whose rows have passed

    # ---- metadata ----

    def _read_info(self):
        path = self.root / "meta" / "info.json"
        if not path.exists():
            raise ValueError(f"{self.where}: {path} is missing; "
                             f"give the folder that holds meta/, data/ and videos/")
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{self.where}: {path} is not JSON ({error}); download it again") from error
        version = info.get("codebase_version")
        if version not in ("v2.1", "v3.0"):
            raise ValueError(f"{self.where}: LeRobot format {version} is not supported, this reader takes v2.1 and "
                             f"v3.0; lerobot's own converters lead there")
        absent = {"fps", "features", "data_path", "video_path"} - info.keys()
        absent |= {"chunks_size"} - info.keys() if version == "v2.1" else set()
        if absent:
            raise ValueError(f"{self.where}: {path} has no '{min(absent)}'; download it again")
        if not isinstance(info["fps"], (int, float)) or not 0 < info["fps"] < math.inf:
            raise ValueError(f"{self.where}: fps is {info['fps']} in {path}; "
                             f"set the recording's frame rate there")
        return info

    def _known_robot(self):
        """The table's row for info.json's robot_type if its features are all here, else a robot without features."""
        named, features = self.info.get("robot_type"), self.info["features"]
        name = self.name if named in (None, "", "unknown") else named   # all of "unknown" would count as one robot
        row = ROBOTS.get(name, Robot(name))
        here = all(key in features for key in (*row.state, *row.action))
        cameras = {slot: key for slot, key in row.cameras.items() if key in features}
        cameras = cameras if "head" in cameras else {}   # else the words in the names decide about all of them
        return Robot(name, row.relative, row.state, row.action, cameras=cameras) if here else Robot(name)

    def _read_episodes(self):
        """Fill indices, lengths, tasks, files, first_rows, and videos: slot -> (files, seconds), all by episode."""
        (self._read_v21 if self.version == "v2.1" else self._read_v30)()
        if not self.lengths:
            raise ValueError(f"{self.where}: it is empty, meta/ lists no episode; record or download one")
        for index, length, task in zip(self.indices, self.lengths, self.tasks):
            if length < 1:
                raise ValueError(f"{self.where}, episode {index}: it has no frames, meta/ says {length}; "
                                 f"drop the episode")
            if not task.isascii() and any("\ud800" <= letter <= "\udfff" for letter in task):
                raise ValueError(f"{self.where}, episode {index}: its task is not UTF-8: {task!a}; write it again")
        different, rows = len(set(self.indices)), len(self.indices)
        total = self.info.get("total_episodes", rows)
        if not different == rows == total:
            raise ValueError(f"{self.where}: meta/ lists {different} different episodes in {rows} "
                             f"lines, meta/info.json says {total}; download the dataset again")
        frames = self.info.get("total_frames", sum(self.lengths))
        if frames != sum(self.lengths):
            raise ValueError(f"{self.where}: the episodes of meta/ have {sum(self.lengths)} frames, meta/info.json "
                             f"says {frames}; download the dataset again")

    def _read_v21(self):
        path, rows = self.root / "meta" / "episodes.jsonl", []
        try:
            for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
                if line.strip():
                    row = json.loads(line.decode("utf-8"))
                    rows.append((int(row["episode_index"]), int(row["length"]), str((row["tasks"] or [""])[0])))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            what = "is not UTF-8" if isinstance(error, UnicodeError) else "cannot be read"
            at = f", line {number}" if not isinstance(error, OSError) else ""
            raise ValueError(f"{self.where}: {path}{at} {what} ({error}); download it again") from error
        self.indices, self.lengths, self.tasks = map(list, zip(*rows)) if rows else ([], [], [])

        def files(template, **key):   # the templates speak of the episode's own index
            return [self.root / self.info[template].format(episode_chunk=index // self.info["chunks_size"],
                                                           episode_index=index, **key) for index in self.indices]
        self.files, self.first_rows = files("data_path"), [0] * len(rows)
        self.videos = {slot: (files("video_path", video_key=key), [0.0] * len(rows))
                       for slot, key in self.views.items() if not self.in_parquet(key)}

    def _read_v30(self):
        paths = sorted((self.root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
        if not paths:
            raise ValueError(f"{self.where}: {self.root / 'meta' / 'episodes'} holds no parquet file; "
                             f"download the dataset again")
        # Only these columns: per-episode statistics are most of the file.
        columns = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index", "dataset_from_index",
                   "dataset_to_index"]
        films = {slot: f"videos/{key}" for slot, key in self.views.items() if not self.in_parquet(key)}
        columns += [f"{film}/{what}" for film in films.values()
                    for what in ("chunk_index", "file_index", "from_timestamp")]
        tables = [read_table(path, columns, self.where) for path in paths]
        rows = {name: [value for table in tables for value in table[name].to_pylist()]
                for name in columns if name != "tasks"}
        self.indices, self.lengths, self.tasks = rows["episode_index"], rows["length"], []
        for index, length, low, high in zip(self.indices, self.lengths, rows["dataset_from_index"],
                                            rows["dataset_to_index"]):
            if length != high - low:
                raise ValueError(f"{self.where}, episode {index}: meta/episodes gives it {length} frames and the rows "
                                 f"{low} to {high}; download the dataset again")
        for tasks in (row for table in tables for row in table["tasks"]):
            try:
                self.tasks.append(str((tasks.as_py() or [""])[0]))
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.where}, episode {self.indices[len(self.tasks)]}: its task is not UTF-8 "
                                 f"({error.reason}); write it again") from error

        def files(template, chunks, numbers, **key):
            made = {}   # few files, many episodes
            for pair in zip(chunks, numbers):
                if pair not in made:
                    made[pair] = self.root / self.info[template].format(chunk_index=pair[0], file_index=pair[1], **key)
            return [made[pair] for pair in zip(chunks, numbers)]
        self.files = files("data_path", rows["data/chunk_index"], rows["data/file_index"])
        self.first_rows, starts = [], {}
        for file, row in zip(self.files, rows["dataset_from_index"]):   # rows are global; a file begins at its lowest
            starts[file] = min(row, starts.get(file, row))
        self.first_rows = [row - starts[file] for file, row in zip(self.files, rows["dataset_from_index"])]
        self.videos = {slot: (files("video_path", rows[f"{film}/chunk_index"], rows[f"{film}/file_index"],
                                    video_key=self.views[slot]), rows[f"{film}/from_timestamp"])
                       for slot, film in films.items()}

    def size(self, view):
        """(height, width) of a view's pictures."""
        return picture_shape(self.info["features"][self.views[view]])[:2]

    def in_parquet(self, key):
        """Whether a camera's pictures are PNG inside the data files, not mp4."""
        return self.info["features"][key]["dtype"] == "image"

    def _choose_features(self, robot):
        """State and action features: the robot's, or LeRobot's usual names."""
        features = self.info["features"]
        vectors = [key for key in features if features[key]["dtype"] not in ("video", "image")]
        state, action = robot.state or ("observation.state",), robot.action or ("action",)
        # Only a dataset without any action is human video: a key that is spelt otherwise must not become one.
        named = robot.action if ROBOTS.get(robot.name) != robot else ()
        self.has_action = bool(named) or any("action" in key.lower() for key in vectors)
        if not self.has_action:
            state = tuple(key for key in state if key in vectors)   # nobody measured the person's joints
        for kind, keys in (("state", state), ("action", action if self.has_action else ())):
            absent = [key for key in keys if key not in vectors]
            if absent:
                raise ValueError(f"{self.where}: no feature '{absent[0]}'; name the {kind} features in a --robot file, "
                                 f"of {', '.join(vectors)}")
        self.state_keys, self.action_keys = state, action if self.has_action else ()
        self.state_names, self.action_names = (
            [name for key in keys for name in dimension_names(key, features[key])]
            for keys in (self.state_keys, self.action_keys))
        self.relative = robot.relative
        if self.relative and self.has_action and len(self.relative) != len(self.action_names):
            raise ValueError(f"{self.where}: robot '{self.robot}' has a delta mask of {len(self.relative)} dimensions, "
                             f"the actions have {len(self.action_names)}; give a --robot file with the right one")

    def _choose_cameras(self, cameras):
        keys = [key for key, feature in self.info["features"].items() if feature["dtype"] in ("video", "image")
                and not (feature.get("info") or {}).get("video.is_depth_map")]
        if not keys:
            raise ValueError(f"{self.where}: no feature of dtype video or image; without pictures there is nothing "
                             f"to see")
        if not cameras:
            try:
                cameras = guess_cameras(keys)
            except ValueError as error:
                raise ValueError(f"{self.where}: {error}") from None
        if len(set(cameras.values())) < len(cameras):
            raise ValueError(f"{self.where}: one camera in two slots: {cameras}; name each once in a --robot file")
        for slot, key in cameras.items():
            if slot not in VIEWS or key not in keys:
                raise ValueError(f"{self.where}: camera {slot}={key}: slots are {', '.join(VIEWS)}, "
                                 f"the dataset's cameras are {', '.join(keys)}")
            channels = picture_shape(self.info["features"][key])[2]
            if channels != 3:
                raise ValueError(f"{self.where}: camera '{key}' has {channels} channels in meta/info.json, a picture "
                                 f"has 3 (red, green, blue); name another camera in a --robot file")
        return dict(cameras)

    def _check_files(self):
        missing = list(self.missing_files())
        if missing:
            more = f" (and {len(missing) - 1} more files)" if len(missing) > 1 else ""
            raise ValueError(f"{self.where}, episode {missing[0][0]}: {missing[0][1]} is missing{more}; "
                             f"download the dataset again")

    def missing_files(self):
        """Yield (first episode that needs it, path) of every data or video file that is not there."""
        checked = set()
        for e, index in enumerate(self.indices):
            for path in [self.files[e]] + [files[e] for files, _ in self.videos.values() if not self.cache]:
                if path not in checked and not path.exists():
                    yield index, path
                checked.add(path)

    # ---- what is asked for ----

    def identity(self):
        """JSON-able: what numbers() depends on. Changed files change it."""
        meta = [path for path in (self.root / "meta").rglob("*") if path.is_file() and "stats" not in path.name]
        return {"state": list(self.state_keys), "action": list(self.action_keys),
                "files": files_digest([*self.files, *meta])}

    def numbers(self, e):
        """Episode e -> state (T, d_q), action (T, d_a) or None; float32, the dataset's units."""
        keys = self.state_keys + self.action_keys + self.row_keys
        sizes = {key: int(np.prod(self.info["features"][key]["shape"])) for key in keys}
        where = f"{self.where}, episode {self.indices[e]}"
        path, T = self.files[e], self.lengths[e]
        if not keys:
            return np.zeros((T, 0), np.float32), None
        arrays = self._rows(e, sizes, where)
        if e not in self._checked:
            self._check_rows(e, arrays, path, where)
            self._checked.add(e)
        none = np.zeros((T, 0), np.float32)
        state, action = (np.concatenate([none, *(arrays[key] for key in mine)], 1)
                         for mine in (self.state_keys, self.action_keys))
        return state, action if self.has_action else None

    def _rows(self, e, sizes, where):
        """Columns {key: dimension} of episode e -> {key: (T, dimension) float32}; only its row groups are read."""
        path, first, T = self.files[e], self.first_rows[e], self.lengths[e]
        starts = _ROW_GROUPS.get(path, lambda: row_groups(path, where))
        if starts[-1] < first + T or (self.version == "v2.1" and starts[-1] != T):
            raise ValueError(f"{where}: {path} has {starts[-1]} rows, meta/ says {first + T}; download the dataset again")
        groups = range(bisect_right(starts, first) - 1, bisect_left(starts, first + T))
        parts = {group: _NUMBERS.get((path, group, *sizes), lambda: read_columns(path, sizes, where, group))
                 for group in groups}
        return {key: np.concatenate([part[key][max(first - starts[group], 0):first + T - starts[group]]
                                     for group, part in parts.items()]) for key in sizes}

    def _check_rows(self, e, rows, path, where):
        """Numbers must be finite; rows the episode's own, in order, one a frame, at the times of its pictures."""
        order, fps = np.arange(self.lengths[e]), self.fps
        for key, values in rows.items():
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                raise ValueError(f"{where}, frame {bad[0, 0]}: '{key}' is not finite in dimension {bad[0, 1]}; "
                                 f"repair or drop the episode")
        for key, expected in (("episode_index", np.full(len(order), self.indices[e])), ("frame_index", order)):
            wrong = np.flatnonzero(rows[key][:, 0] != expected) if key in rows else ()
            if len(wrong):
                raise ValueError(f"{where}, frame {wrong[0]}: {path}: '{key}' is {rows[key][wrong[0], 0]:g}, expected "
                                 f"{expected[wrong[0]]}; download the dataset again")
        if "timestamp" in rows:
            times = rows["timestamp"][:, 0].astype(np.float64)
            late = np.flatnonzero(np.diff(times) <= 0) + 1
            if len(late):
                raise ValueError(f"{where}, frame {late[0]}: {path}: 'timestamp' {times[late[0]]:g} s is not after the "
                                 f"frame before it ({times[late[0] - 1]:g} s); repair or drop the episode")
            far = np.flatnonzero(np.abs(times - order / fps) > 0.5 / fps)   # its pictures are taken from order / fps
            if len(far):
                raise ValueError(f"{where}, frame {far[0]}: {path}: 'timestamp' is {times[far[0]]:g} s, at {fps:g} "
                                 f"frames/s it should be {far[0] / fps:g}; the recording lost frames, its start was "
                                 f"cut off, or fps in meta/info.json is wrong")

    def _right_size(self, picture, key, where):
        """The decoded picture (H, W, 3), if it is as large as meta/info.json says."""
        expected = picture_shape(self.info["features"][key])
        if picture.shape != expected:
            raise ValueError(f"{where}: the picture is {' x '.join(map(str, picture.shape))} (height, width, channels),"
                             f" meta/info.json says {' x '.join(map(str, expected))}; download the dataset again")
        return picture

    @cached_property
    def _task_texts(self):
        """task_index -> text, from meta/tasks."""
        path = self.root / "meta" / ("tasks.jsonl" if self.version == "v2.1" else "tasks.parquet")
        with damage(self.where, f"{path} cannot be read"):
            if self.version == "v2.1":
                rows, text = map(json.loads, filter(str.strip, path.read_text(encoding="utf-8").split("\n"))), "task"
            else:   # a pandas frame whose index is the text; some writers give it a name
                table = read_table(path, None, self.where)
                rows, text = table.to_pylist(), next(name for name in table.column_names if name != "task_index")
            return {int(row["task_index"]): str(row[text]) for row in rows}

    def task(self, e, t):
        """The instruction at frame t of episode e: that of its row where the dataset has several."""
        if "task_index" not in self.info["features"] or self.info.get("total_tasks") == 1:
            return self.tasks[e]
        where = f"{self.where}, episode {self.indices[e]}, frame {t}"
        index = float(self._rows(e, {"task_index": 1}, where)["task_index"][t, 0])   # as stored: a null is not a number
        if index not in self._task_texts:
            raise ValueError(f"{where}: its task_index {index:g} is not listed in meta/tasks; download the dataset again")
        return self._task_texts[index]

    def frame(self, view, e, t):
        """Picture of `view` (a slot) at frame t of episode e, (H, W, 3) uint8 RGB, as large as recorded."""
        return self.frames(view, e, [t])[0]

    def frames(self, view, e, times):
        """Pictures as `frame` gives them, at all of `times` (list[int], in any order): what they share is decoded once.

        From a frame cache they are of support.data.frame_cache.CachedPicture.
        """
        def where(i):
            return f"{self.where}, episode {self.indices[e]}, frame {times[i]}, '{self.views[view]}'"
        for i, t in enumerate(times):
            if not 0 <= t < self.lengths[e]:
                raise ValueError(f"{where(i)}: the episode has frames 0 to {self.lengths[e] - 1}")
        if self.cache:
            return [self.cache.picture(self.views[view], e, t) for t in times]
        if view not in self.videos:
            return [self._png(self.views[view], e, t, where(i)) for i, t in enumerate(times)]
        files, seconds = self.videos[view]
        pictures = read_frames(files[e], [seconds[e] + t / self.fps for t in times], 0.5 / self.fps, where)
        return [self._right_size(picture, self.views[view], where(i)) for i, picture in enumerate(pictures)]

    def _png(self, key, e, t, where):
        """A picture that lies inside the data file as {bytes, path}; only its row group is read."""
        path, row = self.files[e], self.first_rows[e] + t
        starts = _ROW_GROUPS.get(path, lambda: row_groups(path, where))
        if row >= starts[-1]:
            raise ValueError(f"{where}: {path} has {starts[-1]} rows; download the dataset again")
        group = bisect_right(starts, row) - 1
        column = _PICTURES.get((path, key, group), lambda: read_table(path, [key], where, group)[key])
        with damage(where, f"the picture in {path} cannot be decoded"):
            stored = column[row - starts[group]].as_py()
            data = stored.get("bytes") or (self.root / stored["path"]).read_bytes()
            picture = np.array(Image.open(io.BytesIO(data)))
        return self._right_size(picture if picture.ndim == 3 else picture[..., None], key, where)


def copy_numbers(source, out):
    """All of a dataset but its pictures: meta/, the data files, and what lies beside them (its licence)."""
    shutil.copytree(source.root / "meta", out / "meta", dirs_exist_ok=True)
    pictures = {key for key, feature in source.info["features"].items() if feature["dtype"] == "image"}
    for path in dict.fromkeys(source.files):
        to = out / path.relative_to(source.root)
        to.parent.mkdir(parents=True, exist_ok=True)
        if pictures:
            kept = [key for key in arrow().parquet.read_schema(path).names if key not in pictures]
            arrow().parquet.write_table(read_table(path, kept, source.where), to)
        else:
            shutil.copy2(path, to)
    for path in source.root.iterdir():
        if path.is_file():
            shutil.copy2(path, out)
