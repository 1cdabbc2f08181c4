"""Train InternVLA-A1: Eq. (4) with AdamW, flat from top to bottom.

    python train.py --config conveyor                          the embedded world, minutes on a laptop CPU
    python train.py --config conveyor --data PATH              a LeRobot v2.1 or v3.0 dataset, or an episode folder
    python train.py --config a1_2b --mixture FILE ...          several, by weight, as in examples/mixture_table3.json
    python train.py --config conveyor --resume                 go on from the newest good checkpoint, exactly

A run is a folder, runs/<config> or --out DIR: log.jsonl (pure functions of the run), timing.jsonl, checkpoints
step_*/, report.json. Data order and noise are pure functions of (seed, step, sample), so nothing of them is saved.
"""

import json
import math
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import conveyor
import lpt
from config import CONFIGS, Parser, add_config_flags, from_dict, get_config, not_built, to_dict
from data import Mixture, open_corpus
from model import InternVLA_A1, count_parameters
from support import checkpoint, evaluate, inspection, record, weights
from support.open_loop import mean_errors, open_loop
from support.policy import Policy
from support.statistics import of_checkpoint, statistics_by_robot


def lr_at(step, train):
    """Learning rate of a step: linear warm-up, then a cosine counted from step 0 (Table 2). A pure function."""
    if step < train.warmup_steps:
        return train.lr * (step + 1) / (train.warmup_steps + 1)
    if not train.decay_steps:
        return train.lr
    progress = min(step / train.decay_steps, 1)
    return train.min_lr + (train.lr - train.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def parse(argv):
    parser = Parser(prog="train.py", description=__doc__)
    parser.add_argument("--config", default="conveyor", help=f"one of {', '.join(CONFIGS)}")
    parser.add_argument("--data", "--mixture", help="dataset folder or mixture.json; 'conveyor' is the embedded world")
    parser.add_argument("--robot", help="a robot of support/robots.py or a .json file (default: the dataset's)")
    parser.add_argument("--verify", action="store_true", help="first compare every dataset's files with their record")
    parser.add_argument("--init", choices=("scratch",), help="start the a1_* presets from random weights")
    parser.add_argument("--from", dest="origin", help="start from the weights of this run or checkpoint")
    parser.add_argument("--init_und", help="directory or hub id of the backbone: InternVL3-1B-hf or Qwen3-VL-2B")
    parser.add_argument("--init_vae", help="directory or hub id of Cosmos CI8x8: encoder.jit and decoder.jit")
    parser.add_argument("--init_experts", default="scratch", help="generation and action experts: scratch (as the "
                        "release), und (copy --init_und's text blocks: a1_2b), or a directory (a1_3b: Qwen3-0.6B)")
    parser.add_argument("--out", help="run folder (default runs/<config>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--episodes", type=int, default=200, help="closed-loop episodes a suite in the final report")
    parser.add_argument("--eval_seed", type=int, default=4242, help="seed of the report's closed-loop scenes")
    add_config_flags(parser)
    return parser.parse_args(argv)


def parameter_table(config):
    """Table 1 for this preset, and the memory that training all parameters needs, as printable lines."""
    with torch.device("meta"):
        model = InternVLA_A1(config.model)
    rows, absent = count_parameters(model), sum(not_built(config.model).values())
    lines = [f"parameters of {config.name}, in millions"]
    lines += [f"  {name:<12}{rows[name] / 1e6:>10.2f}" for name in ("und", "gen", "act", "projections", "vae", "total")]
    if absent:
        lines.append(f"  {'not built':<12}{absent / 1e6:>10.2f}   (total in the release's layout "
                     f"{(rows['total'] + absent) / 1e6:,.2f})")
    trained = rows["total"] - rows["vae"]
    lines.append(f"memory of weights, gradients and AdamW states in float32, without activations: "
                 f"{(16 * trained + 4 * rows['vae']) / 2 ** 30:.1f} GiB")
    return lines


def refuse(line):
    print(f"train.py: {line}", file=sys.stderr)
    sys.exit(2)


def warn(line):
    print(f"bad data, not used: {line}", file=sys.stderr)


def progress_bar(total, first=0):
    return tqdm(total=total, initial=first, disable=not sys.stderr.isatty(), dynamic_ncols=True)


def conveyor_data(root):
    """The embedded world's dataset at `root`, written first if absent."""
    if not (root / "mixture.json").exists():
        print(f"writing the embedded world's five datasets to {root} (about 1 GB)", flush=True)
        bar = progress_bar(None)

        def progress(done, total):
            bar.total = total
            bar.update(done - bar.n)
        conveyor.write_dataset(root, progress=progress)
        bar.close()
    return root


def run(argv):
    args = parse(argv)
    began = time.time()

    # ---- config ---------------------------------------------------------------------------------------------
    config = get_config(args.config, vars(args))
    if args.episodes < 1:
        raise ValueError(f"--episodes must be at least 1, got {args.episodes}")
    out = Path(args.out or f"runs/{config.name}")
    embedded = args.data == "conveyor" or (args.data is None and config.name == "conveyor")
    published = args.init_und and (args.init_vae or config.model.vae != "cosmos" or not config.model.gen_expert)
    if config.name != "conveyor" and (args.data is None or not (args.init or args.origin or published)):
        print("\n".join(parameter_table(config)))
        missing = "--data DIR (a dataset folder, or 'conveyor')" if args.data is None else \
            "weights: --from RUN, or --init_und DIR and --init_vae DIR, or --init scratch"
        refuse(f"--config {config.name} needs {missing}; "
               f"for example: python train.py --config {config.name} --init scratch --data conveyor")
    words = args.init_und or (weights.origin_config(args.origin).tokenizer if args.origin else "")
    if words and not config.model.tokenizer:   # weights and their vocabulary belong together
        config = replace(config, model=replace(config.model, tokenizer=words))
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    if not args.resume and out.exists() and any(out.glob("step_*")):
        refuse(f"{out} holds checkpoints already: --resume continues that run, --out DIR starts another")

    # ---- data -----------------------------------------------------------------------------------------------
    corpus = open_corpus(conveyor_data(Path("data/conveyor")) if embedded else args.data, config.data.m,
                         config.data.full_windows, args.robot, config.data.hold_out)
    for root in dict.fromkeys(source.root for source in [*corpus.sources, corpus.held_out] if args.verify):
        changed = record.verify(root, inspection.progress(f"verifying {root}"))
        if changed:
            refuse(f"{changed[0]}" + f" (and {len(changed) - 1} more files)" * (len(changed) > 1))
    bad = {"stop": refuse, "skip": warn}[config.data.on_bad_sample]
    for fault, held_out in corpus.look(config.data.m):
        (refuse if held_out else bad)(fault)
    by_robot, kept = statistics_by_robot(corpus.root, corpus.sources, corpus.windows, config.data.m, config.model.chunk,
                                         config.data.action_mode, config.data.std_floor, bad)
    stats = by_robot[corpus.held_out.robot]
    mixture = Mixture(config, by_robot, corpus.sources, corpus.weights, corpus.windows, config.train.seed)
    names = [f"{source.name} ({kind})" for source, kind in zip(corpus.sources, corpus.kinds)]
    print("\n".join(lpt.table(names, mixture.sizes, mixture.weights, mixture.ranks)))
    for of, line in zip(by_robot.values(), kept):
        print("\n".join([*of.describe(config.data.m, config.model.chunk), line]))

    # ---- model ----------------------------------------------------------------------------------------------
    torch.manual_seed(config.train.seed)
    model = InternVLA_A1(config.model)
    print("\n".join(parameter_table(config)))
    if not args.resume:
        for report in weights.start(model, args.origin, args.init_und, args.init_vae, args.init_experts):
            print(report)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    train = config.train
    optimizer = torch.optim.AdamW(trained.values(), lr=train.lr, betas=(train.beta1, train.beta2), eps=train.adam_eps,
                                  weight_decay=train.weight_decay, fused=True)

    # ---- resume ---------------------------------------------------------------------------------------------
    out.mkdir(parents=True, exist_ok=True)
    log_path, first = out / "log.jsonl", 0
    if args.resume:
        path = checkpoint.newest(out)
        tensors, state = checkpoint.load(path)
        stored = from_dict(state["config"])
        changed = [key for title in ("model", "data", "train") for key, value in to_dict(stored)[title].items()
                   if value != to_dict(config)[title][key] and key not in ("threads", "loaders", "on_bad_sample")]
        if changed:
            refuse(f"{path} was trained with another config (--{', --'.join(changed)}): give the same flags")
        if of_checkpoint(state) != by_robot:
            refuse(f"{path} was trained with other statistics: the data in {args.data or 'data/conveyor'} have changed")
        if state["versions"] != versions():
            print(f"resume is not exact because the checkpoint was made under {state['versions']}, "
                  f"this is {versions()}")
        model.load_state_dict(tensors)
        load_optimizer(optimizer, trained, checkpoint.load_optimizer(path))
        first, mixture.bad_samples = state["step"], state.get("bad_samples", 0)
        checkpoint.truncate_log(log_path, state["log_length"])
        print(f"resuming {path} at step {first}")
    log = open(log_path, "a" if args.resume else "w", buffering=1)
    timing = open(out / "timing.jsonl", "a" if args.resume else "w", buffering=1)

    # ---- the loop -------------------------------------------------------------------------------------------
    batches = iter(mixture.loader(first, train.steps))
    bar, clock = progress_bar(train.steps, first), time.time()
    model.train()
    for step in range(first, train.steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, train)

        # Losses are divided by the valid elements of the whole step, so micro-batches of any size add up exactly.
        micro = [next(batches) for _ in range(train.accumulate)]
        counts = [model.counts(batch, config.model.action_draws) for batch, _, _ in micro]
        n_act, n_gen = (sum(column) for column in zip(*counts))
        act = gen = 0.0
        for batch, eps, tau in micro:
            losses = model(batch, eps, tau)
            losses.total(config.model.lambda_gen, n_act, n_gen).backward()         # Eq. (4)
            act, gen = act + losses.act_sum.item() / max(n_act, 1), gen + losses.gen_sum.item() / max(n_gen, 1)
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), train.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        done = step + 1
        bar.update()
        if done % train.log_every == 0 or done == train.steps:
            loss = config.model.lambda_gen * gen + act
            row = {"step": done, "loss": loss, "loss_act": act, "loss_gen": gen, "lr": lr_at(step, train),
                   "grad_norm": norm.item(), "n_act": n_act, "n_gen": n_gen}
            row |= {"bad_samples": mixture.bad_samples} if mixture.bad_samples else {}
            log.write(json.dumps(row) + "\n")
            seconds = (time.time() - clock) / min(train.log_every, done - first)
            timing.write(json.dumps({"step": done, "seconds": seconds}) + "\n")
            clock = time.time()
            line = f"loss {loss:.4f} = act {act:.4f} + {config.model.lambda_gen} gen {gen:.4f}"
            bar.set_description_str(line)
            if bar.disable and done % (10 * train.log_every) == 0:
                print(f"step {done}/{train.steps} | {line} | lr {lr_at(step, train):.1e} | {seconds * 1e3:.0f} ms",
                      flush=True)
        if done % train.eval_every == 0 or done == train.steps:
            held_out = evaluate.validate(model, config, stats, corpus.held_out, corpus.held_out_windows,
                                         train.eval_windows)
            log.write(json.dumps({"step": done, "held_out": held_out}) + "\n")
            tqdm.write(f"step {done}/{train.steps} held out: " + "  ".join(f"{k} {v:.3f}" for k, v in held_out.items()))
            clock = time.time()
        if done % train.save_every == 0 or done == train.steps:
            log.flush()
            state = {"step": done, "config": to_dict(config), "statistics": asdict(stats), "versions": versions(),
                     "statistics_by_robot": {name: asdict(of) for name, of in by_robot.items()},
                     "log_length": log_path.stat().st_size, "bad_samples": mixture.bad_samples}
            checkpoint.save(out, done, model.state_dict(), optimizer_tensors(optimizer, trained), state)
    bar.close()
    log.close()
    timing.close()

    if first == train.steps:   # killed after the last checkpoint: only the report was missing
        held_out = evaluate.validate(model, config, stats, corpus.held_out, corpus.held_out_windows,
                                     train.eval_windows)

    # ---- report ---------------------------------------------------------------------------------------------
    report = {"config": config.name, "steps": train.steps, "seed": train.seed, "held_out": held_out,
              "seconds": round(time.time() - began, 1)}
    if stats.robot == "conveyor":
        report |= evaluate.closed_loop(Policy(model, config, stats, train.seed), args.episodes, args.eval_seed)[0]
        for suite in conveyor.SUITES:
            row = report[suite]
            print(f"{suite:<8} success {row['success']:.1%}  (95 % interval {row['interval'][0]:.1%} to "
                  f"{row['interval'][1]:.1%}, {row['episodes']} episodes)")
    else:
        report["open_loop"] = mean_errors(open_loop(Policy(model, config, stats, train.seed), corpus)[0])
        print("held-out actions, mean squared error in training standard deviations: "
              + "  ".join(f"{name} {value:.4f}" for name, value in report["open_loop"].items()))
    report["seconds"] = round(time.time() - began, 1)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['seconds']:.0f} s in all; report in {out / 'report.json'}")


def versions():
    """What an exact resume depends on."""
    return {"torch": torch.__version__, "numpy": np.__version__, "threads": torch.get_num_threads()}


def optimizer_tensors(optimizer, parameters):
    """AdamW's state by parameter name."""
    return {f"{name}.{key}": value for name, p in parameters.items() for key, value in optimizer.state[p].items()}


def load_optimizer(optimizer, parameters, tensors):
    for name, p in parameters.items():
        optimizer.state[p] = {key: tensors[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except (ValueError, ImportError) as error:
        # A loader process sends its traceback along; its last line is the error.
        refuse(str(error).strip().splitlines()[-1].removeprefix("ValueError: "))
