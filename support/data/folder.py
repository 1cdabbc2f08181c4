"""Episodes in a plain folder. What is wrong with a folder is said in one line, by name."""

import os
import re
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np

from config import VIEWS
from support.data.file_hashes import contents_digest
from support.data.picture import ENDINGS, check_size, decode
from support.data.robots import ROBOTS, Robot, action_kinds, given_name, unnamed
from support.files import must, numbers, read_npy, read_npz, without_nul

ROWS = ("state", "action", "target", "distractor")   # arrays with a row a frame
KEYS = ROWS + ("task", "fps", "ends", "stored", "robot", "action_names", "suite")
FRAMES = 1 << 27   # of one folder
JUNK = ("thumbs.db", "desktop.ini", "__macosx")   # what file managers leave, and what is hidden, is not looked at


def listing(folder):
    """Name in lower case -> path, of what lies in a folder. ValueError: two names are one but for capitals."""
    found = {}
    for path in sorted(Path(folder).iterdir()):
        name = path.name.lower()
        must(name not in found, f"{found.get(name)} and {path.name} are one name but for capitals: keep one")
        if not name.startswith(".") and name not in JUNK:
            found[name] = path
    return found


def frame_files(folder, rows):
    """The picture files of one camera by frame number: 2 before 10. The numbers are without a gap, or they are `rows`.
    ValueError: another file, two of one number, names that differ in more than the number, the first gap."""
    found, series = {}, None
    for path in listing(folder).values():
        named = re.fullmatch("(.*?)([0-9]+)([^0-9]*)", path.stem.lower())
        must(path.suffix.lower() in ENDINGS and named, f"{path} is no picture with a number, as 12.png: move it away")
        number, series = int(named[2]), series or (path, named[1], named[3])
        must(number not in found and named.group(1, 3) == series[1:], f"{folder} holds "
             f"{found.get(number, series[0]).name} and {path.name}: keep one file a frame, alike but for its number")
        found[number] = path
    order = sorted(found)
    for before, after in zip(order, order[1:]):
        if after != before + 1 and order != rows.tolist():
            raise ValueError(f"{folder}: between {found[before].name} and {found[after].name} the picture of frame "
                             f"{before + 1} is missing; restore it, or number the files without a gap")
    return [found[number] for number in order]


def _whole(x, where, limit):
    """Row numbers (n,) -> int64. ValueError: other than whole numbers from 0 to limit."""
    wrong = np.flatnonzero((x < 0) | (x > limit)) if x.ndim == 1 and x.dtype.kind in "iu" else None
    if wrong is None or len(wrong):
        found = f" is {x.dtype} of shape {x.shape}" if wrong is None else f", row {wrong[0]} is {x[wrong[0]]}"
        raise ValueError(f"{where}{found}, expected one row of whole numbers from 0 to {limit}; write it again")
    return x.astype(np.int64)


def _texts(x, where, *lengths):
    """Text as numpy's or as UTF-8 bytes -> (n,) str, n one of `lengths`. ValueError: else."""
    with suppress(UnicodeError):
        x = np.atleast_1d(np.char.decode(x, "utf-8") if x.dtype.kind == "S" else x)
        if x.dtype.kind == "U" and x.ndim == 1 and len(x) in lengths and np.char.encode(x, "utf-8") is not None:
            without_nul("".join(dict.fromkeys(x.tolist())), where)
            return x   # without lone surrogates, at which encode raises
    raise ValueError(f"{where} is {x.dtype} of shape {x.shape}, expected {' or '.join(map(str, lengths))} texts in "
                     "UTF-8; write it again")


def _ends(path, arrays):
    """The number of frames up to the end of each episode (E,) int64; without `ends` all rows are one episode."""
    rows = {key: len(np.atleast_1d(arrays[key])) for key in ROWS if arrays.get(key) is not None}
    must(rows or "ends" in arrays, f"{path} has no array 'state', 'action' or 'ends', one of which counts the frames")
    ends = _whole(arrays.get("ends", np.array([*rows.values()][:1])), f"{path}, 'ends'", FRAMES)
    must(len(ends), f"{path} is empty: it has no episode")
    for e in np.flatnonzero(np.diff(ends, prepend=0) < 1):
        raise ValueError(f"{path}, 'ends', row {e} is {ends[e]}: an empty episode; drop it")
    for key, n in rows.items():
        must(n == ends[-1], f"{path} has {n} rows of '{key}' for {ends[-1]} frames; write it again")
    return ends


