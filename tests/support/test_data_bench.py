"""bench/reading.py: what is compared must be equal, or the comparison says nothing."""

import json

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install -r requirements-robot.txt")
pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install -r requirements-robot.txt")

import av

import bench.__main__ as bench
from support.data.source import open_source
from bench import reading
from support.data import frame_cache
from support.data.lerobot import copy_numbers


@pytest.fixture(scope="module", params=reading.CODECS)
def source(request, tmp_path_factory):
    """The bench's dataset, small: two episodes of 70 frames of 64 x 48."""
    patch = pytest.MonkeyPatch()
    for name, value in {"EPISODES": 2, "LENGTH": 70, "HEIGHT": 48, "WIDTH": 144}.items():
        patch.setattr(reading, name, value)
    codec, gop = reading.CODECS[request.param]
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    root = tmp_path_factory.mktemp("bench") / "toy"
    reading.write_dataset(root, codec, gop)
    patch.undo()
    return open_source(root)


def test_every_strategy_reads_what_the_naive_reader_reads_bit_for_bit(source):
    """Also across the episodes' borders in the shared file."""
    for e, ts in ((0, list(range(15, 23))), (1, list(range(47, 55))), (1, [15]), (0, [30, 31])):
        naive, *others = (read(source, 15, e, ts) for read in (
            reading.read_naive, reading.read_window, reading.read_stretch))
        assert len(naive) == len(ts) and all(len(pictures) == 9 for pictures in naive)
        assert len({picture.tobytes() for picture in naive[0]}) == 3               # the cameras see the same
        for other in others:
            assert all(np.array_equal(a, b) for x, y in zip(naive, other, strict=True) for a, b in zip(x, y, strict=True))


def test_the_bench_prints_a_row_a_strategy_with_its_ratio_to_the_naive_reader(source, monkeypatch):
    monkeypatch.setattr(reading, "demand", lambda rate: [f"{rate:.0f} needed"])
    lines = list(reading.reading(source.root, 15, 64, 1))
    assert "3 views" in lines[0] and "median of 5 interleaved runs of 1 tuples" in lines[1]
    assert lines[3].split() == ["naive", "this", "reader", "stretches", "of", "8"]
    assert lines[4].startswith("toy") and lines[4].count("(") == 2 and "decoding takes" in lines[-2]


def test_a_frame_cache_is_measured_as_it_is_without_the_videos_that_it_replaces(source, monkeypatch, tmp_path, capsys):
    """bench.py --data CACHE: one strategy, and no table of reading alone, which is a memory map's."""
    monkeypatch.setattr(reading, "demand", lambda rate: [f"{rate:.0f} needed"])
    frame_cache.fill(source, frame_cache.plan(source, tmp_path / "cached", [32]), 0, copy_numbers)
    bench.run(["--data", str(tmp_path / "cached"), "--size", "32", "--tuples", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert "3 views" in lines[0] and lines[3].split() == ["frame", "cache"] and lines[4].startswith("toy")
    assert len(lines) == 6 and lines[5].endswith(" needed")
    with pytest.raises(ValueError, match="holds pictures of 32 pixels, 48 are asked for"):
        bench.run(["--data", str(tmp_path / "cached"), "--size", "48"])


def test_the_robot_whose_cameras_are_read_can_be_named(source, monkeypatch, tmp_path, capsys):
    """--robot, as train.py's: of the table or a file."""
    monkeypatch.setattr(reading, "demand", lambda rate: [])
    arm = tmp_path / "arm.json"
    arm.write_text(json.dumps({"name": "arm", "cameras": {"head": "images.rgb.hand_left"}}))
    bench.run(["--data", str(source.root), "--robot", str(arm), "--size", "32", "--tuples", "1"])
    assert "1 views" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--robot arn: unknown"):
        bench.run(["--data", str(source.root), "--robot", "arn"])


def test_what_a_gpu_needs_follows_from_the_counted_operations(monkeypatch):
    """More than three times the weights' part for each of 96 generation tokens; half of 165.2 TFLOP/s over 10 TFLOP."""
    count = reading.flops("conveyor")
    gen = 3 * (4 * 128 * 64 + 3 * 128 * 384)                                       # q, k, v, o and MLP of three layers
    assert 6 * 96 * gen < count < 100 * 6 * 96 * gen
    monkeypatch.setattr(reading, "flops", lambda name: 10e12)
    assert "takes 8.3 tuples/s, 0.41 processes" in next(iter(reading.demand(20.0)))
