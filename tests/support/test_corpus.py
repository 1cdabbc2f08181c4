"""A rank opens the datasets it was dealt and no others (Sec. 3.4), and several ranks know what one would."""

import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

import lpt
import support.data.corpus
import support.data.kept_statistics
import train
from data import open_corpus, windows
from support.data.corpus import Corpus
from support.data.kept_statistics import statistics_by_robot
from support.data.source import glance, open_source
from support.training.ranks import Ranks

from lpt_memory import Meeting
from test_bad_input import RUN, write_folder

SETTINGS = 3, 4, "absolute", 1e-3   # m, k, action mode, floor


@pytest.fixture
def mixture(tmp_path):
    """Six datasets of two robots, one of them human video, of 12 to 32 frames."""
    rows = []
    for i in range(6):
        numbers = {key: np.random.default_rng([i, j]).normal(i, 1 + i, (12 + 4 * i, 6)) for j, key in
                   enumerate(("state", "action"))}
        if i == 2:
            numbers["action"] = None
        write_folder(tmp_path / f"set{i}", T=12 + 4 * i, robot=np.array("arm" if i < 4 else "leg"), **numbers)
        rows.append({"path": f"set{i}", "weight": 1 + i})
    (tmp_path / "mixture.json").write_text(json.dumps({"datasets": rows}))
    return tmp_path


@pytest.fixture
def opened(monkeypatch):
    """Names of the datasets that are opened, in order."""
    names = []

    def noted(path, robot):
        names.append(path.name)
        return open_source(path, robot)
    monkeypatch.setattr(support.data.corpus, "open_source", noted)
    return names


def deal(corpus, world, workers=1):
    return lpt.deal(corpus.frames, corpus.weights, world, workers)


def rank_of(path, rank, world, workers=1):
    """What a rank of a training run opens."""
    corpus = Corpus.read(path)
    return corpus.open(partial(windows, m=3), *lpt.subset(deal(corpus, world, workers), rank, world), evaluates=rank == 0)


def test_rank_1_of_4_never_opens_a_dataset_that_it_was_not_dealt(mixture, opened):
    """Sec. 3.4: "each worker materializes only a subset of datasets"; nor does it open what is held out."""
    corpus = rank_of(mixture, 1, 4)
    (dealt,), _ = deal(corpus, 4)[1]
    assert opened == [f"set{i}" for i in dealt] and sorted(corpus.sources) == sorted(corpus.windows) == dealt
    assert len(dealt) < 6 and corpus.held_out is None and corpus.held_out_robot == "arm"
    list(corpus.preflight(3))
    assert len(opened) == len(dealt)


def test_the_ranks_together_hold_what_one_holds_and_count_every_dataset_once(mixture):
    """Held out is one episode, wherever its dataset is trained on; a replica is counted by its lowest rank."""
    whole = open_corpus(mixture, 3)
    for world, workers in ((2, 1), (4, 2), (9, 1)):
        parts = [rank_of(mixture, rank, world, workers) for rank in range(world)]
        assert sorted(i for part in parts for i in part.counted) == list(range(6))
        assert all((rows == whole.windows[i]).all() for part in parts for i, rows in part.windows.items())
        assert all(set(part.counted) <= set(part.sources) for part in parts)
        assert (parts[0].held_out_windows == whole.held_out_windows).all()


def test_metadata_alone_say_what_the_opened_dataset_is(mixture):
    for row in Corpus.read(mixture).listed:
        source = open_source(row.path)
        expected = source.name, source.robot, sum(source.lengths), source.has_action
        assert glance(row.path) == expected == (row.name, row.robot, row.frames, row.has_action)


def on_ranks(world, work):
    """work(rank, ranks) on so many threads that meet -> its results by rank."""
    board, barrier = [None] * world, threading.Barrier(world, timeout=300)
    with ThreadPoolExecutor(world) as threads:
        return list(threads.map(lambda rank: work(rank, Meeting(rank, board, barrier)), range(world)))


