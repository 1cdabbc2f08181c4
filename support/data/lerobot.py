"""LeRobot v2.0, v2.1 and v3.0 datasets, read directly from disk, without the lerobot package.

Numbers are in parquet (pyarrow), pictures in mp4 (PyAV) or as PNG inside parquet; both packages are imported on first
use. Building a source reads metadata, the rest is read when asked for. Frame t is the picture of row t (places.py). Not
thread-safe: parallel reading is done by processes."""

import multiprocessing
import sys
from bisect import bisect_left, bisect_right
from pathlib import Path

import numpy as np

from support.data import frame_cache
from support.data.file_hashes import files_digest
from support.data.lerobot_episodes import NO_FILM, instructions
from support.data.lerobot_metadata import AGAIN, ROW_KEYS, LeRobotMetadata, picture_shape
from support.data.parquet import read_columns, read_table, row_groups
from support.data.picture import decode
from support.data.places import places
from support.data.video import LRU, read_frames, stamps
from support.files import damage, inside, lfs_pointer, must, unreadable

# What is held of all datasets of this process, in bytes, however many a mixture has.
_NUMBERS = LRU(512 << 20, lambda arrays: sum(array.nbytes for array in arrays.values()))   # by row group
_PICTURES = LRU(256 << 20, lambda column: column.nbytes)                                   # by row group of a data file
_ROW_GROUPS = LRU(1024)


