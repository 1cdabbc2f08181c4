"""What `python -m bench reading` reads with, a naive reader and ours, and what it reads: the datasets it writes."""

import json
import os
import shutil

import numpy as np
from PIL import Image

from config import DataConfig
from data import times
from support.data.parquet import arrow
from support.data.video import pyav

M, STRETCH, RUNS = DataConfig.m, 8, 5
CODECS = {"h264 GOP 2": ("libx264", 2), "h264 GOP 30": ("libx264", 30),
          "AV1 GOP 2": ("libsvtav1", 2), "AV1 GOP 30": ("libsvtav1", 30)}   # AV1 GOP 2 is LeRobot's own default
EPISODES, LENGTH, FPS, HEIGHT, WIDTH = 4, 250, 30, 480, 640
CAMERAS = ("head", "hand_left", "hand_right")


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
    """A LeRobot dataset: three cameras that see the same, 14 joints. v3.0 has all episodes in one file, v2.1 each in
    its own. It is whole enough for the lerobot package."""
    pa, n, begins = arrow(), EPISODES * LENGTH, np.arange(EPISODES) * LENGTH
    t, joints = np.arange(n) % LENGTH, pa.array([[0.0] * 14] * n, pa.list_(pa.float32(), 14))
    rows = pa.table({"observation.state": joints, "action": joints, "timestamp": (t / FPS).astype(np.float32),
                     "frame_index": t, "episode_index": np.arange(n) // LENGTH, "index": np.arange(n),
                     "task_index": np.zeros(n, int)})
    sizes = dict.fromkeys(rows.column_names, 1) | {"observation.state": 14, "action": 14}
    features = {key: {"dtype": "float32" if size > 1 or key == "timestamp" else "int64", "shape": [size]}
                for key, size in sizes.items()}
    features |= dict.fromkeys(CAMERAS, {"dtype": "video", "shape": [HEIGHT, WIDTH, 3],
                                        "names": ["height", "width", "channels"]})
    chunk, name = (("chunk-{chunk_index:03d}", "file-{file_index:03d}") if version == "v3.0" else
                   ("chunk-{episode_chunk:03d}", "episode_{episode_index:06d}"))
    film = f"{{video_key}}/{chunk}" if version == "v3.0" else f"{chunk}/{{video_key}}"
    info = {"codebase_version": version, "robot_type": "synthetic", "fps": FPS, "chunks_size": 1000, "total_tasks": 1,
            "total_episodes": EPISODES, "total_frames": n, "data_path": f"data/{chunk}/{name}.parquet",
            "video_path": f"videos/{film}/{name}.mp4", "features": features}
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    task = {"task_index": 0, "task": "reach"}
    episodes = [{"episode_index": e, "tasks": ["reach"], "length": LENGTH} for e in range(EPISODES)]
    at = {"chunk_index": 0, "file_index": 0, "episode_chunk": 0}
    if version == "v3.0":
        for e, begin in enumerate(begins.tolist()):
            videos = {f"videos/{key}/{what}": value for key in CAMERAS for what, value in (
                ("chunk_index", 0), ("file_index", 0), ("from_timestamp", begin / FPS))}
            episodes[e] |= {"data/chunk_index": 0, "data/file_index": 0, "dataset_from_index": begin,
                            "dataset_to_index": begin + LENGTH, **videos}
        tables = {"meta/tasks": pa.Table.from_pylist([task]), "data/chunk-000/file-000": rows,
                  "meta/episodes/chunk-000/file-000": pa.Table.from_pylist(episodes)}
        films = [range(n)]
    else:
        tables = {f"data/chunk-000/episode_{e:06d}": rows.slice(begin, LENGTH) for e, begin in enumerate(begins)}
        films = [range(begin, begin + LENGTH) for begin in begins]
        lists = {"tasks": [task], "episodes": episodes,
                 "episodes_stats": [{"episode_index": e, "stats": {}} for e in range(EPISODES)]}
        for kind, listed in lists.items():
            (root / f"meta/{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    for path, table in tables.items():
        pa.parquet.write_table(table, root / f"{path}.parquet")
    for e, frames in enumerate(films):
        head, *others = (root / info["video_path"].format(video_key=key, episode_index=e, **at) for key in CAMERAS)
        write_video(head, codec, gop, frames)
        for other in others:
            other.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(head, other)
