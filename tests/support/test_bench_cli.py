"""Bad input of `python -m bench`: what is wrong and where, in one line."""

import subprocess
import sys

import pytest

import bench.__main__ as bench
from conftest import ROOT


def test_a_bench_run_of_other_settings_is_not_taken_for_this_one(tmp_path):
    """python -m bench claims reads finished runs back: only its own."""
    (tmp_path / "run.txt").write_text("train.py --config conveyor --seed 1\n")
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="holds another run"):
        bench.train([], tmp_path, 10, 0, 0)


def test_a_file_that_bench_cannot_read_is_named_in_one_line():
    argv = [sys.executable, "-m", "bench", "--claim", "arms", "--tuned", "nowhere.json"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "No such file or directory: 'nowhere.json'" in done.stderr
