"""What is read, checked and said before anything long begins: flags, weights, data, the batch and the disk."""

import os
import shutil
import sys

from config import CONFIGS, PAPER_BATCH, WORLDS
from support.data import file_hashes
from support.data.robots import check_width
from support.files import must, require_writable
from support.flags import COUNT, SEED, Parser, add_config_flags, refuse_ignored, value
from support.training import memory
from support.training.checkpointer import KEEP
from support.weights import start as weights


def warn(line):
    """A line about data, under --on_bad_sample skip."""
    print(f"bad data, will be skipped when drawn: {line}", file=sys.stderr)


def parse(argv, description=None):
    """Arguments of train.py -> argparse's namespace. A bad one is one line and exit code 2."""
    parser = Parser(prog="train.py", description=description)
    parser.add_argument("--config", default="conveyor", help=f"one of {', '.join(CONFIGS)}")
    parser.add_argument("--data", "--mixture", help="dataset folder or mixture.json; conveyor and aloha write theirs")
    parser.add_argument("--robot", help="a robot of support/data/robots.json or a .json file (default: the dataset's)")
    parser.add_argument("--verify", action="store_true", help="first compare every dataset's files with their record")
    parser.add_argument("--init", choices=("scratch",), help="start the a1_* presets from random weights")
    parser.add_argument("--from", dest="origin", help="start from the weights of this run or checkpoint")
    parser.add_argument("--weights", help="a run, or published files: the release's, or a backbone's and Cosmos'")
    parser.add_argument("--init_und", help="directory or hub id of the backbone: InternVL3-1B-hf or Qwen3-VL-2B")
    parser.add_argument("--init_vae", help="directory or hub id of Cosmos CI8x8: encoder.jit and decoder.jit")
    parser.add_argument("--init_experts", default="scratch", help="generation and action experts: scratch (as the "
                        "release), und (copy --init_und's text blocks: a1_2b), or a directory (a1_3b: Qwen3-0.6B)")
    parser.add_argument("--out", help="run folder (default runs/<config>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--shard", action="store_true", help="under torchrun: FSDP2, each rank holds a part")
    parser.add_argument("--dry-run", action="store_true", help="print the memory table, try one step, and stop")
    parser.add_argument("--memory_gb", type=value(float, {"above": 0, "at_most": 10**6}),
                        help="memory of the card in GiB (default: this one's, else 24)")
    parser.add_argument("--fit", action="store_true", help="choose optimizer, layers and micro-batch by --memory_gb")
    parser.add_argument("--episodes", type=value(int, COUNT),
                        help="closed-loop episodes a suite in the final report (default: 200; in aloha 50)")
    parser.add_argument("--eval_seed", type=value(int, SEED), default=4242,
                        help="seed of the report's closed-loop scenes")
    add_config_flags(parser)
    return parser.parse_args(argv)


def check_flags(args, config):
    """ValueError, one line, for flags that contradict each other, that would be ignored or cannot work."""
    if args.init and (args.origin or args.init_und):
        raise ValueError(f"--init {args.init} and --from or --init_und both say where weights come from: choose one")
    must(not args.shard or not config.train.ema, "--ema averages whole weights and --shard cuts them: choose one")
    must(not (args.shard and args.fit), "--fit counts for a card that holds everything and --shard cuts it: choose one")
    chosen = [args.given[name] for name in ("checkpoint_layers", "optimizer") if name in args.given]
    if args.fit and chosen and not (chosen == ["--optimizer"] and args.optimizer == "fp32"):
        raise ValueError(f"--fit chooses {chosen[0]} itself; only --optimizer fp32 can be asked of it")
    refuse_ignored("train.py", args, *jobs_of(args, config))
    require_writable(args.out or "runs", "--out")


def starting_weights(args, config, out):
    """Where the weights come from -> (config with their tokenizer, arguments of support.weights.start.start).
    Without data or weights the program ends here: the parameter table, then one line that names what is missing."""
    start = weights.chosen(args, out)
    whole = start["origin"] or "release" in start
    vae = whole or start["vae"] or config.model.vae != "cosmos" or not config.model.gen_expert
    if not vae and (start["und"] or config.name in WORLDS and not args.init):
        raise ValueError("--init_vae DIR is missing, with encoder.jit and decoder.jit of Cosmos CI8x8 (or these in a "
                         "folder of --weights DIR): the image tokenizer would be random; --init scratch without "
                         "--init_und asks for that, --gen_expert false needs none")
    if config.name not in WORLDS and (args.data is None or not (args.init or whole or start["und"])):
        print("\n".join(memory.parameter_table(config)))
        missing = "--data DIR (a dataset folder, or 'conveyor')" if args.data is None else \
            "weights: --weights DIR, or --from RUN, or --init_und DIR and --init_vae DIR, or --init scratch"
        raise ValueError(f"--config {config.name} needs {missing}; "
                         f"for example: python train.py --config {config.name} --init scratch --data conveyor")
    return weights.settings(args, config, start, out), start


