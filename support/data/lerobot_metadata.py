"""What meta/ of a LeRobot v2.1 or v3.0 dataset says: features, cameras, episodes and where their rows and pictures lie.

v2.1 has one parquet and one mp4 file an episode, v3.0 many episodes in each. From `read_episodes` on both are the same:
an episode has rows of a data file from `first_rows` on, and per camera a video file and the second where it begins.
"""

import json
import math
from pathlib import Path

import numpy as np

from support.data.frame_cache import dataset_name
from support.data.parquet import damage, read_table
from support.data.robots import ROBOTS, Robot, guess_cameras

# Columns that say which frame a row is, where the dataset has them: wrong or repeated rows are seen by them.
ROW_KEYS = ("episode_index", "frame_index", "timestamp")
DAMAGED = "meta/ is damaged or not of this format"
AGAIN = "download the dataset again"


def dimension_names(key, feature):
    """Names of a vector feature's dimensions, list[str]; key_0, key_1, ... where info.json has none."""
    size, names = int(np.prod(feature["shape"])), feature.get("names")
    names = list(names.values()) if isinstance(names, dict) else names or []   # {"motors": [...]}
    names = names[0] if len(names) == 1 and isinstance(names[0], list) else names   # [[...]]
    named = len(names) == size and all(isinstance(name, str) for name in names)
    return names if named else [f"{key.split('.')[-1]}_{i}" for i in range(size)]


def picture_shape(feature):
    """A camera feature -> (height, width, channels) as info.json promises them, in whichever order it lists them."""
    names, shape = feature.get("names") or (), [int(n) for n in feature["shape"]]
    named = [i for i, name in enumerate(names) if str(name).startswith("channel")]
    (channels,) = named or ([0] if shape[0] == 3 != shape[2] else [2])
    height, width = (n for i, n in enumerate(shape) if i != channels)
    return height, width, shape[channels]


