"""A mixture of several robots and human video: Table 3's file as it ships, from the JSON to a checkpoint."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import lpt
import train
from data import open_corpus
from support import checkpoint
from support.policy import Policy

from test_bad_input import RUN, write_folder

ROOT = Path(__file__).parents[1]
DIMS = {"InternData-A1": 16, "RoboTwin": 14, "AgiBot-World-Beta": 16, "RoboMind": 14, "EgoDex": 14}


@pytest.fixture
def table_3(tmp_path):
    """Five folders in the place of the five sources, and examples/mixture_table3.json beside them."""
    for name, d in DIMS.items():
        write_folder(tmp_path / name, d=d, views=("head",) if name == "EgoDex" else ("head", "left_wrist"),
                     **{key: np.random.default_rng(1).normal(size=(12, d)) for key in ("state", "action")})
    return shutil.copy(ROOT / "examples" / "mixture_table3.json", tmp_path / "mixture_table3.json")


def test_the_example_is_table_3(table_3):
    """Names, weights and robots; human video is read without its actions, though the files hold some."""
    rows = json.loads(Path(table_3).read_text())["datasets"]
    assert [(row["name"], row["weight"]) for row in rows] == [(name, weight) for name, _, weight in lpt.TABLE_3]
    corpus = open_corpus(table_3, 3)
    assert [source.robot for source in corpus.sources] == ["genie1", "aloha", "a2d", "agilex_3rgb", "dex"]
    assert [source.has_action for source in corpus.sources] == [True] * 4 + [False]
    assert [len(source.relative) for source in corpus.sources] == list(DIMS.values())


def test_a_mixture_of_robots_trains_with_statistics_of_each_and_runs_each(table_3, tmp_path, capsys):
    """--mixture FILE: per-robot statistics in the checkpoint, of which inference takes the named robot's."""
    run = ["--mixture", str(table_3), "--out", str(tmp_path / "run"), "--action_mode", "delta", *RUN]
    train.run(run)
    printed = capsys.readouterr().out
    path = checkpoint.newest(tmp_path / "run")
    stored = checkpoint.load(path)[1]["statistics_by_robot"]
    assert set(stored) == {"genie1", "aloha", "a2d", "agilex_3rgb"}
    assert all(f"robot {robot}: " in printed for robot in stored) and "EgoDex (human)" in printed
    for robot, d in (("aloha", 14), ("a2d", 16)):
        policy = Policy.load(path, robot=robot)
        actions, _ = policy.plan([{"head": [np.zeros((8, 8, 3), np.uint8)] * 2}], np.zeros((1, d)), ["go"])
        assert policy.stats.robot == robot and actions.shape == (1, 4, d)
    assert Policy.load(path).stats.robot == "genie1"     # whose last episode was held out
    with pytest.raises(ValueError, match="--robot franka: .* was trained on genie1, a2d, agilex_3rgb, aloha"):
        Policy.load(path, robot="franka")
    train.run([*run, "--resume"])


@pytest.mark.parametrize("change, message", [
    ({"wieght": 0.5}, "wieght"), ({"weight": -1}, "weights above 0"), ({"weight": float("nan")}, "weights above 0"),
    ({"path": 5}, "is no mixture"), ({"robot": "r2d2"}, "--robot r2d2: unknown"), ({"weight": "x"}, "is no mixture")])
def test_a_wrong_row_of_a_mixture_is_one_line(table_3, change, message):
    stored = json.loads(Path(table_3).read_text())
    stored["datasets"][1] |= change
    Path(table_3).write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=message):
        open_corpus(table_3, 3)
