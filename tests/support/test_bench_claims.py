"""python -m bench claims: the same runs for every arm, no finished result lost. And the commands as they are typed."""

import functools
import itertools
import json
import math
import re
import signal
import statistics
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import bench.__main__ as bench
from bench import ceilings, claims, saving
from config import CONFIGS
from worlds import conveyor


LOSS = {"full": 4e-3, "lambda 0": 16e-3}   # where held-out L_act is least; of all other arms at 2e-3


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Processes replaced: held-out L_act follows from arm and learning rate, and what is taken is the only object of a
    scene -> the jobs that were asked for."""
    asked = []

    def run(self, name, flags, eval_seed, episodes):
        arm = "lambda 0" if flags.get("lambda_gen") == 0.0 else "full" if set(flags) == {
            "lr", "steps", "decay_steps", "seed"} else "other"
        asked.append((arm, float(flags["lr"]), flags["steps"], flags["seed"], eval_seed, episodes))
        held_out = {"loss_act": abs(math.log(float(flags["lr"]) / LOSS.get(arm, 2e-3)))}
        rows = {suite: {"success": 0.9 - 0.1 * flags["seed"], "outcomes": "".join(
            "m" if scene.distractor else "t" for scene in conveyor.settings(suite, episodes, eval_seed))}
                for suite in ("static", "dynamic")}
        return {"device": "CPU", "steps": flags["steps"], "held_out": held_out} | (
            {f"euler {n}": rows for n in (1, 2, 10)} if episodes else {})
    monkeypatch.setattr(claims.Trials, "run", run)
    monkeypatch.setattr(claims.conveyor, "prepare", lambda root: None)
    monkeypatch.setattr(claims, "ceilings", lambda *_: {"perfect": {"static": 100.0, "dynamic": 100.0}})
    monkeypatch.setattr(saving, "RESULTS", tmp_path)
    return asked


def test_a_rate_is_chosen_by_held_out_loss_and_never_at_the_edge_of_what_was_tried(runs, tmp_path, capsys):
    bench.run(["claims", "arms", "--steps", "10", "--seeds", "2", "--eval_seed", "100", "--only",
               "full;lambda 0;target z_t"])
    result = json.loads((tmp_path / "arms.json").read_text())
    assert result["rates"] == {"full": 4e-3, "lambda 0": 16e-3, "target z_t": 2e-3} and result["finished"]
    tried = {arm: sorted(rate for name, rate, _, seed, *_ in runs if (name, seed) == (arm, 0))
             for arm in ("full", "lambda 0", "other")}
    assert tried == {"full": [2e-3, 4e-3, 8e-3], "lambda 0": [2e-3, 4e-3, 8e-3, 16e-3, 32e-3],
                     "other": [1e-3, 2e-3, 4e-3, 8e-3]}
    assert all((steps, bool(episodes)) == (10, seed > 0) for *_, steps, seed, _, episodes in runs)
    assert sorted(job[1:] for job in runs if job[3]) == sorted(
        (rate, 10, seed, 100 + seed, 200) for rate in (4e-3, 16e-3, 2e-3) for seed in (1, 2))
    printed = capsys.readouterr().out
    assert "| full, 0.004 | 10 | 80.0, 70.0; 75.0 | 80.0, 70.0; 75.0 | 75.0 (too few seeds) |  |" in printed
    assert "| lambda 0 | moving | 24.0 | 76.0 | 0.0 | 0.0 | 0.0 |" in printed   # 96 of 400 scenes have one object
    assert "| lambda 0 | 100.0, 100.0 | 100.0, 100.0 | 0.0, 0.0 | 0.0, 0.0 |" in printed


def test_a_rate_that_is_given_is_not_tuned_and_tau_has_the_presets(runs):
    bench.run(["claims", "arms", "--seeds", "1", "--lr", "0.001", "--only", "full; lambda 0"])
    bench.run("claims tau --seeds 1".split())
    assert {rate for _, rate, *_ in runs[:2]} == {1e-3} and {rate for _, rate, *_ in runs[2:]} == {4e-3}
    assert len(runs) == 2 + len(claims.CELLS)


def test_a_finished_result_is_written_over_only_when_asked_and_an_unfinished_one_goes_on(runs, tmp_path):
    (tmp_path / "tau.json").write_text('{"finished": false}')
    bench.run("claims tau --seeds 1 --episodes 20".split())
    with pytest.raises(ValueError, match="tau.json holds a finished result: add --force"):
        bench.run("claims tau --seeds 1".split())
    assert len(runs) == len(claims.CELLS)
    bench.run("claims tau --seeds 1 --episodes 20 --force".split())
    assert len(runs) == 2 * len(claims.CELLS)


def test_an_interval_over_seeds_stays_within_0_and_100_and_holds_the_mean():
    shown = claims.mean_of([100.0, 100.0, 90.0, 100.0, 98.0])
    mean, low, high = (float(word.strip("()")) for word in shown.split() if word != "to")
    assert 90 <= low < mean < high <= 100 and mean == 97.6
    assert claims.mean_of([50.0] * 5, [20.0] * 5) == "30.0 (30.0 to 30.0)"
    assert claims.mean_of([50.0] * 5, [20.0] * 4) == "30.0 (too few seeds)"


def test_the_figure_has_a_dot_a_seed_and_a_horizontal_line_a_ceiling(runs, tmp_path, monkeypatch, capsys):
    """A number of Euler steps has a colour; of ceilings that are equal the first is named."""
    bench.run("claims arms --seeds 2 --only full".split())
    drawn, found = [], json.loads((tmp_path / "arms.json").read_text())
    found["ceilings"] = {name: {"static": 100.0, "dynamic": x} for name, x in (("perfect", 100.0), ("present", 6.0))}
    (tmp_path / "longer.json").write_text(json.dumps(found | {"steps": 4000}))
    monkeypatch.setattr(claims, "figure", lambda panels, *_: drawn.extend(panels))
    (tmp_path / "arms.json").write_text(json.dumps(found))
    bench.run(["claims", "arms", "--picture", str(tmp_path / "arms.png"), "--beside", "longer.json", "longer.json"])
    assert capsys.readouterr().out.count("| full, 4,000 steps, 0.004 | 10 | 80.0, 70.0; 75.0 |") == 2
    still, moving = drawn
    assert [[text for _, text in row] for row in still.below] == [["full"] * 3, ["", "4,000 steps", "4,000 steps"], ["", "", "0.004"]]
    assert still.ticks == [(0, "0%"), (1.0, "perfect 100%")] and (0.06, "present 6%") in moving.ticks
    assert ([(0, 0.06), (1, 0.06)], claims.GREY) in moving.lines
    dots = [(colour, points[0][1]) for points, colour in moving.lines if len(points) == 1]
    assert dots == 3 * [(claims.BLUE, 0.8), (claims.BLUE, 0.7), (claims.ORANGE, 0.8), (claims.ORANGE, 0.7)]


def test_a_committed_result_is_kept_though_it_is_not_finished_and_so_is_what_no_one_can_read(monkeypatch, tmp_path):
    monkeypatch.setattr(saving, "RESULTS", tmp_path)
    git = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True)
    unfinished = '{"finished": false}'
    for name, text in (("own.json", unfinished), ("torn.json", '{"fin'), ("new.json", unfinished)):
        (tmp_path / name).write_text(text)
    git(["git", "init"])
    git(["git", "add", "own.json"])
    for name in ("own.json", "torn.json"):
        with pytest.raises(ValueError, match=f"{name} holds a finished result: add --force"):
            saving.place(name, False)
        assert saving.place(name, True) == tmp_path / name
    assert saving.place("new.json", False) == tmp_path / "new.json"


def test_no_report_names_a_path_of_the_machine_that_wrote_it():
    for path in Path("bench/results").glob("*.json"):
        assert not re.search(r'[ "](/|[A-Z]:)[a-z]', path.read_text()), path


def test_stopping_ends_the_runs_that_were_started_and_starts_no_other(monkeypatch, tmp_path):
    """Four runs at two places, of a program that would take ten minutes."""
    program = tmp_path / "train"
    program.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/pids\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(claims.sys, "executable", str(program))
    trials, began = claims.Trials(2, tmp_path), time.time()
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(trials.run, str(n), {}, 0, 0) for n in range(4)]
        while not (tmp_path / "pids").exists() or len((tmp_path / "pids").read_text().split()) < 2:
            time.sleep(0.01)
        trials.stop()
    assert time.time() - began < 60 and len((tmp_path / "pids").read_text().split()) == 2
    assert [job.result() for job in jobs] == [None] * 4


@pytest.mark.parametrize("ends", ["a run that fails", "Ctrl-C"])
def test_what_ends_a_comparison_ends_its_other_runs_and_starts_none(monkeypatch, tmp_path, ends):
    """Two runs at a time of eighteen: the first to come fails at once, or none does; the others would take ten minutes."""
    program = tmp_path / "train"
    fails = f"mkdir {tmp_path}/first 2> /dev/null && exit 3; " if ends == "a run that fails" else ""
    program.write_text(f"#!/bin/sh\n{fails}echo $$ >> {tmp_path}/pids\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(claims.sys, "executable", str(program))
    monkeypatch.setattr(claims.conveyor, "prepare", lambda root: None)
    monkeypatch.setattr(claims, "ceilings", lambda *_: {})
    monkeypatch.setattr(saving, "RESULTS", tmp_path)
    seen = threading.Event()

    def handler(*_):
        seen.set()
        raise KeyboardInterrupt

    def interrupt():
        while not (tmp_path / "pids").exists() or len((tmp_path / "pids").read_text().split()) < 2:
            time.sleep(0.01)
        while not seen.is_set():   # one that comes just before the main thread waits is seen with the next
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            seen.wait(5)
    if not fails:
        threading.Thread(target=interrupt, daemon=True).start()
    began, before = time.time(), signal.signal(signal.SIGINT, handler)   # a job behind & ignores it
    try:
        with pytest.raises(ValueError if fails else KeyboardInterrupt):
            bench.run(["claims", "arms", "--work", str(tmp_path)])
    finally:
        signal.signal(signal.SIGINT, before)
    begun = len((tmp_path / "pids").read_text().split()) if (tmp_path / "pids").exists() else 0
    assert time.time() - began < 60 and begun <= 2


def test_a_trial_trains_and_evaluates_with_three_numbers_of_euler_steps_and_is_read_back(tmp_path):
    """The real process, four steps of it, on the data that the tests of the world have."""
    flags = {"steps": 2, "decay_steps": 2, "warmup_steps": 1, "eval_windows": 4, "batch_size": 2, "log_every": 1}
    flags |= claims.ARMS["history, place named"]   # which has a loss of its own
    trials = claims.Trials(1, tmp_path)
    found = trials.run("one", flags, 7, 3)
    assert 0 < found["loss_place"] < 10
    for euler in (1, 2, 10):
        for suite in ("static", "dynamic"):
            row = found[f"euler {euler}"][suite]
            assert len(row["outcomes"]) == 3 and row["success"] == row["outcomes"].count("t") / 3
    assert found["device"] == ("CPU" if not torch.cuda.is_available() else torch.cuda.get_device_name())
    trials.stop()
    assert trials.run("one", flags, 7, 3) == found and trials.run("two", flags, 7, 3) is None
    with pytest.raises(ValueError, match="holds another run"):
        trials.run("one", flags | {"seed": 1}, 7, 3)


def test_ceilings_are_ordered_as_what_they_know():
    """All of it; where the target is; a velocity beside it; not its colour."""
    found = ceilings.ceilings(86_001, 1, 150)
    assert {row["static"] for name, row in found.items() if name != "colour ignored"} == {100.0}
    moving = {name: row["dynamic"] for name, row in found.items()}
    assert moving["perfect"] == 100 and 40 < moving["colour ignored"] < 80
    assert moving["present place"] < 15 < moving["velocity drawn from the prior"] < 60
    assert moving["best single velocity"] < 60


def test_the_wider_arm_costs_what_the_full_model_costs():
    assert 1 <= claims.gflop(claims.ARMS["no generation, wider"]) / claims.gflop({}) < 1.1


@pytest.mark.parametrize("argv, message", [
    ("claims arms --json new.json --lr 0", "--lr must be above 0, got 0.0"),
    ("claims arms --json new.json --only ful", "--only ['ful']: no such arm; choose among full; no generation"),
    ("claims arms --json new.json --only=", "--only must be more than an empty text"),
    ("claims tau --json new.json --eval_seed -1", "--eval_seed must be at least 0"),
    ("claims tau --json a/b.json", "--json 'a/b.json': give the name of a file"),
    ("reading synthetic --tuples 0", "--tuples must be at least 1, got 0"),
    ("reading synthetic --json new.json", "--json would be ignored: it is for --against"),
    ("reading toy --against lerobot", "--against lerobot writes its own datasets: give synthetic, not toy"),
    ("claims tau --json new.json --seeds 0", "--seeds must be at least 1, got 0"),
    ("claims arms --json begun.json --picture arms.png", "begun.json has no ceilings yet"),
    ("speed", "unknown command speed: choose params, claims, gradients, latency")])
def test_what_a_command_cannot_do_is_said(runs, monkeypatch, tmp_path, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "begun.json").write_text("{}")   # `runs` puts results here
    with pytest.raises((ValueError, SystemExit)) as end:
        bench.run(argv.split())
    assert message in (str(end.value) + capsys.readouterr().err) and not runs


def test_the_commands_are_explained_and_params_names_what_is_not_built(monkeypatch, capsys):
    monkeypatch.setattr("bench.params.CONFIGS", {"a1_3b": CONFIGS["a1_3b"]})
    bench.run([])
    printed = capsys.readouterr().out
    assert all(name in printed for name in bench.COMMANDS)
    bench.run(["params"])
    printed = capsys.readouterr().out
    assert "parameters of a1_3b," in printed and "deepstack_merger" in printed


def test_how_often_an_interval_of_a_few_seeds_covers_the_mean():
    """docs/evidence.md's figures: of normal seeds, of their difference, and where one seed in five fails."""
    random = np.random.RandomState(0)

    def share(draw, mean, n, sides=1):
        held, trials = 0, 1500
        for _ in range(trials):
            means = [x[random.randint(n, size=(500, n))].mean(1) for x in (draw(size=n) for _ in range(sides))]
            low, high = np.quantile(means[0] - sum(means[1:]), (0.025, 0.975))
            held += low <= mean <= high
        return held / trials

    def failing(size):
        return np.where(random.rand(size) < 0.2, 54, 97) + random.normal(size=size)
    found = [share(random.normal, 0, 3), share(random.normal, 0, 5), share(random.normal, 0, 5, sides=2),
             share(failing, 0.8 * 97 + 0.2 * 54, 5), share(failing, 0.8 * 97 + 0.2 * 54, 8)]
    assert np.abs(np.array(found) - (0.74, 0.84, 0.88, 0.66, 0.82)).max() < 0.03


