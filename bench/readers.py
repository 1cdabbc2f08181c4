"""What `python -m bench reading` compares: readers, how they are timed, and the films that it writes for them."""

import json
import os
import shutil
import statistics
import tempfile
import time
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from config import DataConfig
from data import letterbox, times, windows
from support.data.parquet import arrow
from support.data.video import pyav
from support.files import must

M, STRETCH, RUNS = DataConfig.m, 8, 5
NAIVE, OURS, STRETCHES, THEIRS, CACHE = "naive", "window by window", f"stretches of {STRETCH}", "lerobot", "frame cache"
CODECS = {"h264 GOP 2": ("libx264", 2), "h264 GOP 30": ("libx264", 30),
          "AV1 GOP 2": ("libsvtav1", 2), "AV1 GOP 30": ("libsvtav1", 30)}   # AV1 GOP 2 is LeRobot's own default
EPISODES, LENGTH, FPS, HEIGHT, WIDTH = 4, 250, 30, 480, 640
CAMERAS = ("head", "hand_left", "hand_right")
FILMS = f"{len(CAMERAS)} cameras, {EPISODES} episodes of {LENGTH} frames, {WIDTH} x {HEIGHT}"


def decode(source, view, e, t):
    """Frame t of episode e, (H, W, 3) uint8: open, seek, decode on to it. It shares nothing with the reader."""
    files, seconds = source.videos[view]
    target = seconds[e] + t / source.fps
    with pyav().open(str(files[e])) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1   # as the reader: both are run in several processes
        container.seek(int(target / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if frame.time >= target - 0.5 / source.fps:
                return frame.to_ndarray(format="rgb24")


def read_naive(source, e, ts):
    return [[decode(source, view, e, at) for view in source.views for at in times(source, M, e, t)] for t in ts]


def read(source, e, ts):
    """As training reads, one window or with --stretch several: what they share is decoded once."""
    wanted = sorted({at for t in ts for at in times(source, M, e, t)})
    seen = {view: dict(zip(wanted, source.frames(view, e, wanted))) for view in source.views}
    return [[seen[view][at] for view in source.views for at in times(source, M, e, t)] for t in ts]


class Windows(torch.utils.data.Dataset):
    """The windows of a source, letterboxed. A batch is a stretch: neighbours in it that are of one episode are read at
    once. whole: with numbers and task, as an item of lerobot's."""

    def __init__(self, source, size, reader=read, whole=False):
        self.source, self.size, self.reader, self.whole = source, size, reader, whole
        self.rows = windows(source, M, full=True)

    def __getitems__(self, numbers):
        rows, source = self.rows[numbers].tolist(), self.source
        found = (pictures for e, part in groupby(rows, lambda row: row[0])
                 for pictures in self.reader(source, e, [t for _, t in part]))
        items = [{"pictures": torch.stack([letterbox(seen, self.size) for seen in pictures])} for pictures in found]
        for item, (e, t) in zip(items, rows if self.whole else ()):
            state, action = source.numbers(e)
            item |= {"state": state[t], "action": action[t], "task": source.task(e, t)}
        return items


def timed(datasets, tuples, collate=None):
    """{reader: {"cpu_s", "wall_s": [seconds of a tuple, for each of RUNS]}} of {reader: Dataset}, which all count their
    items as datasets[OURS] does. They run by turns, so that a busy neighbour meets each, in one thread, as a loader."""
    torch.set_num_threads(1)
    rng, n = np.random.default_rng(0), len(datasets[OURS].rows)
    must(n, f"{datasets[OURS].source.root}: no episode is longer than {2 * M} frames")
    found = {name: {"cpu_s": [], "wall_s": []} for name in datasets}
    for run in range(-1, RUNS):   # the first one opens what stays open, and is not counted
        drawn, begins = rng.integers(n, size=20 * tuples), rng.integers(n, size=(max(1, tuples // STRETCH), 1))
        orders = {STRETCHES: ((begins + np.arange(STRETCH)) % n).ravel(), CACHE: drawn}
        for name, dataset in datasets.items():
            order = orders.get(name, drawn[:tuples])
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in DataLoader(dataset, 1 if name == OURS else STRETCH, sampler=order.tolist(), collate_fn=collate):
                pass
            for clock, seconds in (("cpu_s", time.process_time() - cpu), ("wall_s", time.perf_counter() - wall)):
                found[name][clock] += [seconds / len(order)] * (run >= 0)
    return found


def table(runs, clock, size, tuples):
    """Lines of {dataset: what `timed` found}, a dataset and reader each. clock: of tuples/s and of the ratios."""
    rivals = [rival for rival in (NAIVE, THEIRS) if any(rival in rows for rows in runs.values())]
    yield (f"CPU and wall time of a tuple of {size} px; median of {RUNS} interleaved runs of {tuples} tuples "
           f"({CACHE}: 20 x as many), one process, one thread; tuples/s and ratios of {clock[:-2]} time")
    yield "in brackets: the lowest and the highest of the runs' own ratios"
    yield f"{'':<14}{'':<18}{'CPU ms':>8}{'wall ms':>9}{'tuples/s':>10}" + "".join(f"{f'x {of}':>22}" for of in rivals)
    for dataset, rows in runs.items():
        for name, row in rows.items():
            cpu, wall, seconds = (statistics.median(row[of]) for of in ("cpu_s", "wall_s", clock))
            ratios = ([a / b for a, b in zip(rows[rival][clock], row[clock])] for rival in rivals if rival in rows)
            cells = (f"{statistics.median(of):.2f} ({min(of):.2f}-{max(of):.2f})" for of in ratios)
            yield (f"{dataset:<14}{name:<18}{1e3 * cpu:8.1f}{1e3 * wall:9.1f}{1 / seconds:10.1f}"
                   + "".join(f"{cell:>22}" for cell in cells))


def write_video(path, codec, gop, frames):
    """A textured scene that pans, an object that crosses it, sensor noise; a key frame every `gop` frames."""
    os.environ.setdefault("SVT_LOG", "1")   # the AV1 encoder speaks of errors only
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (HEIGHT // 16, WIDTH // 8, 3), dtype=np.uint8))
    scene = np.asarray(rough.resize((2 * WIDTH, HEIGHT), Image.Resampling.BICUBIC)) // 2 + 40
    noise = rng.integers(0, 9, (8, HEIGHT, WIDTH, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pyav().open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options={"g": str(gop), "crf": "30"})   # as LeRobot encodes
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for t in frames:
            x, at = int(WIDTH / 2 * (1 + np.sin(t / 40))), 5 * t % (WIDTH - 80)
            picture = scene[:, x:x + WIDTH] + noise[t % 8]
            picture[200:260, at:at + 60] = (200, 30, 60)
            container.mux(stream.encode(pyav().VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_dataset(root, codec, gop, version="v3.0"):
    """A LeRobot dataset, whole enough for their package: three cameras that see the same, 14 joints."""
    pa, n, v30 = arrow(), EPISODES * LENGTH, version == "v3.0"
    t, joints = np.arange(n) % LENGTH, pa.array([[0.0] * 14] * n, pa.list_(pa.float32(), 14))
    rows = pa.table({"observation.state": joints, "action": joints, "timestamp": (t / FPS).astype(np.float32),
                     "frame_index": t, "episode_index": np.arange(n) // LENGTH, "index": np.arange(n),
                     "task_index": np.zeros(n, int)})
    sizes = dict.fromkeys(rows.column_names, 1) | {"observation.state": 14, "action": 14}
    features = {key: {"dtype": "float32" if size > 1 or key == "timestamp" else "int64", "shape": [size]}
                for key, size in sizes.items()}
    features |= dict.fromkeys(CAMERAS, {"dtype": "video", "shape": [HEIGHT, WIDTH, 3],
                                        "names": ["height", "width", "channels"]})
    data, film = (("data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
                   "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4") if v30 else
                  ("data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
                   "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"))
    info = {"codebase_version": version, "robot_type": "synthetic", "fps": FPS, "chunks_size": 1000, "total_tasks": 1,
            "total_episodes": EPISODES, "total_frames": n, "data_path": data, "video_path": film, "features": features}
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    for part, begin in enumerate(range(0, n, n if v30 else LENGTH)):
        own = rows.slice(begin, n if v30 else LENGTH)
        place = {"chunk_index": 0, "file_index": part, "episode_chunk": 0, "episode_index": part}
        pa.parquet.write_table(own, root / data.format(**place))
        head, *others = (root / film.format(video_key=key, **place) for key in CAMERAS)
        write_video(head, codec, gop, range(begin, begin + len(own)))
        for other in others:
            other.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(head, other)
    tasks = [{"task_index": 0, "task": "reach"}]
    episodes = [{"episode_index": e, "tasks": ["reach"], "length": LENGTH} for e in range(EPISODES)]
    if v30:
        for begin, row in zip(range(0, n, LENGTH), episodes):
            row |= {"data/chunk_index": 0, "data/file_index": 0, "dataset_from_index": begin,
                    "dataset_to_index": begin + LENGTH}
            for camera in CAMERAS:
                row |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": 0,
                        f"videos/{camera}/from_timestamp": begin / FPS}
        for name, listed in (("tasks", tasks), ("episodes/chunk-000/file-000", episodes)):
            pa.parquet.write_table(pa.Table.from_pylist(listed), root / f"meta/{name}.parquet")
    else:
        stats = [{"episode_index": e, "stats": {}} for e in range(EPISODES)]
        for name, listed in (("tasks", tasks), ("episodes", episodes), ("episodes_stats", stats)):
            (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))


def written_datasets(version="v3.0"):
    """(name of the codec, root of a dataset that is written for it and gone afterwards), of each of CODECS."""
    for name, (codec, gop) in CODECS.items():
        with tempfile.TemporaryDirectory() as folder:
            write_dataset(Path(folder) / "videos", codec, gop, version)
            yield name, Path(folder) / "videos"
