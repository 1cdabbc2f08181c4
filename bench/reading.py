"""python -m bench reading DATA | synthetic: training tuples a second from disk, by strategy and codec.

A tuple is the pictures of one window: up to 3 views x (t-m, t, t+m), letterboxed. The rival is the reader that
everybody writes first: open the file, seek, decode, for every picture anew."""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench import readers, reading_lerobot
from bench.readers import RUNS, STRETCH, M, read, read_naive
from bench.saving import place, save
from data import letterbox, windows
from support.data import frame_cache
from support.data.robots import find_robot
from support.data.source import open_source
from support.files import must
from support.flags import COUNT, Parser, refuse_ignored, value


def rate(reader, source, rng, size, stretch, count):
    """Tuples a second, letterboxed, of about `count` windows in stretches that begin anywhere."""
    rows, tuples, began = windows(source, M, full=True), 0, time.perf_counter()
    for first in rng.integers(len(rows), size=max(1, count // stretch)):
        e = int(rows[first, 0])
        found = reader(source, e, [int(t) for episode, t in rows[first:first + stretch] if episode == e])
        for pictures in found:
            torch.stack([letterbox(picture, size) for picture in pictures])
        tuples += len(found)
    return tuples / (time.perf_counter() - began)


def measure(source, size, tuples, cache=None):
    """{strategy: median tuples a second}, by turns, so that a busy neighbour meets each. cache: of the same dataset."""
    torch.set_num_threads(1)   # as in a loader process
    must(len(windows(source, M, full=True)) != 0, f"{source.root}: no episode is longer than {2 * M} frames")
    # A frame cache lists the videos that it replaces, but they are not there.
    strategies = {"naive": (read_naive, source, 1, tuples)} if source.videos and not source.cache else {}
    strategies |= {"window by window": (read, source, 1, tuples),
                   f"stretches of {STRETCH}": (read, source, STRETCH, 2 * tuples)}
    if cache:
        strategies["frame cache"] = (read, cache, 1, 20 * tuples)
    rng, runs = np.random.default_rng(0), {name: [] for name in strategies}
    for _ in range(RUNS):
        for name, (reader, of, stretch, count) in strategies.items():
            runs[name].append(rate(reader, of, rng, size, stretch, count))
    return {name: statistics.median(rates) for name, rates in runs.items()}


def table(measured, size, tuples):
    """Lines, one a dataset. measured: {name: {strategy: tuples a second}}."""
    yield (f"tuples/s of 3 times, letterboxed to {size} px; one process, one thread as in a loader; median of {RUNS} "
           f"interleaved runs of {tuples} tuples (stretches: 2 x, cache: 20 x as many)")
    yield "in brackets: times the naive reader, where there is one"
    yield f"{'':<14}" + "".join(f"{name:>18}" for name in next(iter(measured.values())))
    for dataset, rates in measured.items():
        slow = rates.get("naive")
        yield f"{dataset:<14}" + "".join(
            f"{found:18.1f}" if name == "naive" or not slow else f"{f'{found:.1f} ({found / slow:.2f})':>18}"
            for name, found in rates.items())


def against(args, command):
    """Beside the lerobot package, on the synthetic datasets; --json keeps what is found."""
    must(args.data == "synthetic", f"--against lerobot writes its own datasets: give synthetic, not {args.data}")
    must(not args.robot, "--robot would be ignored: the synthetic datasets have one; drop it")
    path = place(args.json, args.force) if args.json is not None else None
    report = reading_lerobot.run(args, command)
    if path:
        save(path, report)


def run(argv):
    parser = Parser(prog="python -m bench reading", description=__doc__)
    parser.add_argument("data", help="dataset or frame cache to read; 'synthetic' writes one for each codec")
    parser.add_argument("--robot", help="of support/data/robots.json, or a .json file (default: the dataset's)")
    parser.add_argument("--tuples", type=value(int, COUNT), default=16, help="tuples of one run")
    parser.add_argument("--size", type=value(int, COUNT), default=256, help="pixels of a letterboxed picture")
    parser.add_argument("--against", choices=("lerobot",), help="beside that package, where it is installed")
    parser.add_argument("--datasets", type=value(int, COUNT), default=200, help="how many are opened at once")
    parser.add_argument("--json", help="file name under bench/results")
    parser.add_argument("--force", action="store_true", help="write over a finished result")
    args = parser.parse_args(argv)
    refuse_ignored("python -m bench reading", args, *["--against"] * bool(args.against))
    if args.against:
        against(args, "python -m bench reading " + " ".join(argv))
        return
    measured = {}
    if args.data == "synthetic":
        print(f"3 views of {readers.WIDTH} x {readers.HEIGHT}, datasets of {readers.EPISODES} x {readers.LENGTH} "
              "frames written for this")
        for name, (codec, gop) in readers.CODECS.items():
            with tempfile.TemporaryDirectory() as folder:
                root, out = Path(folder) / "videos", Path(folder) / "cache"
                readers.write_dataset(root, codec, gop)
                source = open_source(root)
                frame_cache.fill(source, frame_cache.cache_for(source, out, [args.size]), 2)
                measured[name] = measure(source, args.size, args.tuples, open_source(out))
    else:
        source = open_source(args.data, args.robot and find_robot(args.robot))
        print(f"{args.data}: {len(source.views)} views")
        measured[source.name[:13]] = measure(source, args.size, args.tuples)
    print("\n".join(table(measured, args.size, args.tuples)))