def test_what_evidence_says_of_a_frozen_past_and_of_scenes_with_one_object_is_in_the_reports():
    page = " ".join(Path("docs/evidence.md").read_text().split())
    single = claims.alone("dynamic", 200, 1)
    for name, words, lone in (("causal", "36, 50 and 54 %", "21, 42 and 36 %"),
                              ("causal_slow", "98, 98, 92 and 86 %", "97, 100, 85, 79 and 91 %"),
                              ("causal_history", "88, 62, 89, 27 and 40 %", "85, 76, 82, 82 and 94 %")):
        runs = json.loads(Path(f"bench/results/{name}.json").read_text())["runs"]
        leads = [run["suites"]["dynamic"]["frozen past"]["each"]["lead"] for run in runs]
        assert single.sum() == 33 and "In the 33 scenes with one object" in page
        for quoted, counts in ((words, np.ones(200)), (lone, single)):
            near = [np.mean([abs(x) < 0.25 for x, count in zip(lead, counts) if count and x is not None])
                    for lead in leads]
            shares = [f"{100 * x:.0f}" for x in near[:len(quoted.split()) - 2]]
            assert f"{', '.join(shares[:-1])} and {shares[-1]} %" == quoted and quoted in page
    alone, named = [], []
    for name in ("arms_time", "arms_slow"):
        result = json.loads(Path(f"bench/results/{name}.json").read_text())
        for run in result["runs"]:
            ended = run["euler 10"]["dynamic"]["outcomes"]
            scenes = conveyor.settings("dynamic", 200, result["eval_seed"] + run["seed"])
            one = [letter == "t" for letter, scene in zip(ended, scenes) if scene.distractor is None]
            alone.append(100 * np.mean(one))
            named.append(100 * ended.count("t") / (ended.count("t") + ended.count("o")))
    half = np.array(named) < 70
    assert half.sum() == 7 and "At the seven runs that take half, 58 to 65 %" in page
    spans = [(x[part].min().round(), x[part].max().round())
             for x in map(np.array, (named, alone)) for part in (half, ~half)]
    assert spans == [(58, 65), (86, 100), (78, 100), (89, 100)]


