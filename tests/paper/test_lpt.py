"""Load-balanced Parallel Training (Sec. 3.4): the assignment of datasets to workers, sentence by sentence."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import lpt
import lpt_memory
from support import lpt_cost

CASES = json.loads((Path(__file__).parents[1] / "data" / "lpt_cases.json").read_text())


def some_problems(count, most_datasets, most_workers, smallest=1):
    """Seeded (sizes, workers) with heterogeneous sizes, small ones among them so that ties occur."""
    rng = np.random.default_rng(3)
    for _ in range(count):
        n, workers = int(rng.integers(smallest, most_datasets + 1)), int(rng.integers(1, most_workers + 1))
        yield (10 ** rng.uniform(0, rng.integers(1, 5), n)).astype(int).tolist(), workers


def test_coverage_each_worker_receives_at_least_one_dataset_and_each_dataset_has_a_worker():
    """Sec. 3.4: coverage; our reading adds that no dataset is lost. Replication is for n < K alone."""
    for sizes, workers in some_problems(300, 12, 12):
        held = lpt.assign(sizes, workers)
        assert len(held) == workers and all(held)
        every = sorted(i for mine in held for i in mine)
        assert set(every) == set(range(len(sizes))) and len(every) == max(len(sizes), workers)


@pytest.mark.parametrize("sizes, workers, held", [
    ([7, 5, 4, 3, 2], 2, [[0, 3], [1, 2, 4]]),         # loads 7, 5 -> 9 -> 10 : 10, 11
    ([1, 9, 2, 8], 2, [[1, 0], [3, 2]]),               # descending order of size, not of index
    ([5, 4, 3, 3, 3], 3, [[0], [1, 4], [2, 3]]),       # 5 | 4 | 3 -> 3 + 3 -> 4 + 3
    ([396, 17, 206, 5, 68], 3, [[0], [2], [4, 1, 3]]),  # Table 3: the fourth still goes to the least loaded
    ([396, 17, 206, 5, 68], 4, [[0], [2], [4], [1, 3]]),
])
def test_the_next_dataset_goes_to_the_currently_least_loaded_worker_in_descending_order(sizes, workers, held):
    """Sec. 3.4, the argmin rule, on cases worked out by hand."""
    assert lpt.assign(sizes, workers) == held


def test_every_step_of_the_assignment_obeys_the_argmin():
    """Sec. 3.4: replaying the assignment, each dataset finds its worker least loaded."""
    for sizes, workers in some_problems(200, 12, 6):
        if len(sizes) < workers:
            continue
        held = lpt.assign(sizes, workers)
        where = {i: k for k, mine in enumerate(held) for i in mine}
        load = [0] * workers
        for i in sorted(where, key=lambda i: -sizes[i]):
            if sizes.count(sizes[i]) == 1:             # among equal sizes the order is ours to choose
                assert load[where[i]] == min(load)
            load[where[i]] += sizes[i]


def test_ties_go_to_the_lower_index_and_the_lower_worker():
    """lpt.assign: equal sizes go in order of index, equal loads to the lowest worker."""
    assert lpt.assign([4, 4, 4, 4, 4], 3) == [[0, 3], [1, 4], [2]]
    assert lpt.assign([2, 3, 3, 2], 2) == [[1, 0], [2, 3]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['sizes'])}on{case['workers']}")
def test_the_assignment_is_the_one_of_the_authors_code(case):
    """tests/data/lpt_cases.json, computed by the released code; also where datasets are fewer than workers."""
    held = lpt.assign(case["sizes"], case["workers"])
    assert [set(mine) for mine in held] == [set(mine) for mine in case["held"]]
    assert len(case["sizes"]) >= case["workers"] or all(len(mine) == 1 for mine in held)


@pytest.mark.parametrize("sizes, workers, words", [
    ([5, 0, 3], 2, "dataset 1 holds no frames"), ([], 2, "0 and 2"), ([5], 0, "1 and 0")])
def test_an_empty_dataset_no_dataset_and_no_worker_are_refused(sizes, workers, words):
    """lpt.assign raises a ValueError that says which."""
    with pytest.raises(ValueError, match=words):
        lpt.assign(sizes, workers)


def test_python_lpt_py_prints_the_assignment_of_table_3(capsys):
    """lpt.py: `python lpt.py` prints the assignment of Table 3's five sources; sampling weights sum to 1."""
    assert sum(row[2] for row in lpt.TABLE_3) == pytest.approx(1)
    lpt_cost.main(["4"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].endswith("396,000,000  InternData-A1") and "mass 0.640" in lines[0]
    assert lines[3].endswith("RoboTwin, RoboMind") and "mass 0.100" in lines[3]
    assert lines[4] == "max/mean load 2.289"


def test_the_wrap_around_rule_makes_the_mixture_exact_across_ranks():
    """Sec. 3.4 and Table 3: greedy loads leave an error in the mixture of equally drawing ranks, exact shares none."""
    for datasets, workers in ((5, 2), (5, 8), (200, 8), (37, 64)):
        sizes, weights = lpt_cost.cut_up(datasets)
        parts = lpt.exact(weights, workers)
        assert lpt_cost.mixture_error(weights, lpt.deal(sizes, weights, workers, 1, "exact")) < 1e-12
        assert all(abs(sum(part.values()) - 1 / workers) < 1e-12 for part in parts)
        assert sum(len(part) for part in parts) <= len(weights) + workers - 1
        assert lpt_cost.mixture_error(weights, lpt.deal(sizes, weights, workers, 1)) > 1e-3
    two_ranks = [([[0]], [[0.9]]), ([[1]], [[0.1]])]   # they realise halves, whatever was wanted
    assert lpt_cost.mixture_error([0.9, 0.1], two_ranks) == pytest.approx(0.4)


@pytest.mark.parametrize("balance", ["greedy", "exact"])
def test_every_worker_of_every_rank_has_a_dataset_and_no_weight_is_lost(balance):
    """lpt.deal: over one rank or many, few datasets or many."""
    for datasets, world, workers in ((5, 1, 4), (5, 2, 4), (1, 3, 2), (200, 8, 3), (7, 16, 1)):
        sizes, weights = lpt_cost.cut_up(datasets) if datasets > 5 else ([50, 40, 30, 20, 10][:datasets],
                                                                    [0.4, 0.3, 0.2, 0.06, 0.04][:datasets])
        ranks = lpt.deal(sizes, weights, world, workers, balance)
        assert len(ranks) == world and all(len(held) == workers and all(held) for held, _ in ranks)
        total = np.zeros(len(sizes))
        for mine, share in ((mine, share) for held, own in ranks for mine, share in zip(held, own)):
            total[mine] += share
        assert total == pytest.approx(np.array(weights) / (1 if balance == "greedy" else sum(weights)))


def test_on_one_rank_greedy_and_exact_are_the_papers_schedule():
    """Sec. 3.4: one rank draws its workers by mass, so nothing needs to be split."""
    _, sizes, weights = zip(*lpt.TABLE_3)
    for balance in ("greedy", "exact"):
        [(held, own)] = lpt.deal(sizes, weights, 1, 4, balance)
        assert held == lpt.assign(sizes, 4)
        assert [sum(row) for row in own] == pytest.approx([sum(row) for row in lpt.shares(weights, held)])


def test_exact_balance_removes_the_error_that_greedy_leaves_across_ranks():
    """--balance: the error that is printed at training start, and the line that names the way out."""
    sizes, weights = lpt_cost.cut_up(40)
    names, error = [str(i) for i in range(len(sizes))], {}
    for balance in ("greedy", "exact"):
        ranks = lpt.deal(sizes, weights, 4, 2, balance)
        error[balance] = lpt_cost.mixture_error(weights, ranks)
        lines = lpt_cost.table(names, sizes, weights, ranks)
        assert len(lines) == 4 * 2 + 2 and "of ranks" in lines[-2]
        assert f"mixture error across 4 ranks {error[balance]:.4f}" in lines[-1]
        assert ("--balance exact" in lines[-1]) == (balance == "greedy")
    assert error["greedy"] > 0.01 and error["exact"] < 1e-12


@pytest.mark.parametrize("argv, message", [(["x"], "expected a whole number, got 'x'"), (["0"], "workers must be at least 1, got 0")])
def test_a_number_of_workers_that_is_none_is_refused(argv, message, capsys):
    with pytest.raises(SystemExit):
        lpt_cost.main(argv)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_open_what_all_those_were_dealt_that_they_draw_for_and_count_each_dataset_once(world):
    """Of a schedule for 4: each of 2 ranks draws for two of them, n and n + 2."""
    dealt = lpt.deal([90, 70, 50, 30, 20], [0.2] * 5, 4, 2)
    opened, counted = zip(*(lpt.subset(dealt, rank, world) for rank in range(world)))
    for rank, found in enumerate(opened):
        assert found == sorted({i for n in range(rank, 4, world) for worker in dealt[n][0] for i in worker})
    assert sorted(sum(counted, [])) == [0, 1, 2, 3, 4]


def test_the_simulation_shows_load_mixture_datasets_and_memory(capsys):
    """python lpt.py --simulate: exact shares have no error, a fuller rank needs more memory than the mean; and what was
    measured: of 4 ranks each needs a fraction of what one does."""
    lpt_cost.main(["--simulate"])
    lines = capsys.readouterr().out.splitlines()
    assert "start-up memory" in lines[0] and len(lines) == 37
    rows = [line.replace(",", "").split() for line in lines[1:]]
    assert all(float(row[4]) == 0 for row in rows if row[2] == "exact")
    mean = {ranks: 692e6 * lpt_cost.BYTES_A_FRAME / ranks / 2 ** 20 for ranks in (1, 8, 64, 512)}
    assert all(float(row[-2]) >= 0.99 * mean[int(row[1])] for row in rows)
    found = json.loads((Path(__file__).parents[2] / "bench" / "results" / "lpt_memory.json").read_text())
    needs = {(row["ranks"], row["opens"], row["rank"]): row["peak_mib"] - row["after_import_mib"] for row in found["rows"]}
    assert found["datasets"] == 200 and found["frames"] >= 2e6 and len(needs) == 9
    assert all(needs[4, "what it was dealt", rank] < 0.4 * needs[1, "what it was dealt", 0] for rank in range(4))


def test_what_is_measured_is_the_start_of_a_training_run(tmp_path):
    """tests/lpt_memory.py, small and with ranks in this process: all frames are opened once, with one mean."""
    lpt_memory.write_corpus(tmp_path / "corpus", datasets=12, frames=100_000)
    shared = tmp_path / "corpus", 2, False, [None] * 2, threading.Barrier(2, timeout=300)
    with ThreadPoolExecutor(2) as ranks:
        rows = list(ranks.map(partial(lpt_memory.start_up, *shared), (0, 1)))
    assert 99_900 < sum(row["frames"] for row in rows) < 100_100
    assert rows[0]["mean"] == rows[1]["mean"] > 40
