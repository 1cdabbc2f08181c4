"""python -m bench reading: what is compared must be equal, or the comparison says nothing."""

import importlib.util
import json
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="PyAV is not installed: pip install -r requirements-robot.txt")
pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install -r requirements-robot.txt")

import av

import bench.__main__ as bench
from bench import readers, reading
from support.data import frame_cache
from support.data.source import open_source


SMALL = {"EPISODES": 2, "LENGTH": 70, "HEIGHT": 48, "WIDTH": 144}


@pytest.fixture(scope="module", params=readers.CODECS)
def source(request, tmp_path_factory):
    """The bench's dataset, small: two episodes of 70 frames of 144 x 48."""
    codec, gop = readers.CODECS[request.param]
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    root = tmp_path_factory.mktemp("bench") / "toy"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(readers, name, value)
        readers.write_dataset(root, codec, gop)
    return open_source(root)


def test_every_strategy_reads_what_the_naive_reader_reads_bit_for_bit(source):
    """Also across the episodes' borders in the shared file."""
    for e, ts in ((0, list(range(15, 23))), (1, list(range(47, 55))), (1, [15]), (0, [30, 31])):
        naive, *others = (readers.read_naive(source, e, ts), readers.read(source, e, ts),
                          [readers.read(source, e, [t])[0] for t in ts])
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
    assert "wall ms  tuples/s" in lines[3] and lines[3].endswith(" x naive") and len(lines) == 7
    assert [" ".join(line.split()[1:-5]) for line in lines[4:]] == ["naive", "window by window", "stretches of 8"]
    assert all(line.startswith("toy") for line in lines[4:]) and "1.00 (1.00-1.00)" in lines[4]


def test_a_frame_cache_is_measured_as_it_is_without_the_videos_that_it_replaces(source, tmp_path, capsys):
    frame_cache.fill(source, frame_cache.cache_for(source, tmp_path / "cached", [32]), 0)
    bench.run(["reading", str(tmp_path / "cached"), "--size", "32", "--tuples", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert "3 views" in lines[0] and lines[3].endswith("tuples/s")
    assert [" ".join(line.split()[1:-3]) for line in lines[4:]] == ["window by window", "stretches of 8"]
    with pytest.raises(ValueError, match="holds pictures of 32 pixels, 48 are asked for"):
        bench.run(["reading", str(tmp_path / "cached"), "--size", "48"])


class StandIn(torch.utils.data.Dataset):
    """What the bench asks of lerobot's dataset class: pictures by the naive reader, as float and channels first."""

    video_backend = "stand-in"

    def __init__(self, repo_id, root, image_transforms, delta_timestamps):
        self.source, self.transform, self.times = open_source(root), image_transforms, delta_timestamps

    def __getitem__(self, n):
        e, t = divmod(n, readers.LENGTH)
        times = {view: [t + round(d * readers.FPS) for d in self.times[key]] for view, key in self.source.views.items()}
        frames = {view: np.stack([readers.decode(self.source, view, e, at) for at in ts]) for view, ts in times.items()}
        return {self.source.views[view]: self.transform(torch.from_numpy(stack).permute(0, 3, 1, 2) / 255)
                for view, stack in frames.items()}


@pytest.fixture(params=("v2.1", "v3.0", "the real lerobot package"))
def lerobot(request, monkeypatch, tmp_path):
    """lerobot is installed, or something stands in for it; a small bench, whose results go to a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", "")        # both are put back
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    codecs = dict.fromkeys(("h264 GOP 2", "AV1 GOP 2"), ("libx264", 2))
    for name, value in {**SMALL, "RUNS": 2, "CODECS": codecs}.items():
        monkeypatch.setattr(readers, name, value)
    if request.param.startswith("v"):
        module = SimpleNamespace(LeRobotDataset=StandIn, CODEBASE_VERSION=request.param)
        monkeypatch.setitem(sys.modules, "lerobot.datasets.lerobot_dataset", module)
        monkeypatch.setattr(reading.metadata, "version", lambda name: "0")
        monkeypatch.setattr(reading, "ProcessPoolExecutor", ThreadPoolExecutor)   # nothing stands in elsewhere
    elif importlib.util.find_spec("lerobot") is None:
        pytest.skip("the real lerobot package is not installed: docs/data.md, Reading speed")


def test_lerobot_reads_the_same_pictures_of_the_same_windows_and_every_run_is_kept(lerobot, tmp_path, capsys):
    argv = "reading synthetic --against lerobot --tuples 8 --size 32 --datasets 2 --json new.json".split()
    bench.run(argv)
    report = json.loads((tmp_path / "bench/results/new.json").read_text())
    assert max(report["levels_apart"].values()) <= 0.501   # lerobot's are not rounded to whole levels
    for rows in report["runs"].values():
        assert list(rows) == ["naive", "window by window", "stretches of 8", "lerobot"]
        seconds = [row[clock] for row in rows.values() for clock in ("cpu_s", "wall_s")]
        assert all(len(runs) == 2 and min(runs) > 0 for runs in seconds)
    assert all(row["open_cpu_s"] > 0 for row in report["many"].values()) and len(report["many"]) == 3
    printed = capsys.readouterr().out
    assert printed.count("1.00 (1.00-1.00)") == 4 and "2 datasets, lerobot, again" in printed
    with pytest.raises(ValueError, match="--force"):
        bench.run(argv)


def test_a_missing_lerobot_is_one_line_that_says_where_its_installation_is_described(monkeypatch):
    monkeypatch.setenv("HF_HOME", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(sys.modules, "lerobot.datasets.lerobot_dataset", None)
    with pytest.raises(ImportError, match="^--against lerobot needs the lerobot package: docs/data.md.*$") as end:
        bench.run("reading synthetic --against lerobot".split())
    assert "\n" not in str(end.value)


@pytest.mark.parametrize("version", ["v30", "v21"])
def test_the_page_quotes_the_comparison_with_lerobot(version):
    page = Path("docs/data.md").read_text()
    report = json.loads(Path(f"bench/results/reading_lerobot_{version}.json").read_text())
    for name, rows in report["runs"].items():
        codec, every = name.split(" GOP ")
        cells = [f"{1e3 * statistics.median(rows[reader]['cpu_s']):.1f}" for reader in ("lerobot", "naive")]
        for reader in ("window by window", "stretches of 8"):
            ratios = [a / b for a, b in zip(rows["lerobot"]["cpu_s"], rows[reader]["cpu_s"])]
            cells.append(f"{1e3 * statistics.median(rows[reader]['cpu_s']):.1f} ({statistics.median(ratios):.2f}, "
                         f"{min(ratios):.2f} to {max(ratios):.2f})")
        assert f"| {report['format']}, {codec}, a key frame in {every} | {' | '.join(cells)} |" in page
