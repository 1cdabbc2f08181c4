"""A dataset whose pictures are decoded and letterboxed once: what training reads then is one memory map a camera.

    python -m support.data --cache DIR OUT --config a1_2b      (or --sizes 448,256)

OUT is a dataset folder like DIR: meta/ and the numbers are copied, frame_cache/ takes the place of the videos. It holds
for each camera and picture size one file of uint8 pictures, (frames, 3, h, w), without the black bars, and is valid for
those sizes only. What it gives equals the letterboxed picture of the plain reader bit for bit, because both are made by
the same two functions.

Episodes are written in any order and noted in done.jsonl, with their checksums, once they are on disk: an interrupted
run goes on with the others. cache.json says what the files are; it is written first and never changed.
"""

import hashlib
import json
import os
import shutil
import time
import zlib
from pathlib import Path

import numpy as np
import torch

from config import CONFIGS
from support.data.letterbox import box, letterbox
from support.progress import bar

FORMAT, BLOCK = 1, 64   # BLOCK: frames decoded in one go


def dataset_name(root):
    """The name of a dataset's folder; of a cache, that of the dataset it was made from. Robots may be named by it."""
    try:
        return json.loads((root / "frame_cache" / "cache.json").read_text())["name"]
    except (OSError, ValueError, KeyError, TypeError):   # no cache, or a damaged one, which `open` refuses
        return root.resolve().name


def fingerprint(root, lengths):
    """SHA-256 of meta/info.json and the episodes' lengths: of a dataset and of its copy alike."""
    text = (root / "meta" / "info.json").read_bytes()
    return hashlib.sha256(text + json.dumps([int(n) for n in lengths]).encode()).hexdigest()


def _files_fingerprint(source):
    """SHA-256 of name and size of every file that pictures come from."""
    paths = {*source.files, *(path for files, _ in source.videos.values() for path in files)}
    rows = sorted((str(path.relative_to(source.root)), path.stat().st_size) for path in paths)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


class CachedPicture:
    """One frame in the sizes that a cache holds: data.py's letterbox takes the right one as it is."""

    def __init__(self, cache, key, row):
        self.cache, self.key, self.row = cache, key, row

    def letterboxed(self, size):
        """(3, size, size) uint8 tensor. ValueError: the cache has no such size."""
        self.cache.require([size])
        top, left, h, w = box(*self.cache.cameras[self.key], size)
        square = np.zeros((3, size, size), np.uint8)
        square[:, top:top + h, left:left + w] = self.cache.rows(self.key, size)[self.row]
        return torch.from_numpy(square)

    @property
    def shape(self):
        size = max(self.cache.sizes)
        return size, size, 3

    def __array__(self, dtype=None, copy=None):
        """The largest size, (S, S, 3) uint8, for who only looks at it."""
        return self.letterboxed(max(self.cache.sizes)).permute(1, 2, 0).numpy()


