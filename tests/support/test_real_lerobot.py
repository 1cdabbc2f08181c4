"""A dataset written by the real lerobot package, read by it and by support/data/lerobot.py: every field is equal.

lerobot is no dependency. It reads nothing on a CPU without help: torchvision needs two operators to exist, and the decoder
is replaced by the plainest one, which also makes it independent of ours.
"""

import importlib.util

import numpy as np
import pytest
import torch

if importlib.util.find_spec("lerobot") is None:
    pytest.skip("the real lerobot package is not installed: pip install --no-deps lerobot==0.4.4 torchvision==0.28.0, "
                "then its data requirements", allow_module_level=True)

import av

from data import chunk_at, times
from support.data.lerobot import LeRobotSource

_TORCHVISION = torch.library.Library("torchvision", "DEF")
_TORCHVISION.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_TORCHVISION.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from lerobot.datasets import lerobot_dataset

FPS, M, K, CAMERAS = 30, 15, 10, ("head", "left_wrist")


def decode(path, timestamps, *_, **__):
    """All frames of the file, then the nearest ones: (N, 3, H, W) in [0, 1]."""
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    nearest = [min(frames, key=lambda frame: abs(frame[0] - t))[1] for t in timestamps]
    return torch.from_numpy(np.stack(nearest)).permute(0, 3, 1, 2) / 255


def write(root):
    """Three episodes in shared files, two cameras, an instruction that changes every ten frames."""
    keys = {camera: f"observation.images.{camera}" for camera in CAMERAS}
    picture = {"dtype": "video", "shape": (64, 64, 3), "names": ["height", "width", "channels"]}
    dataset = lerobot_dataset.LeRobotDataset.create(
        "somebody/toy", FPS, {"observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
                              "action": {"dtype": "float32", "shape": (2,), "names": None},
                              **dict.fromkeys(keys.values(), picture)}, root=root, robot_type="toy")
    rng = np.random.default_rng(0)
    for length in (40, 17, 33):
        noise = rng.integers(0, 256, (16, 16, 3), np.uint8)
        for t in range(length):
            views = {key: np.kron(np.roll(noise, t * (1 + i), 1), np.ones((4, 4, 1), np.uint8))
                     for i, key in enumerate(keys.values())}
            dataset.add_frame({"observation.state": rng.normal(size=3).astype(np.float32), "task": f"task {t // 10 % 3}",
                               "action": rng.normal(size=2).astype(np.float32), **views})
        dataset.save_episode()
    dataset.finalize()
    return keys


def test_every_field_of_every_window_is_what_lerobot_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_dataset, "decode_video_frames", decode)
    keys = write(tmp_path / "toy")
    deltas = {key: [d / FPS for d in (-M, 0, M)] for key in keys.values()} | {"action": [k / FPS for k in range(K)]}
    theirs = lerobot_dataset.LeRobotDataset("somebody/toy", root=tmp_path / "toy", delta_timestamps=deltas)
    ours = LeRobotSource(tmp_path / "toy")
    assert ours.version == "v3.0" and (ours.fps, ours.robot, ours.lengths) == (FPS, "toy", [40, 17, 33])
    assert ours.views == keys and len(theirs) == sum(ours.lengths) and ours.state_names == ["x", "y", "z"]
    row = 0
    for e, length in enumerate(ours.lengths):
        state, action = ours.numbers(e)
        for t in range(length):
            item, row = theirs[row], row + 1
            assert item["episode_index"] == e and item["frame_index"] == t and item["task"] == ours.task(e, t)
            chunk, inside = chunk_at(action, t, K)
            assert np.array_equal(item["observation.state"], state[t]) and np.array_equal(item["action"], chunk)
            assert np.array_equal(item["action_is_pad"], ~inside)
            for view, key in keys.items():
                pictures = ours.frames(view, e, times(ours, M, e, t))
                assert torch.equal(item[key], torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255)
                assert item[f"{key}_is_pad"].tolist() == [t < M, False, t + M >= length]
