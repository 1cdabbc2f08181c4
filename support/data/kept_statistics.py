"""Statistics are kept beside the dataset, in statistics/, under a hash of all that they depend on."""

import hashlib
import time
from dataclasses import asdict

import numpy as np

from support.data import file_hashes, statistics
from support.data.statistics import Alone, Statistics, gathered, inputs_of, kinds_of

FORMAT = 3   # of what is kept and how it is computed: raise it when either changes


def statistics_by_robot(corpus, *settings, ranks=Alone()):
    """An opened Corpus -> {robot: Statistics} of those with actions, lines that say where each is kept.
    settings: as of kept_statistics, from m to bad."""
    found, lines = {}, []
    for robot in corpus.robots:
        own = {i: corpus.sources[i] for i in corpus.counted if corpus.sources[i].robot == robot}
        found[robot], line = kept_statistics(corpus.root, own, corpus.windows, *settings, ranks=ranks)
        lines.append(line)
    if not found:
        raise ValueError("no dataset of the mixture has actions: nothing to standardise, nothing to act on")
    return found, lines


def kept_statistics(folder, sources, window_lists, m, k, action_mode, std_floor, bad=None, ranks=Alone()):
    """`statistics`, taken from `folder`/statistics where they were computed before -> Statistics, a line that says so.
    The first rank reads and writes. ValueError, also: a kept file is damaged or was edited."""
    began, problems = time.perf_counter(), []
    identities = gathered(ranks, {i: source.identity() | {
        "robot": source.robot, "relative": list(source.relative), "inputs": inputs_of(source),
        "kinds": kinds_of(source),
        "windows": hashlib.sha256(np.ascontiguousarray(window_lists[i]).tobytes()).hexdigest()}
        for i, source in sources.items() if source.has_action})
    depends = {"format": FORMAT, "m": m, "k": k, "action_mode": action_mode, "std_floor": std_floor,
               "sample": [statistics.SAMPLE, statistics.SAMPLE_SEED], "sources": list(identities.values())}
    path = folder / file_hashes.FOLDER / f"{action_mode}_{file_hashes.digest(depends)[:16]}.json"
    stored = ranks.agree(file_hashes.read_json(path)["statistics"] if ranks.first and path.exists() else None)
    if stored:
        return Statistics.from_dict(stored), f"statistics: {path}"

    def count(error):
        problems.append(error)
        bad(error)
    stats = statistics.statistics(sources, window_lists, k, action_mode, std_floor, bad and count, ranks)
    line = f"statistics: computed in {time.perf_counter() - began:.1f} s"
    if any(ranks.gather(len(problems))):
        return stats, f"{line}, not kept because of bad episodes"
    try:
        if ranks.first:
            file_hashes.write_json(path, {"depends_on": depends, "statistics": asdict(stats)})
    except OSError as error:
        return stats, f"{line}, not kept: {path.parent} cannot be written ({error.strerror})"
    return stats, f"{line}, kept in {path}"
