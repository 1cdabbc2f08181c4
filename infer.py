"""Run a trained InternVLA-A1 on a folder of pictures, or in the world of its robot.

    python infer.py --image-dir DIR --task "right pick green cross"        actions and an imagined future
    python infer.py --closed-loop --episodes 200 --seed 1 --json FILE      success in its world
    python infer.py --open-loop --data DATA                                predicted beside recorded actions, held out
    python infer.py --weights DIR --robot NAME --tokenizer DIR --image-dir DIR ...
                                                                           the authors' weights, without a checkpoint
    python infer.py --serve                                                chunks for robots in other processes
    python infer.py --cut DATA --episode 7 --frame 60 --image-dir DIR      make such a folder from a dataset

DIR holds one picture (any kind and size that support/data/picture.py reads) per camera and time:
    head_past.png   head_now.png     frames t-m and t of the head camera; m is the checkpoint's
    left_wrist_*.png  right_wrist_*.png   likewise; a camera that the robot does not have is left out
    head_future.png ...              optional: frame t+m, shown beside the imagined one
    state.npy or state.json          optional: q_t in raw units, in the order the checkpoint was trained with
    task.txt                         optional: the instruction, if --task is not given
    true_actions.npy                 optional: (k, d_a), plotted beside the predicted ones
    m.json                           written by --cut: the m of its pictures, which must be the checkpoint's

Written to --out (default DIR/result): actions.npy (k, d_a) float32 in the robot's units, row i for frame t + i;
actions.png; foresight.png. Without --checkpoint the newest good checkpoint under runs/ is taken.

`infer` below is the inference of Section 3: --image-dir with --engine plain runs it. The other engines are faster.
Tests hold their chunks equal to its own, up to rounding."""

from support.entry import command   # first: Ctrl-C during the slow imports prints one line and no traceback
from pathlib import Path

import torch

import worlds
from support import checkpoint
from support.data.corpus import Corpus
from support.data.statistics import of_checkpoint
from support.files import must, read_json, require_writable
from support.flags import COUNT, PLACE, SEED, Parser, refuse_ignored, value
from support.inference import image_folder, open_loop, server
from support.inference.policy import Policy
from support.weights.loading import slow_products
from support.weights.release import load_release, release_settings
from worlds import closed_loop


@torch.inference_mode()
def infer(model, stats, batch, eps, state, euler_steps=None):
    """B observations -> (actions (B, k, d_a) in raw units, z_hat (B, V, 16, g, g) or None without a generation expert).

    batch: data.Batch of the observations; eps (B, k, 32) standard normal; state: q_t (B, d_q) in raw units, from which
    delta actions start; stats: the robot's Statistics. euler_steps: default the config's."""
    prefix = model.prefill(batch)                                # und, then gen: their keys and values
    a = model.sample_actions(batch, eps, euler_steps, prefix)    # Eq. (3)
    z_hat = None
    if model.config.gen_expert:
        z_hat = model.imagine(batch, prefix).cpu()               # z_hat_{t+m}: Fig. 10
    actions = stats.actions(a.cpu().numpy(), state)              # the robot's units; in delta mode + q_t
    return actions, z_hat


def on_pictures(policy, args):
    """--image-dir: one chunk of actions and the imagined future."""
    folder, stats = Path(args.image_dir), policy.stats
    observed = image_folder.read(folder, stats, args.task, args.state, policy.config.data.m)
    seen, state, task = [observed.seen], observed.state[None], [observed.task]
    if policy.engine is None:
        batch, eps = policy.batch(seen, state, task).to(policy.device), policy.noise(1).to(policy.device)
        actions, z_hat = policy.finite(*infer(policy.model, stats, batch, eps, state, args.euler_steps))
    else:
        actions, z_hat = policy.plan(seen, state, task)
    image_folder.write(Path(args.out or folder / "result"), policy, observed, actions[0],
                       None if z_hat is None else z_hat[0])