class FrameCache:
    """The frame_cache folder of a dataset. Attributes: cameras {feature key: (H, W) as recorded}, sizes (list[int]),
    starts (first row of each episode, and the number of rows), checksums {episode: {file: crc32}} of those on disk.
    """

    def __init__(self, root, stored, lengths):
        self.root, self.stored, self.maps = Path(root), stored, {}
        self.sizes, self.cameras = stored["sizes"], {key: tuple(size) for key, size in stored["cameras"].items()}
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        done = self.root / "frame_cache" / "done.jsonl"
        text = done.read_bytes() if done.exists() else b""
        self.noted = text[:text.rfind(b"\n") + 1]   # a run that was killed may have torn the last line
        try:
            self.checksums = {row["episode"]: row["crc32"] for row in map(json.loads, self.noted.splitlines())}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{done} is damaged ({error!r}); remove {self.root} and make it again") from error

    @classmethod
    def open(cls, root, keys, lengths):
        """The finished cache of a dataset folder, or None where it has none. ValueError: one line."""
        path = Path(root) / "frame_cache" / "cache.json"
        if not path.parent.exists():
            return None
        try:
            stored = json.loads(path.read_text())
            if stored["format"] != FORMAT:
                raise ValueError(f"format {stored['format']}")
            cache = cls(root, stored, lengths)
            foreign = stored["dataset"] != fingerprint(cache.root, lengths)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"dataset {root}: {path.parent} is no readable frame cache ({error!r}); make it again"
                             ) from error
        again = f"make it again: python -m support.data --cache DIR {root}"
        if foreign:
            raise ValueError(f"dataset {root}: its frame cache was made for other episodes or another meta/info.json; "
                             f"{again}")
        absent = set(keys) - set(cache.cameras)
        if absent:
            raise ValueError(f"dataset {root}: its frame cache has no pictures of {min(absent)}; {again}")
        if len(cache.checksums) < len(lengths):
            raise ValueError(f"dataset {root}: its frame cache holds {len(cache.checksums)} of {len(lengths)} "
                             f"episodes; finish it: python -m support.data --cache DIR {root}")
        for key in cache.cameras:
            for size in cache.sizes:
                file, expected = cache.file(key, size), int(cache.starts[-1]) * cache.frame_bytes(key, size)
                found = file.stat().st_size if file.exists() else 0
                if found != expected:
                    raise ValueError(f"dataset {root}: {file} has {found} bytes, it was written with {expected}; "
                                     f"{again}")
        return cache

    def require(self, sizes):
        """ValueError where a size is not held."""
        absent = sorted(set(sizes) - set(self.sizes))
        if absent:
            held = " and ".join(map(str, self.sizes))
            wanted = ",".join(map(str, sorted(set(sizes))))
            raise ValueError(f"dataset {self.root}: its frame cache holds pictures of {held} pixels, {absent[0]} are "
                             f"asked for; use the original dataset, or cache it with --sizes {wanted}")

    def picture(self, key, e, t):
        """Frame t of episode e of a camera."""
        return CachedPicture(self, key, self.starts[e] + t)

    def file(self, key, size):
        return self.root / "frame_cache" / key / f"{size}.u8"

    def frame_bytes(self, key, size):
        _, _, h, w = box(*self.cameras[key], size)
        return 3 * h * w

    def rows(self, key, size):
        """All pictures of a camera in one size, (frames, 3, h, w) uint8, mapped into memory on first use."""
        if (key, size) not in self.maps:
            _, _, h, w = box(*self.cameras[key], size)
            shape = (int(self.starts[-1]), 3, h, w)
            self.maps[key, size] = np.asarray(np.memmap(self.file(key, size), np.uint8, "r", shape=shape))
        return self.maps[key, size]

    def __getstate__(self):
        return {**self.__dict__, "maps": {}}   # maps do not travel to workers: they would be copied


# ---- making one ----------------------------------------------------------------------------------

class _Transcode(torch.utils.data.Dataset):
    """Item i: decode episode todo[i] and write its pictures; gives (episode, frames, checksums)."""

    def __init__(self, source, cache, todo):
        self.source, self.cache, self.todo = source, cache, todo

    def __len__(self):
        return len(self.todo)

    def __getitem__(self, i):
        e, cache, checksums = self.todo[i], self.cache, {}
        for view, key in self.source.views.items():
            files = {size: open(cache.file(key, size), "r+b") for size in cache.sizes}
            boxes = {size: box(*cache.cameras[key], size) for size in cache.sizes}
            for size, file in files.items():
                file.seek(int(cache.starts[e]) * cache.frame_bytes(key, size))
            for first in range(0, self.source.lengths[e], BLOCK):
                times = list(range(first, min(first + BLOCK, self.source.lengths[e])))
                for t, picture in zip(times, self.source.frames(view, e, times)):
                    if picture.shape[:2] != cache.cameras[key]:
                        raise ValueError(f"dataset {self.source.root}, episode {e}, frame {t}, '{key}': the picture is "
                                         f"{picture.shape[1]} x {picture.shape[0]}, the first one of this camera is "
                                         f"{cache.cameras[key][1]} x {cache.cameras[key][0]}; cache them apart")
                    for size, file in files.items():
                        top, left, h, w = boxes[size]
                        data = letterbox(picture, size)[:, top:top + h, left:left + w].contiguous().numpy()
                        name = f"{key}/{size}"
                        checksums[name] = zlib.crc32(data, checksums.get(name, 0))
                        file.write(data)
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
        return e, int(self.source.lengths[e]), checksums


