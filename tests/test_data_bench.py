"""support/data_bench.py: what is compared must be equal, or the comparison says nothing."""

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install -r requirements-robot.txt")
pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install -r requirements-robot.txt")

import av

from data import open_source
from support import data_bench


@pytest.fixture(scope="module", params=data_bench.CODECS)
def source(request, tmp_path_factory):
    """The bench's dataset, small: two episodes of 70 frames of 64 x 48."""
    patch = pytest.MonkeyPatch()
    for name, value in {"EPISODES": 2, "LENGTH": 70, "HEIGHT": 48, "WIDTH": 144}.items():
        patch.setattr(data_bench, name, value)
    codec, gop = data_bench.CODECS[request.param]
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    root = tmp_path_factory.mktemp("bench") / "toy"
    data_bench.write_dataset(root, codec, gop)
    patch.undo()
    return open_source(root)


def test_every_strategy_reads_what_the_naive_reader_reads_bit_for_bit(source):
    """Also across the episodes' borders in the shared file."""
    for e, ts in ((0, list(range(15, 23))), (1, list(range(47, 55))), (1, [15]), (0, [30, 31])):
        naive, *others = (read(source, 15, e, ts) for read in (
            data_bench.read_naive, data_bench.read_window, data_bench.read_stretch))
        assert len(naive) == len(ts) and all(len(pictures) == 9 for pictures in naive)
        assert len({picture.tobytes() for picture in naive[0]}) == 3               # the cameras see the same
        for other in others:
            assert all(np.array_equal(a, b) for x, y in zip(naive, other, strict=True) for a, b in zip(x, y, strict=True))


def test_the_bench_prints_a_row_a_strategy_with_its_ratio_to_the_naive_reader(source, monkeypatch):
    monkeypatch.setattr(data_bench, "demand", lambda rate: [f"{rate:.0f} needed"])
    lines = list(data_bench.reading(source.root, 15, 64, 1))
    assert "3 views" in lines[0] and "median of 5 interleaved runs of 1 tuples" in lines[1]
    assert lines[3].split() == ["naive", "this", "reader", "stretches", "of", "8"]
    assert lines[4].startswith("toy") and lines[4].count("(") == 2 and "decoding takes" in lines[-2]


def test_what_a_gpu_needs_follows_from_the_counted_operations(monkeypatch):
    """More than three times the weights' part for each of 96 generation tokens; half of 165.2 TFLOP/s over 10 TFLOP."""
    count = data_bench.flops("conveyor")
    gen = 3 * (4 * 128 * 64 + 3 * 128 * 384)                                       # q, k, v, o and MLP of three layers
    assert 6 * 96 * gen < count < 100 * 6 * 96 * gen
    monkeypatch.setattr(data_bench, "flops", lambda name: 10e12)
    assert "takes 8.3 tuples/s, 0.41 processes" in next(iter(data_bench.demand(20.0)))
