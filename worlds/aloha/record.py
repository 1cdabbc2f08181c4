"""Demonstrations of the expert, in our folder form: two datasets, told apart by their instruction, and a held-out one.

An episode is written when it is done, so that what is interrupted goes on where it was. In the end they are joined."""

import hashlib
import json
import shutil
from functools import cache
from importlib.metadata import PackageNotFoundError, version as installed
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from config import VIEWS
from support.files import must, read_json, read_npz, written
from support.owner import own
from support.progress import bar
from worlds.aloha.expert import Kinematics, demonstrate
from worlds.aloha.sim import HZ, INSTALL, TASKS, Sim

EPISODES, HELD_OUT, WORKERS = 200, 8, 2   # demonstrations a task, held-out ones at most, processes
RECORDED = ("transfer_cube", "insertion")   # without being asked for another
SHAKEN = 1.0                              # how much an execution is perturbed, as `demonstrate` says
FIRST, FIRST_HELD_OUT = 0, 90_000         # seeds of training and held-out episodes; evaluation begins at 100,000
LOST = 20                                 # tries of which half must succeed


def version():
    """A hash of the files that decide what is recorded, and the packages' versions. ImportError: they are missing."""
    here = Path(__file__).parent
    files = [(here / f"{name}.py").read_bytes() for name in ("sim", "expert", "record")]
    try:
        packages = f"gym-aloha {installed('gym-aloha')}, mujoco {installed('mujoco')}"
    except PackageNotFoundError as error:
        raise ImportError(f"demonstrations need gym-aloha and mujoco: {INSTALL}") from error
    return f"{hashlib.sha256(b''.join(files)).hexdigest()[:12]}, {packages}"


@cache
def _expert(task):
    sim = Sim(task)
    return sim, Kinematics(sim)


def _one(job):
    """(task, seed, file): record an episode into the file, unless it is there -> whether the expert succeeded."""
    task, seed, path = job
    if not path.exists():
        (sim, kinematics), seen, places = _expert(task), [], []

        def watch():
            seen.append(sim.pictures())
            places.append(sim.places())

        try:
            state, action, success = demonstrate(sim, kinematics, seed, SHAKEN, watch)
            found = {"state": state, "action": action, "places": np.array(places), "pictures": np.array(seen)}
        except ValueError as error:
            if not str(error).startswith("no solution"):
                raise
            success, found = False, {}
        with written(path) as beside:
            np.savez_compressed(beside, success=success, **(found if success else {}))
    return bool(read_npz(path, ("success",))["success"])


def _demonstrations(pool, folder, task, n, seed, shown):
    """Record the first n seeds from `seed` on of which the expert solves the task -> their files."""
    good, tried, initial = [], 0, shown.n
    while len(good) < n:
        some = [(task, seed + tried + i, folder / f"{task}_{seed + tried + i:06}.npz") for i in range(n - len(good))]
        for job, success in zip(some, pool.imap(_one, some)):
            good += [job[2]] * success
            tried += 1
            shown.update(initial + len(good) - shown.n)
            must(tried < LOST or 2 * len(good) >= tried, f"the expert solved {task} for {len(good)} of {tried} seeds, "
                 f"the last seed is {job[1]}: the package is not the one it was written for ({version()})")
    print(f"{task}: {n} demonstrations of {tried} seeds from {seed} on", flush=True)
    return [(task, path) for path in good]


def _join(folder, parts):
    """Write the recorded episodes as one dataset folder: `<view>.npy`, and `episode.npz`, which comes last."""
    numbers = [read_npz(path, ("state", "action", "places")) for _, path in parts]
    ends = np.cumsum([len(one["state"]) for one in numbers])
    folder.mkdir(parents=True, exist_ok=True)
    shape = (int(ends[-1]), *read_npz(parts[0][1], ("pictures",))["pictures"].shape[2:])
    files = [np.lib.format.open_memmap(folder / f"{view}.npy", "w+", np.uint8, shape) for view in VIEWS]
    for (_, path), end in zip(parts, ends):
        seen = read_npz(path, ("pictures",))["pictures"]
        for v, file in enumerate(files):
            file[end - len(seen):end] = seen[:, v]
    places = np.concatenate([one["places"] for one in numbers])   # (F, 2, 2): of the first and the second object
    with written(folder / "episode.npz") as beside:
        np.savez(beside, state=np.concatenate([one["state"] for one in numbers]), target=places[:, 0],
                 action=np.concatenate([one["action"] for one in numbers]), distractor=places[:, 1], ends=ends,
                 fps=float(HZ), robot="aloha_sim", task=[TASKS[task] for task, _ in parts],
                 suite=[task for task, _ in parts])


def prepare(root, episodes=EPISODES, tasks=RECORDED):
    """The demonstrations at `root`, recorded first if absent, by WORKERS processes -> its path. ValueError, one line:
    another version recorded what is there, or another number of episodes is half recorded. Nothing is removed then."""
    root, asked = Path(root), {"version": version(), "episodes": episodes, "tasks": list(tasks)}
    if not (root / "mixture.json").exists():   # else several runs may read it
        own(root)
    there = read_json(root / "world") if (root / "world").exists() else asked
    must(there.get("version") == asked["version"], f"{root} was recorded by another version of worlds/aloha "
         f"({there.get('version')}, this is {asked['version']}): delete it, or give another folder")
    if (root / "mixture.json").exists():
        return root
    must(there == asked, f"{root} holds a part of {there['episodes']} demonstrations of {', '.join(there['tasks'])}: "
         f"go on with python -m worlds.aloha record --out {root} --episodes {there['episodes']} "
         f"--tasks {','.join(there['tasks'])}, or delete it")
    print(f"recording {episodes} demonstrations of {' and '.join(tasks)} in {root}", flush=True)
    with written(root / "world") as beside:
        beside.write_text(json.dumps(asked, indent=1) + "\n")
    parts, held_out, few = root / "parts", [], min(HELD_OUT, episodes)
    parts.mkdir(exist_ok=True)
    with get_context("spawn").Pool(WORKERS) as pool, bar(len(tasks) * (episodes + few), unit="episode") as shown:
        for task in tasks:
            _join(root / task, _demonstrations(pool, parts, task, episodes, FIRST, shown))
            held_out += _demonstrations(pool, parts, task, few, FIRST_HELD_OUT, shown)
        _join(root / "validation", held_out)
    datasets = [{"path": task, "weight": 1, "kind": "sim"} for task in tasks]
    with written(root / "mixture.json") as beside:   # the last: where it stands, all is recorded
        beside.write_text(json.dumps({"datasets": datasets, "validation": "validation"}, indent=1) + "\n")
    shutil.rmtree(parts)
    return root
