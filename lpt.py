"""Load-balanced Parallel Training (Sec. 3.4): which worker reads which dataset.

The paper's greedy rule, pi(i) = argmin_k of the summed sizes of worker k, with datasets in descending order of
size: the classic longest-processing-time schedule. With fewer datasets than workers the sorted datasets are
dealt again from the top until every worker has one, each replica with its own seed.

A worker is no process. It is one of the `lpt_workers` lists of datasets that a rank draws from. [release] With
fewer datasets than workers each holds one, so the paper's load-aware placement of replicas never acts.

Sampling (data.Mixture), [ours]: a worker's mass is the summed weight of its datasets. Replicas share a dataset's
weight. For every sample a worker is drawn by mass, then one of its datasets by weight. So on one rank the mixture is
the wanted one (Table 3), whatever the number of workers.

Every rank draws equally often, but the greedy rule gives ranks unequal weight. So with several ranks the mixture is
off, by 0.04 to 0.13 of it at 64 ranks (--simulate, one worker each). `exact` makes that 0: it splits at most
ranks - 1 datasets (McNaughton's wrap-around rule).

"Each worker materializes only a subset of datasets": a rank opens what `subset` says, see support/data/corpus.py.

    python lpt.py [WORKERS]      the assignment of Table 3's five sources
    python lpt.py --simulate     their 692 M frames cut into many datasets: loads, mixture, and memory of each rank
"""

# Table 3: name, frames in millions, sampling weight.
TABLE_3 = (("InternData-A1", 396, 0.64), ("RoboTwin", 17, 0.08), ("AgiBot-World (Beta)", 206, 0.18),
           ("RoboMind", 5, 0.02), ("EgoDex", 68, 0.08))


def assign(sizes, workers):
    """sizes: s_i, frames of each dataset; workers: K -> pi inverted: of each worker k the datasets i with pi(i) = k.

    Deterministic: equal sizes go in order of index, equal loads to the lowest worker. Every dataset is held by at
    least one worker and every worker holds at least one dataset. ValueError: no dataset, no worker, empty dataset."""
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

    greedy: one schedule over world x workers; rank r takes workers r, r + world, r + 2 world, ... exact: `exact` over
    ranks, then the greedy schedule among a rank's own workers."""
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


def subset(dealt, rank, world):
    """What `deal` returned -> (datasets that `rank` opens, those of them that it counts in sums over ranks).

    world: how many ranks there are. If they are fewer than were dealt to, `rank` draws for `rank`, `rank` + world, ...
    A dataset on several ranks is counted by the lowest."""
    opened = [{i for held, _ in dealt[r::world] for worker in held for i in worker} for r in range(rank + 1)]
    return sorted(opened[rank]), sorted(opened[rank].difference(*opened[:rank]))


if __name__ == "__main__":
    import runpy
    runpy.run_module("support.lpt_cost", run_name="__main__", alter_sys=True)
