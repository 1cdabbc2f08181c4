"""Every number the README quotes that is not printed by train.py or infer.py.

    python bench.py --params                         Table 1: parameters of every preset, built on the meta device
    python bench.py --claim arms --steps 1600        Fig. 9 in the embedded world: what history and prediction are worth
    python bench.py --claim tau --steps 1600         tau density times lambda

`--claim` trains with train.py, several runs side by side on one thread each, every arm for the same wall clock: the
step time of each arm is measured first, and its number of steps follows from the first arm's. Results go to
bench/results/*.json as they come in; finished runs are not repeated.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from config import CONFIGS, Parser, not_built
from model import InternVLA_A1, count_parameters

PAPER = {"a1_2b": (0.94, 0.36, 0.36, 1.8), "a1_3b": (2.13, 0.44, 0.44, 3.2)}   # Table 1, in billions
RESULTS = Path("bench/results")

# What Fig. 9's gap consists of: the frame at t-m, and the prediction of t+m.
ARMS = {
    "full": [],
    "no generation expert": ["--gen_expert", "false"],
    "lambda 0": ["--lambda_gen", "0"],
    "target z_t": ["--gen_target", "present"],
}
CELLS = {f"{density} {weight}": ["--tau_density", density, "--lambda_gen", weight]
         for density in ("paper", "release") for weight in ("0.01", "0.1", "0.3")}


def params():
    """Table 1's columns in billions. The paper's und column counts lm_head, its total the VAE and projections."""
    print(f"{'config':<15}{'und':>8}{'gen':>8}{'act':>8}{'conv+proj':>11}{'VAE':>8}{'built':>9}{'not built':>11}"
          f"{'sum':>15}   paper: und gen act total")
    for name, config in CONFIGS.items():
        with torch.device("meta"):
            rows = count_parameters(InternVLA_A1(config.model))
        absent = sum(not_built(config.model).values())
        paper = "  ".join(map(str, PAPER.get(name.removesuffix("_release"), ())))
        print(f"{name:<15}{rows['und'] / 1e9:8.3f}{rows['gen'] / 1e9:8.3f}{rows['act'] / 1e9:8.3f}"
              f"{rows['projections'] / 1e9:11.3f}{rows['vae'] / 1e9:8.3f}{rows['total'] / 1e9:9.3f}{absent / 1e9:11.3f}"
              f"{rows['total'] + absent:15,}   {paper}")
    for name in ("a1_2b", "a1_3b"):
        print(f"\nnot built in {name} (nothing reads it; negative: built here, absent in the release's file)")
        for key, count in not_built(CONFIGS[name].model).items():
            print(f"  {key:<50}{count:>14,}")


# ---- the claim --------------------------------------------------------------------------------------------------

def train(flags, out, steps, seed, eval_seed, episodes=200):
    """One run of train.py on one thread; returns its report.json, read back if the run is finished already."""
    report = Path(out) / "report.json"
    if not report.exists():
        command = [sys.executable, "train.py", "--config", "conveyor", "--out", str(out), "--steps", str(steps),
                   "--decay_steps", str(steps), "--eval_every", str(steps), "--save_every", str(steps),
                   "--seed", str(seed), "--eval_seed", str(eval_seed), "--episodes", str(episodes), "--threads", "1",
                   *flags]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(report.read_text())


def step_seconds(out):
    """Median seconds of a step, from timing.jsonl."""
    rows = sorted(json.loads(line)["seconds"] for line in (Path(out) / "timing.jsonl").read_text().splitlines())
    return rows[len(rows) // 2]


def calibrate(arms, steps, work):
    """Steps that each arm makes while the first makes `steps`: all timed in the same way, beside a busy neighbour."""
    names = list(arms)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: train(arms[name], work / "calibrate" / name.replace(" ", "_"), 60, 0, 0, 2), names))
    seconds = {name: step_seconds(work / "calibrate" / name.replace(" ", "_")) for name in names}
    return {name: round(steps * seconds[names[0]] / seconds[name]) for name in names}, seconds


def claim(args):
    """Train every arm with every seed, two at a time, and write all reports to one JSON file."""
    arms = {"arms": ARMS, "tau": CELLS}[args.claim]
    extra = args.flags.split()
    arms = {name: extra + flags for name, flags in arms.items()}
    work, path = Path(args.work), RESULTS / (args.json or f"{args.claim}.json")
    if args.claim == "arms":
        steps, seconds = calibrate(arms, args.steps, work)
    else:   # the same network throughout
        steps, seconds = {name: args.steps for name in arms}, None
    if args.only:
        arms = {name: arms[name] for name in args.only.split(",")}
    result = {"command": "python bench.py " + " ".join(sys.argv[1:]), "torch": torch.__version__,
              "conditions": f"{args.parallel} runs at a time, one thread each, {os.cpu_count()} CPU cores",
              "seconds_per_step": seconds, "steps": steps, "flags": arms, "eval_seed": args.eval_seed, "runs": []}
    jobs = [(name, seed) for seed in range(args.first_seed, args.first_seed + args.seeds) for name in arms]

    def one(job):
        name, seed = job
        out = work / f"{args.claim}_{steps[name]}_{name.replace(' ', '_')}_{seed}"
        began = time.time()
        report = train(arms[name], out, steps[name], seed, args.eval_seed + seed)
        report |= {"arm": name, "seed": seed, "wall_seconds": round(time.time() - began)}
        result["runs"].append(report)
        RESULTS.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(row(report), flush=True)

    with ThreadPoolExecutor(args.parallel) as pool:
        list(pool.map(one, jobs))
    print(f"wrote {path}")


def row(report):
    numbers = "  ".join(f"{suite} {report[suite]['success']:6.1%}" for suite in ("static", "dynamic"))
    return f"{report['arm']:<22} seed {report['seed']}  {report['steps']} steps  {numbers}"


def parse(argv):
    parser = Parser(prog="bench.py", description=__doc__)
    parser.add_argument("--params", action="store_true", help="print Table 1")
    parser.add_argument("--claim", choices=("arms", "tau"), help="train and compare arms in the embedded world")
    parser.add_argument("--steps", type=int, default=1600, help="steps of the first arm; the others get its wall clock")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--first_seed", type=int, default=0, help="the first of them")
    parser.add_argument("--eval_seed", type=int, default=4242, help="evaluation seed of training seed 0; then + 1 each")
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", help="comma-separated arms")
    parser.add_argument("--flags", default="", help="further train.py flags for every arm")
    parser.add_argument("--work", default="runs/bench", help="where the runs go")
    parser.add_argument("--json", help="file name under bench/results")
    return parser.parse_args(argv)


def run(argv):
    args = parse(argv)
    if args.params:
        params()
    elif args.claim:
        claim(args)
    else:
        raise ValueError("give --params or --claim; --help shows both")


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except ValueError as error:
        print(f"bench.py: {error}", file=sys.stderr)
        sys.exit(2)
