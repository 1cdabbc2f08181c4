"""python -m bench reading DATA | synthetic: training tuples a second from disk, by strategy and codec.

A tuple is the pictures of one window: up to 3 views x (t-m, t, t+m), letterboxed. The rival is the reader that
everybody writes first: open the file, seek, decode, for every picture anew.

--against lerobot: beside that package, on the same windows of synthetic datasets, through torch's DataLoader. It is
itself: its dataset class with the decoder that it chooses. What counts is the CPU time of a tuple: a neighbour on the
machine changes it least. Of lerobot, v3.0 is read by 0.4, v2.1 by 0.3: the installed one decides."""

import importlib.util
import os
import resource
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from bench import readers
from bench.latency import processor
from bench.readers import CACHE, NAIVE, OURS, STRETCHES, THEIRS, Windows
from bench.saving import begin, save
from support.data import frame_cache
from support.data.letterbox import fit
from support.data.parquet import arrow
from support.data.robots import find_robot
from support.data.source import open_source
from support.data.video import pyav
from support.files import must
from support.flags import COUNT, Parser, refuse_ignored, value


def measure(source, args, cache=None):
    """What `readers.timed` finds of a dataset. cache: a frame cache of the same one."""
    datasets = dict.fromkeys((OURS, STRETCHES), Windows(source, args.size))
    if source.videos and not source.cache:   # a frame cache lists the videos that it replaces, but they are not there
        datasets = {NAIVE: Windows(source, args.size, readers.read_naive)} | datasets
    if cache:
        datasets[CACHE] = Windows(cache, args.size)
    return readers.timed(datasets, args.tuples, list)


def lerobot(folder):
    """Its module of datasets, which keeps what it caches in `folder`. ImportError: one line, it cannot be used."""
    os.environ |= {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    try:
        module = importlib.import_module("lerobot.datasets.lerobot_dataset")
        if importlib.util.find_spec("torchcodec"):   # then it is lerobot's choice
            importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError) as error:   # RuntimeError: without FFmpeg, or of another torch
        raise ImportError("--against lerobot needs the lerobot package: docs/data.md, Reading speed, has the line that "
                          f"installs it ({str(error).strip().splitlines()[0][:120]})") from error
    return module


def open_theirs(module, root, size):
    """A LeRobotDataset whose items hold three times of three cameras, letterboxed: (3, 3, size, size) float32 each."""
    times = [d / readers.FPS for d in (-readers.M, 0, readers.M)]
    return module.LeRobotDataset("bench/synthetic", root=root, image_transforms=partial(fit, size=size),
                                 delta_timestamps=dict.fromkeys(readers.CAMERAS, times))


def compare(theirs, source, size, tuples):
    """What `readers.timed` finds, and by how many grey levels the pictures differ at most: half a level is rounding,
    since lerobot's stay float."""
    ours = Windows(source, size, whole=True)
    e, t = ours.rows.T
    theirs = Subset(theirs, (np.cumsum([0, *source.lengths])[e] + t).tolist())   # the same windows, in our order
    naive = Windows(source, size, readers.read_naive, whole=True)
    found = readers.timed({NAIVE: naive, OURS: ours, STRETCHES: ours, THEIRS: theirs}, tuples)
    drawn = np.random.default_rng(1).integers(len(e), size=tuples).tolist()
    levels = [(mine["pictures"] - 255 * torch.cat([other[camera] for camera in readers.CAMERAS], 1)).abs().max().item()
              for mine, other in zip(*(DataLoader(of, sampler=drawn) for of in (ours, theirs)))]
    return found, max(levels)


def opened(kind, roots, size, folder):
    """In a process of its own: seconds to open datasets, and megabytes that they hold beyond the imports, before and
    after one tuple of each is read."""
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

    torch.set_num_threads(1)
    if kind == THEIRS:
        opener, number = partial(open_theirs, lerobot(folder), size=size), readers.M
    else:
        pyav(), arrow()
        opener, number = lambda root: Windows(open_source(root), size, whole=True), 0
    before, began = resident(), time.process_time()
    datasets = [opener(root) for root in roots]
    seconds, open_mb = time.process_time() - began, resident() - before
    for dataset in datasets:
        for _ in DataLoader(dataset, sampler=[number]):
            pass
    return {"open_cpu_s": seconds, "open_mb": open_mb, "read_mb": resident() - before}


