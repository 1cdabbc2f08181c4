"""Train InternVLA-A1: Eq. (4) with AdamW, flat from top to bottom.

    python train.py --config conveyor                          the embedded world, minutes on a laptop CPU
    python train.py --config conveyor --data PATH              a LeRobot dataset or an episode folder
    python train.py --config a1_2b --mixture FILE ...          several, by weight, as in examples/mixture_table3.json
    python train.py --config conveyor --resume                 go on from the newest good checkpoint, exactly
    python train.py --config a1_3b --dry-run                   what fits a card, before anything is allocated
    python train.py --config a1_3b --data DIR --weights DIR    all parameters, on one card of 24 GB
    python train.py --stage posttrain --from RUN --data DIR    its weights; optimizer, schedule and statistics afresh
    torchrun --nproc_per_node 2 -- train.py ...                several cards: DDP, with --shard FSDP2

A run is a folder, runs/<config> or --out DIR: log.jsonl (pure functions of the run), timing.jsonl, checkpoints
step_*/, report.json. Data order and noise are pure functions of (seed, rank, sample), so nothing of them is saved.
SIGTERM and SIGINT save and end the run within a step, with exit code 143 and 130.
"""

import json
import math
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from worlds import conveyor
import lpt
from config import CONFIGS, get_config
from data import Mixture, open_corpus
from model import InternVLA_A1
from support import checkpoint
from support.training import validation
from worlds import closed_loop
from support.data import inspection
from support.training import memory
from support.training import optimizers
from support.data import file_hashes
from support.weights import start as weights
from support.training.ranks import Ranks
from support.flags import Parser, add_config_flags
from support.inference.open_loop import mean_errors, open_loop
from support.inference.policy import Policy
from support.training.run import (AGENT, Interruption, Keeper, culprits, deaf, effective_batch, impossible,
                         goes_on, own_count)
from support.data.statistics import statistics_by_robot
from support.training.prepare import prepare


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
    parser.add_argument("--robot", help="a robot of support/data/robots.py or a .json file (default: the dataset's)")
    parser.add_argument("--verify", action="store_true", help="first compare every dataset's files with their record")
    parser.add_argument("--init", choices=("scratch",), help="start the a1_* presets from random weights")
    parser.add_argument("--from", dest="origin", help="start from the weights of this run or checkpoint")
    parser.add_argument("--weights", help="directory of a run or of published files: the release's, or a backbone's "
                        "and Cosmos'")
    parser.add_argument("--init_und", help="directory or hub id of the backbone: InternVL3-1B-hf or Qwen3-VL-2B")
    parser.add_argument("--init_vae", help="directory or hub id of Cosmos CI8x8: encoder.jit and decoder.jit")
    parser.add_argument("--init_experts", default="scratch", help="generation and action experts: scratch (as the "
                        "release), und (copy --init_und's text blocks: a1_2b), or a directory (a1_3b: Qwen3-0.6B)")
    parser.add_argument("--out", help="run folder (default runs/<config>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--shard", action="store_true", help="under torchrun: FSDP2, each rank holds a part")
    parser.add_argument("--dry-run", action="store_true", help="print the memory table, try one step, and stop")
    parser.add_argument("--memory_gb", type=float, help="memory of the card in GiB (default: this one's, else 24)")
    parser.add_argument("--fit", action="store_true", help="choose optimizer, layers and micro-batch by --memory_gb")
    parser.add_argument("--episodes", type=int, default=200, help="closed-loop episodes a suite in the final report")
    parser.add_argument("--eval_seed", type=int, default=4242, help="seed of the report's closed-loop scenes")
    add_config_flags(parser)
    return parser.parse_args(argv)


def refuse(line):
    print(f"train.py: {line}", file=sys.stderr)
    sys.exit(2)


def warn(line):
    print(f"bad data, will be skipped when drawn: {line}", file=sys.stderr)


def progress_bar(total, first=0):
    quiet = not (sys.stderr.isatty() and sys.stdout.isatty())   # a log file, or a rank other than the first
    return tqdm(total=total, initial=first, disable=quiet, dynamic_ncols=True)


