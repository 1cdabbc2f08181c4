"""Episodes in a plain folder, and picture files. What is wrong with a folder is said in one line, by name."""

import zipfile
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from config import VIEWS
from support.data.file_hashes import files_digest
from support.data.robots import ROBOTS, Robot, unnamed


def read_picture(path):
    """A PNG or JPEG file as (H, W, 3) uint8 RGB. ValueError: one line naming the file."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError:
        raise ValueError(f"picture {path} is missing")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"picture {path} cannot be read ({error}): replace the file")


@contextmanager
def _arrays(root):
    """episode.npz, open. ValueError, one line: it is missing, damaged or lacks an array."""
    path = Path(root) / "episode.npz"
    try:
        with np.load(path, allow_pickle=False) as npz:
            absent = [key for key in ("state", "task", "fps") if key not in npz.files]
            if not absent:
                yield npz
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        raise ValueError(f"{path} is no readable .npz file of plain arrays: write it again")
    if absent:
        raise ValueError(f"dataset {root}: episode.npz has no array '{absent[0]}'")


def glance(root, robot=None):
    """As support.data.source.glance. ValueError: as FolderSource, as far as it shows."""
    with _arrays(root) as npz:
        frames = int(npz["ends"].max(initial=0)) if "ends" in npz.files else len(npz["state"])
        named = robot.name if robot else str(npz.get("robot", ""))
        has_action = "action" in npz.files
    if frames < 1 or not named:   # it says what is wrong, or by what it measures who it is
        named = FolderSource(root, robot).robot
    return Path(root).name, named, frames, has_action


class FolderSource:
    """One or several episodes in a plain folder, as support.data.source.Source says.

    `episode.npz`, F frames in all: state (F, d_q), action (F, d_a) or absent (human video), task (E,) strings, fps;
    optional ends (E,) cumulative frame counts of several episodes, stored (P,) the rows that have pictures (absent:
    all), robot, action_names (d_a,), and what `labels` names. Pictures per view: `<view>.npy` uint8 (P, H, W, 3),
    memory-mapped, or a folder `<view>/` of files in name order; else the view is masked. robot: a Robot or None.
    """

    cache, videos, state_keys, action_keys = None, {}, (), ()   # pictures as recorded; arrays, not features with names

    def __init__(self, root, robot=None):
        self.root, self.name = Path(root), Path(root).name
        with _arrays(root) as npz:
            arrays = {key: npz[key] for key in npz.files}
        self.state, self.action = arrays["state"].astype(np.float32), arrays.get("action")
        self.has_action, self.fps = self.action is not None, float(arrays["fps"])
        if not 0 < self.fps < np.inf:
            raise ValueError(f"dataset {root}: fps is {self.fps:g}; write the recording's frame rate")
        named = str(arrays.get("robot", ""))
        robot = robot or ROBOTS.get(named, Robot(named))
        self.robot, self.relative = robot.name, robot.relative
        self.ends = arrays.get("ends", np.array([len(self.state)]))
        self.starts = np.concatenate([[0], self.ends[:-1]])
        self.lengths, self.tasks = np.diff(np.concatenate([[0], self.ends])), np.atleast_1d(arrays["task"])
        self.indices, self.action_names = range(len(self.ends)), arrays.get("action_names", np.array([], str)).tolist()
        self._labels = {key: arrays[key] for key in ("suite", "target", "distractor") if key in arrays}
        self._check()
        stored = arrays.get("stored", np.arange(len(self.state)))
        self.slot = np.full(len(self.state), -1)   # of each frame, the number of its picture
        self.slot[stored] = np.arange(len(stored))
        self.views = {view: view for view in VIEWS
                      if (self.root / f"{view}.npy").exists() or (self.root / view).is_dir()}
        if not self.views:
            raise ValueError(f"dataset {root}: no pictures; expected head.npy or a folder head/ of PNG files")
        if not self.robot:
            d_q, d_a = self.state.shape[1], self.action.shape[1] if self.has_action else 0
            self.robot = unnamed(self.fps, range(d_q), self.action_names or range(d_a), list(self.views))

    def _check(self):
        where = f"dataset {self.root}"
        if len(self.state) == 0 or len(self.ends) == 0 or self.lengths.min() < 1:
            raise ValueError(f"{where}: it is empty or holds an empty episode")
        if self.ends[-1] != len(self.state) or len(self.tasks) != len(self.ends):
            raise ValueError(f"{where}: ends, task and state disagree about the number of frames or episodes")
        if self.has_action and len(self.action) != len(self.state):
            raise ValueError(f"{where}: {len(self.action)} actions for {len(self.state)} states")
        for key, rows in (("state", self.state), ("action", self.action))[:1 + self.has_action]:
            if rows.ndim != 2:
                raise ValueError(f"{where}: {key} has shape {rows.shape}, expected (frames, dimensions)")
            for row in np.flatnonzero(~np.isfinite(rows).all(1)):
                e = int(np.searchsorted(self.ends, row, side="right"))
                raise ValueError(f"{where}, episode {e}, frame {row - self.starts[e]}: {key} is not finite; repair it")

    @cached_property
    def pictures(self):
        """view -> memory map or list of files; opened in the process that reads."""
        found = {}
        for view in self.views:
            path = self.root / f"{view}.npy"
            try:
                found[view] = np.load(path, mmap_mode="r") if path.exists() else sorted((self.root / view).iterdir())
            except (ValueError, OSError, EOFError):
                raise ValueError(f"{path} is no readable .npy file of pictures: write it again")
            if path.exists() and (found[view].dtype != np.uint8 or found[view].shape[3:] != (3,)):
                raise ValueError(f"{path} holds {found[view].dtype} of shape {found[view].shape}, expected uint8 "
                                 f"(frames, height, width, 3): write it again")
            expected = self.slot.max() + 1
            if len(found[view]) != expected:
                raise ValueError(f"dataset {self.root}: view {view} has {len(found[view])} pictures, not {expected}")
        return found

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "pictures"}

    def identity(self):
        return {"files": files_digest([self.root / "episode.npz"])}

    def numbers(self, e):
        rows = slice(self.starts[e], self.ends[e])
        return self.state[rows], self.action[rows] if self.has_action else None

    def frame(self, view, e, t):
        slot = self.slot[self.starts[e] + t]
        if slot < 0:
            raise ValueError(f"dataset {self.root}, episode {e}, frame {t}: its picture is not stored")
        item = self.pictures[view][slot]
        return read_picture(item) if isinstance(item, Path) else item

    def frames(self, view, e, times):
        return [self.frame(view, e, t) for t in times]

    def task(self, e, t):
        return str(self.tasks[e])

    def views_of(self, e):
        return list(self.views)

    def labels(self, e):
        rows = slice(self.starts[e], self.ends[e])
        return {key: str(x[e]) if key == "suite" else x[rows] for key, x in self._labels.items()}

    def has_pictures(self, e, t):
        return self.slot[self.starts[e] + t] >= 0
