"""The embedded world's training data: Table 3 in miniature, written by the expert."""

import hashlib
import json
from pathlib import Path

import numpy as np

from config import VIEWS
from lpt import TABLE_3
from support.owner import own
from support.progress import bar
from worlds.conveyor.scene import Scenes, scripted_action
from worlds.conveyor.setting import DATASET, DISTRACTOR, FPS, M, SIZE, STATE_NAMES, SUITES, random_settings

# The sources of Table 3, each a folder here: name, look, weight, millions of frames. EgoDex is people, without labels.
MIXTURE = tuple((name.split(" (")[0].lower().replace("-", "_"), look, weight, millions)
                for (name, millions, weight), look in zip(TABLE_3, ("sim", "sim", "real", "real", "human")))
VALIDATION = 256  # held-out episodes, looking like "sim"
STORED = (0, M, 2 * M)  # frames of an episode whose pictures are kept
LENGTH = 2 * M + 1
BLOCK = 128  # episodes recorded together; each block has its own random stream


def _record_block(stream, first, n, look, views):
    """Record n expert episodes: every third one is static, the others dynamic. A quarter of the reaches begins early.
    Returns arrays (n * LENGTH, ...) by name, pictures (n * len(STORED), views, SIZE, SIZE, 3) uint8, the settings."""
    rng = np.random.RandomState([DATASET, *stream, first])
    settings = random_settings(rng, [SUITES[i % 3 > 0] for i in range(first, first + n)], look, DISTRACTOR)
    start = np.where(rng.uniform(size=n) < 0.25, M - rng.randint(1, 9, size=n), M)  # 1 .. 8 frames early
    scenes, rows, pictures = Scenes(settings), [], []
    for t in range(LENGTH):
        state, objects = scenes.state(), scenes.objects.astype(np.float32)
        action = np.where((t >= start)[:, None], scripted_action(scenes), state)
        rows.append((state, action, objects[:, 0], objects[:, 1]))
        if t in STORED:
            pictures.append(scenes.render(views=views))
        scenes.step(action)
    columns = (np.stack(column, axis=1).reshape(n * LENGTH, -1) for column in zip(*rows))
    return (dict(zip(("state", "action", "target", "distractor"), columns)),
            np.stack(pictures, axis=1).reshape(-1, len(views), SIZE, SIZE, 3), settings)


def _write_one(folder, stream, episodes, look):
    """Write one dataset folder, `episode.npz` and `<view>.npy`; yields how many episodes each block has added."""
    folder.mkdir(parents=True, exist_ok=True)
    views = VIEWS[:1] if look == "human" else VIEWS  # people wear one camera, and none on the wrists
    shape = (episodes * len(STORED), SIZE, SIZE, 3)
    files = [np.lib.format.open_memmap(folder / f"{view}.npy", "w+", np.uint8, shape) for view in views]
    blocks, settings = [], []
    for first in range(0, episodes, BLOCK):
        columns, pictures, scenes = _record_block(stream, first, min(BLOCK, episodes - first), look, views)
        blocks.append(columns)
        settings += scenes
        for i, file in enumerate(files):
            file[first * len(STORED):][:len(pictures)] = pictures[:, i]
        yield len(scenes)
    arrays = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    if look == "human":  # no labels and no proprioception, as in the paper
        del arrays["action"]
        arrays["state"] = np.zeros_like(arrays["state"])
    begins = np.arange(episodes, dtype=np.int64) * LENGTH
    np.savez(folder / "episode.npz", **arrays, ends=begins + LENGTH, stored=(begins[:, None] + STORED).ravel(),
             fps=FPS, action_names=STATE_NAMES, task=[s.instruction for s in settings],
             suite=[s.suite for s in settings], speed=np.array([s.v for s in settings], dtype=np.float32))


def version():
    """A hash of the files that decide what a scene looks like and does, and of this one."""
    here = Path(__file__).parent
    files = [(here / f"{name}.py").read_bytes() for name in ("setting", "drawing", "scene", "record")]
    return hashlib.sha256(b"".join(files)).hexdigest()[:12]


def write_dataset(root, episodes=9000, seed=0):
    """Write the five training datasets of Table 3 and a validation dataset below `root`; the same for a seed.

    `<root>/<name>/episode.npz` holds, for E episodes of 31 frames: state and action (31 E, 6) float32 in STATE_NAMES'
    order and raw units, action[t] being commanded at frame t; target and distractor (31 E, 2); ends (E,) int64, one
    past each episode's last row; stored (3 E,) int64, the rows that have pictures; task and suite (E,) str; speed (E,),
    the belt's velocity per frame; fps. `<view>.npy`: (3 E, SIZE, SIZE, 3) uint8. egodex, the human video, has no
    action, zeros for state, the head view only. `world` holds version(). `mixture.json` comes last: all is written.
    """
    root = Path(root)
    (root / "mixture.json").unlink(missing_ok=True)
    frames = sum(row[3] for row in MIXTURE)
    counts = [max(round(episodes * row[3] / frames), min(40, episodes // 10), 1) for row in MIXTURE]
    counts[0] = max(episodes - sum(counts[1:]), 1)  # the largest takes up what rounding and the floor leave
    parts = [(name, look, count) for (name, look, _, _), count in zip(MIXTURE, counts)]
    with bar(sum(counts) + VALIDATION, unit="episode") as shown:
        for index, (name, look, count) in enumerate([*parts, ("validation", "sim", VALIDATION)]):
            for n in _write_one(root / name, (seed, index), count, look):
                shown.update(n)
    datasets = [{"path": name, "weight": weight, "kind": look} for name, look, weight, _ in MIXTURE]
    text = json.dumps({"robot": "conveyor", "datasets": datasets, "validation": "validation"}, indent=2)
    (root / "world").write_text(version() + "\n")
    partial = root / "mixture.json.partial"
    partial.write_text(text + "\n")
    partial.replace(root / "mixture.json")   # in one move: where it exists, the data are complete


def prepare(root):
    """World.prepare, by one process at a time -> the path."""
    root = Path(root)
    if not (root / "mixture.json").exists():
        own(root)
        print(f"writing the embedded world's five datasets to {root} (about 1 GB)", flush=True)
        write_dataset(root)
    if not (root / "world").exists() or (root / "world").read_text().strip() != version():
        raise ValueError(f"{root} was written by another version of worlds/conveyor: delete it, and it is written anew")
    return root


def marks(source, e, t):
    """World.marks: objects in sight; [] after the end and in a still scene, where copying the present is perfect."""
    labels = source.labels(e)
    if labels.get("suite") != "dynamic" or t >= len(labels["target"]):
        return []
    places = [(name, *labels[name][t]) for name in ("target", "distractor")]
    return [(name, (x + 1) / 2, (1 - y) / 2) for name, x, y in places if abs(x) <= 1 and abs(y) <= 1]