def conveyor_data(root):
    """The embedded world's dataset at `root`, written first if absent."""
    written = root / "world"
    if not (root / "mixture.json").exists():
        print(f"writing the embedded world's five datasets to {root} (about 1 GB)", flush=True)
        bar = progress_bar(None)

        def progress(done, total):
            bar.total = total
            bar.update(done - bar.n)
        conveyor.write_dataset(root, progress=progress)
        bar.close()
    if not written.exists() or written.read_text().strip() != conveyor.version():
        refuse(f"{root} was written by another version of conveyor.py: delete it, and it is written anew")
    return root


def gradients(model, micro, config, ranks, counts):
    """Add the gradients of Eq. (4) over all micro-batches of one step -> (L_act, L_gen) of this rank's share.

    micro: list of (Batch, eps, tau). counts: elements of L_act and L_gen over all micro-batches and ranks. Every loss
    is divided by them, so micro-batches and ranks of any size, and without any action, add up exactly.
    """
    act = gen = 0.0
    for n, (batch, eps, tau) in enumerate(micro):
        with ranks.synchronised(model, last=n == len(micro) - 1):
            losses = model(batch.to(ranks.device), eps.to(ranks.device), tau.to(ranks.device))
            losses.total(config.model.lambda_gen, *counts).backward()                      # Eq. (4)
        act = act + losses.act_sum.detach().double() / max(counts[0], 1)
        gen = gen + losses.gen_sum.detach().double() / max(counts[1], 1)
    ranks.complete()
    return float(act), float(gen)


