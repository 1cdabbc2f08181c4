"""Peak memory of real processes that start as ranks of a run do, with what LPT deals them and with everything.

    python tests/lpt_memory.py [FILE]     2.1 M frames in 200 datasets; a minute. FILE: the figures as JSON"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import lpt                                                                                     # noqa: E402
from data import windows                                                                       # noqa: E402
from support.data.corpus import Corpus                                                         # noqa: E402
from support.data.kept_statistics import statistics                                            # noqa: E402
from support.data.statistics import Alone                                                      # noqa: E402
from support.lpt_cost import cut_up                                                            # noqa: E402

DATASETS, FRAMES, EPISODE, DIMENSIONS = 200, 2_100_000, 500, 14   # frames of an episode; of state and of action


def write_corpus(root, datasets=DATASETS, frames=FRAMES):
    """A mixture of plain folders cut up as Table 3, with pictures of one pixel in sparse files."""
    (sizes, weights), listed = cut_up(datasets), []
    for i, size in enumerate(sizes):
        folder, length = root / f"{i:04d}", max(2, round(size * frames / sum(sizes)))
        folder.mkdir(parents=True)
        ends = np.append(np.arange(EPISODE, length, EPISODE), length)
        rows = np.arange(length, dtype=np.float32)[:, None] % 97 * np.ones(DIMENSIONS, np.float32)
        np.savez_compressed(folder / "episode.npz", state=rows, action=rows + 1, task=np.full(len(ends), "go"), fps=30,
                            ends=ends, robot="synthetic")
        np.lib.format.open_memmap(folder / "head.npy", "w+", np.uint8, (length, 1, 1, 3))
        listed.append({"path": folder.name, "weight": weights[i]})
    (root / "mixture.json").write_text(json.dumps({"datasets": listed}))


class Meeting(Alone):
    """Several processes of one machine. board: a list that all see; their barrier."""

    def __init__(self, rank, board, barrier):
        self.rank, self.board, self.barrier, self.first = rank, board, barrier, rank == 0

    def gather(self, value):
        self.board[self.rank] = value
        self.barrier.wait()
        values = list(self.board)
        self.barrier.wait()
        return values


def peak():
    """Most memory that this process has held, MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def start_up(root, world, everything, board, barrier, rank):
    """One rank's start: deal, open, windows, statistics -> its figures. everything: it opens all datasets."""
    imports, corpus = peak(), Corpus.read(root)
    dealt, counted = lpt.subset(lpt.deal(corpus.frames, corpus.weights, world, 4), rank, world)
    corpus.open(partial(windows, m=15), None if everything else dealt, counted, evaluates=rank == 0)
    own = {i: corpus.sources[i] for i in counted}
    stats = statistics(own, corpus.windows, 50, "absolute", 1e-3, ranks=Meeting(rank, board, barrier))
    return {"ranks": world, "opens": "everything" if everything else "what it was dealt", "rank": rank,
            "datasets": len(corpus.sources), "after_import_mib": imports, "peak_mib": peak(),
            "frames": sum(corpus.frames[i] for i in corpus.sources), "mean": stats.state_mean[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="where the figures go, as JSON")
    args = parser.parse_args()
    context, rows = multiprocessing.get_context("spawn"), []
    with tempfile.TemporaryDirectory() as folder, context.Manager() as manager:
        write_corpus(Path(folder))
        for world, everything in ((1, False), (4, False), (4, True)):
            board, barrier = manager.list([None] * world), manager.Barrier(world)
            with ProcessPoolExecutor(world, context) as processes:   # none is used twice: all meet
                rows += processes.map(partial(start_up, Path(folder), world, everything, board, barrier), range(world))
    for row in rows:
        print(f"{row['ranks']} ranks, rank {row['rank']} opens {row['opens']}, {row['datasets']} datasets: peak "
              f"{row['peak_mib']:.0f} MiB, {row['peak_mib'] - row['after_import_mib']:.0f} MiB without imports")
    if args.file:
        found = {"datasets": DATASETS, "frames": FRAMES, "dimensions": DIMENSIONS, "rows": rows}
        args.file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