class LeRobotSource(LeRobotMetadata):
    """One LeRobot dataset folder, as support.data.source.Source says.
    check_files: refuse a dataset of which a file is missing. ImportError, one line, where a package is missing.
    timestamps: "check", or "index": those of the rows are not looked at."""

    def __init__(self, root, robot=None, check_files=True, timestamps="check"):
        super().__init__(root, robot)
        self.timestamps = timestamps
        self.read_episodes()
        self.cache = frame_cache.FrameCache.open(self.root, self.views.values(), self.lengths)
        self._checked = {}  # episodes whose rows have passed: whether their time stamps begin at 0
        self.recorders = {}   # camera whose pictures lie in files with absolute paths: what these begin with
        self.placed = {}    # (slot, episode): first picture and step of its rows in its film, whether all are counted
        self._look_for_files()
        for note in self.notes if check_files and multiprocessing.parent_process() is None else ():
            print(note, file=sys.stderr)
        for line in self.missing.values() if check_files else ():
            more = f" (and {len(self.missing) - 1} more files)" if len(self.missing) > 1 else ""
            raise ValueError(f"{line}{more}" + (f"; {AGAIN}" if line.endswith("missing") else ""))

    def _look_for_files(self):
        """Fill lacking: {view: episodes recorded without it}, and missing: {path: line} of every data or video file
        that should be there and is not, of which Git LFS pointers have one line.
        Recorded without it are, of v3.0, the episodes that name no film; of v2.x those without one, where others have
        it, and no more than total_videos lacks. An episode without any, or a camera without any, has lost its films."""
        films, needed = {} if self.cache else {view: files for view, (files, _) in self.videos.items()}, {}
        for files in (self.files, *films.values()):
            for e, path in enumerate(files):
                needed.setdefault(path, e)
        absent = {path: e for path, e in needed.items() if not path.is_file()}
        pointers = [path for path in needed if path not in absent and 0 < path.stat().st_size < 1024
                    and lfs_pointer(path)]
        E, total = len(self.lengths), self.info.get("total_videos")
        promised = E * sum(feature["dtype"] == "video" for feature in self.info["features"].values())
        gone = sum(file in absent for files in films.values() for file in files)
        counted = self.version == "v3.0" or total is not None and gone > promised - total
        some = {view: {e for e, file in enumerate(files) if file in absent and (not counted or file.name == NO_FILM)}
                for view, files in films.items()}
        some = {view: without for view, without in some.items() if len(without) < E}
        lost = set.intersection(*(some.get(view, set()) for view in self.views))
        some = {view: without - lost for view, without in some.items()}
        if self.cache:   # which was made of such a dataset
            some = {view: set(self.cache.lacking[key]) for view, key in self.views.items()}
        self.lacking = {view: without for view, without in some.items() if without}
        self.notes += [f"{self.where}: camera '{self.views[view]}' has no pictures of {len(without)} of its {E} "
                       f"episodes, first of episode {self.indices[min(without)]}: masked there"
                       for view, without in self.lacking.items()]
        lacked = {files[e] for view, files in films.items() for e in self.lacking.get(view, ())}
        self.missing = {path: f"{self.at(e)}: {path} is missing" for path, e in absent.items() if path not in lacked}
        self.missing |= {path: "" if n else f"{self.at(needed[path])}: {unreadable(path, None)}"
                         for n, path in enumerate(pointers)}

    def identity(self):
        meta = [path for path in (self.root / "meta").rglob("*") if path.is_file() and "stats" not in path.name]
        return {"state": list(self.state_keys), "action": list(self.action_keys),
                "files": files_digest([*self.files, *meta])}

    def numbers(self, e):
        features, rows = self.info["features"], ROW_KEYS if self.timestamps == "check" else ROW_KEYS[:2]
        keys = [key for parts in self.parts.values() for key, *_ in parts] + [key for key in rows if key in features]
        arrays = self._rows(e, {key: int(np.prod(features[key]["shape"])) for key in keys}, rows)
        if e not in self._checked:
            self._checked[e] = self._check_rows(e, arrays)
        none = np.zeros((self.lengths[e], 0), np.float32)
        state, action = (np.concatenate([none, *(arrays[key][:, d] for key, d, *_ in parts)], 1, dtype=np.float32)
                         for parts in self.parts.values())
        return state, action if self.has_action else None

    def _rows(self, e, sizes, also=()):
        """Columns {key: dimension} of episode e, and of `also` what is there, whether or not info.json knows of it
        -> {key: (L, dimension)}; only its row groups are read."""
        path, first, L, where = self.files[e], self.first_rows[e], self.lengths[e], self.at(e)
        starts = _ROW_GROUPS.get(path, lambda: row_groups(path, where))
        must(starts[-1] == first + L or self.version == "v3.0" and starts[-1] > first + L,
             f"{where}: {path} has {starts[-1]} rows, meta/ says {first + L}; {AGAIN}")
        groups = range(bisect_right(starts, first) - 1, bisect_left(starts, first + L))
        parts = {group: _NUMBERS.get((path, group, *sizes, also),
                                     lambda: read_columns(path, sizes, where, group, also)) for group in groups}
        found = {key: np.concatenate([part[key][max(first - starts[group], 0):first + L - starts[group]]
                                      for group, part in parts.items()]) for key in parts[groups[0]]}
        known = not also or "episode_index" in found or starts[-1] == self.file_rows[path]
        must(known, f"{where}: {path} has {starts[-1]} rows and meta/ lists {self.file_rows[path]}, but no column "
             f"episode_index says whose they are; {AGAIN}")
        return found

    def _check_rows(self, e, rows):
        """Numbers must be finite as float32; rows the episode's own, in order, one a frame, at even steps -> whether
        they are timed from 0 on."""
        path, order = self.files[e], np.arange(self.lengths[e])
        for key, values in rows.items():
            for t, d in np.argwhere(~np.isfinite(values)):
                raise ValueError(f"{self.at(e, t)}: '{key}' is not finite in dimension {d}; repair or drop the episode")
        for key, expected in (("episode_index", np.full(len(order), self.indices[e])), ("frame_index", order)):
            got = rows[key][:, 0] if key in rows else expected
            for t in np.flatnonzero(got != expected):
                raise ValueError(f"{self.at(e, t)}: {path}: '{key}' is {got[t]:.15g}, expected {expected[t]}; {AGAIN}")
        if "timestamp" not in rows:
            return True
        times, frame = rows["timestamp"][:, 0], 1 / self.fps
        if (np.abs(times - order * frame) <= 0.5 * frame).all():
            return True
        steps = np.diff(times)
        uneven = np.flatnonzero(np.abs(steps - frame) > 0.5 * frame)
        if len(uneven) or len(steps) and abs(steps.mean() - frame) > 0.05 * frame:
            t, step = (uneven[0] + 1, steps[uneven[0]]) if len(uneven) else (len(steps), steps.mean())
            raise ValueError(f"{self.at(e, t)}: {path}: 'timestamp' is {round(times[t], 4)} s, {step:.6g} s after the "
                             f"frame before it, at {self.fps:g} frames/s it should be {frame:.6g}: frames were lost or "
                             "repeated, or fps in meta/info.json is wrong; --timestamps index takes row t as frame t")
        if False not in self._checked.values() and multiprocessing.parent_process() is None:   # once, by no loader
            print(f"{self.at(e)}: time stamps of {round(times[0], 3)} to {round(times[-1], 3)} s are "
                  f"even, but not those of {len(times)} frames from 0 on: rows are read by index")
        return False

    def has_pictures(self, e, t):
        return np.ones(len(t), bool)

    def labels(self, e):
        return {}

    def task(self, e, t):
        """That of its row, in the robot file's column or by its task_index; else the episode's."""
        where = self.at(e, t)
        if self.instruction:
            index = self._value(self.instruction, e, t)
            must(index is not None, f"{where}: '{self.instruction}' is null; write an instruction, or an empty text")
            if type(index) not in (int, float):
                return next(iter(instructions(index, f"{where}: '{self.instruction}'")), "")
        elif not self.by_row(e):
            return self.tasks[e]
        else:   # as stored: a null is not a number
            index = float(self._rows(e, {"task_index": 1})["task_index"][t, 0])
        must(index in self.task_texts,
             f"{where}: its {self.instruction or 'task_index'} {index:g} is not listed in meta/tasks; {AGAIN}")
        return self.task_texts[index]

    def _value(self, key, e, t):
        """One row of a column, as pyarrow has it; only its row group is read."""
        path, row, where = self.files[e], self.first_rows[e] + t, self.at(e, t, key)
        starts = _ROW_GROUPS.get(path, lambda: row_groups(path, where))
        group = bisect_right(starts, row) - 1
        column = _PICTURES.get((path, key, group), lambda: read_table(path, [key], where, group)[key])
        with damage(where, f"{path} cannot be read"):
            return column[row - starts[group]].as_py()

    def frame(self, view, e, t):
        return self.frames(view, e, [t])[0]

    def frames(self, view, e, times):
        """From a frame cache they are of support.data.frame_cache.CachedPicture."""
        key, where = self.views[view], [self.at(e, t, self.views[view]) for t in times]
        for t, at in zip(times, where):
            must(0 <= t < self.lengths[e], f"{at}: the episode has frames 0 to {self.lengths[e] - 1}")
        if self.cache:
            return [frame_cache.CachedPicture(self.cache, key, e, t) for t in times]
        if view in self.videos:
            path, ticks = self.place(view, e, times[0])
            pictures = read_frames(path, ticks[np.array(times)].tolist(), where.__getitem__)
        else:
            pictures = [self._stored_picture(key, e, t, at) for t, at in zip(times, where)]
        said = " x ".join(map(str, picture_shape(self.info["features"][key])))
        for picture, at in zip(pictures, where):
            found = " x ".join(map(str, picture.shape))
            must(found == said, f"{at}: the picture is {found} (height, width, channels), meta/ says {said}; {AGAIN}")
        return pictures

    def place(self, view, e, t=None):
        """Where an episode lies in its film -> path, time stamps of the pictures of its rows, and what lies behind.
        t: for the ValueError, one line: neither counting nor the declared times decide it."""
        files, seconds = self.videos[view]
        path, where = files[e], self.at(e, t, self.views[view])
        ticks, tick = stamps(path, where)
        if (view, e) not in self.placed:
            mine = [i for i, file in enumerate(files) if file == path] if self.version == "v3.0" else [e]
            lengths, begins = np.array([self.lengths[i] for i in mine]), np.array([float(seconds[i]) for i in mine])
            try:
                found = places(ticks * tick, self.fps, begins, lengths)
            except ValueError as error:
                doubtful, what = error.args
                raise ValueError(f"{self.at(mine[doubtful])}: '{self.views[view]}': {path} has {what}; {AGAIN}, or "
                                 "drop the episode") from error
            self.placed |= {(view, i): (*place, len(ticks) == sum(lengths)) for i, place in zip(mine, found)}
        first, step, counted = self.placed[view, e]
        if not counted and e not in self._checked:
            self.numbers(e)
        must(counted or self._checked[e], f"{where}: {path} has not one picture a row, and the time stamps of the rows "
             "do not begin at 0: which belong together? --timestamps index says that both begin at once")
        return path, ticks[first::step]

    def _stored_picture(self, key, e, t, where):
        """A picture that a data file holds or names: bytes, a path, or {bytes, path}."""
        stored = self._value(key, e, t)
        stored = stored if isinstance(stored, dict) else {"path" if isinstance(stored, str) else "bytes": stored}
        data, named = stored.get("bytes"), stored.get("path")
        must(data and isinstance(data, bytes) or isinstance(named, str),
             f"{where}: {self.files[e]} holds neither a picture's bytes nor its path there; {AGAIN}")
        if data:
            return decode(data, where)
        path, began = self._path(named, where)
        if began and key not in self.recorders:
            first = self._value(key, 0, 0)
            self.recorders[key] = self._path(first.get("path") if isinstance(first, dict) else first, where)[1]
        must(not began or began == self.recorders[key], f"{where} names {named[:200]!r}, the first picture one in "
             f"{self.recorders.get(key, '')[:200]!r}: which files are meant? correct it")
        return decode(path, f"{where}: {path}")

    def _path(self, named, where):
        """A picture's path as it is stored -> where it lies, and what of a recorder's path the dataset stands for."""
        path, named = inside(self.root, named, where), str(named).replace("\\", "/")
        tail = path.relative_to(self.root).as_posix()
        return path, "" if Path(named) == Path(tail) else named.removesuffix(tail)
