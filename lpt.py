"""Load-balanced Parallel Training (Sec. 3.4): which worker reads which dataset.

The paper's greedy rule, pi(i) = argmin_k of the summed sizes of worker k, with datasets in descending order of
size: the classic longest-processing-time schedule. With fewer datasets than workers the sorted datasets are
dealt again from the top until every worker has one, each replica with its own seed.

Sampling on top of it: a worker's mass is the summed weight of what it holds (a dataset's weight is shared
equally by its replicas). For every sample the main process draws a worker by mass and the worker draws a dataset
by weight, so on one rank the realised mixture is the wanted one (Table 3), whatever the number of workers.

Across ranks that each draw equally often, a rank's own renormalised weights are what counts, so greedy loads leave an
error in the mixture. `exact` removes it by McNaughton's wrap-around rule: at most K - 1 datasets are split.

    python lpt.py [WORKERS]      the assignment of Table 3's five sources
    python lpt.py --simulate     their 692 M frames cut into many datasets: greedy, round-robin and exact
"""

import random
import sys

# Table 3: name, frames in millions, sampling weight.
TABLE_3 = (("InternData-A1", 396, 0.64), ("RoboTwin", 17, 0.08), ("AgiBot-World (Beta)", 206, 0.18),
           ("RoboMind", 5, 0.02), ("EgoDex", 68, 0.08))


def assign(sizes, workers):
    """sizes: frames of each dataset -> per worker the list of its dataset indices.

    Deterministic: equal sizes go in order of index, equal loads to the lowest worker. Every dataset is held by at
    least one worker and every worker holds at least one dataset. ValueError: no dataset, no worker, empty dataset.
    """
    if not sizes or workers < 1:
        raise ValueError(f"LPT needs at least one dataset and one worker, got {len(sizes)} and {workers}")
    if min(sizes) <= 0:
        raise ValueError(f"dataset {min(range(len(sizes)), key=sizes.__getitem__)} holds no frames")
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    jobs = [order[n % len(order)] for n in range(max(len(order), workers))]   # replication when n < K
    load, held = [0] * workers, [[] for _ in range(workers)]
    for i in jobs:
        # The paper's argmin. Workers without a dataset come first: load 0 is the least, sizes being positive.
        k = min(range(workers), key=load.__getitem__)
        held[k].append(i)
        load[k] += sizes[i]
    return held


def loads(sizes, held):
    """Summed size per worker."""
    return [sum(sizes[i] for i in mine) for mine in held]


def imbalance(sizes, held):
    """Largest load over mean load; 1 is perfect balance."""
    load = loads(sizes, held)
    return max(load) * len(load) / sum(load)


def shares(weights, held):
    """weights: wanted share of each dataset -> per worker the weights of what it holds, replicas sharing equally."""
    replicas = [sum(mine.count(i) for mine in held) for i in range(len(weights))]
    return [[weights[i] / replicas[i] for i in mine] for mine in held]


def exact(weights, workers):
    """Cut the line of all weights into equal parts, one per worker -> per worker {dataset: share of the whole}."""
    total, parts, start = sum(weights), [], 0
    ends = [0.0]
    for weight in weights:
        ends.append(ends[-1] + weight / total)
    for k in range(workers):
        low, high = k / workers, (k + 1) / workers
        while start + 1 < len(weights) and ends[start + 1] <= low:
            start += 1
        part, i = {}, start
        while i < len(weights) and ends[i] < high:
            overlap = min(ends[i + 1], high) - max(ends[i], low)
            if overlap > 0:
                part[i] = overlap
            i += 1
        parts.append(part)
    return parts


def deal(sizes, weights, world, workers, balance="greedy"):
    """Datasets to `world` ranks of `workers` each -> per rank (datasets by worker, their shares of the whole weight).

    greedy: one schedule over all workers, of which rank r has every world-th. exact: `exact` over ranks, and the greedy
    schedule among a rank's own workers.
    """
    if balance == "greedy":
        held = assign(sizes, world * workers)
        own = shares(weights, held)
        return [(held[rank::world], own[rank::world]) for rank in range(world)]
    ranks = []
    for part in exact(weights, world):
        mine = sorted(part)
        held = assign([sizes[i] for i in mine], workers)
        ranks.append(([[mine[i] for i in worker] for worker in held], shares([part[i] for i in mine], held)))
    return ranks


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


def cut_up(datasets, seed=0):
    """Table 3's sources cut into that many datasets of log-normal sizes -> frames, weights (by frames in a source)."""
    rng, sizes, weights = random.Random(seed), [], []
    frames = sum(row[1] for row in TABLE_3)
    for _, millions, weight in TABLE_3:
        raw = [rng.lognormvariate(0, 1) for _ in range(max(1, round(datasets * millions / frames)))]
        mine = [max(1, round(x / sum(raw) * millions * 1e6)) for x in raw]
        sizes += mine
        weights += [weight * size / sum(mine) for size in mine]
    return sizes, weights


BYTES_A_FRAME = 17   # of an opened dataset: 16 of its window list, the rest metadata by episode; measured


def simulate():
    """Printable lines: each rule's load and mixture for growing numbers of datasets and workers, and the memory that
    the fullest worker needs to open what it holds."""
    yield (f"{'datasets':>8}{'workers':>9}  {'rule':<12}{'max/mean load':>14}{'mixture error':>15}"
           f"{'datasets a worker':>19}{'start-up memory':>17}")
    for datasets in (200, 1000, 4000):
        sizes, weights = cut_up(datasets)
        for workers in (8, 64, 512):
            dealt = [list(range(k, len(sizes), workers)) or [k % len(sizes)] for k in range(workers)]
            for rule, held in ("greedy", assign(sizes, workers)), ("round-robin", dealt):
                parts = [dict(zip(mine, own)) for mine, own in zip(held, shares(weights, held))]
                yield _row(sizes, workers, rule, f"{imbalance(sizes, held):.3f}", weights, parts)
            yield _row(sizes, workers, "exact", "-", weights, exact(weights, workers))


def _row(sizes, workers, rule, load, weights, parts):
    held, most = [len(part) for part in parts], max(sum(sizes[i] for i in part) for part in parts)
    return (f"{len(sizes):>8}{workers:>9}  {rule:<12}{load:>14}{mixture_error(weights, parts):>15.4f}"
            f"{f'{min(held)} to {max(held)}':>19}{most * BYTES_A_FRAME / 2 ** 20:>13,.0f} MiB")


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


def main(argv):
    if argv == ["--simulate"]:
        print("\n".join(simulate()))
        return
    if len(argv) > 1 or argv and not argv[0].isdecimal():
        raise ValueError(f"expected a number of workers or --simulate, got '{' '.join(argv)}'")
    workers = int(argv[0]) if argv else 4
    names, sizes, weights = zip(*TABLE_3)
    print("\n".join(table(names, [s * 1_000_000 for s in sizes], weights, deal(sizes, weights, 1, workers))))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        print(f"lpt.py: {error}", file=sys.stderr)
        sys.exit(2)
