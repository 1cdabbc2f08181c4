"""Load-balanced Parallel Training (Sec. 3.4): which worker reads which dataset.

The paper's greedy rule, pi(i) = argmin_k of the summed sizes of worker k, with datasets in descending order of
size: the classic longest-processing-time schedule. With fewer datasets than workers the sorted datasets are
dealt again from the top until every worker has one, each replica with its own seed.

Sampling on top of it: a worker's mass is the summed weight of what it holds (a dataset's weight is shared
equally by its replicas). For every sample the main process draws a worker by mass and the worker draws a dataset
by weight, so on one rank the realised mixture is the wanted one (Table 3), whatever the number of workers.

`python lpt.py` prints the assignment of Table 3's five sources.
"""

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


def table(names, sizes, weights, held):
    """The assignment as printable lines, one per worker."""
    lines = []
    for k, (mine, mass) in enumerate(zip(held, shares(weights, held))):
        load = sum(sizes[i] for i in mine)
        lines.append(f"worker {k}: mass {sum(mass):.3f}  frames {load:>12,}  {', '.join(names[i] for i in mine)}")
    lines.append(f"max/mean load {imbalance(sizes, held):.3f}")
    return lines


def main(argv):
    workers = int(argv[0]) if argv else 4
    names, sizes, weights = zip(*TABLE_3)
    print("\n".join(table(names, [s * 1_000_000 for s in sizes], weights, assign(sizes, workers))))


if __name__ == "__main__":
    main(sys.argv[1:])
