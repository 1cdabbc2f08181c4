"""A folder of pictures, as infer.py's first docstring describes it: read, planned for, or cut from a dataset."""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from config import VIEWS, DataConfig, from_dict
from support import checkpoint
from support.data.episodes import chosen
from support.data.folder import listing
from support.data.picture import ENDINGS, decode
from support.data.robots import find_robot
from support.data.source import open_source
from support.files import must, numbers, read_json, read_npy, read_text, save_json, written
from support.inference.control import places_of
from support.inference.report import action_names, deviations, foresight_picture, print_euler_error, shown_errors
from support.pictures import action_plot, saved

TIMES = ("past", "now", "future")
WRITTEN = ("actions.png", "foresight.png")   # by `write`, where --out is the folder itself
TRUE_ACTIONS = 50   # that `cut` writes, at most
READ = ("state.npy", "state.json", "task.txt", "true_actions.npy", "m.json")   # beside pictures


@dataclass
class Observed:
    """What a folder holds of one moment t."""

    seen: dict                   # view -> [o_{t-m}, o_t], uint8 (H, W, 3)
    future: dict                 # view -> o_{t+m}, where there is one
    state: np.ndarray            # q_t (d_q,) float32 in raw units
    task: str
    actions: np.ndarray | None   # the true ones (k, d_a) in raw units


def read(folder, stats, task=None, state=None, m=None):
    """An image folder of the robot of `stats` -> Observed. task, state: the text and the file given instead of the
    folder's own; m: the policy's, where it is known. ValueError: one line that names the file."""
    must(folder.is_dir(), f"--image-dir {folder}: no such folder; infer.py --help describes it")
    files = listing(folder)
    cut_with = read_json(files["m.json"], int) if "m.json" in files else m
    must(m in (None, cut_with), f"{folder} was cut with m = {cut_with} frames, the checkpoint has m = {m}: cut it "
         "again, with --cut DATA and this --checkpoint")
    for name in files.keys() - {*READ, Path(state or "").name.lower()}:
        near = difflib.get_close_matches(name.rpartition(".")[0], [known.rpartition(".")[0] for known in READ], 1, 0.85)
        must(not near and (not name.endswith(".npy") or name == "actions.npy"),   # which `write` writes
             f"{files[name]} is not read, {', '.join(READ)} are: rename it, or move it elsewhere")
    seen, future = read_pictures(folder, files)
    places_of(seen, f"--image-dir {folder}", stats.cameras())
    states = [Path(state)] if state else [files[name] for name in ("state.npy", "state.json") if name in files]
    d_q, d_a, true = len(stats.state_mean), len(stats.action_mean), files.get("true_actions.npy")
    must(len(states) <= 1, f"{folder} holds state.npy and state.json: keep one of them, or give --state FILE")
    if states:
        q_t = read_numbers(states[0], 1, d_q, f"robot '{stats.robot}' has {d_q} state dimensions")
    else:
        print("no state given: using the mean state of the training data; --state FILE gives the real one" if d_q else
              f"robot '{stats.robot}' has no state: the state token gets zeros")
        q_t = np.array(stats.state_mean, np.float32)
    if task is None and "task.txt" in files:
        task = re.sub("\r?\n\\Z", "", read_text(files["task.txt"], repair="save it as UTF-8"))
    must(task is not None, f"--task is missing, and so is {folder}/task.txt: what shall the robot do?")
    if not task.strip():   # as of a dataset
        task = ""
        print("the instruction is empty")
    elif task != task.strip():
        print("white space at the ends of the instruction counts")
    return Observed(seen, future, q_t, task, read_numbers(true, 2, d_a, f"expected (steps, {d_a})") if true else None)


def read_pictures(folder, files):
    """view -> [o_{t-m}, o_t], and view -> o_{t+m}. files: a `listing`. ValueError: one line."""
    found = {}
    for name, path in files.items():
        stem, ending = os.path.splitext(name)
        view, _, time = stem.rpartition("_")
        if view in VIEWS and time in TIMES:
            if found.setdefault((view, time), path) != path:
                raise ValueError(f"{folder} holds {found[view, time].name} and {path.name}: keep one of them")
        elif ending in ENDINGS and name not in WRITTEN:
            raise ValueError(f"{path} is of no known view and time: name it VIEW_TIME{ending}, with {', '.join(VIEWS)} "
                             f"and {', '.join(TIMES)}; or move it elsewhere")
    must(found, f"--image-dir {folder}: no picture found; expected head_past.png and head_now.png at least")
    for view, time in [(view, time) for view, _ in found for time in ("past", "now") if (view, time) not in found]:
        raise ValueError(f"--image-dir {folder}: {view}_{time}.png is missing; a camera needs past and now, or no file")
    return ({view: [decode(found[view, time]) for time in ("past", "now")] for view in VIEWS if (view, "now") in found},
            {view: decode(found[view, "future"]) for view in VIEWS if (view, "future") in found})


