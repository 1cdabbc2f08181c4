"""What meta/info.json of a LeRobot v2.0, v2.1 or v3.0 dataset says: features, their dimensions, and cameras."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from support.data.lerobot_episodes import AGAIN, LeRobotEpisodes
from support.data.robots import ROBOTS, WIDEST, Robot, action_kinds, given_name, guess_cameras, spelt, unnamed
from support.files import must, read_json, whole

ROW_KEYS = ("episode_index", "frame_index", "timestamp")   # which frame a row is: wrong rows are seen by it


def flat(names):
    """{"motors": ["x", "y"]}, {"y": 1, "x": 0}, {"0": "x", "1": "y"}, [["x", "y"]], "x" -> list of names. Numbers
    decide, not the order of the keys. A dict of numbers that count nothing is kept: it is no name."""
    if isinstance(names, dict):
        placed = _placed(names)
        if placed and sorted(placed) != list(range(min(placed), min(placed) + len(names))):
            return [names]
        names = [placed[n] for n in sorted(placed)] if placed else sorted(
            names.values(), key=lambda group: min(_placed(group), default=0))   # groups may count on
    return [name for part in names for name in flat(part)] if isinstance(names, list) else [names]


def _placed(names):
    """{number: name} of a dict that numbers its names, {"y": 1} or {"1": "y"}; {} of anything else."""
    if isinstance(names, dict) and all(type(n) is int for n in names.values()):
        return {n: name for name, n in names.items()}
    if isinstance(names, dict) and all(key.isdecimal() for key in names):
        return {int(key): name for key, name in names.items()}
    return {}


def dimension_names(key, feature):
    """Names of a vector feature's dimensions, list[str]; key_0, key_1, ... where info.json has none, or one for all,
    or one for each axis. ValueError: another number of them, or no text."""
    size, names = math.prod(feature["shape"]), flat(feature.get("names") or [])
    must(all(isinstance(name, str) and name.isprintable() for name in names),
         f"the names of '{key}' are {names!r:.100}, expected text; correct them in meta/info.json")
    must(len(names) in (0, 1, size, len(feature["shape"])),
         f"'{key}' has {len(names)} names and {size} dimensions; correct them in meta/info.json")
    return names if len(names) == size else [f"{key.split('.')[-1]}_{i}" for i in range(size)]


def picture_shape(feature):
    """A camera feature -> (height, width, channels) as info.json promises them, in whichever order it lists them."""
    names, shape = feature.get("names"), feature["shape"]
    named = [i for i, name in enumerate(flat(names)) if str(name)[:7] == "channel"]
    channels = named[0] if len(named) == 1 else 0 if shape[0] == 3 != shape[2] else 2
    height, width = (n for i, n in enumerate(shape) if i != channels)
    return height, width, shape[channels]


def not_colour(key, feature):
    """Why a camera fills no slot: it is flagged or called a depth camera, or has not 3 channels; "" if it may."""
    told, axes = {}, len(feature["shape"])   # in whichever of their places recorders say it, and with what prefix
    for place in (feature, feature.get("info"), feature.get("video_info")):
        for part in (place, place.get("video")) if isinstance(place, dict) else ():
            if isinstance(part, dict):
                told |= {name.removeprefix("video."): value for name, value in part.items()}
    flagged = any(told.get(flag) not in (None, False, 0, "", "0", "false", "False", "no")
                  for flag in ("is_depth_map", "is_depth"))
    deep = re.match("gray(1[0-6]|f)", str(told.get("pix_fmt")))   # more grey levels than a picture has
    if flagged or deep or re.search("depth(?!ai)|disparity", spelt(key)):
        return "is a depth camera"
    channels = picture_shape(feature)[2] if axes == 3 else 1 if axes == 2 else "no"
    channels = 1 if told.get("channels") == 1 else channels
    return "" if channels == 3 else f"has {channels} channels in meta/info.json, a picture has 3 (red, green, blue)"


class LeRobotMetadata(LeRobotEpisodes):
    """meta/info.json of one dataset folder, and with `read_episodes` the rest of meta/. ValueError: one line.
    robot: a Robot whose features and cameras are taken; None: that of the dataset's robot_type where the table knows it
    and its features are there, else LeRobot's usual names and guess_cameras. notes: to be said before training."""

    def __init__(self, root, robot=None):
        self.root, self.name, self.notes = Path(root), Path(root).resolve().name, []
        self.where, self.info_path = f"dataset {self.root}", Path(root) / "meta" / "info.json"
        with self.said():
            self._read_info()
            robot = robot or self._known_robot()
            self.instruction = robot.instruction
            self._choose_features(robot)
            self.views = self._choose_cameras(robot.cameras)
            self.films = {slot: key for slot, key in self.views.items()   # the others are PNG inside the data files
                          if self.info["features"][key]["dtype"] == "video"}
            self.robot = robot.name or unnamed(self.fps, self.state_names, self.action_names,
                                               [self.state_keys, self.action_keys, self.views])
            for key in filter(self.info["features"].__contains__, ROW_KEYS):
                self._check_shape(key, 1)

    def size(self, view):
        """(height, width) of a view's pictures."""
        return picture_shape(self.info["features"][self.views[view]])[:2]

    def _read_info(self):
        path = self.info_path
        must(path.exists(), f"{path} is missing; give the folder that holds meta/, data/ and videos/")
        self.info = info = read_json(path)
        self.version, fps, features = info.get("codebase_version"), info.get("fps"), info.get("features")
        must(self.version in ("v2.0", "v2.1", "v3.0"), f"LeRobot format {self.version!r:.40} is not supported, this "
             "reader takes v2.0, v2.1 and v3.0; lerobot's own converters lead there")
        must(type(fps) in (int, float) and 0.01 <= fps <= 10_000,
             f"fps is {fps!r:.40} in {path}; set the recording's frame rate there")
        self.fps = float(fps)
        must(isinstance(features, dict) and features,
             f"{path}: features is {features!r:.40}, expected what the columns are; {AGAIN}")
        for key, feature in features.items():
            must(isinstance(feature, dict) and isinstance(feature.get("dtype"), str) and key.isprintable(),
                 f"{path}: feature {key!r:.60} is {feature!r:.60}, expected dtype and shape; {AGAIN}")
        self.cameras = [key for key, feature in features.items() if feature["dtype"] in ("video", "image")]
        self.vectors = [key for key in features if key not in self.cameras]
        for key in filter(lambda key: key.startswith("total_"), info):
            whole(info[key], f"{path}: {key}", high=10 ** 11)

    def _known_robot(self):
        """The table's row for info.json's robot_type if its features are all here, else a robot without features."""
        name, features = given_name(self.info.get("robot_type"), f"{self.info_path}: robot_type"), self.info["features"]
        row = ROBOTS.get(name, Robot(name))
        if not {*(row.state or ()), *row.action} <= features.keys():
            return Robot(name)
        cameras = {slot: key for slot, key in row.cameras.items() if key in features}
        return replace(row, cameras=cameras if "head" in cameras else {})   # {}: words in the names decide

    def _check_shape(self, key, most=math.inf):
        """ValueError unless info.json gives a feature a shape, of at most so many numbers."""
        shape, where = self.info["features"][key].get("shape"), f"{self.info_path}: the shape of '{key}'"
        must(isinstance(shape, list), f"{where} is {shape!r:.60}, expected a list of numbers; {AGAIN}")
        shape[:] = [whole(n, where, low=1, high=10 ** 5) for n in shape]   # 3.0 is 3
        must(math.prod(shape) <= most, f"{where} is {shape!r:.60}, more than {most} dimensions; {AGAIN}")

    def _part(self, kind, entry):
        """An entry of Robot.state or .action -> (feature, which of its dimensions are taken, their names, text that
        says all this)."""
        key, *parts = [entry] if isinstance(entry, str) else entry
        none = ', or "state": [] for none' if kind == "state" else ""
        must(key in self.vectors, f"no feature '{key}'; name the {kind} features in a --robot file{none}, of "
             f"{', '.join(self.vectors)}")
        self._check_shape(key, WIDEST)
        names, taken = dimension_names(key, self.info["features"][key]), []
        for part in parts or [(0, len(names))]:
            dims = range(*part) if isinstance(part, tuple) else [d for d, name in enumerate(names) if name == part]
            must(isinstance(part, tuple) or len(dims) == 1, f"the --robot file takes '{part}' of '{key}', which has it "
                 f"{len(dims)} times: its dimensions are {', '.join(names)}")
            taken += dims
        must(max(taken) < len(names) and len(taken) <= WIDEST,
             f"the --robot file takes dimension {max(taken)} of '{key}', which has {len(names)}")
        shown = ", ".join(part if isinstance(part, str) else f"{part[0]}:{part[1]}" for part in parts)
        return key, np.array(taken), [names[d] for d in taken], f"{key}[{shown}]" if parts else key

    def _choose_features(self, robot):
        """State and action features: the robot's, or LeRobot's usual names."""
        state, action = ("observation.state",) if robot.state is None else robot.state, robot.action or ("action",)
        # Only a dataset without any action is human video: a key that is spelt otherwise must not become one.
        named = robot.action if ROBOTS.get(robot.name) != robot else ()
        self.has_action = bool(named) or any("action" in key.lower() for key in self.vectors)
        if not self.has_action:   # nobody measured the person's joints
            state, action = [e for e in state if (e if isinstance(e, str) else e[0]) in self.vectors], ()
        must(not self.instruction or self.instruction in self.vectors, f"no feature '{self.instruction}' for the "
             f"instruction; the dataset has {', '.join(self.vectors)}")
        self.parts = {kind: [self._part(kind, entry) for entry in entries]
                      for kind, entries in (("state", state), ("action", action))}
        self.state_names, self.action_names = ([name for part in of for name in part[2]] for of in self.parts.values())
        self.state_keys, self.action_keys = (tuple(part[3] for part in of) for of in self.parts.values())
        chosen = [(key, d) for key, taken, *_ in self.parts["action"] for d in taken]
        must(len(set(chosen)) == len(chosen), "the --robot file takes a dimension of the action twice; name it once")
        self.relative, self.kinds, self.guessed = robot.relative, (), False
        if not self.has_action:
            return
        self.kinds, self.guessed = action_kinds(robot, [key for key, _ in chosen], self.action_names)
        if self.guessed:
            said = [f"{name} ({kind})" for name, kind in zip(self.action_names, self.kinds) if kind != "position"]
            self.notes.append(f'{self.where}: by their names these actions are no positions: {", ".join(said)}; "kind" '
                              f'in a --robot file decides')

    def _choose_cameras(self, cameras):
        """{slot: feature}: `cameras`, or as the words in their names say. not_colour: {camera: why it has no slot}."""
        features, self.not_colour = self.info["features"], {}
        for key in self.cameras:
            self._check_shape(key)
            if why := not_colour(key, features[key]):
                self.not_colour[key] = why
            else:
                must(re.fullmatch(r"(?!\.*$)[^/\\]{1,100}", key),
                     f"{self.info_path}: camera {key!r:.60} is no name of a folder; correct it")
        must(self.cameras, "no feature of dtype video or image: it has no pictures")
        aside = "".join(f"; '{key}' {why}" for key, why in self.not_colour.items())
        cameras = cameras or guess_cameras([key for key in self.cameras if key not in self.not_colour], aside)
        must(len(set(cameras.values())) == len(cameras), f"one camera in two slots: {cameras}; name each once")
        for slot, key in cameras.items():
            must(key in self.cameras, f"camera {slot}={key}: the dataset's cameras are {', '.join(self.cameras)}")
            must(key not in self.not_colour, f"camera '{key}' {self.not_colour.get(key)}; name another camera")
        return dict(cameras)
