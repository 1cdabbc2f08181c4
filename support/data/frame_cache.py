"""A dataset whose pictures are decoded and letterboxed once: training maps them into memory.

It is a dataset folder like the original, with frame_cache/ in place of the videos: for each camera, picture size and
episode a file of uint8 pictures, (L, 3, h, w), without the black bars. Letterboxed they equal the plain reader's, bit
for bit. cache.json, written first, says what the files are. A file that is there is whole: what lacks is written."""

import math
import os
import shutil
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

from support.data.file_hashes import contents_digest
from support.data.letterbox import box, letterbox
from support.data.loader import Watched
from support.data.video import LRU
from support.files import must, read_json, save_json, unreadable, written
from support.owner import contents
from support.progress import bar

FORMAT, BLOCK = 2, 64   # of cache.json; frames decoded in one go
_MAPS = LRU(256)        # what names a file -> its pictures, mapped into memory; each holds a descriptor


class CachedPicture:
    """Frame t of episode e in the sizes that a cache holds."""

    def __init__(self, cache, key, e, t):
        self.cache, self.key, self.e, self.t = cache, key, e, t

    def letterboxed(self, size):
        """(3, size, size) uint8. ValueError: the cache has no such size, or its file is gone."""
        self.cache.require([size])
        top, left, h, w = box(*self.cache.cameras[self.key], size)
        try:
            stored = _MAPS.get((self.cache.folder, self.key, size, self.e), lambda: np.asarray(np.memmap(
                self.cache.file(self.key, size, self.e), np.uint8, "r", shape=(self.cache.lengths[self.e], 3, h, w))))
        except (OSError, ValueError) as error:
            raise unreadable(self.cache.file(self.key, size, self.e), error,
                             "the command that made the cache writes it again") from error
        square = np.zeros((3, size, size), np.uint8)
        square[:, top:top + h, left:left + w] = stored[self.t]
        return torch.from_numpy(square)

    def __array__(self, dtype=None, copy=None):
        """The largest size, (S, S, 3) uint8, for who only looks at it."""
        return self.letterboxed(max(self.cache.sizes)).permute(1, 2, 0).numpy()


class FrameCache:
    """The frame_cache folder of a dataset. stored: what cache.json holds, as in `cache_for`; lengths: (E,) frames.
    cameras: {feature key: (H, W) as recorded}; sizes: list[int]; lacking: {feature key: episodes without it}."""

    def __init__(self, root, stored, lengths):
        self.root, self.folder, self.stored = Path(root), Path(root) / "frame_cache", stored
        self.lengths, self.sizes, self.lacking = [int(n) for n in lengths], stored["sizes"], stored["lacking"]
        self.cameras = {key: tuple(size) for key, size in stored["cameras"].items()}

    @classmethod
    def open(cls, root, keys, lengths):
        """The finished cache of a dataset folder, or None where it has none. ValueError: one line."""
        path = Path(root) / "frame_cache" / "cache.json"
        if not path.parent.exists():
            return None
        try:
            stored = read_json(path)
            must(stored.get("format") == FORMAT, f"is of format {stored.get('format')}")
            must(stored["dataset"] == contents_digest(Path(root)), "was made for another meta/")
            cache = cls(root, stored, lengths)
            must(set(keys) <= cache.cameras.keys(), f"has no pictures of {', '.join(set(keys) - cache.cameras.keys())}")
            must(set().union(*cache.lacking.values()) <= set(range(len(lengths))), "names an episode that is not there")
            missing = cache.missing()
            must(not missing, f"holds {len(lengths) - len(missing)} of {len(lengths)} episodes")
            return cache
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = error if type(error) is ValueError else f"cannot be read ({error!r})"
            raise ValueError(f"dataset {root}: its frame cache {reason}: python -m support.data --cache DIR {root} "
                             "finishes one that was begun, any other is to be removed and made again") from error

    def require(self, sizes):
        """ValueError where a size is not held."""
        for absent in sorted({*sizes}.difference(self.sizes)):
            held = " and ".join(map(str, self.sizes))
            raise ValueError(f"dataset {self.root}: its frame cache holds pictures of {held} pixels, {absent} are "
                             f"asked for; use the original dataset, or cache it for this --config")

    def file(self, key, size, e):
        return self.folder / key / str(size) / f"{e:06d}.u8"

    def files(self, e):
        """{file: its bytes} of episode e."""
        return {self.file(key, size, e): 3 * self.lengths[e] * math.prod(box(*self.cameras[key], size)[2:])
                for key, size in product(self.cameras, self.sizes) if e not in self.lacking[key]}

    def missing(self):
        """The episodes of which a file is not there, or of another length: list[int]."""
        return [e for e in range(len(self.lengths)) if not all(
            file.exists() and file.stat().st_size == size for file, size in self.files(e).items())]


def transcode(source, cache, e):
    """Decode an episode and write its pictures -> e. An interruption leaves no half file."""
    for view in source.views_of(e):
        key = source.views[view]
        with ExitStack() as stack:
            files = {size: stack.enter_context(open(stack.enter_context(written(cache.file(key, size, e))), "wb"))
                     for size in cache.sizes}
            for first in range(0, cache.lengths[e], BLOCK):
                pictures = source.frames(view, e, list(range(first, min(first + BLOCK, cache.lengths[e]))))
                for size, file in files.items():
                    top, left, h, w = box(*cache.cameras[key], size)
                    squares = torch.stack([letterbox(picture, size) for picture in pictures])
                    file.write(squares[..., top:top + h, left:left + w].contiguous().numpy())
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
    return e


def cache_for(source, out, sizes):
    """The cache to be filled at `out`, begun or not. ValueError: `out` holds something else."""
    must(not source.cache, f"dataset {source.root} is a frame cache already; cache the original")
    stored = {"format": FORMAT, "dataset": contents_digest(source.root), "sizes": sorted(set(sizes)),
              "cameras": {key: list(source.size(view)) for view, key in source.views.items()},
              "lacking": {key: sorted(source.lacking.get(view, ())) for view, key in source.views.items()}}
    cache = FrameCache(out, stored, source.lengths)
    path = cache.folder / "cache.json"
    must(not path.exists() or read_json(path) == stored, f"{out} holds a frame cache of another dataset or of other "
         "sizes; remove it, or give another folder")
    must(cache.folder.is_dir() or not contents(out), f"{out} is not empty and holds no frame cache; give another one")
    return cache


def fill(source, cache, loaders):
    """Write what a cache lacks. ValueError: one line; what was written stays, and the same call goes on."""
    cache.folder.mkdir(parents=True, exist_ok=True)
    if not (cache.folder / "cache.json").exists():
        shutil.copytree(source.root / "meta", cache.root / "meta", dirs_exist_ok=True)
        for path in {*source.files, *filter(Path.is_file, source.root.iterdir())}:   # and what lies beside: a licence
            to = cache.root / path.relative_to(source.root)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to)
        save_json(cache.folder / "cache.json", cache.stored)
    missing = cache.missing()
    workers = Watched(missing, patience=3600, batch_size=None, num_workers=loaders,
                      collate_fn=partial(transcode, source, cache))   # in the workers
    total = sum(cache.lengths)
    with bar(total, total - sum(cache.lengths[e] for e in missing), "frame") as shown:
        for e in workers:
            shown.update(cache.lengths[e])