def verify(folders):
    """--verify: ValueError if a file of these datasets is not what its record says."""
    for root in dict.fromkeys(folders):
        if changed := file_hashes.verify(root):
            raise ValueError(changed[0] + f" (and {len(changed) - 1} more files)" * (len(changed) > 1))


def jobs_of(args, config, corpus=None, world=True):
    """What a command does, in the words of flags.READ_BY. corpus None: before data are read; world: their robot's."""
    model, run = config.model, not args.dry_run
    asked = not corpus or not corpus.validation and corpus.hold_out == config.data.hold_out
    facts = {"--dry-run": args.dry_run, "a training run": run, "--fit": args.fit,
             "LeRobot data": run and (not corpus or corpus.lerobot),
             "a robot that a world simulates": run and world, "data that hold out nothing themselves": run and asked,
             "a run that holds out data": run and (corpus.holds_out if corpus else config.data.hold_out != "none"),
             "a run under torchrun": run and "RANK" in os.environ,
             "--decay_steps above 0": config.train.decay_steps > 0,
             "a published backbone": model.backbone != "tiny", "--gen_expert true": model.gen_expert,
             "--learned_positions false": not model.learned_positions}
    return [job for job, holds in facts.items() if holds]


def check_config(config, least_chunk):
    """ValueError, one line, for settings that cannot work, whatever the data. least_chunk: what the world asks for that
    the data are of, 0 without one."""
    need, room = memory.predict(config, activations=0), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    must(need.weights <= room, f"the weights of this network take {need.weights / 2**30:,.1f} GiB, this machine has "
         f"{room / 2**30:,.1f} GiB: choose smaller widths or fewer layers")
    chunk, delay = config.model.chunk, config.train.rtc_delay
    must(chunk >= least_chunk, f"--chunk {chunk} is too short: in the robot's world {least_chunk} actions decide a "
         "scene")
    must(delay < chunk, f"--rtc_delay {delay}: a chunk has {chunk} actions, and at least one is learned")


def check_settings(args, config, corpus, least_chunk, ranks):
    """ValueError, one line, for settings that cannot work with these data. All ranks call it."""
    refuse_ignored("train.py", args, *jobs_of(args, config, corpus, least_chunk))
    check_config(config, least_chunk)
    windows, lengths = zip(*corpus.extent(ranks))
    for source in filter(None, (*corpus.sources.values(), corpus.held_out)):
        if source.cache:
            source.cache.require({config.model.view_size, config.model.frame_size})
        for kind, of in (("state", source.state_names), ("action", source.kinds)) if source.has_action else ():
            check_width(f"the {kind} of robot '{source.robot}'", len(of), getattr(config.model, f"{kind}_dim"))
    chunk = config.model.chunk
    world = all(row.robot == "conveyor" for row in corpus.listed)   # a smoke test of the a1 presets, by design
    if chunk > max(lengths) and not (world and config.name not in WORLDS):
        raise ValueError(f"--chunk {chunk} is longer than every episode: the longest has {max(lengths)} frames")
    must(config.data.m < max(lengths) or not config.model.gen_expert, f"--m {config.data.m}: the longest episode has "
         f"{max(lengths)} frames, so no frame has one m later and L_gen would learn nothing: give a smaller --m")
    for flag, size in (("batch_size", config.train.batch_size), ("lpt_workers", config.data.lpt_workers)):
        if min(windows) > 0 and size > sum(windows):   # a dataset without windows has a message of its own
            raise ValueError(f"--{flag} {size} is more than the data have samples: {sum(windows)} windows")


def effective_batch(train, ranks):
    """One line: micro-batch x accumulation x ranks, beside the paper's (Table 2)."""
    micro, paper, where = train.batch_size * ranks.dealt, PAPER_BATCH.get(train.stage), f"({train.stage}, Table 2)"
    batch = micro * train.accumulate
    line = f"batch: {train.batch_size} x {train.accumulate} accumulated x {ranks.dealt} ranks = {batch}"
    if ranks.dealt > ranks.world:
        line += f", the samples of which {ranks.world} ranks draw: the run began with {ranks.dealt}"
    if paper in (None, batch):
        return line + (f", the paper's {where}" if paper else "")
    hint = "" if paper % micro else f": --accumulate {paper // micro} gives it"
    return f"{line}; the paper's is {paper} {where}{hint}"


def disk_need(config, out):
    """One line on the disk that a run in the folder `out` needs. ValueError: not even one checkpoint fits."""
    size, free = memory.predict(config, activations=0).disk, shutil.disk_usage(out).free
    line = (f"disk: a checkpoint takes {size / 1e9:.3f} GB, {KEEP} are kept and one more stands while it is written; "
            f"{free / 1e9:.3f} GB are free in {out}")
    must(size <= free, f"{line}: not even one fits; free space, or give --out DIR on another disk")
    return line