def beside_lerobot(args, report):
    """Print the comparison, and put it into the report."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        module = lerobot(folder / "cache")
        report |= {"format": module.CODEBASE_VERSION, "processor": processor(),
                   "films": readers.FILMS, "tuples": args.tuples, "size": args.size, "m": readers.M, "runs": {},
                   "levels_apart": {}}
        for name, root in readers.written_datasets(report["format"]):
            theirs, source = open_theirs(module, root, args.size), open_source(root)
            report["decoder"] = theirs.video_backend
            report["runs"][name], report["levels_apart"][name] = compare(theirs, source, args.size, args.tuples)
        report |= {"datasets": args.datasets, "many": {}}
        readers.write_dataset(folder / "0", *readers.CODECS["AV1 GOP 2"], report["format"])
        roots = [shutil.copytree(folder / "0", folder / str(n), copy_function=os.link)   # links to one dataset
                 for n in range(1, args.datasets + 1)]
        for name, kind in ((OURS, OURS), ("lerobot, the first time", THEIRS), ("lerobot, again", THEIRS)):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                report["many"][name] = pool.submit(opened, kind, roots, args.size, folder / "fresh").result()
    decoder = [report["decoder"]] * (report["decoder"] == "torchcodec")   # else it is PyAV by way of torchvision
    report["versions"] = {name: metadata.version(name) for name in ("lerobot", "torch", "av", *decoder)}
    print(f"LeRobot {report['format']}, decoded by {report['decoder']}; "
          + ", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    print("\n".join(readers.table(report["runs"], "cpu_s", args.size, args.tuples)))
    for name, row in report["many"].items():
        print(f"{args.datasets} datasets, {name}: {row['open_cpu_s']:.2f} s of CPU time to open, "
              f"{row['open_mb']:.0f} MB, after a tuple of each {row['read_mb']:.0f} MB")
    print(f"the pictures differ by at most {max(report['levels_apart'].values()):.2f} grey levels")


def run(argv):
    parser = Parser(prog="python -m bench reading", description=__doc__)
    parser.add_argument("data", help="dataset or frame cache to read; 'synthetic' writes one for each codec")
    parser.add_argument("--robot", help="of support/data/robots.json, or a .json file (default: the dataset's)")
    parser.add_argument("--tuples", type=value(int, COUNT), default=16, help="tuples of one run")
    parser.add_argument("--size", type=value(int, COUNT), default=256, help="pixels of a letterboxed picture")
    parser.add_argument("--against", choices=("lerobot",), help="beside that package, where it is installed")
    parser.add_argument("--datasets", type=value(int, COUNT), default=200, help="how many are opened at once")
    args, path, report = begin(parser, argv)
    refuse_ignored(parser.prog, args, *["--against"] * bool(args.against))
    if args.against:
        must(args.data == "synthetic", f"--against lerobot writes its own datasets: give synthetic, not {args.data}")
        must(not args.robot, "--robot would be ignored: the synthetic datasets have one; drop it")
        beside_lerobot(args, report)
        return save(path, report)
    measured = {}
    if args.data == "synthetic":
        print(readers.FILMS)
        for name, root in readers.written_datasets():
            source, out = open_source(root), root.with_name("cache")
            frame_cache.fill(source, frame_cache.cache_for(source, out, [args.size]), 2)
            measured[name] = measure(source, args, open_source(out))
    else:
        source = open_source(args.data, args.robot and find_robot(args.robot))
        print(f"{args.data}: {len(source.views)} views")
        measured[source.name[:13]] = measure(source, args)
    print("\n".join(readers.table(measured, "wall_s", args.size, args.tuples)))
