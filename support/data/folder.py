"""Episodes in a plain folder, and picture files: a support.data.source.Source of numpy arrays.

What is wrong with a folder is said in one line, by name.
"""

import zipfile
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from config import VIEWS
from support.data.file_hashes import files_digest
from support.data.robots import ROBOTS, Robot


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
    if not path.exists():
        raise ValueError(f"dataset {root}: no episode.npz there")
    try:
        with np.load(path, allow_pickle=False) as npz:
            absent = [key for key in ("state", "task", "fps") if key not in npz.files]
            if not absent:
                yield npz
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        raise ValueError(f"{path} is no readable .npz file of plain arrays: write it again")
    if absent:
        raise ValueError(f"dataset {root}: episode.npz has no array '{absent[0]}'")


def _named(root, npz):
    """The name of the robot in episode.npz, else the folder's."""
    return str(npz["robot"]) if "robot" in npz.files else Path(root).name


def _frames(npz):
    """Rows of `state`, from the header of that array alone."""
    with npz.zip.open("state.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return (*read(file)[0], 0)[0]


def glance(root, robot=None):
    """What a mixture needs to know of a folder before it is opened -> (name, robot's name, frames, has_action).

    Headers alone are read. ValueError: as FolderSource, as far as they show it.
    """
    with _arrays(root) as npz:
        found = Path(root).name, robot.name if robot else _named(root, npz), _frames(npz), "action" in npz.files
    if not found[2]:
        FolderSource(root, robot)   # says what is wrong
    return found


class FolderSource:
    """One or several episodes in a plain folder: a support.data.source.Source.

    `episode.npz`, F frames in all: state (F, d_q), action (F, d_a) or absent (human video), task (E,) strings, fps;
    optional ends (E,) cumulative frame counts when it holds several episodes, stored (P,) the rows whose pictures exist
    (absent: all), robot, action_names (d_a,), and what `labels` names. Pictures per view: `<view>.npy` uint8
    (P, H, W, 3), memory-mapped, or a folder `<view>/` of files in name order. A view without either is missing and
    masked. robot: a Robot, for its name and its delta mask; None: what the file says.
    """

    cache, state_keys, action_keys = None, (), ()   # pictures as recorded; arrays, not features with names

    def __init__(self, root, robot=None):
        self.root, self.name = Path(root), Path(root).name
        with _arrays(root) as npz:
            arrays, named = {key: npz[key] for key in npz.files}, _named(root, npz)
        self.state, self.action = arrays["state"].astype(np.float32), arrays.get("action")
        self.has_action, self.fps = self.action is not None, float(arrays["fps"])
        if not 0 < self.fps < np.inf:
            raise ValueError(f"dataset {root}: fps is {self.fps:g}; write the recording's frame rate")
        robot = robot or ROBOTS.get(named, Robot(named))
        self.robot, self.relative = robot.name, robot.relative
        self.ends = arrays.get("ends", np.array([len(self.state)]))
        self.starts = np.concatenate([[0], self.ends[:-1]])
        self.lengths, self.tasks = np.diff(np.concatenate([[0], self.ends])), np.atleast_1d(arrays["task"])
        self.indices, self.action_names = range(len(self.ends)), arrays.get("action_names", np.array([], str)).tolist()
        self._labels = {key: arrays[key] for key in ("suite", "target", "distractor") if key in arrays}
        self._check()
        self.stored = arrays.get("stored")
        self.slot = np.arange(len(self.state))
        if self.stored is not None:
            self.slot = np.full(len(self.state), -1)
            self.slot[self.stored] = np.arange(len(self.stored))
        self.views = {view: view for view in VIEWS
                      if (self.root / f"{view}.npy").exists() or (self.root / view).is_dir()}
        if not self.views:
            raise ValueError(f"dataset {root}: no pictures; expected head.npy or a folder head/ of PNG files")

    def _check(self):
        where = f"dataset {self.root}"
        if len(self.state) == 0 or len(self.ends) == 0 or self.lengths.min() < 1:
            raise ValueError(f"{where}: it is empty or holds an empty episode")
        for key, rows in (("state", self.state), ("action", self.action)):
            if rows is not None and rows.ndim != 2:
                raise ValueError(f"{where}: {key} has shape {rows.shape}, expected (frames, dimensions)")
        if self.ends[-1] != len(self.state) or len(self.tasks) != len(self.ends):
            raise ValueError(f"{where}: ends, task and state disagree about the number of frames or episodes")
        if self.has_action and len(self.action) != len(self.state):
            raise ValueError(f"{where}: {len(self.action)} actions for {len(self.state)} states")
        for key, rows in (("state", self.state), ("action", self.action)):
            if rows is not None and not np.isfinite(rows).all():
                row = int(np.argwhere(~np.isfinite(rows))[0, 0])
                episode = int(np.searchsorted(self.ends, row, side="right"))
                raise ValueError(f"{where}, episode {episode}, frame {row - self.starts[episode]}: "
                                 f"{key} is not finite; repair or drop the episode")

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
            expected = len(self.slot) if self.stored is None else len(self.stored)
            if len(found[view]) != expected:
                raise ValueError(f"dataset {self.root}: view {view} has {len(found[view])} pictures, not {expected}")
        return found

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "pictures"}

    def identity(self):
        """JSON-able: what numbers() depends on. Changed files change it."""
        return {"files": files_digest([self.root / "episode.npz"])}

    def numbers(self, e):
        """Episode e -> state (L, d_q), action (L, d_a) float32 or None."""
        rows = slice(self.starts[e], self.ends[e])
        return self.state[rows], self.action[rows] if self.has_action else None

    def frame(self, view, e, t):
        """Picture of a view at frame t of episode e, (H, W, 3) uint8."""
        slot = self.slot[self.starts[e] + t]
        if slot < 0:
            raise ValueError(f"dataset {self.root}, episode {e}, frame {t}: its picture is not stored")
        item = self.pictures[view][slot]
        return read_picture(item) if isinstance(item, Path) else item

    def frames(self, view, e, times):
        """Pictures as `frame` gives them, at all of `times`."""
        return [self.frame(view, e, t) for t in times]

    def task(self, e, t):
        """The instruction at frame t of episode e."""
        return str(self.tasks[e])

    def labels(self, e):
        """What the embedded world knows of episode e: suite (text), target and distractor (L, 2) in world units. Absent
        elsewhere."""
        rows = slice(self.starts[e], self.ends[e])
        return {key: str(x[e]) if key == "suite" else x[rows] for key, x in self._labels.items()}

    def has_pictures(self, e, t):
        """Whether the frames t (n,) of episode e have stored pictures, (n,) bool."""
        return self.slot[self.starts[e] + t] >= 0
