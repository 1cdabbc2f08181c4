"""Run a trained InternVLA-A1 on a folder of pictures, or in the embedded world.

    python infer.py --image-dir DIR --task "right pick green cross"        actions and an imagined future
    python infer.py --closed-loop --episodes 200 --seed 1 --json FILE      success in the embedded world
    python infer.py --open-loop --data DATA                                predicted beside recorded actions, held out
    python infer.py --weights DIR --config a1_3b_release --robot NAME --action_mode delta --image-dir DIR ...
                                                                           the authors' weights, without a checkpoint
    python infer.py --cut DATA --episode 7 --frame 60 --image-dir DIR      make such a folder from a dataset

DIR holds one picture (PNG or JPEG, RGB, any size) per camera and time:
    head_past.png   head_now.png     frames t-m and t of the head camera; m is the checkpoint's (15 frames)
    left_wrist_*.png  right_wrist_*.png   likewise; a camera that the robot does not have is left out
    head_future.png ...              optional: frame t+m, shown beside the imagined one
    state.npy or state.json          optional: q_t in raw units, in the order the checkpoint was trained with
    task.txt                         optional: the instruction, if --task is not given
    true_actions.npy                 optional: (k, d_a), plotted beside the predicted ones

Written to --out (default DIR/result): actions.npy (k, d_a) float32 in the robot's units, one row per frame from t on;
actions.png; foresight.png. Without --checkpoint the newest good checkpoint under runs/ is taken.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from worlds import conveyor
from config import DataConfig
from data import VIEWS, letterbox, open_corpus, open_source
from support import checkpoint
from worlds import closed_loop
from support import pictures
from support.flags import Parser
from support.data.folder import read_picture
from support.inference.open_loop import open_loop, replay
from support.inference.policy import Policy
from support.data.robots import find_robot
from support.weights.release import load_release, release_settings

TIMES = ("past", "now", "future")


def parse(argv):
    parser = Parser(prog="infer.py", description=__doc__)
    parser.add_argument("--image-dir", help="folder of pictures, see above")
    parser.add_argument("--task", help="the instruction")
    parser.add_argument("--state", help="q_t in raw units, .npy or .json (default: state.npy or state.json of DIR)")
    parser.add_argument("--checkpoint", help="a run or one checkpoint of it (default: the newest under runs/)")
    parser.add_argument("--weights", help="directory or hub id of the authors' release, instead of a checkpoint")
    parser.add_argument("--config", default="a1_3b_release", help="with --weights: the preset")
    parser.add_argument("--robot", help="with --weights: one of support/data/robots.py; with --open-loop and --cut: as in "
                        "training; else which of the checkpoint's robots, if there are several")
    parser.add_argument("--action_mode", choices=("absolute", "delta"), help="with --weights: as it was trained")
    parser.add_argument("--vae", help="with --weights: directory of NVIDIA's encoder.jit and decoder.jit")
    parser.add_argument("--tokenizer", help="directory or hub id of the tokenizer, if it lies elsewhere than it did")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="with --weights")
    parser.add_argument("--out", help="where results go (default: DIR/result, or rollouts/)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise and of the closed-loop scenes")
    parser.add_argument("--closed-loop", action="store_true", help="evaluate in the embedded world")
    parser.add_argument("--episodes", type=int,
                        help="seeded closed-loop episodes a suite (default: the paper's 30 predefined settings)")
    parser.add_argument("--json", help="write the closed-loop report to this file")
    parser.add_argument("--controls", action="store_true",
                        help="also evaluate wrong text, shuffled images and holding still")
    parser.add_argument("--open-loop", action="store_true", help="held-out episodes of --data: plots, errors, rivals")
    parser.add_argument("--data", "--mixture", help="with --open-loop: dataset folder or mixture.json, as trained on")
    parser.add_argument("--cut", help="dataset to cut an image folder from")
    parser.add_argument("--episode", type=int, default=-1, help="with --cut: episode (default the last)")
    parser.add_argument("--frame", type=int, help="with --cut: frame t (default m)")
    parser.add_argument("--engine", choices=("plain", "eager", "compile", "graph"),
                        help="plain: model.py as it is read; the others: support/inference/engine.py, the same chunks sooner "
                             "(default: eager; in --closed-loop and --open-loop on a GPU graph, which takes long to "
                             "start)")
    parser.add_argument("--euler_steps", type=int, help="fewer Euler steps than the config's; prints the action error")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (0: torch's own choice)")
    return parser.parse_args(argv)


# ---- a folder of pictures ---------------------------------------------------------------------------------------

def find_picture(folder, view, time):
    for suffix in (".png", ".jpg", ".jpeg"):
        path = folder / f"{view}_{time}{suffix}"
        if path.exists():
            return path
    return None


def read_folder(folder):
    """view -> [o_{t-m}, o_t] and view -> o_{t+m} of an image folder. ValueError: one line."""
    if not folder.is_dir():
        raise ValueError(f"--image-dir {folder}: no such folder; infer.py --help describes it")
    seen, future = {}, {}
    for view in VIEWS:
        paths = {time: find_picture(folder, view, time) for time in TIMES}
        if not any(paths.values()):
            continue
        for time in ("past", "now"):
            if paths[time] is None:
                raise ValueError(f"--image-dir {folder}: {view}_{time}.png is missing; a camera needs past and now, "
                                 f"or none of its files if the robot does not have it")
        seen[view] = [read_picture(paths["past"]), read_picture(paths["now"])]
        if paths["future"]:
            future[view] = read_picture(paths["future"])
    if not seen:
        raise ValueError(f"--image-dir {folder}: no picture found; expected head_past.png and head_now.png at least")
    return seen, future


def read_state(path, stats):
    """q_t (d_q,) float32 from .npy or .json. ValueError: one line."""
    try:
        values = np.load(path, allow_pickle=False) if path.suffix == ".npy" else json.loads(path.read_text())
        state = np.asarray(values, np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"state {path} cannot be read ({error}); give a .npy or .json list of numbers")
    if state.shape != (len(stats.state_mean),):
        raise ValueError(f"state {path} has shape {state.shape}, robot '{stats.robot}' has "
                         f"{len(stats.state_mean)} state dimensions")
    if not np.isfinite(state).all():
        raise ValueError(f"state {path}: dimension {int(np.argmin(np.isfinite(state)))} is not finite")
    return state


def state_of(args, folder, stats):
    found = [path for path in (folder / "state.npy", folder / "state.json") if path.exists()]
    given = [Path(args.state)] if args.state else found
    if given:
        return read_state(given[0], stats)
    print("no state given: using the mean state of the training data; --state FILE gives the real one")
    return np.array(stats.state_mean, np.float32)


def on_pictures(policy, args):
    folder, stats, config = Path(args.image_dir), policy.stats, policy.config
    seen, future = read_folder(folder)
    state = state_of(args, folder, stats)
    task = args.task or ((folder / "task.txt").read_text().strip() if (folder / "task.txt").exists() else None)
    if not task:
        raise ValueError(f"--task is missing, and so is {folder}/task.txt: what shall the robot do?")
    truth, path = None, folder / "true_actions.npy"
    if path.exists():
        try:
            truth = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError):
            raise ValueError(f"{path} cannot be read: replace or delete it")
        if truth.ndim != 2 or truth.shape[1] != len(stats.action_mean) or not np.isfinite(truth).all():
            raise ValueError(f"{path}: expected finite numbers of shape (steps, {len(stats.action_mean)}), "
                             f"found shape {truth.shape}")

    actions, z_hat = policy.plan([seen], state[None], [task])
    out = Path(args.out or folder / "result")
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "actions.npy", actions[0])
    names = action_names(stats)
    k = len(actions[0]) if truth is None else min(len(truth), len(actions[0]))     # an episode may end sooner
    pictures.action_plot(actions[0][:k], names, true=None if truth is None else truth[:k], fps=stats.fps,
                         path=out / "actions.png")
    print(f"task: {task}\nviews: {', '.join(seen)}; missing views are masked: "
          f"{', '.join(v for v in VIEWS if v not in seen) or 'none'}")
    print(f"{len(actions[0])} actions, one per frame at {stats.fps:g} frames/s = {len(actions[0]) / stats.fps:.2f} s, "
          f"in the robot's units ({config.data.action_mode})")
    for d, name in enumerate(names):
        column = actions[0][:, d]
        print(f"  {name:<24} first {column[0]:+8.3f}   last {column[-1]:+8.3f}   range {np.ptp(column):7.3f}")
    if truth is not None:
        rivals = {"policy": actions[0][:k]}
        if state.size == truth.shape[1]:
            rivals["holding the state"] = state[None]
        errors = {name: np.square((a - truth[:k]) / np.array(stats.action_std)).mean() for name, a in rivals.items()}
        print("mean squared error in standard deviations of the training actions: "
              + ", ".join(f"{name} {error:.4f}" for name, error in errors.items()))
    if z_hat is not None:
        foresight_picture(policy, seen, future, z_hat[0], out / "foresight.png")
    print_euler_error(policy, seen, state, task)
    print(f"wrote {', '.join(sorted(p.name for p in out.iterdir()))} to {out}")


def print_euler_error(policy, seen, state, task):
    """With --euler_steps: what fewer steps change at one observation."""
    if policy.euler_steps:
        error = policy.euler_error([seen], state[None], [task])
        print(f"{policy.euler_steps} instead of {policy.config.model.euler_steps} Euler steps move the actions by "
              f"{error:.1e} training standard deviations (rms, one observation)")


def action_names(stats):
    return list(stats.action_names) or [f"action {d}" for d in range(len(stats.action_mean))]


def foresight_picture(policy, seen, future, z_hat, path):
    """Per view: t-m, t, imagined t+m, and where it is given the true t+m and what the VAE makes of it: the ceiling.

    All as the generation expert sees them.
    """
    def boxed(picture):
        return None if picture is None else letterbox(picture, policy.config.model.frame_size).permute(1, 2, 0).numpy()

    imagined = policy.to_pictures(z_hat[None])[0].permute(0, 2, 3, 1).numpy()
    m, rows = policy.config.data.m, []
    for v, view in enumerate(VIEWS):
        if view in seen:
            past, now = (boxed(picture) for picture in seen[view])
            cells = [(f"t - {m}", past), ("t", now), (f"imagined t + {m}", imagined[v])]
            if future:
                true = boxed(future.get(view))
                cells += [(f"true t + {m}", true), (f"t + {m} through the VAE", through_vae(policy, true))]
            rows.append((view.replace("_", " "), cells))
    pictures.foresight(rows, path=path)


def through_vae(policy, picture):
    """(s, s, 3) uint8 -> encoded and decoded again; None stays None."""
    if picture is None:
        return None
    frames = torch.from_numpy(picture).permute(2, 0, 1)[None, None, None].to(policy.device)
    return policy.to_pictures(policy.model.phi_cosmos(frames)[0, 0])[0].permute(1, 2, 0).numpy()


def on_recordings(policy, args):
    """--open-loop: every held-out episode, its plot, a foresight picture from its middle, and all errors as JSON."""
    if not args.data:
        raise ValueError("--open-loop needs --data, the dataset or mixture that the policy was trained on")
    m = policy.config.data.m
    corpus = open_corpus(args.data, m, robot=args.robot, hold_out=policy.config.data.hold_out)
    if corpus.held_out.robot != policy.stats.robot:
        raise ValueError(f"--data {args.data} is of robot '{corpus.held_out.robot}', the checkpoint drives "
                         f"'{policy.stats.robot}': give the same --robot as in training")
    policy.stats.check_inputs(corpus.held_out)
    rows = corpus.held_out_windows[np.linspace(0, len(corpus.held_out_windows) - 1, 8).astype(int)].tolist()
    worst = max(replay(policy, corpus.held_out, e, t) for e, t in rows)
    print(f"replay: {len(rows)} recorded windows give the model the same inputs in training and at inference, bit for "
          f"bit; their actions come back to {worst:.0e} standard deviations")
    reports, found = open_loop(policy, corpus)
    out, source = Path(args.out or "open_loop"), corpus.held_out
    out.mkdir(parents=True, exist_ok=True)
    (out / "open_loop.json").write_text(json.dumps(reports, indent=1) + "\n")
    for e, (traces, starts) in found.items():
        rivals = {name: traces[name] for name in traces if name not in ("policy", "true")}
        pictures.action_plot(traces["policy"], action_names(policy.stats), true=traces["true"], baselines=rivals,
                             fps=policy.stats.fps, marks=starts, path=out / f"episode_{e}.png")
        t = min(max(len(traces["true"]) // 2, m), len(traces["true"]) - 1 - m)
        if policy.config.model.gen_expert and t >= m:
            seen = {view: [source.frame(view, e, at) for at in (t - m, t)] for view in source.views}
            future = {view: source.frame(view, e, t + m) for view in source.views}
            _, z_hat = policy.plan([seen], source.numbers(e)[0][None, t], [source.task(e, t)])
            foresight_picture(policy, seen, future, z_hat[0], out / f"foresight_{e}.png")
        print(f"episode {e}: mean squared error in training standard deviations: "
              + "  ".join(f"{name} {row['mse']:.4f}" for name, row in reports[e].items()))
    e, t = rows[0]
    seen = {view: [source.frame(view, e, at) for at in (max(t - m, 0), t)] for view in source.views}
    print_euler_error(policy, seen, source.numbers(e)[0][t], source.task(e, t))
    print(f"wrote {', '.join(sorted(path.name for path in out.iterdir()))} to {out}")


def cut(args):
    """Write an image folder from a dataset, with the true future and the true actions."""
    robot = find_robot(args.robot) if args.robot else None
    source, folder = open_source(args.cut, robot), Path(args.image_dir or "cut")
    E = len(source.lengths)
    if not -E <= args.episode < E:
        raise ValueError(f"--episode {args.episode}: {args.cut} has episodes 0 to {E - 1}")
    e = args.episode % E
    m = DataConfig.m
    t = m if args.frame is None else args.frame
    T = int(source.lengths[e])
    if not 0 <= t < T:
        raise ValueError(f"--frame {t}: episode {e} of {args.cut} has frames 0 to {T - 1}")
    folder.mkdir(parents=True, exist_ok=True)
    for view in source.views:
        for time, at in zip(TIMES, (max(t - m, 0), t, t + m)):
            if at < T:
                Image.fromarray(np.asarray(source.frame(view, e, at))).save(folder / f"{view}_{time}.png")
    state, action = source.numbers(e)
    np.save(folder / "state.npy", state[t])
    if action is not None:
        np.save(folder / "true_actions.npy", action[t:t + 50])
    (folder / "task.txt").write_text(source.task(e, t) + "\n")
    print(f"wrote frames t - {m}, t and t + {m} of episode {e}, t = {t}, to {folder}")


# ---- the embedded world -----------------------------------------------------------------------------------------

FILMED = 3   # episodes a suite in the GIF


def in_closed_loop(policy, args):
    if policy.stats.robot != "conveyor":
        raise ValueError("--closed-loop needs a checkpoint of the embedded world, "
                         f"this one drives '{policy.stats.robot}'")
    filmed = min(FILMED, args.episodes or FILMED)
    report, rollouts = closed_loop.closed_loop(policy, args.episodes, args.seed, record=filmed)
    print_report("policy", report)
    if args.controls:
        report["controls"] = {}
        for name, rival in (("wrong arm", closed_loop.wrong_text(policy, closed_loop.WRONG_ARM)),
                            ("wrong colour", closed_loop.wrong_text(policy, closed_loop.WRONG_COLOUR)),
                            ("shuffled images", closed_loop.shuffled_images(policy)),
                            ("hold still", conveyor.hold_action)):
            report["controls"][name], _ = closed_loop.closed_loop(rival, args.episodes, args.seed)
            print_report(name, report["controls"][name])
    report["seed"] = args.seed
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    out = Path(args.out or "rollouts")
    out.mkdir(parents=True, exist_ok=True)
    film(policy, rollouts, out / "rollouts.gif")
    settings, frames = rollouts["static"].settings[0], rollouts["static"].frames[0]
    seen = {view: [frames[0, v], frames[0, v]] for v, view in enumerate(VIEWS)}
    print_euler_error(policy, seen, conveyor.World([settings]).state()[0], settings.instruction)
    print(f"wrote {out / 'rollouts.gif'}" + (f" and {args.json}" if args.json else ""))


def print_report(name, report):
    for suite in conveyor.SUITES:
        row = report[suite]
        tasks = "  ".join(f"{task} {part['success']:.0%}" for task, part in row["tasks"].items())
        print(f"{name:<16}{suite:<9}{row['success']:6.1%}  [{row['interval'][0]:.1%}, {row['interval'][1]:.1%}]  "
              f"{row['episodes']} episodes   {tasks}")


def film(policy, rollouts, path):
    """A GIF: per episode the head view as it runs, what was imagined for t+m, and what came."""
    shown, m = [], conveyor.M
    for suite, rollout in rollouts.items():
        for settings, frames in zip(rollout.settings, rollout.frames):
            seen = {view: [frames[0, v], frames[m, v]] for v, view in enumerate(VIEWS)}
            world = conveyor.World([settings])
            _, z_hat = policy.plan([seen], world.state(), [settings.instruction])
            imagined = None
            if z_hat is not None:
                imagined = policy.to_pictures(z_hat[0, :1])[0].permute(1, 2, 0).numpy()
            shown.append((f"{suite}: {settings.instruction}", frames[:, 0], imagined))
    rows = [[(label, [("now", frames[t]), (f"imagined for frame {2 * m}", imagined if t >= m else None),
                       (f"frame {2 * m}", frames[2 * m] if t >= m else None)])
             for label, frames, imagined in shown] for t in range(2 * m + 1)]
    pictures.gif([pictures.foresight(row, scale=2) for row in rows], path, fps=8)


def run(argv):
    args = parse(argv)
    closed_loop.possible(args.episodes, args.seed, "seed")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.cut:
        return cut(args)
    if not (args.image_dir or args.closed_loop or args.open_loop):
        raise ValueError("give --image-dir DIR, --closed-loop or --open-loop; --help shows them")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here")
    if args.euler_steps is not None and args.euler_steps < 1:
        raise ValueError(f"--euler_steps must be at least 1, got {args.euler_steps}")
    # None lets the policy choose: on a GPU a graph, which takes longer to record than the one chunk of --image-dir.
    engine = args.engine or (None if args.closed_loop or args.open_loop else "eager")
    if engine == "graph" and device != "cuda":
        raise ValueError("--engine graph records a CUDA graph, and this runs on the CPU: use eager or compile")
    fast = {"engine": engine, "euler_steps": args.euler_steps}
    if args.weights:
        directory, config, stats = release_settings(args.weights, args.config, args.robot, args.action_mode,
                                                    tokenizer=args.tokenizer)
        model, reports = load_release(config.model, directory, device, getattr(torch, args.dtype), vae=args.vae)
        print("\n".join(map(str, reports)))
        policy = Policy(model, config, stats, args.seed, **fast)
    else:
        path = checkpoint.resolve(args.checkpoint) if args.checkpoint else checkpoint.find_newest_run("runs")
        print(f"checkpoint {path}")
        policy = Policy.load(path, args.seed, args.tokenizer, None if args.open_loop else args.robot, device, **fast)
    if policy.engine and policy.engine.report:
        print(policy.engine.report)
    if args.closed_loop:
        in_closed_loop(policy, args)
    elif args.open_loop:
        on_recordings(policy, args)
    else:
        on_pictures(policy, args)


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except (ValueError, ImportError, OSError) as error:
        print(f"infer.py: {error}", file=sys.stderr)
        sys.exit(2)
