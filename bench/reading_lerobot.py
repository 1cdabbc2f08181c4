"""python -m bench reading synthetic --against lerobot: the reader, the naive reader and the lerobot package, by turns.

All three read the same windows through torch's DataLoader in this process, with one thread, and letterbox alike.
lerobot's package is itself: its dataset class with the decoder that it chooses. What counts is the CPU time of a tuple:
a neighbour on the machine changes it least. Of lerobot, v3.0 is read by 0.4, v2.1 by 0.3: the installed one decides."""

import importlib.util
import os
import resource
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from bench import readers
from bench.latency import processor
from data import letterbox, windows
from support.data.letterbox import fit
from support.data.parquet import arrow
from support.data.source import open_source
from support.data.video import pyav

OURS, THEIRS, STRETCHES = "window by window", "lerobot", f"stretches of {readers.STRETCH}"
DEFAULT = "AV1 GOP 2"   # of readers.CODECS: as lerobot writes
INSTALL = "--against lerobot needs the lerobot package: docs/data.md, Reading speed, has the line that installs it"


def lerobot(folder):
    """Its module of datasets, which keeps what it caches in `folder`. ImportError: one line, it cannot be used."""
    os.environ |= {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    try:
        module = importlib.import_module("lerobot.datasets.lerobot_dataset")
        if importlib.util.find_spec("torchcodec"):   # then it is lerobot's choice
            importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError) as error:   # RuntimeError: without FFmpeg, or of another torch
        raise ImportError(f"{INSTALL} ({str(error).strip().splitlines()[0][:120]})") from error
    return module


class Windows(torch.utils.data.Dataset):
    """What an item of lerobot's holds, by one of the readers of bench/readers.py. together: a batch is a stretch."""

    def __init__(self, reader, source, size, together=False):
        self.reader, self.source, self.size, self.together = reader, source, size, together
        self.rows = windows(source, readers.M, full=True)

    def __getitems__(self, numbers):
        rows, of = self.rows[numbers].tolist(), self.source
        found = (self.reader(of, rows[0][0], [t for _, t in rows]) if self.together else
                 [self.reader(of, e, [t])[0] for e, t in rows])
        numbers = [(*of.numbers(e), t, of.task(e, t)) for e, t in rows]
        return [{"pictures": torch.stack([letterbox(picture, self.size) for picture in pictures]), "task": task,
                 "state": torch.from_numpy(state[t]), "action": torch.from_numpy(action[t])}
                for pictures, (state, action, t, task) in zip(found, numbers)]


def open_theirs(module, root, size):
    """A LeRobotDataset whose items hold three times of three cameras, letterboxed: (3, 3, size, size) float32 each."""
    times = [d / readers.FPS for d in (-readers.M, 0, readers.M)]
    return module.LeRobotDataset("bench/synthetic", root=root, image_transforms=partial(fit, size=size),
                                 delta_timestamps=dict.fromkeys(readers.CAMERAS, times))


