"""Every number the README quotes that is not printed by train.py or infer.py.

    python -m bench --params                         Table 1: parameters of every preset, built on the meta device
    python -m bench --claim arms --steps 1500        Fig. 9 in the embedded world: what history and prediction are worth
    python -m bench --claim tau --steps 1500         tau density times lambda
    python -m bench --config a1_2b --dtype bfloat16  seconds of one action chunk beside a plain implementation and the
                                                     machine's floor, phase by phase, with random weights
    python -m bench --config conveyor --control 20   milliseconds of a control step, planning in it and beside it
    python -m bench --data DIR [--robot NAME]        training tuples a second, and what a naive reader makes
    python -m bench --data synthetic                 the same for each codec, on datasets that it writes

`--claim` trains with train.py, several runs side by side on one thread each, every arm for the same wall clock: the
step time of each arm is measured first, and its number of steps follows from the first arm's. Results go to
bench/results/*.json as they come in; finished runs are not repeated.
"""

import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from worlds import conveyor
from config import CONFIGS, DataConfig, get_config
from bench import reading
from support.inference.engine import MODES, default_mode
from support.flags import Parser
from support.data.inspection import said
from bench.latency import SEED, control, lines, measure
from support.data.robots import find_robot
from support.table1 import not_built, table

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
    """Table 1 for every preset, and what is not built in it."""
    for config in CONFIGS.values():
        print("\n".join(table(config)))
        for key, count in not_built(config.model).items():   # negative: built here, absent in the release's file
            print(f"    {key:<50}{count / 1e6:>8.2f}")
        print()


# ---- the claim --------------------------------------------------------------------------------------------------

def train(flags, out, steps, seed, eval_seed, episodes=200):
    """One run of train.py on one thread; returns its report.json, read back if this very run is finished already."""
    report, described = Path(out) / "report.json", Path(out) / "run.txt"
    numbers = {"steps": steps, "decay_steps": steps, "eval_every": steps, "save_every": steps, "seed": seed,
               "eval_seed": eval_seed, "episodes": episodes, "threads": 1}
    command = ["train.py", "--config", "conveyor", "--out", str(out),
               *(word for name, x in numbers.items() for word in (f"--{name}", str(x))), *flags]
    this = f"{' '.join(command)} in world {conveyor.version()}\n"
    if described.exists() and described.read_text() != this:
        raise ValueError(f"{out} holds another run, or one in another version of the world: delete it, or choose "
                         "another --work")
    if not report.exists():
        Path(out).mkdir(parents=True, exist_ok=True)
        described.write_text(this)
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
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


RATES = ("4e-3", "2e-3")   # the same effort for every arm: both learning rates at one seed, then the better one


def claim(args):
    """Train every arm with every seed, several at a time, and write all reports to one JSON file as they come in."""
    arms = {name: args.flags.split() + flags for name, flags in {"arms": ARMS, "tau": CELLS}[args.claim].items()}
    work, path = Path(args.work), RESULTS / (args.json or f"{args.claim}.json")
    tuned = json.loads(Path(args.tuned).read_text()) if args.tuned else None
    if tuned:
        steps, seconds = tuned["steps"], tuned["seconds_per_step"]
    elif args.claim == "arms":
        steps, seconds = calibrate(arms, args.steps, work)
    else:   # the same network throughout
        steps, seconds = {name: args.steps for name in arms}, None
    if args.only:
        arms = {name: arms[name] for name in args.only.split(",")}
    result = {"command": "python -m bench " + " ".join(sys.argv[1:]), "torch": torch.__version__,
              "conditions": f"{args.parallel} runs at a time, one thread each, {os.cpu_count()} CPU cores",
              "seconds_per_step": seconds, "steps": steps, "flags": arms, "eval_seed": args.eval_seed, "runs": []}

    def one(job):
        name, rate, seed = job
        out = work / f"{args.claim}_{steps[name]}_{name.replace(' ', '_')}_{rate}_{seed}"
        report = train([*arms[name], "--lr", rate], out, steps[name], seed, args.eval_seed + seed)
        report |= {"arm": name, "lr": rate, "seed": seed}
        result["runs"].append(report)
        RESULTS.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(row(report), flush=True)
        return report

    first, others = args.first_seed, range(args.first_seed + 1, args.first_seed + args.seeds)
    with ThreadPoolExecutor(args.parallel) as pool:
        best = dict.fromkeys(arms, RATES[0])
        if args.claim == "arms" and not tuned:
            reports = list(pool.map(one, [(name, rate, first) for name in arms for rate in RATES]))
            for name in arms:
                mine = [report for report in reports if report["arm"] == name]
                best[name] = max(mine, key=lambda r: r["static"]["success"] + r["dynamic"]["success"])["lr"]
        else:
            best = {name: tuned["best_lr"][name] for name in arms} if tuned else best
            others = range(first, first + args.seeds)
        list(pool.map(one, [(name, best[name], seed) for seed in others for name in arms]))
    result["best_lr"] = best
    path.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(summary(result)))
    print(f"wrote {path}")


STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}   # 97.5 % point of Student's t, by number of seeds


def summary(result):
    """Printable rows of a claim: per arm each seed's success, and the mean with its 95 % interval over seeds."""
    for name, rate in result["best_lr"].items():
        runs = sorted((run for run in result["runs"] if run["arm"] == name and run["lr"] == rate),
                      key=lambda run: run["seed"])
        parts = []
        for suite in ("static", "dynamic"):
            each = [100 * run[suite]["success"] for run in runs]
            mean, n = sum(each) / len(each), len(each)
            half = STUDENT[n] * (sum((x - mean) ** 2 for x in each) / (n - 1) / n) ** 0.5 if n in STUDENT else None
            interval = f" +- {half:.1f}" if half is not None else ""
            parts.append(f"{suite} {mean:5.1f}{interval} ({', '.join(f'{x:.1f}' for x in each)})")
        yield f"{name:<22} lr {rate}  {result['steps'][name]} steps  " + "  ".join(parts)


def row(report):
    numbers = "  ".join(f"{suite} {report[suite]['success']:6.1%}" for suite in ("static", "dynamic"))
    return f"{report['arm']:<22} lr {report['lr']}  seed {report['seed']}  {report['steps']} steps  {numbers}"


# ---- seconds of a chunk -----------------------------------------------------------------------------------------

def processor():
    """The CPU's model as Linux names it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    rows = info.read_text().splitlines() if info.exists() else ()
    names = [row.split(":")[1].strip() for row in rows if row.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def conditions(args, config):
    """What the figures depend on. ONEDNN_MAX_CPU_ISA, where it is set, decides about every product on a CPU."""
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {"command": "python -m bench " + " ".join(sys.argv[1:]), "config": args.config, "dtype": args.dtype,
            "device": where, "processor": processor(), "torch": torch.__version__, "engine": engine_of(args),
            "euler_steps": config.model.euler_steps, "weights_seed": SEED,
            "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA")}


def engine_of(args):
    return args.engine or default_mode(args.device)


def possible(args):
    """ValueError, one line, for flags of --config that cannot be measured."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here")
    if engine_of(args) == "graph" and args.device != "cuda":
        raise ValueError("--engine graph records a CUDA graph: add --device cuda, or use eager or compile")
    for flag in ("blocks", "euler_steps"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise ValueError(f"--{flag} must be at least 1, got {getattr(args, flag)}")
    if args.control is None:
        return
    if not args.control >= 1 / 30:
        raise ValueError(f"--control {args.control:g}: give the seconds to drive, at least one step of 1/30")
    unused = [flag for flag in ("blocks", "euler_steps", "compiled_arm") if getattr(args, flag)]
    if unused:
        raise ValueError(f"--control times a control loop, without --{', --'.join(unused)}: leave it out")


def latency(args):
    """One action chunk, or with --control a control loop: bench/latency.py measures, this prints and writes."""
    possible(args)
    config, dtype = get_config(args.config), getattr(torch, args.dtype)
    report = conditions(args, config)
    isa = report["onednn_max_cpu_isa"]
    print(", ".join(str(report[key]) for key in ("config", "dtype", "device", "processor")) +
          (f", ONEDNN_MAX_CPU_ISA={isa}" if isa else "") + f", torch {torch.__version__}, engine {report['engine']}, "
          f"{report['euler_steps']} Euler steps, random weights of seed {SEED}, batch 1, three views", flush=True)
    if args.control is not None:
        report["control"] = control(config, args.device, dtype, report["engine"], args.control)
        for name, row in report["control"].items():
            print(f"{name:<26} step p50 {row['p50_ms']:7.2f} ms  p99 {row['p99_ms']:8.2f}  max {row['max_ms']:8.2f}   "
                  f"{row['steps']} steps, {row['plans']} plans, {row['starved']} starved, {row['late']} late")
        print("without the first step of each, which waits for its plan")
    else:
        if config.model.vae != "cosmos" or not config.model.gen_expert:
            raise ValueError(f"--config {args.config}: the plain arm is a full-size preset's; --control times any")
        gpu = args.device == "cuda"
        compiled, blocks = args.compiled_arm or gpu, args.blocks or (30 if gpu else 4)
        report |= measure(config.model, args.device, dtype, report["engine"], blocks, compiled, args.euler_steps)
        print(f"{' + '.join(map(str, report['tokens']))} tokens; every arm {2 * blocks} times, interleaved")
        print("\n".join(lines(report)))
        if not compiled:
            print("plain arm under torch.compile: not measured; --compiled_arm adds it (compiling takes long on a CPU)")
    if args.json:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / args.json).write_text(json.dumps(report, indent=1) + "\n")