def plan(source, out, sizes):
    """The cache to be filled at `out`, begun or not. ValueError: `out` holds something else."""
    if source.cache:
        raise ValueError(f"dataset {source.root} is a frame cache already; cache the original")
    cameras = {key: list(source.frame(view, 0, 0).shape[:2]) for view, key in source.views.items()}
    stored = {"format": FORMAT, "name": source.name, "sizes": sorted(set(sizes)), "cameras": cameras,
              "dataset": fingerprint(source.root, source.lengths), "files": _files_fingerprint(source)}
    path = out / "frame_cache" / "cache.json"
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError:
            found = None
        if found != stored:
            raise ValueError(f"{out} holds a frame cache of another dataset, of other sizes or damaged; remove it, or "
                             f"give another folder")
    elif out.exists() and any(out.iterdir()) and not path.parent.is_dir():
        raise ValueError(f"{out} is not empty and holds no frame cache; give another folder")
    return FrameCache(out, stored, source.lengths)


def estimate(cache):
    """Bytes of all pictures of a cache."""
    frame = sum(cache.frame_bytes(key, size) for key in cache.cameras for size in cache.sizes)
    return int(cache.starts[-1]) * frame


def fill(source, cache, loaders, copy_numbers):
    """Write what a planned cache lacks. copy_numbers(source, out) copies all but the pictures.

    ValueError: one line; what was written stays, and the same call goes on from there.
    """
    folder, frame = cache.root / "frame_cache", estimate(cache) // int(cache.starts[-1])
    lengths = [int(n) for n in source.lengths]
    todo = [e for e in range(len(lengths)) if e not in cache.checksums]
    needed, free = sum(lengths[e] for e in todo) * frame, _free(cache.root)
    # Files are sparse until they are filled, so what is missing is exactly what the open episodes take.
    if needed > 0.98 * free:
        raise ValueError(f"{cache.root}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free there; "
                         f"choose another disk or fewer --sizes")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "cache.json").exists():
        copy_numbers(source, cache.root)
        for key in cache.cameras:
            for size in cache.sizes:
                cache.file(key, size).parent.mkdir(parents=True, exist_ok=True)
                with open(cache.file(key, size), "wb") as file:
                    file.truncate(int(cache.starts[-1]) * cache.frame_bytes(key, size))
        (folder / "cache.tmp").write_text(json.dumps(cache.stored, indent=1) + "\n")
        os.replace(folder / "cache.tmp", folder / "cache.json")
    (folder / "done.jsonl").write_bytes(cache.noted)
    workers = torch.utils.data.DataLoader(_Transcode(source, cache, todo), batch_size=None, num_workers=loaders)
    shown = bar(sum(lengths), sum(lengths) - sum(lengths[e] for e in todo), "frame")
    said = time.monotonic()
    with open(folder / "done.jsonl", "a") as done, shown:
        for n, (e, frames, checksums) in enumerate(workers, len(lengths) - len(todo) + 1):
            done.write(json.dumps({"episode": e, "crc32": checksums}) + "\n")
            done.flush()
            os.fsync(done.fileno())
            shown.update(frames)
            if shown.disable and time.monotonic() - said > 30:
                said = time.monotonic()
                print(f"episode {n} of {len(lengths)}", flush=True)


def verify(cache):
    """Yield (episode, file) of everything that is not as it was written."""
    for e in range(len(cache.starts) - 1):
        for key in cache.cameras:
            for size in cache.sizes:
                rows = cache.rows(key, size)[cache.starts[e]:cache.starts[e + 1]]
                if zlib.crc32(rows) != cache.checksums[e][f"{key}/{size}"]:
                    yield e, cache.file(key, size)


def make(source, out, sizes, loaders, copy_numbers):
    """Decode and resize a dataset's pictures once, into a dataset of its own; check it where it is complete.

    Yields printable lines. copy_numbers(source, out) copies all but the pictures.
    """
    cache = plan(source, out, sizes)
    total = estimate(cache)
    pixels = " and ".join(map(str, cache.sizes))
    yield (f"{source.root}: {len(source.lengths)} episodes, {sum(source.lengths):,} frames of {len(cache.cameras)} "
           f"cameras, at {pixels} pixels: {total / 1e9:.2f} GB")
    if len(cache.checksums) == len(source.lengths):
        damaged = next(verify(cache), None)
        if damaged:
            raise ValueError(f"{damaged[1]} is not as it was written in episode {source.indices[damaged[0]]}; remove "
                             f"{out} and make it again")
        yield f"{out} is complete, every episode as it was written"
    else:
        fill(source, cache, loaders, copy_numbers)
        yield f"wrote {out}; train with --data {out}"
    fits = [name for name, preset in CONFIGS.items()
            if {preset.model.view_size, preset.model.frame_size} <= set(cache.sizes)]
    yield f"it is valid for pictures of {pixels} pixels: {', '.join(fits) or 'no preset'}"


def _free(path):
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
