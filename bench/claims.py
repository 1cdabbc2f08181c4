"""python -m bench claims arms | tau: how far variants of the model come (Fig. 9), or tau's density times lambda.

Each run is a process of its own (bench/trial.py), several side by side. Of `arms` every arm first tries learning rates
at training seed 0 and as many steps, and takes the one with the lowest held-out L_act: never by success, never at the
edge of what was tried. Then it trains with the other seeds, each evaluated on scenes of its own with 1, 2 and 10 Euler
steps. Results are written as they come in. Ctrl-C ends it: finished runs are read back from --work, not repeated."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from bench.ceilings import ceilings
from bench.chunk import flop_of
from bench.saving import VERSIONS, place, save
from bench.trial import EULER, LETTERS
from config import get_config
from model import InternVLA_A1
from support.files import must, read_json, written
from support.flags import COUNT, SEED, Parser, value
from support.pictures import BLUE, GREY, ORANGE, Panel, figure
from support.training.memory import synthetic
from worlds import conveyor

# What Fig. 9 takes away at once: the frame at t-m, its tokens, the prediction of t+m, parameters, human video's loss.
ARMS = {"full": {}, "no generation": {"gen_expert": False},
        "no generation, wider": {"gen_expert": False, "layers": 6, "und_width": 128, "und_mlp": 384},
        "history, no generation": {"gen_expert": False, "und_frames": 2},
        "lambda 0": {"lambda_gen": 0.0}, "target z_t": {"gen_target": "present"},
        "history, place named": {"gen_expert": False, "und_frames": 2, "name_place": 1}}   # bench/naming.py
CELLS = {f"{density} {weight}": {"tau_density": density, "lambda_gen": weight}
         for density in ("paper", "release") for weight in (0.01, 0.1, 0.3)}
RATES = (2e-3, 4e-3, 8e-3)   # tried first
OWN_RATE = 4e-3              # of the preset: the cells of `tau` are the same network
ENOUGH = 5                   # seeds, for an interval
SUITES = dict(zip(conveyor.SUITES, ("still", "moving")))


class Trials:
    """Runs a few trials at a time, each a process. `stop` ends those that run, each saves, and lets no other begin."""

    def __init__(self, parallel, work):
        self.slots, self.stopped, self.running, self.work = threading.Semaphore(parallel), False, [], Path(work)

    def stop(self):
        self.stopped = True
        for child in self.running:   # to one that has ended nothing is sent
            child.send_signal(signal.SIGTERM)

    def run(self, name, flags, eval_seed, episodes):
        """One run -> what bench/trial.py found, read back if this very run is finished; None: `stop` ended it.

        name: of its folder in --work. flags: {flag of train.py: value}. ValueError: it failed, or the folder holds
        another run. A run that fails ends all others."""
        out = self.work / name
        given = [word for flag, x in flags.items() for word in (f"--{flag}", str(x).lower())]
        command = [str(out), str(eval_seed), str(episodes), "--config", "conveyor", *given]
        this, described = f"{' '.join(command[1:])} in world {conveyor.version()}\n", out / "run.txt"
        must(not described.exists() or described.read_text() == this, f"{out} holds another run, or one in another "
             "version of the world: delete it, or choose another --work")
        with self.slots:
            if (out / "trial.json").exists():
                return json.loads((out / "trial.json").read_text())
            if self.stopped:
                return None
            with written(described) as file:
                file.write_text(this)
            child = subprocess.Popen([sys.executable, "-m", "bench.trial", *command], stdout=subprocess.DEVNULL,
                                     stderr=subprocess.PIPE, text=True)
            self.running.append(child)
            if self.stopped:   # since a moment ago
                child.send_signal(signal.SIGTERM)
            errors = child.communicate()[1].strip()
        if child.returncode and not self.stopped:
            self.stop()
            raise ValueError(f"{' '.join(command)} failed: {(errors or str(child.returncode)).splitlines()[-1]}")
        return None if child.returncode else json.loads((out / "trial.json").read_text())


def best_rate(losses):
    """{rate: held-out L_act} -> (the best rate, the rate to try next: None unless the best is at the edge)."""
    best = min(losses, key=losses.get)
    return best, {min(losses): best / 2, max(losses): best * 2}.get(best)


def gflop(flags):
    """GFLOP of one sample's training step, forward and backward."""
    config = get_config("conveyor", flags).model
    model, inputs = InternVLA_A1(config), synthetic(config, 4)
    return flop_of(lambda: model(*inputs).total(config.lambda_gen, 1, 1).backward()) / 4e9


