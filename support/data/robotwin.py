"""RoboTwin's demonstrations, HDF5 files, become a folder of episodes (folder.py): python -m worlds.robotwin convert.

    stable_2.0   TASK/CONFIG/data/episode0.hdf5, its texts in TASK/CONFIG/instructions/episode0.json
    main         CONFIG/TASK/ROBOT/data/episode_0000000.hdf5, its texts inside

Action t is the state at t + 1: main stores it, of stable_2.0 the last frame is dropped. States are drive targets. In
both, OpenCV wrote the pictures as if RGB were BGR: red and blue are exchanged here, and the JPEG is written again."""

import os
import re
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from config import VIEWS
from support.data.picture import decode
from support.files import damage, must, numbers, parse_json, read_json, regular, require_writable
from support.progress import each

STEPS = 250   # of the simulation in a second; a demonstration keeps one of save_freq
FRAMES, LARGEST = 1 << 17, 1 << 30   # rows of an episode, bytes of one of its cameras
PARTS = {"left_arm": 6, "left_gripper": 1, "right_arm": 6, "right_gripper": 1}   # of the robot aloha-agilex
MAIN = [part.replace("gripper", "ee") + "_joint_states" for part in PARTS]


def _stored(file, key, axes=(1,)):
    """A dataset of an open file, not read yet."""
    found = file.get(key)
    must(hasattr(found, "shape"), f"{file.filename}: {key} is missing; does the task's config collect it?")
    must(len(found.shape) in axes and (found.shape or (1,))[0] in range(1, FRAMES) and found.nbytes <= LARGEST
         and not (found.external or found.is_virtual) and found.file == file,
         f"{file.filename}: {key} is {found.dtype} of shape {found.shape}, no rows of one episode in this file")
    return found


def _rows(file, group, names):
    """(rows, 14) float32: left arm (radians) and gripper (0 closed .. 1 open), then the right ones."""
    parts = []
    for name, width in zip(names, PARTS.values()):
        found, where = _stored(file, f"{group}/{name}", (1, 2)), f"{file.filename}: {group}/{name}"
        must(found.size == width * len(found) and len(found) == len(parts[0] if parts else found), f"{where} has shape "
             f"{found.shape}, expected {width} in a row, as of aloha-agilex, and as many rows as the others")
        parts.append(numbers(found[()], where).reshape(-1, width))
    return np.concatenate(parts, axis=1)


def read(file):
    """An episode, an open file -> state and action (L, 14), instructions, view -> at least L JPEG files. ValueError:
    one line."""
    path = Path(file.filename)
    if "joint_action" in file:
        rows, cameras = _rows(file, "joint_action", PARTS), ("head", "left", "right")
        state, action, cameras = rows[:-1], rows[1:], [f"observation/{name}_camera/rgb" for name in cameras]
        texts = read_json(path.parents[1] / "instructions" / f"{path.stem}.json").get("seen")
    else:
        must("state" in file and "action" in file, f"{path} has no joint_action (stable_2.0), and no state and action "
             "(main): it is no demonstration of RoboTwin 2.0")
        state, action = (_rows(file, group, MAIN) for group in ("state", "action"))
        rows, cameras = state, [f"vision/cam_{view}/colors" for view in VIEWS]
        texts = _stored(file, "instructions", (0, 1)).asstr()[()]
        texts = parse_json(texts, f"{path}: instructions") if isinstance(texts, str) else list(texts)
    must(len(state) == len(action) > 0, f"{path}: {len(state)} states and {len(action)} actions are no episode")
    must(isinstance(texts, list) and texts and all(isinstance(text, str) and text.strip() for text in texts),
         f"{path}: the seen instructions are {texts!r:.60}, expected a list of texts")
    pictures = {view: _stored(file, key) for view, key in zip(VIEWS, cameras)}
    for key, found in zip(cameras, pictures.values()):
        must(len(found) == len(rows), f"{path}: {key} has {len(found)} pictures for {len(rows)} frames")
    return state, action, texts, {view: [np.asarray(of).tobytes() for of in found] for view, found in pictures.items()}


def episodes(folders):
    """Folders -> [(path, suite)] of the episodes in them, by number. ValueError: one holds none, or two the same."""
    files = []
    for folder in map(Path, folders):
        found = [path for path in folder.rglob("episode*.hdf5") if path.parent.name == "data"]
        must(found, f"{folder} holds no data/episode*.hdf5: give RoboTwin's data/TASK, or one set of it")
        found = sorted(found, key=lambda path: (path.parent, int(re.sub(r"\D", "", path.stem) or 0)))
        files += [(path, suite(path, folder)) for path in found]
    must(len(files) == len({os.path.realpath(path) for path, _ in files}),
         "an episode is found twice: name each folder once")
    return files


def suite(path, folder):
    """clean or randomized, by the nearest folder that says so, up to the one that was given; else other."""
    top = folder.absolute()
    top = top.parent if path.absolute().parent == top else top   # it is an episode's own data/
    parts = path.absolute().relative_to(top.parent).parts
    words = [word for part in parts[::-1] for word in ("clean", "random") if word in part]
    return {"clean": "clean", "random": "randomized"}[words[0]] if words else "other"


def convert(folders, out, save_freq):
    """All episodes in `folders` -> the new folder `out`, or nothing. Prints what it wrote. ValueError: one line."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError("RoboTwin's files need h5py: run  pip install -r requirements-robotwin.txt") from error
    out, files, fps = Path(out).absolute(), episodes(folders), STEPS / save_freq
    require_writable(out, "--out")
    must(not os.path.lexists(out) or out.is_dir() and not out.is_symlink() and not any(out.iterdir()),
         f"--out {out} holds files, or is a link: name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    kept, ends, sizes = {"state": [], "action": [], "task": []}, [0], {}
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}_") as beside:
        made = Path(beside) / "made"
        for path, _ in each(files, "episode"):
            with damage(str(path), "it cannot be read", path), h5py.File(regular(path)) as file:
                state, action, texts, pictures = read(file)
            for view, number, t in ((view, ends[-1] + t, t) for view in VIEWS for t in range(len(state))):
                picture = decode(pictures[view][t], f"{path}: {view}, frame {t}")
                must(picture.shape == sizes.setdefault(view, picture.shape), f"{path}: {view}, frame {t} is "
                     f"{picture.shape[:2]}, before it are {sizes[view][:2]} (height, width): convert them apart")
                (made / view).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture[..., ::-1]).save(made / view / f"{number:07d}.jpg", quality=95, subsampling=0)
            ends.append(ends[-1] + len(state))
            for key, rows in zip(kept, (state, action, [texts[t % len(texts)] for t in range(len(state))])):
                kept[key].extend(rows)   # each frame has one of its episode's texts, in turn
        np.savez(made / "episode.npz", **kept | {"task": np.char.encode(kept["task"], "utf-8")}, ends=ends[1:], fps=fps,
                 robot="aloha", suite=[name for _, name in files],
                 action_names=[f"{part}_{i}" for part, width in PARTS.items() for i in range(width)])
        os.replace(made, out)
    counts = ", ".join(f"{n} {name}" for name, n in Counter(name for _, name in files).items())
    print(f"wrote {out}: {len(files)} episodes ({counts}), {ends[-1]:,} frames at {fps:.4g} frames/s")