def test_what_evidence_says_of_where_and_which_is_in_the_reports():
    """Lone targets, closings on the named object, the loss that names the place, and what ran with the full model's rate."""
    page, place = " ".join(Path("docs/evidence.md").read_text().split()), "history, place named"
    now, before = (json.loads(Path(f"bench/results/{name}.json").read_text()) for name in ("arms", "arms_500"))

    def of(result, arm, without=None):
        return [run for run in result["runs"] if run["arm"] == arm and run["seed"] != without]

    def lone(arm, suite, euler, without=None):
        took = [letter == "t" for run in of(now, arm, without)
                for letter, alone in zip(run[f"euler {euler}"][suite]["outcomes"],
                                         claims.alone(suite, 200, now["eval_seed"] + run["seed"])) if alone]
        return f"{100 * np.mean(took):.1f}"

    def steps(arm, suite):
        return "{}, {} and {} %".format(*(lone(arm, suite, euler) for euler in (1, 2, 10)))

    def named(result, arm):
        ended = [run["euler 10"]["dynamic"]["outcomes"] for run in of(result, arm)]
        return [100 * x.count("t") / (x.count("t") + x.count("o")) for x in ended]
    names = [f"{run['loss_place']:.3f}" for run in of(now, place)]
    short = [lone("history, no generation", "dynamic", euler, 5) for euler in (10, 1)]
    again = [name for name, rate in now["rates"].items() if before["rates"][name] != rate]
    most = max(x for name in again for euler in claims.EULER for x in claims.values(before, name, "dynamic", euler))
    acts = [statistics.median(run["held_out"]["loss_act"] for run in of(part, "target z_t")) for part in (before, now)]
    quoted = [
        f"it takes {steps('lambda 0', 'static')}.",
        f"{steps('lambda 0', 'dynamic')}, where \"no generation\" takes {steps('no generation', 'dynamic')}",
        f"{', '.join(f'{x:.0f}' for x in named(now, 'lambda 0'))} % (moving) are on the named one", f"it is {', '.join(names)} (`loss_place`)",
        f"take {lone(place, 'dynamic', 10, 4)} % of the moving targets, and with one Euler step "
        f"{lone(place, 'dynamic', 1, 4)} %.", f"takes {short[0]} and {short[1]} % at four seeds",
        f"takes {lone('full', 'dynamic', 10)} and {lone('full', 'dynamic', 1)} %.",
        f"None of these runs takes more than {most:.1f} % of the moving targets",
        "median {:.3f}, with the chosen 0.002 {:.3f}".format(*acts)]
    well = {arm: [[(x, took) for x, took in zip(named(part, arm), claims.values(part, arm, "dynamic")) if x > 80]
                  for part in (now, before)] for arm in ("target z_t", "lambda 0")}
    assert [[len(x) for x in each] for each in well.values()] == [[2, 3], [1, 0]]
    share, took = zip(*well["target z_t"][1])
    quoted.append(f"5: {', '.join(f'{x:.0f}' for x in share)} %. There it takes {', '.join(f'{x:.1f}' for x in took)} %")
    copies, blind = (of(before, arm) for arm in ("target z_t", "lambda 0"))
    ranges = [f"{min(x):.{digits}f} to {max(x):.{digits}f}" for digits, take in (
        (3, lambda run: run["held_out"]["loss_act"]), (1, lambda run: 100 * run["euler 1"]["static"]["success"]))
        for x in ([take(run) for run in runs] for runs in (copies, blind))]
    quoted.append("L_act is {}, that of \"lambda 0\" {}. With one Euler step it takes {} % of the still targets, \"lambda "
                  "0\" {} %".format(*ranges))
    acts = [[run["held_out"]["loss_act"] for run in of(now, arm)] for arm in ("target z_t", "lambda 0")]
    quoted.append("its L_act is {}, that of \"lambda 0\" {:.3f} to {:.3f}. The medians are {:.3f} and {:.3f}, and a "
                  "permutation test of the means gives p = {:.2f}.".format(
                      ", ".join(f"{x:.3f}" for x in acts[0]), min(acts[1]), max(acts[1]), *map(statistics.median, acts),
                      permutation(*acts)))
    quoted.append(", ".join(f"{run['loss_place']:.3f}" for run in of(before, place)) + " (`arms_500.json`)")
    for name in again:
        each = [claims.values(before, name, suite) for suite in claims.SUITES]
        cells = [f"{', '.join(f'{x:.1f}' for x in row)}; {statistics.median(row):.1f}" for row in each]
        quoted.append(f"| {name} | {' | '.join(cells)} |")
    assert [words for words in quoted if words not in page] == []
    assert len(again) == 5 and {before["rates"][name] for name in again} == {now["rates"]["full"]}