class Claim:
    """All runs of a comparison, several at a time, and the one JSON file that they are written to as they come in."""

    def __init__(self, args, argv, trials):
        self.args, self.trials, self.lock = args, trials, threading.Lock()
        self.path = place(args.json or f"{args.claim}.json", args.force)
        self.every = {"arms": ARMS, "tau": CELLS}[args.claim]
        self.names = list(self.every) if args.only is None else [name.strip() for name in args.only.split(";")]
        unknown = [name for name in self.names if name not in self.every]
        must(not unknown, f"--only {unknown[:1]}: no such arm; choose among {'; '.join(self.every)}")
        self.lr = args.lr or (OWN_RATE if args.claim == "tau" else None)
        self.result = {
            "command": "python -m bench claims " + shlex.join(argv), **VERSIONS,
            "conditions": f"{args.parallel} runs at a time, one thread each, {os.cpu_count()} CPU cores",
            "world": conveyor.version(), "steps": args.steps, "eval_seed": args.eval_seed,
            "seeds": args.seeds, "episodes": args.episodes, "finished": False,
            "flags": {name: self.every[name] for name in self.names}, "rates": {}, "tuning": [], "runs": []}

    def run(self):
        conveyor.prepare(Path("data/conveyor"))   # here: of runs that begin together each would
        with ThreadPoolExecutor(len(self.names) + 1) as pool:
            beside = pool.submit(ceilings, self.args.eval_seed, self.args.seeds, self.args.episodes)
            try:
                list(pool.map(self.arm, self.names))
            except BaseException:   # here: `with` waits for all that could still begin
                self.trials.stop()
                raise
        result = self.result
        result["ceilings"] = beside.result()
        result["gflop_a_sample"] = {name: round(gflop(self.every[name]), 3) for name in self.names}
        result["runs"].sort(key=lambda run: (self.names.index(run["arm"]), run["seed"]))
        save(self.path, result | {"finished": len(result["runs"]) == self.args.seeds * len(self.names)})
        print(*table(result), "", *endings(result), "", *by_objects(result), f"wrote {self.path}", sep="\n")

    def arm(self, name):
        """All runs of one arm: it waits for nobody but a free place."""
        with ThreadPoolExecutor(self.args.parallel) as pool:
            rate = self.lr or self.tune(name, pool)
            if rate:
                self.result["rates"][name] = rate
                seeds = range(1, self.args.seeds + 1)
                list(pool.map(lambda seed: self.one(name, rate, seed, "runs"), seeds))

    def tune(self, name, pool):
        """The learning rate with the lowest held-out L_act, which is not at the edge of those tried; None: stopped."""
        losses, wanted = {}, RATES
        while wanted:
            found = list(pool.map(lambda rate: self.one(name, rate, 0, "tuning"), wanted))
            if None in found:
                return None
            losses |= {rate: row["held_out"]["loss_act"] for rate, row in zip(wanted, found)}
            best, more = best_rate(losses)
            wanted = (more,) if more else ()
        return best

    def one(self, name, rate, seed, kind):
        """One run of an arm, into result[kind] -> what it found; None: stopped."""
        args, steps = self.args, self.args.steps
        flags = self.every[name] | {"lr": f"{rate:g}", "steps": steps, "decay_steps": steps, "seed": seed}
        found = self.trials.run(f"{args.claim}_{steps}_{name.replace(' ', '_')}_{rate:g}_{seed}", flags,
                                args.eval_seed + seed, args.episodes if kind == "runs" else 0)
        if found is None:
            return None
        with self.lock:
            self.result[kind].append({"arm": name, "lr": rate, "seed": seed} | found)
            save(self.path, self.result)
            success = (f"{suite} {row['success']:.1%}" for suite, row in found.get("euler 10", {}).items())
            print(f"{name:<24} lr {rate:g}  seed {seed}  {steps} steps  L_act held out "
                  f"{found['held_out']['loss_act']:.4f}", *success, sep="  ", flush=True)
        return found


