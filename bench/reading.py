"""python -m bench reading DATA | synthetic: training tuples a second from disk, by strategy and codec.

A tuple is what data.py's example() reads for one window: up to 3 views x (t-m, t, t+m), letterboxed. The rival is the
reader that everybody writes first: open the file, seek, decode, for every picture anew.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from config import DataConfig
from data import letterbox, times, windows
from support.data import frame_cache
from support.data.parquet import arrow
from support.data.source import open_source
from support.data.robots import find_robot
from support.data.video import pyav
from support.flags import Parser

STRETCH, RUNS, OURS = 8, 5, "this reader"
CODECS = {"h264 GOP 2": ("libx264", 2), "h264 GOP 30": ("libx264", 30),
          "AV1 GOP 2": ("libsvtav1", 2), "AV1 GOP 30": ("libsvtav1", 30)}   # AV1 GOP 2 is LeRobot's own default
EPISODES, LENGTH, FPS, HEIGHT, WIDTH = 4, 250, 30, 480, 640
CAMERAS = ("head", "hand_left", "hand_right")


# ---- strategies -------------------------------------------------------------------------------------------------

def naive(source, view, e, t):
    """Frame t of episode e, (H, W, 3) uint8: open, seek, decode on to it. It shares nothing with the reader."""
    files, seconds = source.videos[view]
    target = seconds[e] + t / source.fps
    with pyav().open(str(files[e])) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1   # as the reader: both are run in several processes
        container.seek(int(target / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if frame.time >= target - 0.5 / source.fps:
                return frame.to_ndarray(format="rgb24")


def read_naive(source, m, e, ts):
    return [[naive(source, view, e, at) for view in source.views for at in times(source, m, e, t)] for t in ts]


def read_window(source, m, e, ts):
    """Window by window, as training reads without --stretch."""
    return [[picture for view in source.views for picture in source.frames(view, e, times(source, m, e, t))]
            for t in ts]


def read_stretch(source, m, e, ts):
    """All windows of a stretch at once, as training reads with --stretch."""
    wanted = sorted({at for t in ts for at in times(source, m, e, t)})
    seen = {view: dict(zip(wanted, source.frames(view, e, wanted))) for view in source.views}
    return [[seen[view][at] for view in source.views for at in times(source, m, e, t)] for t in ts]


class Timed:
    """A strategy with a stopwatch. runs: (tuples a second, letterboxed; share of the time spent reading pictures)."""

    def __init__(self, read, source, m, size, stretch=1, share=1):
        self.read, self.source, self.m, self.size, self.stretch, self.share = read, source, m, size, stretch, share
        self.runs = []

    def run(self, rows, rng, count):
        """Read about `count` x share windows, in stretches."""
        decoding, tuples, began = 0.0, 0, time.perf_counter()
        for first in rng.integers(len(rows), size=max(1, round(count * self.share / self.stretch))):
            e = int(rows[first, 0])
            start = time.perf_counter()
            found = self.read(self.source, self.m, e, [int(t) for f, t in rows[first:first + self.stretch] if f == e])
            decoding += time.perf_counter() - start
            for pictures in found:
                torch.stack([letterbox(picture, self.size) for picture in pictures])
            tuples += len(found)
        spent = time.perf_counter() - began
        self.runs.append((tuples / spent, decoding / spent))

    def medians(self):
        """Tuples a second, which is what training waits for, and the share of reading."""
        return tuple(map(statistics.median, zip(*self.runs)))


def measure(source, cache, m, size, tuples):
    """{strategy: Timed}, by turns, so that a busy neighbour meets each. A source that is a frame cache has one."""
    torch.set_num_threads(1)   # as in a loader process
    rows, rng = windows(source, m, full=True), np.random.default_rng(0)
    if len(rows) == 0:
        raise ValueError(f"{source.root}: no episode is longer than {2 * m} frames")
    if source.cache:   # its videos are listed, but not there
        found, cache = {}, source
    else:
        found = {OURS: Timed(read_window, source, m, size),
                 f"stretches of {STRETCH}": Timed(read_stretch, source, m, size, STRETCH, 2)}
        if source.videos:
            found = {"naive": Timed(read_naive, source, m, size), **found}
    if cache:
        found["frame cache"] = Timed(read_window, cache, m, size, share=20)
    for _ in range(RUNS):
        for timed in found.values():
            timed.run(rows, rng, tuples)
    return found


# ---- a dataset to measure on ------------------------------------------------------------------------------------

def film():
    """Frames of a camera: a textured scene that pans, an object that crosses it, sensor noise."""
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (HEIGHT // 16, WIDTH // 8, 3), dtype=np.uint8))
    scene = np.asarray(rough.resize((2 * WIDTH, HEIGHT), Image.Resampling.BICUBIC)) // 2 + 40
    noise = rng.integers(0, 9, (8, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for t in range(EPISODES * LENGTH):
        x, at = int(WIDTH / 2 * (1 + np.sin(t / 40))), 5 * t % (WIDTH - 80)
        picture = scene[:, x:x + WIDTH] + noise[t % 8]
        picture[200:260, at:at + 60] = (200, 30, 60)
        yield picture


def write_video(path, codec, gop):
    """LeRobot's own encoding: yuv420p, crf 30, a key frame every `gop` frames."""
    os.environ.setdefault("SVT_LOG", "1")   # the AV1 encoder speaks of errors only
    with pyav().open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options={"g": str(gop), "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in film():
            container.mux(stream.encode(pyav().VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_dataset(root, codec, gop):
    """A LeRobot v3.0 dataset: three cameras, all episodes in one file each, 14 joints. The cameras see the same."""
    pa, pq = arrow(), arrow().parquet
    n, keys = EPISODES * LENGTH, [f"images.rgb.{camera}" for camera in CAMERAS]
    picture = {"dtype": "video", "shape": [HEIGHT, WIDTH, 3], "names": ["height", "width", "channels"]}
    vector = {"dtype": "float32", "shape": [14], "names": None}
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps({
        "codebase_version": "v3.0", "robot_type": "synthetic", "fps": FPS, "total_episodes": EPISODES,
        "total_frames": n, "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {"observation.state": vector, "action": vector, **{key: picture for key in keys}}}))
    joints = np.random.default_rng(0).normal(size=(n, 14)).astype(np.float32).tolist()
    column = pa.array(joints, pa.list_(pa.float32(), 14))
    pq.write_table(pa.table({"observation.state": column, "action": column}), root / "data/chunk-000/file-000.parquet")
    pq.write_table(pa.Table.from_pylist([
        {"episode_index": e, "tasks": ["reach"], "length": LENGTH, "data/chunk_index": 0, "data/file_index": 0,
         "dataset_from_index": e * LENGTH, "dataset_to_index": (e + 1) * LENGTH} |
        {f"videos/{key}/{what}": value for key in keys for what, value in
         (("chunk_index", 0), ("file_index", 0), ("from_timestamp", e * LENGTH / FPS))}
        for e in range(EPISODES)]), root / "meta/episodes/chunk-000/file-000.parquet")
    paths = [root / f"videos/{key}/chunk-000/file-000.mp4" for key in keys]
    for path in paths:
        path.parent.mkdir(parents=True)
    write_video(paths[0], codec, gop)
    for path in paths[1:]:
        shutil.copy(paths[0], path)


# ---- what is printed --------------------------------------------------------------------------------------------

def table(measured, size, tuples):
    """Lines, one a dataset. measured: {name: {strategy: Timed}}; the naive reader comes first where there is one."""
    yield (f"tuples/s of 3 times, letterboxed to {size} px; one process, one thread as in a loader; median of {RUNS} "
           f"interleaved runs of {tuples} tuples (stretches: 2 x, cache: 20 x as many)")
    yield "in brackets: times the naive reader, where there is one; decoding: its share of this reader's time"
    names = list(next(iter(measured.values())))
    yield f"{'':<14}" + "".join(f"{name:>18}" for name in names) + (f"{'decoding':>10}" if OURS in names else "")
    for dataset, found in measured.items():
        rates = {name: found[name].medians()[0] for name in names}
        slow = rates.get("naive")
        yield f"{dataset:<14}" + "".join(
            f"{rate:18.1f}" if name == "naive" or not slow else f"{f'{rate:.1f} ({rate / slow:.2f})':>18}"
            for name, rate in rates.items()) + (f"{found[OURS].medians()[1]:10.0%}" if OURS in names else "")


def of_dataset(data, m, size, tuples, robot=None):
    """Printable lines for one dataset, or for a frame cache of one; robot: as open_source."""
    source = open_source(data, robot)
    yield f"{data}: {len(source.views)} views"
    yield from table({source.name[:13]: measure(source, None, m, size, tuples)}, size, tuples)


def of_codecs(m, size, tuples):
    """Printable lines for datasets written here, one a codec."""
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (codec, gop) in CODECS.items():
            print(f"writing and reading {name}", file=sys.stderr)
            root, out = Path(folder) / name, Path(folder) / f"{name} cache"
            write_dataset(root, codec, gop)
            source = open_source(root)
            frame_cache.fill(source, frame_cache.cache_for(source, out, [size]), 2)
            measured[name] = measure(source, open_source(out), m, size, tuples)
    yield f"3 views of {WIDTH} x {HEIGHT}, datasets of {EPISODES} x {LENGTH} frames written for this"
    yield from table(measured, size, tuples)


def run(argv):
    parser = Parser(prog="python -m bench reading", description=__doc__)
    parser.add_argument("data", help="dataset or frame cache to read; 'synthetic' writes one for each codec")
    parser.add_argument("--robot", help="of support/data/robots.py, or a .json file (default: the dataset's)")
    parser.add_argument("--tuples", type=int, default=16, help="tuples of one run")
    parser.add_argument("--size", type=int, default=256, help="pixels of a letterboxed picture")
    args = parser.parse_args(argv)
    m, robot = DataConfig.m, args.robot and find_robot(args.robot)
    found = of_codecs(m, args.size, args.tuples) if args.data == "synthetic" else \
        of_dataset(args.data, m, args.size, args.tuples, robot)
    for line in found:
        print(line, flush=True)