def parse(argv):
    parser = Parser(prog="infer.py", description=__doc__)
    parser.add_argument("--image-dir", help="folder of pictures, see above")
    parser.add_argument("--task", help="the instruction")
    parser.add_argument("--state", help="q_t in raw units, .npy or .json (default: state.npy or state.json of DIR)")
    parser.add_argument("--checkpoint", help="a run or one checkpoint of it (default: the newest "
                        "under runs/); with --cut: whose m is taken (default: 15 frames)")
    parser.add_argument("--weights", help="directory or hub id of the authors' release, instead of a checkpoint")
    parser.add_argument("--config", help="with --weights: the preset (default: what its config.json names)")
    parser.add_argument("--robot", help="with --weights: one of support/data/robots.json or a .json file; with "
                        "--open-loop and --cut: as in training; else which of the checkpoint's robots")
    parser.add_argument("--action_mode", choices=("absolute", "delta"),
                        help="with --weights: how they act, where their train_config.json does not say")
    parser.add_argument("--vae", help="with --weights: directory of NVIDIA's encoder.jit and decoder.jit")
    parser.add_argument("--tokenizer", help="directory or hub id of the tokenizer, in place of the weights' own")
    parser.add_argument("--revision", help="with --weights HUB_ID: its branch, tag or commit")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="with --weights")
    parser.add_argument("--out", help="where results go (default: DIR/result, rollouts/ or open_loop/)")
    parser.add_argument("--seed", type=value(int, SEED), default=0,
                        help="seed of the noise and of the closed-loop scenes")
    parser.add_argument("--closed-loop", action="store_true", help="evaluate in the world of its robot")
    parser.add_argument("--episodes", type=value(int, COUNT),
                        help="seeded closed-loop episodes a suite (default: the world's predefined ones)")
    parser.add_argument("--suites", help="closed-loop suites, separated by commas (default: all of the world)")
    parser.add_argument("--json", help="write the closed-loop report to this file")
    parser.add_argument("--controls", action="store_true",
                        help="also evaluate wrong text, other pictures, other pasts and holding still")
    parser.add_argument("--open-loop", action="store_true",
                        help="held-out episodes of --data: plots, errors, baselines")
    parser.add_argument("--data", "--mixture", help="with --open-loop: dataset folder or mixture.json, as trained on")
    parser.add_argument("--cut", help="dataset to cut an image folder from")
    parser.add_argument("--episode", type=value(int, PLACE), default=-1,
                        help="with --cut: its number in the dataset (default the last)")
    parser.add_argument("--timestamps", choices=("check", "index"), default="check", help="with --cut: as in training")
    parser.add_argument("--frame", type=value(int, PLACE), help="with --cut: frame t (default m)")
    parser.add_argument("--engine", choices=("plain", "eager", "compile", "graph"),
                        help="plain: model.py as it is read; the others: support/inference/engine.py, the same chunks "
                        "sooner (default: eager; of --closed-loop, --open-loop and --serve on a GPU graph, which takes "
                        "long to start)")
    parser.add_argument("--euler_steps", type=value(int, COUNT),
                        help="in place of the config's; prints how far that moves the actions, but for --serve")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument("--threads", type=value(int, {"at_most": 1024}), default=0,
                        help="torch threads (0: torch's own choice)")
    server.add_flags(parser)
    return parser.parse_args(argv)


def check_flags(args, device):
    """ValueError, one line, for flags that cannot work, before anything is loaded."""
    named = ("--cut", "--closed-loop", "--open-loop", "--serve")
    jobs = [job for job in named if job[2:].replace("-", "_") in args.given] or ["--image-dir"] * bool(args.image_dir)
    must(len(jobs) == 1, "give one of --image-dir DIR, --closed-loop, --open-loop, --serve, --cut DATA; see --help")
    source = "--weights" if args.weights else "--cut" if args.cut else "a policy without --weights"
    refuse_ignored("infer.py", args, *jobs, source, f"--protocol {args.protocol}" if args.serve else "")
    require_writable(args.out, "--out")
    require_writable(args.json, "--json", file=True)
    must(device != "cuda" or torch.cuda.is_available(), "--device cuda: torch sees no GPU here")
    if args.engine == "graph" and device != "cuda":
        raise ValueError("--engine graph records a CUDA graph, and this runs on the CPU: use eager or compile")


def open_policy(args, device):
    """The policy of a checkpoint or of published weights, with what was loaded printed."""
    # None: the policy chooses. One chunk, as --image-dir makes, is not worth recording a graph for.
    engine = args.engine or (None if args.closed_loop or args.open_loop or args.serve else "eager")
    fast = {"engine": engine, "euler_steps": args.euler_steps}
    if args.weights:
        directory, config, stats = release_settings(args.weights, args.config, args.robot, args.action_mode,
                                                    tokenizer=args.tokenizer, revision=args.revision)
        model, reports = load_release(config.model, directory, device, getattr(torch, args.dtype), vae=args.vae)
        print("\n".join(map(str, reports)))
        policy = Policy(model, config, stats, args.seed, **fast)
    else:
        path = checkpoint.resolve(args.checkpoint) if args.checkpoint else checkpoint.find_newest_run("runs")
        print(f"checkpoint {path}")
        robot = args.robot
        if args.open_loop and args.data:   # the robot of the data, where the checkpoint has several
            several = len(of_checkpoint(read_json(path / checkpoint.STATE))) > 1
            robot = Corpus.read(args.data, args.robot).held_out_robot if several else None
        policy = Policy.load(path, args.seed, args.tokenizer, robot, device, **fast)
    for line in filter(None, [policy.engine and policy.engine.report, *slow_products(policy.model)]):
        print(line)
    return policy


def main(argv):
    args = parse(argv)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_flags(args, device)
    if args.serve:
        server.check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.cut:
        return image_folder.cut(args.cut, Path(args.image_dir or "cut"), args.episode, args.frame, args.robot,
                                args.timestamps, args.checkpoint)
    policy = open_policy(args, device)
    if args.closed_loop:
        closed_loop.evaluate(policy, worlds.find(policy.stats.robot), args.episodes, args.seed, args.controls,
                             args.json, args.out or "rollouts", None if args.suites is None else args.suites.split(","))
    elif args.open_loop:
        open_loop.write_report(policy, args.data, Path(args.out or "open_loop"), args.robot)
    elif args.serve:
        server.serve(policy, args)
    else:
        on_pictures(policy, args)


if __name__ == "__main__":
    command("infer.py", main)
