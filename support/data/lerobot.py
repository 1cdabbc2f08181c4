"""LeRobot v2.0, v2.1 and v3.0 datasets, read directly from disk, without the lerobot package.

Numbers are in parquet (pyarrow), pictures in mp4 (PyAV) or as PNG inside parquet; both packages are imported on first
use. Building a source reads metadata (support/data/lerobot_metadata.py), the rest is read when asked for. Frame t of an
episode is shown t / fps seconds after the episode begins in its video; the frame taken must lie within half a frame of
that time. Not thread-safe: parallel reading is done by processes.
"""

import io
import multiprocessing
import sys
from bisect import bisect_left, bisect_right

import numpy as np
from PIL import Image

from support.data import frame_cache
from support.data.file_hashes import files_digest
from support.data.lerobot_episodes import instructions
from support.data.lerobot_metadata import AGAIN, LeRobotMetadata, picture_shape
from support.data.parquet import damage, read_columns, read_table, row_groups
from support.data.video import LRU, read_frames

# What is held of all datasets of this process, in bytes, however many a mixture has.
_NUMBERS = LRU(512 << 20, lambda arrays: sum(array.nbytes for array in arrays.values()))   # by row group
_PICTURES = LRU(256 << 20, lambda column: column.nbytes)                                   # by row group of a data file
_ROW_GROUPS = LRU(1024)


