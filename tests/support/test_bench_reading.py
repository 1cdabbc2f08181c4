"""python -m bench reading: what is compared must be equal, or the comparison says nothing."""

import json

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install -r requirements-robot.txt")
pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install -r requirements-robot.txt")

import av

import bench.__main__ as bench
from bench import reading
from support.data import frame_cache
from support.data.source import open_source


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
        naive, *others = (reading.read_naive(source, e, ts), reading.read(source, e, ts),
                          [reading.read(source, e, [t])[0] for t in ts])
        assert len(naive) == len(ts) and all(len(pictures) == 9 for pictures in naive)
        assert len({picture.tobytes() for picture in naive[0]}) == 3               # the cameras see the same
        for other in others:
            for x, y in zip(naive, other, strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(x, y, strict=True))


def test_the_bench_prints_a_row_a_strategy_with_its_ratio_to_the_naive_reader(source, tmp_path, capsys):
    """Of the cameras of --robot, which is as train.py's: of the table or a file."""
    arm = tmp_path / "arm.json"
    arm.write_text(json.dumps({"name": "arm", "cameras": {"head": "hand_left"}}))
    bench.run(["reading", str(source.root), "--robot", str(arm), "--size", "32", "--tuples", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert "1 views" in lines[0] and "median of 5 interleaved runs of 1 tuples" in lines[1]
    assert lines[3].split() == "naive window by window stretches of 8".split()
    assert lines[4].startswith("toy") and lines[4].count("(") == 2 and len(lines) == 5


def test_a_frame_cache_is_measured_as_it_is_without_the_videos_that_it_replaces(source, tmp_path, capsys):
    frame_cache.fill(source, frame_cache.cache_for(source, tmp_path / "cached", [32]), 0)
    bench.run(["reading", str(tmp_path / "cached"), "--size", "32", "--tuples", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert "3 views" in lines[0] and lines[3].split() == "window by window stretches of 8".split()
    with pytest.raises(ValueError, match="holds pictures of 32 pixels, 48 are asked for"):
        bench.run(["reading", str(tmp_path / "cached"), "--size", "48"])
