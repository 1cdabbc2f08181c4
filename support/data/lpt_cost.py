"""What an assignment of lpt.py looks like and costs: its table, a simulation, and peak memory of real processes.

    python lpt.py [WORKERS] | --simulate | --measure
"""

import json
import multiprocessing
import random
import resource
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

import lpt
from support.data.corpus import Corpus
from support.data.statistics import statistics
from support.progress import bar

MEASURED = Path(__file__).parents[2] / "bench" / "results" / "lpt_memory.json"
MIB = 2 ** 20


# ---- of an assignment ---------------------------------------------------------------------------

def loads(sizes, held):
    """Summed size per worker."""
    return [sum(sizes[i] for i in mine) for mine in held]


def imbalance(sizes, held):
    """Largest load over mean load; 1 is perfect balance."""
    load = loads(sizes, held)
    return max(load) * len(load) / sum(load)


def parts_of(ranks):
    """What `deal` returned -> per rank {dataset: share}, for `mixture_error`."""
    parts = []
    for held, own in ranks:
        part = {}
        for i, share in ((i, share) for mine, row in zip(held, own) for i, share in zip(mine, row)):
            part[i] = part.get(i, 0) + share
        parts.append(part)
    return parts


def mixture_error(weights, parts):
    """Total variation between the wanted mixture and that of ranks which draw equally often, each from its own parts.

    parts: per rank {dataset: weight}. 0 is exact, 1 is disjoint.
    """
    total, realised = sum(weights), [0.0] * len(weights)
    for part in parts:
        mass = sum(part.values())
        for i, weight in part.items():
            realised[i] += weight / mass / len(parts)
    return sum(abs(weight / total - r) for weight, r in zip(weights, realised)) / 2


def table(names, sizes, weights, ranks):
    """What `deal` returned as printable lines: one per worker, then load, and between ranks the mixture's error."""
    lines = []
    for rank, (held, own) in enumerate(ranks):
        for k, (mine, mass) in enumerate(zip(held, own)):
            load, who = sum(sizes[i] for i in mine), f"rank {rank} worker {k}" if len(ranks) > 1 else f"worker {k}"
            lines.append(f"{who}: mass {sum(mass):.3f}  frames {load:>12,}  {', '.join(names[i] for i in mine)}")
    lines.append(f"max/mean load {imbalance(sizes, [mine for held, _ in ranks for mine in held]):.3f}")
    if len(ranks) > 1:
        error = mixture_error(weights, parts_of(ranks))
        lines[-1] += f", of ranks {imbalance(sizes, [sum(held, []) for held, _ in ranks]):.3f}"
        lines.append(f"mixture error across {len(ranks)} ranks {error:.4f} (total variation)"
                     + (": --balance exact makes it 0" if error > 1e-9 else ""))
    return lines


# ---- simulation ---------------------------------------------------------------------------------

def cut_up(datasets, seed=0):
    """Table 3's sources cut into that many datasets of log-normal sizes -> frames, weights (by frames in a source)."""
    rng, sizes, weights = random.Random(seed), [], []
    frames = sum(row[1] for row in lpt.TABLE_3)
    for _, millions, weight in lpt.TABLE_3:
        raw = [rng.lognormvariate(0, 1) for _ in range(max(1, round(datasets * millions / frames)))]
        mine = [max(1, round(x / sum(raw) * millions * 1e6)) for x in raw]
        sizes += mine
        weights += [weight * size / sum(mine) for size in mine]
    return sizes, weights


BYTES_A_FRAME = 17   # of an opened LeRobot dataset: 16 of its window list, the rest metadata by episode; measured


def simulate():
    """Printable lines: each rule's load and mixture for growing numbers of datasets and ranks, and the memory that the
    fullest rank needs to open what it was dealt; then what was measured."""
    yield (f"{'datasets':>8}{'ranks':>9}  {'rule':<12}{'max/mean load':>14}{'mixture error':>15}"
           f"{'datasets a rank':>19}{'start-up memory':>17}")
    for datasets in (200, 1000, 4000):
        sizes, weights = cut_up(datasets)
        for ranks in (1, 8, 64, 512):
            dealt = [list(range(k, len(sizes), ranks)) or [k % len(sizes)] for k in range(ranks)]
            for rule, held in ("greedy", lpt.assign(sizes, ranks)), ("round-robin", dealt):
                parts = [dict(zip(mine, own)) for mine, own in zip(held, lpt.shares(weights, held))]
                yield _row(sizes, ranks, rule, f"{imbalance(sizes, held):.3f}", weights, parts)
            yield _row(sizes, ranks, "exact", "-", weights, lpt.exact(weights, ranks))
    if MEASURED.exists():
        yield from ("", "measured:", *measured_lines(json.loads(MEASURED.read_text())))


def _row(sizes, ranks, rule, load, weights, parts):
    held, most = [len(part) for part in parts], max(sum(sizes[i] for i in part) for part in parts)
    return (f"{len(sizes):>8}{ranks:>9}  {rule:<12}{load:>14}{mixture_error(weights, parts):>15.4f}"
            f"{f'{min(held)} to {max(held)}':>19}{most * BYTES_A_FRAME / MIB:>13,.0f} MiB")


# ---- measurement --------------------------------------------------------------------------------

DATASETS, FRAMES, EPISODE, DIMENSIONS = 200, 2_100_000, 500, 14   # frames of an episode; of state and of action