# ---- figures -----------------------------------------------------------------------------------------------------

def arms_of(result):
    """Names of those of which a run is finished, in the order of the comparison."""
    return [name for name in result["flags"] if any(run["arm"] == name for run in result["runs"])]


def together(result, more):
    """A result with the arms of another beside its own, which say in their names after how many steps, and with which
    rate if that is not enough."""
    def called(name):
        longer = f"{name}, {more['steps']:,} steps"
        return f"{longer}, {more['rates'][name]:g}" if longer in result["flags"] else longer
    runs = [run | {"arm": called(run["arm"])} for run in more["runs"]]
    return result | {"runs": result["runs"] + runs} | {
        key: result[key] | {called(name): x for name, x in more[key].items()} for key in ("flags", "rates")}


def values(result, arm, suite, euler=10):
    """Success in per cent of every training seed of an arm."""
    return [100 * run[f"euler {euler}"][suite]["success"] for run in result["runs"] if run["arm"] == arm]


def mean_of(one, other=()):
    """Mean over training seeds, or the difference of two, and its 95 % bootstrap interval, as text. The unit that is
    drawn with replacement is the seed, so the interval of a rate never leaves 0 to 100. Of fewer than ENOUGH seeds a
    side there is none: of three it would be their range, and cover 74 % where it says 95 (of five 84, a difference
    88)."""
    random, sides = np.random.RandomState(0), [np.array(x) for x in (one, other) if len(x)]
    draws = [x[random.randint(len(x), size=(10_000, len(x)))].mean(1) for x in sides]
    mean, each = (x[0] - (x[1] if len(x) > 1 else 0) for x in ([x.mean() for x in sides], draws))
    low, high = np.quantile(each, (0.025, 0.975))
    return f"{mean:.1f} " + (f"({low:.1f} to {high:.1f})" if min(map(len, sides)) >= ENOUGH else "(too few seeds)")


def table(result):
    """Markdown rows: of every arm each seed's success and their median, and by how much the full model leads."""
    yield "| arm, learning rate | Euler | still: each seed; median | moving: each seed; median | mean | full leads by |"
    yield "|---|---|---|---|---|---|"
    for name in arms_of(result):
        for euler in EULER:
            still, moving = (values(result, name, suite, euler) for suite in conveyor.SUITES)
            full = values(result, "full", "dynamic", euler)
            each = (f"{', '.join(f'{x:.1f}' for x in row)}; {np.median(row):.1f}" for row in (still, moving))
            lead = mean_of(full, moving) if full and name != "full" else ""
            rate = f", {result['rates'][name]:g}"
            cells = [name.removesuffix(rate) + rate, str(euler), *each, mean_of(moving), lead]
            yield f"| {' | '.join(cells)} |"


def endings(result, euler=10):
    """Markdown rows: how the episodes of all seeds of an arm ended, in per cent."""
    yield f"| arm | targets | {' | '.join(LETTERS)} |"
    yield f"|---|---|{'---|' * len(LETTERS)}"
    for name in arms_of(result):
        for suite, title in SUITES.items():
            ended = "".join(run[f"euler {euler}"][suite]["outcomes"] for run in result["runs"] if run["arm"] == name)
            shares = (ended.count(letter) / len(ended) for letter in LETTERS.values())
            yield f"| {name} | {title} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |"


@cache
def alone(suite, episodes, seed):
    """Which of these scenes have one object, (episodes,) bool."""
    return np.array([scene.distractor is None for scene in conveyor.settings(suite, episodes, seed)])