def parse(argv):
    parser = Parser(prog="bench.py", description=__doc__)
    parser.add_argument("--params", action="store_true", help="print Table 1")
    parser.add_argument("--claim", choices=("arms", "tau"), help="train and compare arms in the embedded world")
    parser.add_argument("--steps", type=int, default=1500, help="steps of the first arm; the others get its wall clock")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--first_seed", type=int, default=0, help="the first of them")
    parser.add_argument("--eval_seed", type=int, default=4242, help="evaluation seed of training seed 0; then + 1 each")
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", help="comma-separated arms")
    parser.add_argument("--tuned", metavar="JSON", help="an earlier result whose steps and learning rates are taken")
    parser.add_argument("--flags", default="", help="further train.py flags for every arm")
    parser.add_argument("--work", default="runs/bench", help="where the runs go")
    parser.add_argument("--json", help="file name under bench/results")
    parser.add_argument("--config", help="preset whose action chunk is timed")
    parser.add_argument("--data", help="dataset whose reading is timed, or 'synthetic': one for each codec")
    parser.add_argument("--robot", help="with --data: of support/data/robots.py, or a .json file (default: the dataset's)")
    parser.add_argument("--tuples", type=int, default=16, help="with --data: tuples of one run")
    parser.add_argument("--size", type=int, default=256, help="with --data: pixels of a letterboxed picture")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="with --config")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="with --config")
    parser.add_argument("--random", action="store_true", help="with --config: random weights (the default, and all)")
    parser.add_argument("--engine", choices=MODES, help="with --config (default: graph on a GPU, eager on a CPU)")
    parser.add_argument("--blocks", type=int, help="with --config: each arm runs twice as often (default: 30 on a "
                        "GPU, 4 on a CPU)")
    parser.add_argument("--compiled_arm", action="store_true", help="with --config: also the plain arm, compiled")
    parser.add_argument("--euler_steps", type=int, help="with --config: also time fewer steps, and their action error")
    parser.add_argument("--control", type=float, metavar="SECONDS", help="with --config: a control loop at 30 Hz")
    return parser.parse_args(argv)


def run(argv):
    args = parse(argv)
    if args.params:
        params()
    elif args.claim:
        claim(args)
    elif args.config:
        latency(args)
    elif args.data:
        m = DataConfig.m
        lines = reading.codecs(m, args.size, args.tuples) if args.data == "synthetic" else \
            reading.reading(args.data, m, args.size, args.tuples, args.robot and find_robot(args.robot))
        for line in lines:
            print(line, flush=True)
    else:
        raise ValueError("give --params, --claim, --config or --data; --help shows them")


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except (ValueError, ImportError, OSError) as error:
        print(f"bench.py: {said(error)}", file=sys.stderr)
        sys.exit(2)