def permutation(one, other):
    """p of the difference of two means, exact and two-sided."""
    either, leads, n = np.array([*one, *other]), [], len(one)
    for some in itertools.combinations(range(len(either)), n):
        mine = either[list(some)].sum()
        leads.append(mine / n - (either.sum() - mine) / len(other))
    return np.mean(np.abs(leads) >= abs(np.mean(one) - np.mean(other)) - 1e-9)


def test_what_evidence_says_of_the_arm_that_names_the_place_and_of_times_is_in_the_reports():
    """Its lead over the same arm without the loss and over the full model; seconds of 4,000 steps and of 1,500."""
    page = " ".join(Path("docs/evidence.md").read_text().split())
    place, both = "history, place named", "history, no generation"
    now, before, longer, slow, full, named = (
        json.loads(Path(f"bench/results/{name}.json").read_text())
        for name in ("arms", "arms_500", "arms_time", "arms_slow", "arms_full", "arms_named"))
    with_it, without_it, full_model, with_more = (
        [claims.values(part, arm, "dynamic", euler) for euler in (10, 2, 1)]
        for part, arm in ((named, place), (slow, both), (full, "full"), (longer, both)))
    ranks = [np.searchsorted(np.sort(x + y), x + y) + np.searchsorted(np.sort(x + y), x + y, "right")
             for x, y in zip(with_it, full_model)]   # twice the rank, of equals the mean
    assert {f"{permutation(*x):.3f}" for x in zip(with_it, with_more)} == {"0.010"} and "p = 0.010 at each" in page
    assert sum(x > max(full_model[0]) for x in with_it[0]) == 4

    def times(part, arm, steps, device="", kinds=("tuning", "runs")):
        ms = [run["ms_a_step"] for kind in kinds for run in part[kind] if run["arm"] == arm and device in run["device"]]
        return min(ms), max(ms), f"{min(ms) * steps / 1000:.0f} to {max(ms) * steps / 1000:.0f}"
    small, large = times(before, both, 4000, "H100"), times(before, "full", 1500, "H100")
    words = [
        *map(claims.mean_of, with_it, without_it),
        "ranks p = {:.3f}, {:.3f} and {:.3f}".format(*(permutation(x[:5], x[5:]) for x in ranks)),
        "There p = {:.3f}, {:.3f} and {:.3f}.".format(*map(permutation, with_it, without_it)),
        "ends at {:.3f}, {:.3f}, {:.3f}, {:.3f}, {:.3f}.".format(*(run["loss_place"] for run in named["runs"])),
        f"take {times(longer, both, 4000, kinds=('tuning',))[2]} s, and",
        f"take {times(now, 'full', 1500, kinds=('tuning',))[2]} s.",
        f"{times(full, 'full', 1500)[2]} s of the full model, {times(longer, both, 4000, kinds=('runs',))[2]} s of",
        *(f"take {times(now, arm, 4000, kinds=('runs',))[2]} s." for arm in ("no generation", place)),
        f"{small[0]:.0f} to {small[1]:.0f} ms, and of the full model {large[0]:.0f} to {large[1]:.0f} (",
        f"take {4000 * small[0] / large[1] / 1500:.1f} to {4000 * small[1] / large[0] / 1500:.1f} times as long"]
    assert [x for x in words if x not in page] == []