class LeRobotSource(LeRobotMetadata):
    """One LeRobot dataset folder, as support.data.source.Source says.

    check_files: refuse a dataset of which a file is missing. ImportError, one line, where a package is missing.
    """

    def __init__(self, root, robot=None, check_files=True):
        super().__init__(root, robot)
        self.read_episodes()
        self.cache = frame_cache.FrameCache.open(self.root, self.views.values(), self.lengths)
        self._checked = set()   # episodes whose rows have passed
        missing = self.missing_files()
        for note in self.notes if check_files and multiprocessing.parent_process() is None else ():
            print(note, file=sys.stderr)
        for path, index in missing.items() if check_files else ():
            more = f" (and {len(missing) - 1} more files)" if len(missing) > 1 else ""
            raise self.fault(f"{path} is missing{more}; {AGAIN}", index)

    def missing_files(self):
        """{path: first episode that needs it} of every data or video file that is not there, but should be."""
        needed = {}
        for files in (self.files, *(files for files, _ in self.videos.values() if not self.cache)):
            for path, index in zip(files, self.indices):
                needed.setdefault(path, index)
        missing = {path: index for path, index in needed.items() if not path.exists()}
        lacked = self.find_lacking(missing, self.cache)
        return {path: index for path, index in missing.items() if path not in lacked}

    def identity(self):
        meta = [path for path in (self.root / "meta").rglob("*") if path.is_file() and "stats" not in path.name]
        return {"state": list(self.state_keys), "action": list(self.action_keys),
                "files": files_digest([*self.files, *meta])}

    def numbers(self, e):
        keys = dict.fromkeys([key for parts in self.parts.values() for key, _ in parts] + list(self.row_keys))
        sizes = {key: int(np.prod(self.info["features"][key]["shape"])) for key in keys}
        where = f"{self.where}, episode {self.indices[e]}"
        arrays = self._rows(e, sizes, where) if keys else {}
        if e not in self._checked:
            self._check_rows(e, arrays)
            self._checked.add(e)
        none = np.zeros((self.lengths[e], 0), np.float32)
        state, action = (np.concatenate([none, *(arrays[key] if taken is None else arrays[key][:, taken]
                                                 for key, taken in parts)], 1) for parts in self.parts.values())
        return state, action if self.has_action else None

    def _rows(self, e, sizes, where):
        """Columns {key: dimension} of episode e -> {key: (L, dimension) float32}; only its row groups are read."""
        path, first, L = self.files[e], self.first_rows[e], self.lengths[e]
        starts = _ROW_GROUPS.get(path, lambda: row_groups(path, where))
        if starts[-1] < first + L or (self.version != "v3.0" and starts[-1] != L):
            raise ValueError(f"{where}: {path} has {starts[-1]} rows, meta/ says {first + L}; {AGAIN}")
        groups = range(bisect_right(starts, first) - 1, bisect_left(starts, first + L))
        parts = {group: _NUMBERS.get((path, group, *sizes), lambda: read_columns(path, sizes, where, group))
                 for group in groups}
        return {key: np.concatenate([part[key][max(first - starts[group], 0):first + L - starts[group]]
                                     for group, part in parts.items()]) for key in sizes}

    def _check_rows(self, e, rows):
        """Numbers must be finite; rows the episode's own, in order, one a frame, at the times of its pictures."""
        path, index, order, fps = self.files[e], self.indices[e], np.arange(self.lengths[e]), self.fps
        for key, values in rows.items():
            for t, d in np.argwhere(~np.isfinite(values)):
                raise self.fault(f"'{key}' is not finite in dimension {d}; repair or drop the episode", index, t)
        for key, expected in (("episode_index", np.full(len(order), index)), ("frame_index", order)):
            found = rows[key][:, 0] if key in rows else expected
            for t in np.flatnonzero(found != expected):
                raise self.fault(f"{path}: '{key}' is {found[t]:g}, expected {expected[t]}; {AGAIN}", index, t)
        times = rows["timestamp"][:, 0].astype(np.float64) if "timestamp" in rows else order / fps
        for t in np.flatnonzero(np.abs(times - order / fps) > 0.5 / fps):   # its pictures are taken from order / fps
            raise self.fault(f"{path}: 'timestamp' is {times[t]:g} s, at {fps:g} frames/s it should be {t / fps:g}; "
                             f"frames were lost or repeated, its start was cut off, or fps in meta/info.json is wrong",
                             index, t)

    def has_pictures(self, e, t):
        return np.ones(len(t), bool)

    def labels(self, e):
        return {}

    def task(self, e, t):
        """That of its row, in the robot file's column or by its task_index; else the episode's."""
        where = f"{self.where}, episode {self.indices[e]}, frame {t}"
        if self.instruction:
            index = self._value(self.instruction, e, t, where)
            if type(index) not in (int, float):
                return next(iter(instructions(index, f"{where}: '{self.instruction}'")), "")
        elif not self.by_row(e):
            return self.tasks[e]
        else:   # as stored: a null is not a number
            index = float(self._rows(e, {"task_index": 1}, where)["task_index"][t, 0])
        if index not in self.task_texts:
            raise ValueError(f"{where}: its task_index {index:g} is not listed in meta/tasks; {AGAIN}")
        return self.task_texts[index]

    def _value(self, key, e, t, where):
        """One row of a column, as pyarrow has it; only its row group is read."""
        path, row = self.files[e], self.first_rows[e] + t
        starts = _ROW_GROUPS.get(path, lambda: row_groups(path, where))
        group = bisect_right(starts, row) - 1
        column = _PICTURES.get((path, key, group), lambda: read_table(path, [key], where, group)[key])
        with damage(where, f"'{key}' in {path} cannot be read"):
            return column[row - starts[group]].as_py()

    def frame(self, view, e, t):
        return self.frames(view, e, [t])[0]

    def frames(self, view, e, times):
        """From a frame cache they are of support.data.frame_cache.CachedPicture."""
        def where(i):
            return f"{self.where}, episode {self.indices[e]}, frame {times[i]}, '{self.views[view]}'"
        for i, t in enumerate(times):
            if not 0 <= t < self.lengths[e]:
                raise ValueError(f"{where(i)}: the episode has frames 0 to {self.lengths[e] - 1}")
        if self.cache:
            return [frame_cache.CachedPicture(self.cache, self.views[view], self.cache.starts[e] + t) for t in times]
        if view in self.videos:
            files, seconds = self.videos[view]
            pictures = read_frames(files[e], [seconds[e] + t / self.fps for t in times], 0.5 / self.fps, where)
        else:
            pictures = [self._png(self.views[view], e, t, where(i)) for i, t in enumerate(times)]
        expected = picture_shape(self.info["features"][self.views[view]])
        for i, picture in enumerate(pictures):
            if picture.shape != expected:
                found, said = (" x ".join(map(str, shape)) for shape in (picture.shape, expected))
                raise ValueError(f"{where(i)}: the picture is {found} (height, width, channels), meta/info.json says "
                                 f"{said}; {AGAIN}")
        return pictures

    def _png(self, key, e, t, where):
        """A picture that lies inside the data file as {bytes, path}; only its row group is read."""
        path, row = self.files[e], self.first_rows[e] + t
        starts = _ROW_GROUPS.get(path, lambda: row_groups(path, where))
        group = bisect_right(starts, row) - 1
        column = _PICTURES.get((path, key, group), lambda: read_table(path, [key], where, group)[key])
        with damage(where, f"the picture in {path} cannot be decoded"):
            stored = column[row - starts[group]].as_py()
            data = stored.get("bytes") or (self.root / stored["path"]).read_bytes()
            picture = np.array(Image.open(io.BytesIO(data)))
        return picture if picture.ndim == 3 else picture[..., None]