def read_numbers(path, axes, d, expected):
    """float32 from .npy or .json, d numbers on the last of so many axes. ValueError: the file, what was expected."""
    x = numbers(read_json(path, list) if path.suffix.lower() == ".json" else read_npy(path), path)
    must(x.ndim == axes and x.shape[-1] == d and 0 not in x.shape[:-1], f"{path} has shape {x.shape}; {expected}")
    return x


def write(out, policy, observed, actions, z_hat):
    """What was planned, printed and into the folder `out`. actions (k, d_a) in raw units; z_hat (V, 16, g, g), None."""
    stats, names, true, shown = policy.stats, action_names(policy.stats), observed.actions, actions
    out.mkdir(parents=True, exist_ok=True)
    with written(out / "actions.npy") as file:
        np.save(file, actions)
    if true is not None:   # an episode may end sooner than the chunk, or later than it
        shown, true = actions[:len(true)], true[:len(actions)]
    action_plot(shown, names, true=true, fps=stats.fps, path=out / "actions.png", spans=stats.action_std)
    print(f"task: {observed.task}\nviews: {', '.join(observed.seen)}; missing views are masked: "
          f"{', '.join(v for v in VIEWS if v not in observed.seen) or 'none'}")
    print(f"{len(actions)} actions, one per frame at {stats.fps:g} frames/s = {len(actions) / stats.fps:.2f} s, "
          f"in the robot's units ({policy.config.data.action_mode})")
    for name, column in zip(names, actions.T):
        print(f"  {name:<24} first {column[0]:+8.3f}   last {column[-1]:+8.3f}   range {np.ptp(column):7.3f}")
    if true is not None:
        chunks, held = {"policy": shown}, stats.holding(observed.state)
        if held is not None:
            chunks["holding the state"] = held[None]
        chunks["training mean"] = stats.actions(np.zeros_like(true), observed.state)
        rows = {name: deviations(a, true, np.array(stats.action_std), stats.moving) for name, a in chunks.items()}
        print(f"mean squared error in standard deviations of the training actions: {shown_errors(rows, ', ')}")
    if z_hat is not None:
        foresight_picture(policy, observed.seen, observed.future, z_hat, out / "foresight.png")
    print_euler_error(policy, observed.seen, observed.state, observed.task)
    print(f"wrote {', '.join(sorted(path.name for path in out.iterdir()))} to {out}")


def cut(dataset, folder, episode=-1, frame=None, robot=None, timestamps="check", of=None):
    """Write a new image folder from an episode of a dataset, with the true future and the true actions. of: the
    checkpoint whose m is taken, by default 15 frames; frame: t, by default m. ValueError: one line, for a folder that
    holds files, an episode or a frame that does not exist."""
    must(not folder.exists() or not any(folder.iterdir()),
         f"--image-dir {folder} holds files already: name a new folder to cut into, or empty this one")
    m = from_dict(read_json(checkpoint.resolve(of) / checkpoint.STATE).get("config")).data.m if of else DataConfig.m
    source = open_source(dataset, find_robot(robot) if robot else None)
    source.timestamps = timestamps
    (e,) = chosen(str(episode), source.indices, range(len(source.indices)), "--episode", dataset)
    t, T = m if frame is None else frame, int(source.lengths[e])
    must(0 <= t < T, f"--frame {t}: episode {source.indices[e]} of {dataset} has frames 0 to {T - 1}")
    pictures = {f"{view}_{time}.png": source.frame(view, e, at) for view in source.views_of(e)
                for time, at in zip(TIMES, (max(t - m, 0), t, t + m)) if at < T}
    state, action = source.numbers(e)
    arrays = {"state.npy": state[t]} if state.shape[1] else {}
    if action is not None:
        arrays["true_actions.npy"] = action[t:t + TRUE_ACTIONS]
    for name, picture in pictures.items():
        saved(Image.fromarray(np.asarray(picture)), folder / name)
    for name, array in arrays.items():
        with written(folder / name) as file:
            np.save(file, array)
    with written(folder / "task.txt") as file:
        file.write_text(source.task(e, t) + "\n", encoding="utf-8")
    save_json(folder / "m.json", m)
    print(f"wrote frames t - {m}, t and t + {m} of episode {source.indices[e]}, t = {t}, to {folder}")