class LeRobotMetadata:
    """meta/info.json of one dataset folder, and with `read_episodes` the rest of meta/. ValueError: one line.

    robot: a Robot whose features and cameras are taken; None: that of the dataset's robot_type where the table knows it
    and its features are there, else LeRobot's usual names and guess_cameras.
    """

    def __init__(self, root, robot=None):
        self.root, self.name = Path(root), dataset_name(Path(root))
        self.where = f"dataset {self.root}"
        with damage(self.where, DAMAGED):
            self.info = self._read_info()
            self.version = self.info["codebase_version"]
            robot = robot or self._known_robot()
            self.robot, self.fps = robot.name, float(self.info["fps"])
            self._choose_features(robot)
            self.views = self._choose_cameras(robot.cameras)
            self.row_keys = tuple(key for key in ROW_KEYS if key in self.info["features"])

    def fault(self, what, episode=None, frame=None):
        """The ValueError to raise. episode: the number that the dataset itself gives it."""
        at = "".join(f", {name} {n}" for name, n in (("episode", episode), ("frame", frame)) if n is not None)
        return ValueError(f"{self.where}{at}: {what}")

    def frames_in_all(self):
        """Frames of all episodes: what info.json says, else their sum."""
        total = self.info.get("total_frames")
        if isinstance(total, int) and total > 0:
            return total
        self.read_episodes()
        return sum(self.lengths)

    def read_episodes(self):
        """Fill indices, lengths, tasks, files, first_rows, and videos: slot -> (files, seconds), all by episode."""
        with damage(self.where, DAMAGED):
            (self._read_v21 if self.version == "v2.1" else self._read_v30)()
            self._check_episodes()

    def size(self, view):
        """(height, width) of a view's pictures."""
        return picture_shape(self.info["features"][self.views[view]])[:2]

    def _read_info(self):
        path = self.root / "meta" / "info.json"
        if not path.exists():
            raise self.fault(f"{path} is missing; give the folder that holds meta/, data/ and videos/")
        with damage(self.where, f"{path} cannot be read"):
            info = json.loads(path.read_text(encoding="utf-8"))
        version = info.get("codebase_version")
        if version not in ("v2.1", "v3.0"):
            raise self.fault(f"LeRobot format {version} is not supported, this reader takes v2.1 and v3.0; lerobot's "
                             f"own converters lead there")
        if not isinstance(info["fps"], (int, float)) or not 0 < info["fps"] < math.inf:
            raise self.fault(f"fps is {info['fps']} in {path}; set the recording's frame rate there")
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

    def _choose_features(self, robot):
        """State and action features: the robot's, or LeRobot's usual names."""
        features = self.info["features"]
        vectors = [key for key in features if features[key]["dtype"] not in ("video", "image")]
        state, action = robot.state or ("observation.state",), robot.action or ("action",)
        # Only a dataset without any action is human video: a key that is spelt otherwise must not become one.
        named = robot.action if ROBOTS.get(robot.name) != robot else ()
        self.has_action = bool(named) or any("action" in key.lower() for key in vectors)
        if not self.has_action:   # nobody measured the person's joints
            state, action = tuple(key for key in state if key in vectors), ()
        for kind, keys in (("state", state), ("action", action)):
            absent = [key for key in keys if key not in vectors]
            if absent:
                raise self.fault(f"no feature '{absent[0]}'; name the {kind} features in a --robot file, of "
                                 f"{', '.join(vectors)}")
        self.state_keys, self.action_keys = state, action
        self.state_names, self.action_names = (
            [name for key in keys for name in dimension_names(key, features[key])] for keys in (state, action))
        self.relative = robot.relative
        if self.relative and self.has_action and len(self.relative) != len(self.action_names):
            raise self.fault(f"robot '{self.robot}' has a delta mask of {len(self.relative)} dimensions, the actions "
                             f"have {len(self.action_names)}; give a --robot file with the right one")

    def _choose_cameras(self, cameras):
        """{slot: feature}: `cameras`, or as the words in their names say."""
        keys = [key for key, feature in self.info["features"].items() if feature["dtype"] in ("video", "image")
                and not (feature.get("info") or {}).get("video.is_depth_map")]
        if not keys:
            raise self.fault("no feature of dtype video or image: it has no pictures")
        if not cameras:
            try:
                cameras = guess_cameras(keys)
            except ValueError as error:
                raise self.fault(error) from None
        if len(set(cameras.values())) < len(cameras):
            raise self.fault(f"one camera in two slots: {cameras}; name each once in a --robot file")
        for slot, key in cameras.items():
            if key not in keys:
                raise self.fault(f"camera {slot}={key}: the dataset's cameras are {', '.join(keys)}")
            channels = picture_shape(self.info["features"][key])[2]
            if channels != 3:
                raise self.fault(f"camera '{key}' has {channels} channels in meta/info.json, a picture has 3 (red, "
                                 f"green, blue); name another camera in a --robot file")
        return dict(cameras)

    def _check_episodes(self):
        if not self.lengths:
            raise self.fault("it is empty, meta/ lists no episode; record or download one")
        for index, length, task in zip(self.indices, self.lengths, self.tasks):
            if length < 1:
                raise self.fault(f"it has no frames, meta/ says {length}; drop the episode", index)
            if any("\ud800" <= letter <= "\udfff" for letter in task):
                raise self.fault(f"its task is not UTF-8: {task!a}; write it again", index)
        different, rows, frames = len(set(self.indices)), len(self.indices), sum(self.lengths)
        total, total_frames = self.info.get("total_episodes", rows), self.info.get("total_frames", frames)
        if not different == rows == total:
            raise self.fault(f"meta/ lists {different} different episodes in {rows} lines, meta/info.json says "
                             f"{total}; {AGAIN}")
        if frames != total_frames:
            raise self.fault(f"the episodes of meta/ have {frames} frames, meta/info.json says {total_frames}; {AGAIN}")

    def _films(self):
        """{slot: camera} of those whose pictures are mp4, not PNG inside the data files."""
        return {slot: key for slot, key in self.views.items() if self.info["features"][key]["dtype"] == "video"}

    def _read_v21(self):
        path, rows = self.root / "meta" / "episodes.jsonl", []
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            with damage(self.where, f"{path}, line {number} cannot be read"):
                if line.strip():
                    row = json.loads(line.decode("utf-8"))
                    rows.append((int(row["episode_index"]), int(row["length"]), str((row["tasks"] or [""])[0])))
        self.indices, self.lengths, self.tasks = map(list, zip(*rows)) if rows else ([], [], [])

        def files(template, **key):   # the templates speak of the episode's own index
            return [self.root / self.info[template].format(episode_chunk=index // self.info["chunks_size"],
                                                           episode_index=index, **key) for index in self.indices]
        self.files, self.first_rows = files("data_path"), [0] * len(rows)
        self.videos = {slot: (files("video_path", video_key=key), [0.0] * len(rows))
                       for slot, key in self._films().items()}

    def _read_v30(self):
        paths = sorted((self.root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
        if not paths:
            raise self.fault(f"{self.root / 'meta' / 'episodes'} holds no parquet file; {AGAIN}")
        # Only these columns: per-episode statistics are most of the file.
        columns = ["episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index",
                   "dataset_to_index"]
        columns += [f"videos/{key}/{what}" for key in self._films().values()
                    for what in ("chunk_index", "file_index", "from_timestamp")]
        tables = [read_table(path, [*columns, "tasks"], self.where) for path in paths]
        rows = {name: [value for table in tables for value in table[name].to_pylist()] for name in columns}
        self.indices, self.lengths, self.tasks = rows["episode_index"], rows["length"], []
        begins = rows["dataset_from_index"]
        for index, length, low, high in zip(self.indices, self.lengths, begins, rows["dataset_to_index"]):
            if length != high - low:
                raise self.fault(f"meta/episodes gives it {length} frames and the rows {low} to {high}; {AGAIN}", index)
        try:
            for tasks in (row for table in tables for row in table["tasks"]):
                self.tasks.append(str((tasks.as_py() or [""])[0]))
        except UnicodeDecodeError as error:
            what = f"its task is not UTF-8 ({error.reason}); write it again"
            raise self.fault(what, self.indices[len(self.tasks)]) from error

        def files(template, column, **key):
            pairs = list(zip(rows[f"{column}/chunk_index"], rows[f"{column}/file_index"]))
            made = {pair: self.root / self.info[template].format(chunk_index=pair[0], file_index=pair[1], **key)
                    for pair in set(pairs)}   # few files, many episodes
            return [made[pair] for pair in pairs]
        self.files, starts = files("data_path", "data"), {}
        for file, row in zip(self.files, begins):   # rows are global; a file begins at its lowest
            starts[file] = min(row, starts.get(file, row))
        self.first_rows = [row - starts[file] for file, row in zip(self.files, begins)]
        self.videos = {slot: (files("video_path", f"videos/{key}", video_key=key), rows[f"videos/{key}/from_timestamp"])
                       for slot, key in self._films().items()}