class FolderSource:
    """One or several episodes in a plain folder, as support.data.source.Source says.
    `episode.npz`, F frames in all: state (F, d_q), absent or d_q = 0 where there is none; action (F, d_a) or absent
    (human video); task (E,) or (F,) strings, fps; optional ends (E,) cumulative frame counts of several episodes,
    stored (P,) the rows that have pictures (absent: all), robot (absent: known by what it measures), action_names
    (d_a,), and what `labels` names. Pictures per view: `<view>.npy` uint8 (P, H, W, 3), memory-mapped, or a folder
    `<view>/` of numbered files that support.data.picture decodes; else the view is masked. Names in capitals are the
    same names. robot: a Robot or None."""

    cache, videos, state_keys, action_keys = None, {}, (), ()   # pictures as recorded; arrays, not features with names

    def __init__(self, root, robot=None):
        path = Path(root) / "episode.npz"
        arrays = read_npz(path)
        for key in ("task", "fps"):
            must(key in arrays, f"{path} has no array '{key}'")
        unread = sorted(arrays.keys() - set(KEYS))
        for key in unread:
            must(key.lower().rstrip("s") not in [known.rstrip("s") for known in KEYS],
                 f"{path}: '{key}' is not read; arrays are called {', '.join(KEYS)}")
        self.root, self.name, self.ends = path.parent, path.parent.name, _ends(path, arrays)
        E, F = len(self.ends), int(self.ends[-1])
        for key, words in (("action", "action"), ("state", "state|qpos")):   # or a robot becomes a person without them
            maybe = any(arrays[name].shape[:1] == (F,) and arrays[name].ndim == 2 or re.search(words, name.lower())
                        for name in unread)
            must(key in arrays or not maybe,
                 f"{path} has no array '{key}'; not read: {', '.join(unread)}; call it '{key}', or leave them out")
        self.starts = np.concatenate([[0], self.ends[:-1]])
        self.lengths, self.indices = np.diff(self.ends, prepend=0), range(E)
        self.tasks = _texts(arrays["task"], f"{path}, 'task'", E, F)
        self.fps = float(arrays["fps"].item()) if numbers(arrays["fps"], f"{path}, 'fps'").size == 1 else 0.0
        must(0.01 <= self.fps <= 10_000, f"{path}: fps is {arrays['fps']}; write the recording's frame rate, one "
             "number from 0.01 to 10,000")
        rows = {key: self._rows(path, key, arrays[key]) for key in ROWS if key in arrays}
        self.state, self.action = rows.pop("state", np.zeros((F, 0), np.float32)), rows.pop("action", None)
        self.has_action = self.action is not None
        self._labels, names = rows, arrays.get("action_names", np.zeros(0))
        if "suite" in arrays:
            self._labels["suite"] = _texts(arrays["suite"], f"{path}, 'suite'", E)
        d_a = self.action.shape[1] if self.has_action else names.size
        self.action_names = _texts(names, f"{path}, 'action_names'", d_a).tolist() if names.size else []
        stored = _whole(arrays.get("stored", np.arange(F)), f"{path}, 'stored'", F - 1)
        self.slot = np.full(F, -1)   # of each frame, the number of its picture
        self.slot[stored] = np.arange(len(stored))
        must((np.diff(stored) > 0).all(), f"{path}, 'stored' is not ascending: sort it, and the pictures with it, as "
             "files are read by their numbers")
        self.files = self._cameras(len(stored))
        self.views = {view: view for view in VIEWS if view in self.files}
        named = given_name(str(_texts(arrays.get("robot", np.array("")), f"{path}, 'robot'", 1)[0]), f"{path}, 'robot'")
        unread = [key for key in ("state", "action", "cameras", "instruction")   # the table's rows are LeRobot's, too
                  if robot not in (None, *ROBOTS.values()) and getattr(robot, key) != getattr(Robot(""), key)]
        must(not unread, f"{path}: {', '.join(unread)} of the --robot file would be ignored, as it chooses among "
             "LeRobot's features: leave them out, and write what is trained on to the folder")
        robot = robot or ROBOTS.get(named, Robot(named))
        self.state_names = range(self.state.shape[1])
        measures = self.state_names, self.action_names or range(d_a), list(self.views)
        self.robot, self.relative = robot.name or unnamed(self.fps, *measures), robot.relative
        names = self.action_names or [""] * d_a
        self.kinds = action_kinds(robot, names, names)[0] if self.has_action else ()

    def _rows(self, path, key, x):
        """An array of a row a frame -> (F, d) float32; only of the state may d be 0. ValueError: not finite numbers.
        A label may be NaN, in a scene without what it labels."""
        if key == "state" and x.shape[1:] == (0,):
            return x.astype(np.float32)
        if key not in ("state", "action") and x.dtype.kind == "f":
            numbers(np.nan_to_num(x), f"{path}, '{key}'", 2)
            return x
        try:
            return numbers(x, f"{path}, '{key}'", 2)
        except ValueError:
            for e in range(len(self.ends) if x.dtype.kind == "f" else 0):   # of which the rows are frames
                numbers(x[self.starts[e]:self.ends[e]], f"{path}, episode {e}, '{key}'")
            raise

    def _cameras(self, P):
        """view -> its .npy file or its folder. ValueError: two of one view, or a camera that would not be seen."""
        files, found = listing(self.root), {}
        for name, path in files.items():
            view, stem, array = name.removesuffix(".npy"), path.stem.lower(), name.endswith(".npy")
            if not array and not path.is_dir():
                must(stem not in VIEWS or {stem, f"{stem}.npy"} & files.keys(),
                     f"{path} is not read: a camera is {stem}.npy, or a folder {stem}/ of pictures")
            elif view in VIEWS:
                must(found.setdefault(view, path) == path,
                     f"{self.root} holds {found[view].name} and {path.name}: keep one of them")
            else:   # P pictures are a camera too, and so is any array of pictures
                camera = read_npy(path, mmap=True).ndim == 4 if array else \
                    sum(item.suffix.lower() in ENDINGS for item in path.iterdir()) == P
                must(not camera, f"{path} is of no known view: name it {', '.join(VIEWS)}, or move it elsewhere")
        must(found, f"dataset {self.root}: no pictures; expected head.npy or a folder head/ of pictures")
        return found

    @cached_property
    def pictures(self):
        """view -> memory map or list of files; opened in the process that reads."""
        found, rows = {}, np.flatnonzero(self.slot >= 0)   # that have pictures
        for view, path in self.files.items():
            if path.is_dir():
                x = frame_files(path, rows)
            else:
                x = read_npy(path, mmap=True)
                must(x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] == 3, f"{path} holds {x.dtype} of shape "
                     f"{x.shape}, expected uint8 (frames, height, width, 3): write it again")
                check_size(*x.shape[1:3], f"a picture of {path}")
            ends = f" ({x[0].name} to {x[-1].name})" if path.is_dir() and x else ""
            must(len(x) == len(rows), f"dataset {self.root}: view {view} has {len(x)} pictures{ends}, not {len(rows)}")
            found[view] = x
        return found

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "pictures"}

    def identity(self):
        return {"files": contents_digest(self.root)}

    def numbers(self, e):
        rows = slice(self.starts[e], self.ends[e])
        return self.state[rows], self.action[rows] if self.has_action else None

    def frame(self, view, e, t):
        slot = self.slot[self.starts[e] + t] if 0 <= t < self.lengths[e] else -1
        must(slot >= 0, f"dataset {self.root}, episode {e}, frame {t}: its picture is not stored")
        held = self.pictures[view]
        if isinstance(held, list):
            return decode(held[slot])
        must(os.path.getsize(held.filename) >= held.offset + held.nbytes,   # to read past its end ends the process
             f"{held.filename} was cut short while it is in use: write it again")
        return held[slot]

    def frames(self, view, e, times):
        return [self.frame(view, e, t) for t in times]

    def task(self, e, t):
        return str(self.tasks[e if len(self.tasks) == len(self.ends) else self.starts[e] + t])

    def views_of(self, e):
        return list(self.views)

    def labels(self, e):
        rows = slice(self.starts[e], self.ends[e])
        return {key: str(x[e]) if key == "suite" else x[rows] for key, x in self._labels.items()}

    def has_pictures(self, e, t):
        return self.slot[self.starts[e] + t] >= 0