def test_the_pages_quote_the_reports():
    """Every row of the tables of arms in docs/evidence.md, README's medians, and the permutation test of the
    means follow from bench/results."""
    page, readme = Path("docs/evidence.md").read_text(), " ".join(Path("README.md").read_text().split())
    conveyor_page = Path("docs/conveyor.md").read_text()
    result, first, longer, slow, full, fig_9, named = (
        json.loads(Path(f"bench/results/{name}.json").read_text())
        for name in ("arms", "arms_first", "arms_time", "arms_slow", "arms_full", "arms_fig9", "arms_named"))
    assert len(result["runs"]) == 5 * len(claims.ARMS)
    assert all(part["finished"] for part in (result, longer, slow, full, fig_9, named))
    rows = [row for part in (result, functools.reduce(claims.together, (full, longer, slow, fig_9, named)))
            for row in (*claims.table(part), *claims.endings(part), *claims.by_objects(part))]
    rows += [f"| {name} | {row['static']:.1f} | {row['dynamic']:.1f} |" for name, row in result["ceilings"].items()]
    rates = sorted({run["lr"] for run in result["tuning"]})
    for part in (result, longer, fig_9, named):
        for name, rate in part["rates"].items():
            losses = {run["lr"]: run["held_out"]["loss_act"] for run in part["tuning"] if run["arm"] == name}
            assert claims.best_rate(losses) == (rate, None)
            cells = [f"{losses[one]:.4f}" if one in losses else "" for one in rates]
            cells[rates.index(rate)] = f"**{losses[rate]:.4f}**"
            rows.append(f"| {name} | {part['steps']:,} | {' | '.join(cells)} |")
    for name, rate in first["best_lr"].items():
        runs = sorted((run for run in first["runs"] if (run["arm"], run["lr"]) == (name, rate)),
                      key=lambda run: run["seed"])
        each = [[100 * run[suite]["success"] for run in runs] for suite in claims.SUITES]
        cells = [f"{', '.join(f'{x:.1f}' for x in row)}; {statistics.median(row):.1f}" for row in each]
        rows.append(f"| {name}, {rate} | {first['steps'][name]} | {' | '.join(cells)} |")
    assert [row for row in rows if row not in page] == []
    for part, seeds, without in ((longer, (8, 8), 0), (longer, (5, 5), 0), (slow, (8, 8), 0), (slow, (8, 7), 4),
                                 (named, (8, 5), 0)):
        found, (arm, *_) = [], part["flags"]
        kept = part | {"runs": [run for run in part["runs"] if run["seed"] != without]}
        for euler in (10, 2, 1):
            one, other = (claims.values(*of, "dynamic", euler)[:n] for of, n in zip(
                ((full, "full"), (kept, arm)), seeds))
            assert (len(one), len(other)) == seeds
            found.append(permutation(one, other))
            if euler == 10 and seeds[0] == 8 and not without:
                assert all(f"| {', '.join(f'{x:.1f}' for x in values)} |" in readme for values in (one, other))
        digits = 2 if without or seeds == (5, 5) else 3
        assert "p = {:.{d}f}, {:.{d}f} and {:.{d}f}".format(*found, d=digits) in " ".join(page.split())
    for part, quoted in ((slow, "p = 0.47)"), (longer, "p = 0.03;")):   # Fisher's exact test, of eight and eight seeds
        learned = sum(x > 62 for x in claims.values(part, "history, no generation", "dynamic"))
        chances = [math.comb(8, n) * math.comb(8, 8 + learned - n) / math.comb(16, 8 + learned)
                   for n in range(learned, 9)]
        p = sum(chance for chance in chances if chance <= chances[-1] + 1e-9)
        assert f"p = {p:.2f}" == quoted[:-1] and quoted in " ".join(page.split())
    assert "five of seven (p = 0.20)" in page and math.comb(7, 2) / math.comb(15, 2) == pytest.approx(0.2)
    grid = [run["held_out"] for run in json.loads(Path("bench/results/tau_grid.json").read_text())["runs"]
            if run["arm"] == "release 0.3"]
    for key in ("dynamic_head", "dynamic_wrist", "static_head", "static_wrist", "crop_target", "crop_distractor"):
        each = [f"{row['foresight_' + key]:.2f}" for row in grid]
        assert f" | {', '.join(each)} |" in conveyor_page
    for name in claims.arms_of(result):
        each = claims.values(result, name, "dynamic")
        row = "" if name == "full" else f" | {', '.join(f'{x:.1f}' for x in each)} |"
        assert f"{statistics.median(each):.1f} %{row}" in readme, name