def by_objects(result):
    """Markdown rows: what all seeds of an arm took with ten Euler steps and with one, in per cent: of the scenes with
    one object alone, where nothing need be named, and of those with two."""
    yield "| arm | one object, still | one object, moving | two objects, still | two objects, moving |"
    yield "|---|---|---|---|---|"
    for name in arms_of(result):
        runs, cells = [run for run in result["runs"] if run["arm"] == name], {}
        for suite in SUITES:
            single = np.concatenate([
                alone(suite, result["episodes"], result["eval_seed"] + run["seed"]) for run in runs])
            took = [np.array(list("".join(run[f"euler {n}"][suite]["outcomes"] for run in runs))) == LETTERS["took it"]
                    for n in (10, 1)]
            for one in (True, False):
                cells[one, suite] = ", ".join(f"{100 * x[single == one].mean():.1f}" for x in took)
        yield f"| {name} | {' | '.join(cells[one, suite] for one in (True, False) for suite in SUITES)} |"


def draw(result, path):
    """Still above moving: a dot is a training seed of an arm, a horizontal line a scripted policy -> RGB image."""
    panels, names, seeds = [], arms_of(result), max(run["seed"] for run in result["runs"])
    for suite, title in SUITES.items():
        reached = {row[suite] / 100: name for name, row in reversed(result["ceilings"].items())}   # of equals the first
        lines = [([(0, share), (1, share)], GREY) for share in reached]
        lines += [([((i + start + 0.3 * n / seeds) / len(names), x / 100)], colour) for i, name in enumerate(names)
                  for euler, start, colour in ((10, 0.15, BLUE), (1, 0.6, ORANGE))
                  for n, x in enumerate(values(result, name, suite, euler))]
        ticks = [(0, "0%")] + [(share, f"{name} {share:.0%}") for share, name in reached.items()]
        labels = [dict(enumerate(name.split(", "))) for name in names]
        below = [[((i + 0.5) / len(names), label.get(row, "")) for i, label in enumerate(labels)]
                 for row in range(max(map(len, labels)))]
        about = f"{title} targets: success after {result['steps']:,} steps, or as many as an arm names"
        panels.append(Panel(about, lines, ticks, below))
    legend = [("a training seed, 10 Euler steps", BLUE), ("1 Euler step", ORANGE), ("a scripted policy", GREY)]
    return figure(panels, 1, (1000, 250), legend, path)


def run(argv):
    parser = Parser(prog="python -m bench claims", description=__doc__)
    parser.add_argument("claim", choices=("arms", "tau"), help="which comparison")
    parser.add_argument("--steps", type=value(int, COUNT), default=1500, help="of every run")
    parser.add_argument("--lr", type=value(float, {"above": 0}), help="of every arm: none is tuned")
    parser.add_argument("--seeds", type=value(int, COUNT), default=5, help="training seeds, from 1 on")
    parser.add_argument("--episodes", type=value(int, COUNT), default=200, help="scenes a suite")
    parser.add_argument("--eval_seed", type=value(int, SEED), default=86000, help="scenes of seed s are of this + s")
    parser.add_argument("--parallel", type=value(int, COUNT), default=2, help="runs at a time")
    parser.add_argument("--only", help="arms, separated by semicolons")
    parser.add_argument("--work", default="runs/bench", help="where the runs go")
    parser.add_argument("--json", help="file name under bench/results (default: the claim's)")
    parser.add_argument("--picture", help="draw the result --json into this file, and train nothing")
    parser.add_argument("--beside", nargs="+", help="results in bench/results to draw with it, of other --steps")
    parser.add_argument("--force", action="store_true", help="write over a finished result")
    args = parser.parse_args(argv)
    must(args.picture or not args.beside, "--beside is of --picture")
    if args.picture:
        result = read_json(path := place(args.json or f"{args.claim}.json", force=True))
        must("ceilings" in result, f"{path} has no ceilings yet: let the command that writes it end")
        for name in args.beside or ():
            result = together(result, read_json(place(name, force=True)))
        draw(result, args.picture)
        return print(*table(result), "", *endings(result), "", *by_objects(result), f"wrote {args.picture}", sep="\n")
    Claim(args, argv, Trials(args.parallel, args.work)).run()