@pytest.mark.parametrize("sample", [2_000_000, 40], ids=["all windows", "a sample"])
def test_statistics_over_several_ranks_are_those_of_one(mixture, monkeypatch, sample):
    """Every window, or the same sample of them, to the bit, which a run that is resumed on other ranks needs where
    statistics cannot be kept; the file that one rank kept is read by three."""
    monkeypatch.setattr(support.data.kept_statistics, "SAMPLE", sample)
    [(alone, lines)] = on_ranks(1, lambda rank, ranks: statistics_by_robot(rank_of(mixture, 0, 1), *SETTINGS, ranks=ranks))
    assert list(alone) == ["arm", "leg"] and all("computed" in line for line in lines)
    kept = sorted((mixture / "statistics").iterdir())
    for world in (2, 3, 7):
        for path in kept:
            path.rename(path.with_suffix(".away"))
        for found, _ in on_ranks(world, lambda rank, ranks: statistics_by_robot(
                rank_of(mixture, rank, world), *SETTINGS, ranks=ranks)):
            assert found == alone
        assert sorted((mixture / "statistics").glob("*.json")) == kept       # under the same hash
        for path in kept:
            path.with_suffix(".away").rename(path)
    for found, lines in on_ranks(3, lambda rank, ranks: statistics_by_robot(rank_of(mixture, rank, 3), *SETTINGS, ranks=ranks)):
        assert found == alone and lines == [f"statistics: {path}" for path in
                                            sorted(kept, key=lambda path: "leg" in path.read_text())]


def test_datasets_of_one_robot_that_differ_are_refused_across_ranks(mixture):
    """A rank sees only its own; what is the same in all is compared when moments meet."""
    numbers = {key: np.zeros((28, 5)) for key in ("state", "action")}
    write_folder(mixture / "narrow", T=28, robot=np.array("leg"), **numbers)
    stored = json.loads((mixture / "mixture.json").read_text())
    stored["datasets"].append({"path": "narrow"})
    (mixture / "mixture.json").write_text(json.dumps(stored))

    def refused(rank, ranks):
        with pytest.raises(ValueError, match=r"has state and action dimensions \(6, 6\) in dataset set4"):
            statistics_by_robot(rank_of(mixture, rank, 7), *SETTINGS, ranks=ranks)
    on_ranks(7, refused)


# ---- a run of two processes --------------------------------------------------------------------------------

def child(rank, port, mixture):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    names = []

    def noted(path, robot):
        names.append(path.name)
        return open_source(path, robot)
    support.data.corpus.open_source = noted
    for name, more in (("ddp", []), ("fsdp", ["--shard"])):
        train.run(["--data", str(mixture), "--out", str(mixture / name), "--m", "3", *RUN, *more])
    (mixture / f"opened{rank}").write_text(json.dumps(names))
    Ranks.close()


def test_two_ranks_train_and_validate_on_what_the_first_has_opened(mixture):
    """gloo. The held-out losses of DDP and FSDP2 are equal; both ranks of the latter go through the forward pass."""
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.start_processes(child, (port, mixture), nprocs=2, start_method="fork")
    held = [[json.loads(line)["held_out"] for line in (mixture / name / "log.jsonl").read_text().splitlines()
             if "held_out" in line] for name in ("ddp", "fsdp")]
    assert len(held[0]) == len(held[1]) == 1 and held[1][0] == pytest.approx(held[0][0], rel=1e-4)
    corpus = Corpus.read(mixture)
    for rank in (0, 1):
        dealt = lpt.subset(deal(corpus, 2, 4), rank, 2)[0]
        names = [f"set{i}" for i in dealt]
        split = corpus.listed.index(corpus.held)
        names += [f"set{split}"] if rank == 0 and split not in dealt else []
        assert json.loads((mixture / f"opened{rank}").read_text()) == names * 2
        assert len(dealt) < 6