def run(argv):
    args = parse(argv)
    began, ranks = time.time(), Ranks()

    # ---- config ---------------------------------------------------------------------------------------------
    config = get_config(args.config, vars(args))
    closed_loop.possible(args.episodes, args.eval_seed, "eval_seed")
    if args.shard and config.train.ema:
        raise ValueError("--ema averages whole weights and --shard cuts them: choose one")
    if args.shard and args.fit:
        raise ValueError("--fit counts for a card that holds everything and --shard cuts it: choose one")
    if args.memory_gb is not None and args.memory_gb <= 0:
        raise ValueError(f"--memory_gb must be above 0, got {args.memory_gb}")
    out = Path(args.out or f"runs/{config.name}")
    start = weights.chosen(args, out)
    embedded = args.data == "conveyor" or (args.data is None and config.name == "conveyor")
    published = "release" in start or start["und"] and (
        start["vae"] or config.model.vae != "cosmos" or not config.model.gen_expert)
    gib = memory.card(ranks.device) if args.memory_gb is None else args.memory_gb
    if args.fit:
        config = ranks.agree(memory.fit(config, gib) if ranks.first else None)
        print(f"--fit chose {memory.describe(config.train)} for {gib:.0f} GiB")
    if args.dry_run:
        return memory.dry_run(config, ranks.device, gib)
    if config.name != "conveyor" and (args.data is None or not (args.init or start["origin"] or published)):
        print("\n".join(memory.parameter_table(config)))
        missing = "--data DIR (a dataset folder, or 'conveyor')" if args.data is None else \
            "weights: --weights DIR, or --from RUN, or --init_und DIR and --init_vae DIR, or --init scratch"
        refuse(f"--config {config.name} needs {missing}; "
               f"for example: python train.py --config {config.name} --init scratch --data conveyor")
    words = weights.tokenizer_of(start, config.model)
    if words and not config.model.tokenizer:   # weights and their vocabulary belong together
        config = replace(config, model=replace(config.model, tokenizer=words))
    train = config.train
    if train.threads:
        torch.set_num_threads(train.threads)
    newest = goes_on(args.resume, out, ranks, start["origin"])

    # ---- data -----------------------------------------------------------------------------------------------
    if embedded and ranks.first:
        conveyor_data(Path("data/conveyor"))
    ranks.agree(None)   # the others wait for it
    corpus = open_corpus(Path("data/conveyor") if embedded else args.data, config.data.m,
                         config.data.full_windows, args.robot, config.data.hold_out)
    impossible(config, corpus)
    if args.verify and ranks.first:
        for root in dict.fromkeys(source.root for source in [*corpus.sources, corpus.held_out]):
            changed = file_hashes.verify(root, inspection.progress(f"verifying {root}"))
            if changed:
                refuse(f"{changed[0]}" + f" (and {len(changed) - 1} more files)" * (len(changed) > 1))
    ranks.agree(None)
    bad = {"stop": refuse, "skip": warn}[config.data.on_bad_sample]
    for fault, held_out in corpus.look(config.data.m):
        (refuse if held_out else bad)(fault)
    by_robot, kept = statistics_by_robot(corpus.root, corpus.sources, corpus.windows, config.data.m, config.model.chunk,
                                         config.data.action_mode, config.data.std_floor, bad)
    stats = by_robot[corpus.held_out.robot]
    stats.check_inputs(corpus.held_out)
    mixture = Mixture(config, by_robot, corpus.sources, corpus.weights, corpus.windows, train.seed, ranks.rank,
                      ranks.world)
    batches = mixture.loader(checkpoint.step_of(newest) if newest else 0, train.steps, deaf)
    names = [f"{source.name} ({kind})" for source, kind in zip(corpus.sources, corpus.kinds)]
    print("\n".join(lpt.table(names, mixture.sizes, mixture.weights, mixture.ranks)))
    for of, line in zip(by_robot.values(), kept):
        print("\n".join([*of.describe(config.data.m, config.model.chunk), line]))

    # ---- model ----------------------------------------------------------------------------------------------
    torch.manual_seed(train.seed)
    model = InternVLA_A1(config.model)
    print("\n".join(memory.parameter_table(config)))
    if not newest:
        for report in weights.start(model, **start):
            print(report)
    with memory.explained(train, ranks.device):
        wrapped, optimizer, average = prepare(model, train, ranks, args.shard)
    trained = optimizer.parameters.values()
    print(effective_batch(train, ranks.world))

    # ---- resume ---------------------------------------------------------------------------------------------
    drawn = [[source.name, *row] for source, *row in zip(corpus.sources, mixture.weights, mixture.sizes)]
    keeper = Keeper(out, ranks, config, {stats.robot: stats} | by_robot, model, optimizer, average, drawn)
    print(keeper.disk_need())
    with memory.explained(train, ranks.device):
        first, progress, lines = keeper.begin(newest)
    print(*lines, sep="\n", end="\n" if lines else "")
    skipped, mixture.bad_samples = progress.get("skipped", 0), own_count(progress.get("bad_samples", 0), ranks)
    log, timing, problem = keeper.log, keeper.timing, ""
    final = average.module if average else model

    def held_out_losses():
        return validation.validate(final, config, stats, corpus.held_out, corpus.held_out_windows, train.eval_windows)

    # ---- the loop -------------------------------------------------------------------------------------------
    per_step = train.accumulate * train.batch_size
    bar, clock, since = progress_bar(train.steps, first), time.time(), first
    model.train()
    with Interruption() as interruption, memory.explained(train, ranks.device):
        for step in range(first, train.steps):
            bad_before = mixture.bad_samples
            try:
                micro = [next(batches) for _ in range(train.accumulate)]
            except ValueError:   # a bad sample: alone, a run saves what it has learned, and --resume begins with it
                if ranks.world == 1 and step > first:
                    keeper.save(step, skipped=skipped, bad_samples=[bad_before])
                raise
            counts = [model.counts(batch, config.model.action_draws) for batch, _, _ in micro]
            counts = [int(n) for n in ranks.sums(*(sum(column) for column in zip(*counts)))]
            losses = gradients(wrapped, micro, config, ranks, counts)
            norm = optimizers.global_norm(trained)
            act, gen, stop, bad_samples = ranks.sums(*losses, interruption.signal, mixture.bad_samples)
            lr, loss = lr_at(step, train), config.model.lambda_gen * gen + act

            # The sums and the norm are the same on every rank, so all ranks skip the step or none does.
            finite = math.isfinite(loss) and math.isfinite(norm)
            if finite:
                optimizer.step(lr, optimizers.clip_scale(norm, train.clip))
                if average:
                    average.update_parameters(model)
            for p in trained:
                p.grad = None
            done, skipped = step + 1, 0 if finite else skipped + 1

            bar.update()
            row = {"step": done, "loss": loss, "loss_act": act, "loss_gen": gen, "lr": lr, "grad_norm": float(norm),
                   "n_act": counts[0], "n_gen": counts[1]}
            row |= {"bad_samples": int(bad_samples)} if bad_samples else {}
            if not finite:
                log.append({"step": done, "skipped": True, "lr": lr, "n_act": counts[0], "n_gen": counts[1]})
                tqdm.write(f"step {done}: loss or gradient is not finite, the step is skipped")
            elif done % train.log_every == 0 or done == train.steps:
                log.append(row)
                seconds = (time.time() - clock) / (done - since)
                timing.append({"step": done, "seconds": seconds} | memory.now(ranks.device))
                clock, since = time.time(), done
                line = f"loss {loss:.4f} = act {act:.4f} + {config.model.lambda_gen} gen {gen:.4f}"
                bar.set_description_str(line)
                if bar.disable and done % (10 * train.log_every) == 0:
                    print(f"step {done}/{train.steps} | {line} | lr {lr:.1e} | {seconds * 1e3:.0f} ms", flush=True)
            if done % train.eval_every == 0 or done == train.steps:
                held_out = held_out_losses()
                log.append({"step": done, "held_out": held_out})
                tqdm.write(f"step {done}/{train.steps} held out: "
                           + "  ".join(f"{k} {v:.3f}" for k, v in held_out.items()))
                clock, since = time.time(), done
            if done % train.save_every == 0 or done == train.steps or stop or skipped == 3:
                problem = keeper.save(done, skipped=skipped % 3, bad_samples=ranks.gather(mixture.bad_samples))
            if skipped == 3:
                (out / AGENT).unlink(missing_ok=True)   # torchrun's agent is not to go on with it
                last = range((step - 2) * per_step, done * per_step)
                refuse(f"steps {done - 2} to {done} were skipped, the run is saved and stopped; "
                       + culprits(model, mixture, last, ranks))
            if stop:
                print(f"interrupted: {'not ' if problem else ''}saved at step {done}; --resume goes on", flush=True)
                sys.exit(128 + (interruption.signal or signal.SIGTERM))
    bar.close()

    # ---- report ---------------------------------------------------------------------------------------------
    if first == train.steps:   # killed after the last checkpoint: only the report was missing
        held_out = held_out_losses()
    final = keeper.final()
    if not ranks.first:
        return
    report = {"config": config.name, "steps": train.steps, "seed": train.seed, "held_out": held_out,
              "seconds": round(time.time() - began, 1)}
    if stats.robot == "conveyor":
        report["eval_seed"] = args.eval_seed
        report |= closed_loop.closed_loop(Policy(final, config, stats, train.seed), args.episodes, args.eval_seed)[0]
        for suite in conveyor.SUITES:
            row = report[suite]
            print(f"{suite:<8} success {row['success']:.1%}  (95 % interval {row['interval'][0]:.1%} to "
                  f"{row['interval'][1]:.1%}, {row['episodes']} episodes)")
    else:
        report["open_loop"] = mean_errors(open_loop(Policy(final, config, stats, train.seed), corpus)[0])
        print("held-out actions, mean squared error in training standard deviations: "
              + "  ".join(f"{name} {value:.4f}" for name, value in report["open_loop"].items()))
    report["seconds"] = round(time.time() - began, 1)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['seconds']:.0f} s in all; report in {out / 'report.json'}")
    if problem:
        refuse(f"the last step is not on disk: {problem}")


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
        Ranks.close()
    except (ValueError, ImportError, OSError) as error:
        refuse(inspection.said(error))
