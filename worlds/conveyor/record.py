"""The embedded world's training data: Table 3 in miniature, written by the expert."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from config import VIEWS
from lpt import TABLE_3
from support.progress import drawn
from worlds.conveyor.scene import Scenes, scripted_action
from worlds.conveyor.setting import DATASET, DISTRACTOR, FPS, M, SIZE, STATE_NAMES, SUITES, random_settings

# The sources of Table 3, each a folder here. What they look like: simulated, real, or people without labels.
KINDS = ("sim", "sim", "real", "real", "human")
MIXTURE = tuple((name.split(" (")[0].lower().replace("-", "_"), kind, weight, millions)
                for (name, millions, weight), kind in zip(TABLE_3, KINDS))
VALIDATION = 256  # held-out episodes, looking like "sim"
STORED = (0, M, 2 * M)  # frames of an episode whose pictures are kept
LENGTH = 2 * M + 1
COLUMNS = ("state", "action", "target", "distractor")
BLOCK = 128  # episodes recorded together; each block has its own random stream


def _record_block(stream, first, n, appearance, views):
    """Record n expert episodes: every third one is static, the others dynamic. A quarter of the reaches begins early.
    Returns arrays (n * LENGTH, ...) by COLUMNS, pictures (n * len(STORED), views, SIZE, SIZE, 3) uint8, the settings."""
    rng = np.random.RandomState([DATASET, *stream, first])
    settings = random_settings(rng, [SUITES[i % 3 > 0] for i in range(first, first + n)], appearance, DISTRACTOR)
    start = np.where(rng.uniform(size=n) < 0.25, M - rng.randint(1, 9, size=n), M)  # 1 .. 8 frames early
    scenes, rows, pictures = Scenes(settings), [], []
    for t in range(LENGTH):
        action = np.where((t >= start)[:, None], scripted_action(scenes), scenes.state())
        rows.append((scenes.state(), action, *scenes.objects.astype(np.float32).swapaxes(0, 1)))
        if t in STORED:
            pictures.append(scenes.render(views=views))
        scenes.step(action)
    columns = [np.stack(c, axis=1).reshape(n * LENGTH, -1) for c in zip(*rows)]
    return columns, np.stack(pictures, axis=1).reshape(-1, len(views), SIZE, SIZE, 3), settings


def _write_one(folder, stream, episodes, kind):
    """Write one dataset folder, `episode.npz` and `<view>.npy`; yields how many episodes each block has added."""
    folder.mkdir(parents=True, exist_ok=True)
    views = VIEWS[:1] if kind == "human" else VIEWS  # people wear one camera, and none on the wrists
    shape = (episodes * len(STORED), SIZE, SIZE, 3)
    files = [np.lib.format.open_memmap(folder / f"{v}.npy", "w+", np.uint8, shape) for v in views]
    blocks, settings = [], []
    for first in range(0, episodes, BLOCK):
        n = min(BLOCK, episodes - first)
        columns, pictures, drawn = _record_block(stream, first, n, kind, views)
        blocks.append(columns)
        settings += drawn
        for i, file in enumerate(files):
            file[first * len(STORED) : (first + n) * len(STORED)] = pictures[:, i]
        yield n
    for file in files:
        file.flush()
    arrays = dict(zip(COLUMNS, map(np.concatenate, zip(*blocks))))
    if kind == "human":  # no labels and no proprioception, as in the paper
        del arrays["action"]
        arrays["state"] = np.zeros_like(arrays["state"])
    begins = np.arange(episodes, dtype=np.int64) * LENGTH
    arrays |= {"ends": begins + LENGTH, "stored": (begins[:, None] + np.array(STORED)).ravel(), "fps": np.array(FPS)}
    arrays["action_names"] = np.array(STATE_NAMES)
    arrays |= {"task": np.array([s.instruction for s in settings]), "suite": np.array([s.suite for s in settings])}
    np.savez(folder / "episode.npz", **arrays, speed=np.array([s.v for s in settings], dtype=np.float32))


def version():
    """A hash of the files that decide what a scene looks like and does, and of this one."""
    here = Path(__file__).parent
    files = [(here / f"{name}.py").read_bytes() for name in ("setting", "drawing", "scene", "record")]
    return hashlib.sha256(b"".join(files)).hexdigest()[:12]


def write_dataset(root, episodes=9000, seed=0, progress=None):
    """Write the five training datasets of Table 3 and a validation dataset below `root`; the same for a seed.

    `<root>/<name>/episode.npz` holds, for E episodes of 31 frames (30 a second): state and action (31 E, 6) float32 in
    STATE_NAMES' order and raw units, action[t] being what is commanded at frame t; target and distractor (31 E, 2);
    ends (E,) int64, one past the last row of each episode; stored (3 E,) int64, the rows that have pictures; task and
    suite (E,) str; speed (E,), the belt's signed velocity per frame; fps. `<view>.npy`: (3 E, SIZE, SIZE, 3) uint8.
    egodex, the human video, has no action, zeros for state, and the head view only. `world` holds version().
    `mixture.json` is written last: where it exists, the data are complete. progress(done, total) counts episodes.
    """
    root = Path(root)
    (root / "mixture.json").unlink(missing_ok=True)
    frames = sum(row[3] for row in MIXTURE)
    counts = [max(round(episodes * row[3] / frames), min(40, episodes // 10), 1) for row in MIXTURE]
    counts[0] = max(episodes - sum(counts[1:]), 1)  # the largest takes up what rounding and the floor leave
    parts = [(name, kind, count) for (name, kind, _, _), count in zip(MIXTURE, counts)]
    done, total = 0, sum(counts) + VALIDATION
    for index, (name, kind, count) in enumerate([*parts, ("validation", "sim", VALIDATION)]):
        for n in _write_one(root / name, (seed, index), count, kind):
            done += n
            if progress:
                progress(done, total)
    datasets = [{"path": name, "weight": weight, "kind": kind} for name, kind, weight, _ in MIXTURE]
    text = json.dumps({"robot": "conveyor", "datasets": datasets, "validation": "validation"}, indent=2)
    (root / "world").write_text(version() + "\n")
    (root / "mixture.json.partial").write_text(text + "\n")
    os.replace(root / "mixture.json.partial", root / "mixture.json")


def prepare(root):
    """The dataset at `root`, written first if absent -> its path. ValueError: another version of the world wrote it."""
    root, written = Path(root), Path(root) / "world"
    if not (root / "mixture.json").exists():
        print(f"writing the embedded world's five datasets to {root} (about 1 GB)", flush=True)
        write_dataset(root, progress=drawn("episodes"))
    if not written.exists() or written.read_text().strip() != version():
        raise ValueError(f"{root} was written by another version of worlds/conveyor: delete it, and it is written anew")
    return root


def suite(source, e):
    """The suite of a recorded episode, "static" or "dynamic"; "" where the dataset does not say."""
    return source.labels(e).get("suite", "")


def marks(source, e, t):
    """Where the objects in sight are in the head picture of frame t: (name, across, down), as fractions of it.

    [] in a still scene, where copying the present is perfect, and after the episode's end.
    """
    labels = source.labels(e)
    if labels.get("suite") != "dynamic" or t >= len(labels["target"]):
        return []
    places = [(name, *labels[name][t]) for name in ("target", "distractor")]
    return [(name, (x + 1) / 2, (1 - y) / 2) for name, x, y in places if abs(x) <= 1 and abs(y) <= 1]
