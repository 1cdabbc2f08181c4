"""Train InternVLA-A1: Eq. (4) with AdamW (Table 2).

    python train.py --config conveyor                          the embedded world, minutes on a laptop CPU
    python train.py --config aloha                             gym-aloha in MuJoCo, docs/aloha.md
    python train.py --config conveyor --data PATH              a LeRobot dataset or an episode folder
    python train.py --config a1_2b --mixture FILE ...          several, by weight, as in examples/mixture_table3.json
    python train.py --config conveyor --resume                 go on from the newest good checkpoint, exactly
    python train.py --config a1_3b --dry-run                   what fits a card, before anything is allocated
    python train.py --config a1_3b --data DIR --weights DIR    all parameters, on one card of 24 GB
    python train.py --stage posttrain --from RUN --out NEW ... start from its weights; all else is new
    torchrun --nproc_per_node 2 -- train.py ...                several cards: DDP, with --shard FSDP2

A run is a folder, runs/<config> or --out DIR. Data order and noise are pure functions of (seed, rank, sample), so
nothing of them is saved. SIGTERM, SIGINT and SIGHUP save and end the run within a step; exit code 143, 130 or 129."""

from support.entry import command   # first: Ctrl-C during the slow imports prints one line and no traceback
import math
import signal
import sys
import time
from functools import partial
from pathlib import Path

import torch

import lpt
import worlds
from config import get_config
from data import Mixture, windows
from model import InternVLA_A1
from support import checkpoint
from support.data.corpus import Corpus
from support.data.kept_statistics import statistics_by_robot
from support.files import must
from support.lpt_cost import table
from support.owner import own
from support.training import memory
from support.training.checkpointer import Checkpointer, checkpoint_to_resume, restore_bad_samples
from support.training.journal import SKIPS, Journal, nonfinite_samples
from support.training.optimizers import adamw, clip_scale, global_norm
from support.training.preflight import (check_config, check_flags, check_settings, disk_need, effective_batch,
                                        parse, starting_weights, verify, warn)
from support.training.prepare import Cores, prepare
from support.training.ranks import Ranks, lost_rank_explained
from support.training.signals import Interruption, ignore_signals
from support.training.validation import held_out_losses
from support.weights import start as weights
from support.weights.loading import slow_products
from worlds.training import evaluate, least_chunk, marked