def compare(theirs, source, size, tuples):
    """{reader: {cpu_s, wall_s: [seconds of a tuple, for each run]}}, and by how many grey levels the pictures differ at
    most: half a level is rounding, since lerobot's stay float."""
    torch.set_num_threads(1)
    rng, batch, ours = np.random.default_rng(0), readers.STRETCH, Windows(readers.read, source, size)
    datasets = {"naive": Windows(readers.read_naive, source, size), OURS: ours,
                STRETCHES: Windows(readers.read, source, size, together=True), THEIRS: theirs}
    found, seen, apart = {name: {"cpu_s": [], "wall_s": []} for name in datasets}, {}, 0.0
    e, t = ours.rows.T
    numbers_of_theirs = np.cumsum([0, *source.lengths])[e] + t
    firsts = np.flatnonzero(e[:1 - batch] == e[batch - 1:])
    for run in range(-1, readers.RUNS):   # the first one opens what stays open, and is not counted
        drawn, begins = rng.integers(len(e), size=tuples), rng.choice(firsts, max(1, tuples // batch))
        orders = dict.fromkeys(datasets, drawn) | {
            STRETCHES: (begins[:, None] + np.arange(batch)).ravel(), THEIRS: numbers_of_theirs[drawn]}
        for name, dataset in datasets.items():
            cpu, wall = time.process_time(), time.perf_counter()
            for seen[name] in DataLoader(dataset, batch_size=batch, sampler=orders[name].tolist()):
                pass
            for clock, seconds in (("cpu_s", time.process_time() - cpu), ("wall_s", time.perf_counter() - wall)):
                found[name][clock] += [seconds / len(orders[name])] * (run >= 0)
        levels = seen[OURS]["pictures"] - 255 * torch.cat([seen[THEIRS][camera] for camera in readers.CAMERAS], 1)
        apart = max(apart, levels.abs().max().item())
    return found, apart


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
        opener, number = lambda root: Windows(readers.read, open_source(root), size), 0
    before, began = resident(), time.process_time()
    datasets = [opener(root) for root in roots]
    seconds, open_mb = time.process_time() - began, resident() - before
    for dataset in datasets:
        for _ in DataLoader(dataset, sampler=[number]):
            pass
    return {"open_cpu_s": seconds, "open_mb": open_mb, "read_mb": resident() - before}


def many(folder, version, count, size):
    """{reader: what `opened` finds} for links to one dataset; lerobot's is opened again, when it has its cache."""
    codec, gop = readers.CODECS[DEFAULT]
    readers.write_dataset(folder / "0", codec, gop, version)
    roots = [shutil.copytree(folder / "0", folder / str(n + 1), copy_function=os.link) for n in range(count)]
    found = {}
    for name, kind in ((OURS, OURS), ("lerobot, the first time", THEIRS), ("lerobot, again", THEIRS)):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found[name] = pool.submit(opened, kind, roots, size, folder / "cache").result()
    return found


def table(report):
    """Lines, one a dataset and reader; in brackets the lowest and the highest of the runs' own ratios."""
    yield f"{'':<14}{'':<18}{'CPU ms':>8}{'wall ms':>9}{'tuples/s':>10}{'x naive':>20}{'x lerobot':>20}"
    for dataset, rows in report["runs"].items():
        for name, row in rows.items():
            cpu, wall = (1e3 * statistics.median(row[clock]) for clock in ("cpu_s", "wall_s"))
            ratios = ([a / b for a, b in zip(rows[than]["cpu_s"], row["cpu_s"])] for than in ("naive", THEIRS))
            cells = (f"{statistics.median(of):.2f} ({min(of):.2f}-{max(of):.2f})" for of in ratios)
            yield f"{dataset:<14}{name:<18}{cpu:8.1f}{wall:9.1f}{1e3 / cpu:10.1f}" + "".join(f"{c:>20}" for c in cells)
    for name, row in report["many"].items():
        yield (f"{report['datasets']} datasets, {name}: {row['open_cpu_s']:.2f} s of CPU time to open, "
               f"{row['open_mb']:.0f} MB, after a tuple of each {row['read_mb']:.0f} MB")


def run(args, command):
    """Print the comparison -> the report, JSON-able."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        module = lerobot(folder / "cache")
        report = {"command": command, "format": module.CODEBASE_VERSION, "processor": processor(),
                  "films": f"{len(readers.CAMERAS)} cameras, {readers.EPISODES} episodes of {readers.LENGTH} frames, "
                           f"{readers.WIDTH} x {readers.HEIGHT}", "tuples": args.tuples, "size": args.size,
                  "m": readers.M, "runs": {}, "levels_apart": {}}
        for name, (codec, gop) in readers.CODECS.items():
            readers.write_dataset(folder / name, codec, gop, report["format"])
            theirs, source = open_theirs(module, folder / name, args.size), open_source(folder / name)
            report["decoder"] = theirs.video_backend
            report["runs"][name], report["levels_apart"][name] = compare(theirs, source, args.size, args.tuples)
        report |= {"datasets": args.datasets, "many": many(folder / "many", report["format"], args.datasets, args.size)}
    decoder = [report["decoder"]] * (report["decoder"] == "torchcodec")   # else it is PyAV by way of torchvision
    report["versions"] = {name: metadata.version(name) for name in ("lerobot", "torch", "av", *decoder)}
    print(f"LeRobot {report['format']}, decoded by {report['decoder']}; "
          + ", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    print(f"CPU and wall time of a tuple of {args.size} px; median of {readers.RUNS} interleaved runs of {args.tuples} "
          "tuples, one process, one thread; tuples/s of CPU time")
    print("\n".join(table(report)))
    print(f"the pictures differ by at most {max(report['levels_apart'].values()):.2f} grey levels")
    return report