def write_corpus(root, datasets=DATASETS, frames=FRAMES):
    """A mixture of plain folders cut up as Table 3, pictures of one pixel in sparse files -> frames of each dataset."""
    sizes, weights = cut_up(datasets)
    lengths = [max(2, round(size * frames / sum(sizes))) for size in sizes]
    shown = bar(len(lengths), unit="dataset", what="writing")
    for i, length in enumerate(lengths):
        folder = root / f"{i:04d}"
        folder.mkdir(parents=True)
        ends = np.append(np.arange(EPISODE, length, EPISODE), length)
        rows = np.arange(length, dtype=np.float32)[:, None] % 97 * np.ones(DIMENSIONS, np.float32)
        np.savez_compressed(folder / "episode.npz", state=rows, action=rows + 1, task=np.full(len(ends), "go"), fps=30,
                            ends=ends, robot="synthetic")
        np.lib.format.open_memmap(folder / "head.npy", "w+", np.uint8, (length, 1, 1, 3))
        shown.update()
    shown.close()
    rows = [{"path": f"{i:04d}", "weight": weight} for i, weight in enumerate(weights)]
    (root / "mixture.json").write_text(json.dumps({"datasets": rows}))
    return lengths


class Meeting:
    """Ranks that meet in one machine: what is used of support.training.ranks.Ranks. board: a list that all of them see;
    barrier: one of threads or of processes."""

    def __init__(self, rank, board, barrier):
        self.rank, self.board, self.barrier, self.first = rank, board, barrier, rank == 0

    def gather(self, value):
        """The values of all ranks, by rank."""
        self.board[self.rank] = value
        self.barrier.wait()
        values = list(self.board)
        self.barrier.wait()
        return values

    def agree(self, value):
        """Rank 0's value."""
        return self.gather(value)[0]


def _peak():
    """Most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def start_up(rank, world, root, windows, board, barrier, found, everything=False):
    """One rank's start: deal, open, windows, statistics. Puts its figures into `found`. everything: it opens all."""
    before, ranks = _peak(), Meeting(rank, board, barrier)
    corpus = Corpus.read(root)
    dealt, counted = lpt.subset(lpt.deal(corpus.frames, lpt.normalised(corpus.weights), world, 4), rank)
    corpus.open(partial(windows, m=15), None if everything else dealt, counted, evaluates=rank == 0)
    own = {i: corpus.sources[i] for i in counted}
    stats = statistics(own, corpus.windows, 50, "absolute", 1e-3, ranks=ranks)
    found.put({"rank": rank, "datasets": len(corpus.sources), "after_import_mib": round(before, 1),
               "peak_mib": round(_peak(), 1), "frames": sum(corpus.frames[i] for i in corpus.sources),
               "mean": stats.state_mean[0]})


def measure(windows, datasets=DATASETS, frames=FRAMES):
    """Start real processes on a synthetic corpus, at 1 and 4 ranks -> a row for each rank; and 4 ranks that open every
    dataset, as readers without LPT do. windows: data.windows."""
    context, rows = multiprocessing.get_context("spawn"), []
    with tempfile.TemporaryDirectory() as folder, context.Manager() as manager:
        root = Path(folder) / "corpus"
        write_corpus(root, datasets, frames)
        for world, everything in ((1, False), (4, False), (4, True)):
            board, barrier, found = manager.list([None] * world), manager.Barrier(world), manager.Queue()
            shared = root, windows, board, barrier, found, everything
            ranks = [context.Process(target=start_up, args=(rank, world, *shared)) for rank in range(world)]
            for process in ranks:
                process.start()
            for process in ranks:
                process.join()
            if any(process.exitcode for process in ranks):
                raise ValueError(f"a rank of {world} failed, see above")
            opens = "everything" if everything else "what it was dealt"
            rows += [{"ranks": world, "opens": opens} | row
                     for row in sorted((found.get() for _ in ranks), key=lambda row: row["rank"])]
    return {"datasets": datasets, "frames": frames, "dimensions": DIMENSIONS, "rows": rows}


def measured_lines(found):
    """What `measure` returned -> printable lines."""
    yield (f"{found['datasets']} plain folders, {found['frames']:,} frames, {found['dimensions']} dimensions of state "
           f"and of action, which this reader holds in memory; peak of each process, and what of it is not imports")
    yield f"{'ranks':>8}{'rank':>6}{'opens':>20}{'datasets':>10}{'frames':>12}{'peak':>12}{'without imports':>17}"
    for row in found["rows"]:
        yield (f"{row['ranks']:>8}{row['rank']:>6}{row['opens']:>20}{row['datasets']:>10}{row['frames']:>12,}"
               f"{row['peak_mib']:>8,.0f} MiB{row['peak_mib'] - row['after_import_mib']:>13,.0f} MiB")


# ---- the command --------------------------------------------------------------------------------

def main(argv, windows=None):
    """Print what `argv` asks for. ValueError: it asks for nothing that is known."""
    if argv == ["--simulate"]:
        print("\n".join(simulate()))
    elif argv == ["--measure"]:
        found = measure(windows)
        MEASURED.write_text(json.dumps(found, indent=1) + "\n")
        print("\n".join([*measured_lines(found), f"wrote {MEASURED}"]))
    elif len(argv) > 1 or argv and not argv[0].isdecimal():
        raise ValueError(f"expected a number of workers, --simulate or --measure, got '{' '.join(argv)}'")
    else:
        workers = int(argv[0]) if argv else 4
        names, sizes, weights = zip(*lpt.TABLE_3)
        print("\n".join(table(names, [s * 1_000_000 for s in sizes], weights, lpt.deal(sizes, weights, 1, workers))))


def run(argv, windows):
    """`main` as a command -> exit code."""
    try:
        main(argv, windows)
    except ValueError as error:
        print(f"lpt.py: {error}", file=sys.stderr)
        return 2
    return 0