def lr_at(step, train):
    """Learning rate of a step. Table 2 gives its ends and lengths. [release] The warm-up is linear, the decay a cosine
    counted from step 0."""
    if step < train.warmup_steps:
        return train.lr * (step + 1) / (train.warmup_steps + 1)
    if not train.decay_steps:
        return train.lr
    progress = min(step / train.decay_steps, 1)
    return train.min_lr + (train.lr - train.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def elements(model, micro):
    """How many elements L_act and L_gen have in these micro-batches -> two ints."""
    return [sum(column) for column in zip(*(model.counts(batch, tau) for batch, _, tau in micro))]


def gradients(model, micro, config, ranks, counts, each=map):
    """Add the gradients of Eq. (4) over all micro-batches of one step -> (L_act, L_gen) of this rank's share.

    micro: list of (Batch, eps, tau). counts: elements of L_act and L_gen over all micro-batches and ranks. Every loss
    is divided by them, so that unequal micro-batches and ranks add up exactly, also where some have no actions.
    each: `map`, or what runs them at the same time."""
    def of_one(n):
        with ranks.synchronised(model, last=n == len(micro) - 1):
            losses = model(*(x.to(ranks.device) for x in micro[n]))
            losses.total(config.model.lambda_gen, *counts).backward()                      # Eq. (4)
        return losses.act_sum.detach().double(), losses.gen_sum.detach().double()
    sums = [sum(column) for column in zip(*each(of_one, range(len(micro))))]
    ranks.complete()
    return [float(x) / max(count, 1) for x, count in zip(sums, counts)]


def read_data(args, config, ranks, newest):
    """What is learned from -> (Corpus, {robot: Statistics}, the held-out robot first, Mixtures, their micro-batches).

    One Mixture; where fewer ranks go on with a run, one for each rank that this one draws for."""
    world, data = worlds.of_data(args.data, config.name)
    check_config(config, world.CHUNK if world else 0)   # before it writes data
    if world and ranks.first:
        world.prepare(data)
    ranks.agree(None)   # a barrier
    corpus = Corpus.read(data, args.robot, config.data.hold_out, config.data.only_episodes, config.data.timestamps)
    dealt = lpt.deal(corpus.frames, corpus.weights, ranks.dealt, config.data.lpt_workers,
                     config.data.balance)                                                  # Sec. 3.4
    corpus.open(partial(windows, m=config.data.m, full=config.data.full_windows),
                *lpt.subset(dealt, ranks.rank, ranks.world), evaluates=ranks.first)
    check_settings(args, config, corpus, least_chunk(corpus.held_out_robot), ranks)
    if args.verify and ranks.first:
        verify(row.path for row in [*corpus.listed, corpus.validation] if row)
    ranks.agree(None)
    bad = warn if config.data.on_bad_sample == "skip" else None   # None: it ends the run
    for fault, held_out in corpus.preflight(config.data.m):
        must(bad and not held_out, fault)
        bad(fault)
    by_robot, kept = statistics_by_robot(corpus, config.data.m, config.model.chunk, config.data.action_mode,
                                         config.data.std_floor, bad, ranks=ranks)
    stats = by_robot[corpus.held_out_robot]
    if corpus.held_out:
        stats.check_inputs(corpus.held_out)
    first = checkpoint.step_of(newest) if newest else 0
    mixtures = [Mixture(config, by_robot, corpus.sources, corpus.windows, dealt[rank], config.train.seed, rank)
                for rank in ranks.draws_for]
    batches = [mixture.loader(first, config.train.steps, ignore_signals) for mixture in mixtures]
    names = [f"{row.name} ({row.kind})" for row in corpus.listed]
    print("\n".join([*table(names, corpus.frames, corpus.weights, dealt), *corpus.notes()]))
    for robot_stats, line in zip(by_robot.values(), kept):
        print("\n".join([*robot_stats.describe(config.data.m, config.model.chunk), line]))
    return corpus, {stats.robot: stats} | by_robot, mixtures, batches


def build(config, ranks, shard, start):
    """The model and what trains it -> (InternVLA_A1, the module to call, optimizer, average of --ema or None).

    start: arguments of support.weights.start.start, None when resuming."""
    train = config.train
    torch.manual_seed(train.seed)
    model = InternVLA_A1(config.model)
    print("\n".join(memory.parameter_table(config)))
    for line in weights.start(model, **start) if start else ():
        print(line)
    wrapped, masters, average = prepare(model, train, ranks, shard)
    # fp32 is torch.optim.AdamW. offload makes its update in host memory; split keeps bf16 moments [ours].
    optimizer = adamw(train.optimizer, model, masters, betas=(train.beta1, train.beta2), eps=train.adam_eps,
                      weight_decay=train.weight_decay)                                      # Table 2
    return model, wrapped, optimizer, average


def run(argv):
    """One training run, from its flags to its report. ValueError, ImportError, OSError: one line."""
    began, args, ranks = time.time(), parse(argv, __doc__), Ranks()
    config, gib = get_config(args.config, vars(args)), args.memory_gb or memory.card(ranks.device)
    check_flags(args, config)
    if args.fit:
        config = ranks.agree(memory.fit(config, gib) if ranks.first else None)
        print(f"--fit chose {memory.describe(config.train)} for {gib:.0f} GiB")
    if args.dry_run:
        return memory.dry_run(config, ranks.device, gib)
    out, train = Path(args.out or f"runs/{config.name}"), config.train
    own(out, ranks, make=False)   # a live run's folder is refused at once
    config, start = starting_weights(args, config, out)
    newest = checkpoint_to_resume(args.resume, out, ranks, start["origin"])
    if train.threads:
        torch.set_num_threads(train.threads)
    corpus, by_robot, mixtures, batches = read_data(args, config, ranks, newest)
    drawn = [[row.name, weight, row.frames, row.lists] for row, weight in zip(corpus.listed, corpus.weights)]
    with memory.explained(train, ranks.device):
        model, wrapped, optimizer, average = build(config, ranks, args.shard, None if newest else start)
        checkpointer = Checkpointer(out, ranks, config, by_robot, model, optimizer, average, drawn)
        print(effective_batch(train, ranks), disk_need(config, out), *slow_products(model), sep="\n")
        first, progress = checkpointer.begin(newest)
    bad = restore_bad_samples(mixtures, progress.get("bad_samples", []), ranks)
    validate = partial(held_out_losses, checkpointer, corpus, marked(corpus.held_out))
    cores, journal = Cores(train, ranks), Journal(checkpointer, first, progress.get("skipped", 0), validate)

    model.train()
    with Interruption() as interruption, memory.explained(train, ranks.device):
        for step in range(first, train.steps):
            with checkpointer.kept_if_data_fail(step, skipped=journal.skipped, bad_samples=bad), \
                    interruption.at_once(alone=ranks.world == 1):
                micro = cores.parts([next(each) for each in batches for _ in range(train.accumulate)])
            bad = [mixture.bad_samples for mixture in mixtures]
            counts = [int(n) for n in ranks.sums(*elements(model, micro))]
            act, gen = gradients(wrapped, micro, config, ranks, counts, cores.each)        # of Eq. (4)
            norm = global_norm(optimizer.parameters.values())
            act, gen, stop, bad_samples = ranks.sums(act, gen, interruption.signal, sum(bad))
            loss, lr = config.model.lambda_gen * gen + act, lr_at(step, train)
            finite = math.isfinite(loss) and math.isfinite(norm)   # of sums over ranks: all skip the step, or none
            if finite:
                optimizer.step(lr, clip_scale(norm, train.clip))                           # AdamW
                if average:
                    average.update_parameters(model)
            optimizer.zero_grad()

            done = step + 1
            journal.record(done, finite, loss, act, gen, lr, norm, counts, bad_samples)
            if done % train.eval_every == 0 or done == train.steps:
                journal.evaluate(done)
            given_up = journal.skipped == SKIPS
            if done % train.save_every == 0 or done == train.steps or stop or given_up:
                checkpointer.save(done, skipped=journal.skipped % SKIPS, bad_samples=ranks.by_dealt(bad))
            if given_up:
                raise ValueError(f"{checkpointer.given_up(done)}; {nonfinite_samples(model, mixtures, done, ranks)}")
            if stop:
                print(f"interrupted: {checkpointer.outcome(done)}; --resume goes on", flush=True)
                sys.exit(128 + (interruption.signal or signal.SIGTERM))
    journal.report(checkpointer, partial(evaluate, checkpointer, corpus, args.episodes, args.eval_seed), began)


if __name__ == "__main__":
    command("train.py", lost_rank_explained()(run), lost="training goes on, log.jsonl in the run folder is its record")
    Ranks.close()
