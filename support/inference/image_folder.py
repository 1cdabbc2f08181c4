"""A folder of pictures, as infer.py's first docstring describes it: read, planned for, or cut from a dataset."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from config import VIEWS, DataConfig
from support import plots
from support.data.folder import read_picture
from support.data.robots import find_robot
from support.data.source import open_source
from support.files import written
from support.inference.report import action_names, foresight_picture, print_euler_error
from support.pictures import saved

TIMES = ("past", "now", "future")
TRUE_ACTIONS = 50   # that `cut` writes, at most


@dataclass
class Observed:
    """What a folder holds of one moment t."""

    seen: dict                   # view -> [o_{t-m}, o_t], uint8 (H, W, 3)
    future: dict                 # view -> o_{t+m}, where there is one
    state: np.ndarray            # q_t (d_q,) float32 in raw units
    task: str
    actions: np.ndarray | None   # the true ones (k, d_a) in raw units


def read(folder, stats, task=None, state=None):
    """An image folder of the robot of `stats` -> Observed. task, state: the text and the file given instead of the
    folder's own. ValueError: one line that names the file."""
    seen, future = read_pictures(folder)
    state = state or next((folder / name for name in ("state.npy", "state.json") if (folder / name).exists()), None)
    d_q, d_a, true = len(stats.state_mean), len(stats.action_mean), folder / "true_actions.npy"
    if state:
        q_t = read_numbers(Path(state), 1, d_q, f"robot '{stats.robot}' has {d_q} state dimensions")
    else:
        print("no state given: using the mean state of the training data; --state FILE gives the real one")
        q_t = np.array(stats.state_mean, np.float32)
    if not task and (folder / "task.txt").exists():
        task = (folder / "task.txt").read_text().strip()
    if not task:
        raise ValueError(f"--task is missing, and so is {folder}/task.txt: what shall the robot do?")
    actions = read_numbers(true, 2, d_a, f"expected (steps, {d_a})") if true.exists() else None
    return Observed(seen, future, q_t, task, actions)


def read_pictures(folder):
    """view -> [o_{t-m}, o_t], and view -> o_{t+m}. ValueError: one line."""
    if not folder.is_dir():
        raise ValueError(f"--image-dir {folder}: no such folder; infer.py --help describes it")
    seen, future = {}, {}
    for view in VIEWS:
        found = {time: read_picture(path) for time in TIMES for suffix in (".jpeg", ".jpg", ".png")
                 if (path := folder / f"{view}_{time}{suffix}").exists()}
        if not found:
            continue
        for time in ("past", "now"):
            if time not in found:
                raise ValueError(f"--image-dir {folder}: {view}_{time}.png is missing; a camera needs past and now, or "
                                 "none of its files if the robot does not have it")
        seen[view] = [found["past"], found["now"]]
        if "future" in found:
            future[view] = found["future"]
    if not seen:
        raise ValueError(f"--image-dir {folder}: no picture found; expected head_past.png and head_now.png at least")
    return seen, future


def read_numbers(path, axes, d, expected):
    """float32 from .npy or .json, d numbers on the last of so many axes. ValueError, one line: the file, what was
    expected."""
    try:
        values = json.loads(path.read_text()) if path.suffix == ".json" else np.load(path, allow_pickle=False)
        x = np.asarray(values, np.float32)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); replace it by a .npy or .json of numbers")
    if x.ndim != axes or x.shape[-1] != d:
        raise ValueError(f"{path} has shape {x.shape}; {expected}")
    if not np.isfinite(x).all():
        raise ValueError(f"{path}: dimension {np.argwhere(~np.isfinite(x))[0, -1]} is not finite")
    return x


def write(out, policy, observed, actions, z_hat):
    """What was planned, printed and into the folder `out`. actions (k, d_a) in raw units; z_hat (V, 16, g, g), None."""
    stats, names, true, shown = policy.stats, action_names(policy.stats), observed.actions, actions
    out.mkdir(parents=True, exist_ok=True)
    with written(out / "actions.npy") as file:
        np.save(file, actions)
    if true is not None:   # an episode may end sooner than the chunk, or later than it
        shown, true = actions[:len(true)], true[:len(actions)]
    plots.action_plot(shown, names, true=true, fps=stats.fps, path=out / "actions.png", spans=stats.action_std)
    print(f"task: {observed.task}\nviews: {', '.join(observed.seen)}; missing views are masked: "
          f"{', '.join(v for v in VIEWS if v not in observed.seen) or 'none'}")
    print(f"{len(actions)} actions, one per frame at {stats.fps:g} frames/s = {len(actions) / stats.fps:.2f} s, "
          f"in the robot's units ({policy.config.data.action_mode})")
    for name, column in zip(names, actions.T):
        print(f"  {name:<24} first {column[0]:+8.3f}   last {column[-1]:+8.3f}   range {np.ptp(column):7.3f}")
    if true is not None:
        chunks = {"policy": shown}
        if observed.state.size == true.shape[1]:   # only then is holding the state an action
            chunks["holding the state"] = observed.state[None]
        print("mean squared error in standard deviations of the training actions: " + ", ".join(
            f"{name} {np.square((a - true) / stats.action_std).mean():.4f}" for name, a in chunks.items()))
    if z_hat is not None:
        foresight_picture(policy, observed.seen, observed.future, z_hat, out / "foresight.png")
    print_euler_error(policy, observed.seen, observed.state, observed.task)
    print(f"wrote {', '.join(sorted(path.name for path in out.iterdir()))} to {out}")


def cut(dataset, folder, episode=-1, frame=None, robot=None):
    """Write an image folder from an episode of a dataset, with the true future and the true actions. frame: t, by
    default m. ValueError: one line, for an episode or a frame that does not exist."""
    source = open_source(dataset, find_robot(robot) if robot else None)
    E, m = len(source.lengths), DataConfig.m
    if not -E <= episode < E:
        raise ValueError(f"--episode {episode}: {dataset} has episodes 0 to {E - 1}")
    e, t = episode % E, m if frame is None else frame
    T = int(source.lengths[e])
    if not 0 <= t < T:
        raise ValueError(f"--frame {t}: episode {e} of {dataset} has frames 0 to {T - 1}")
    folder.mkdir(parents=True, exist_ok=True)
    for view in source.views:
        for time, at in zip(TIMES, (max(t - m, 0), t, t + m)):
            if at < T:
                saved(Image.fromarray(np.asarray(source.frame(view, e, at))), folder / f"{view}_{time}.png")
    state, action = source.numbers(e)
    with written(folder / "state.npy") as file:
        np.save(file, state[t])
    if action is not None:
        with written(folder / "true_actions.npy") as file:
            np.save(file, action[t:t + TRUE_ACTIONS])
    with written(folder / "task.txt") as file:
        file.write_text(source.task(e, t) + "\n")
    print(f"wrote frames t - {m}, t and t + {m} of episode {e}, t = {t}, to {folder}")
