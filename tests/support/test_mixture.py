"""A mixture of several robots and human video: Table 3's file as it ships, from the JSON to a checkpoint."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import lpt
import train
from config import get_config
from data import Mixture, open_corpus
from support import checkpoint
from support.inference.policy import Policy
from support.data.kept_statistics import statistics

from test_bad_input import RUN, SMALL, write_folder
from test_lerobot import HEAD, edit_info, write_dataset

ROOT = Path(__file__).parents[2]
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
    assert [source.robot for source in corpus.sources.values()] == ["genie1", "aloha", "a2d", "agilex_3rgb", "dex"]
    assert [source.has_action for source in corpus.sources.values()] == [True] * 4 + [False]
    assert [len(source.relative) for source in corpus.sources.values()] == list(DIMS.values())


def test_a_mixture_of_robots_trains_with_statistics_of_each_and_runs_each(table_3, tmp_path, script, capsys):
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
    with pytest.raises(ValueError, match=r"was trained on genie1, a2d, agilex_3rgb, aloha: name one .*--robot NAME"):
        Policy.load(path)
    with pytest.raises(ValueError, match="--robot franka: .* was trained on genie1, a2d, agilex_3rgb, aloha"):
        Policy.load(path, robot="franka")
    script("infer.py", "--open-loop", "--checkpoint", path, "--data", tmp_path / "RoboTwin", "--robot", "aloha", "--out",
           tmp_path / "report", "--device", "cpu")   # the robot of the data
    assert set(json.loads((tmp_path / "report/open_loop.json").read_text())["1"]["policy"]) >= {"mse", "joints"}
    train.run([*run, "--resume"])


@pytest.mark.parametrize("change, message", [
    ({"wieght": 0.5}, "wieght is unknown; known are path, weight"), ({"weight": -1}, "RoboTwin: weight must be above 0, got"),
    ({"weight": float("nan")}, "weight must be above 0"), ({"path": 5}, "path must be text, got 5"),
    ({"robot": "r2d2"}, "--robot r2d2: unknown"), ({"weight": "x"}, "RoboTwin: weight must be a finite number, got 'x'"),
    ({"robot": {"name": "x"}}, "robot must be text"), ({"robot": 5}, "robot must be text"), ({"name": 5}, "name must be text"),
    ({"kind": "human_video"}, "kind must be one of 'robot', 'sim', 'real', 'human', got 'human_video'"),
    ({"path": " "}, "path must be a path"), ({"path": "a" * 256}, "path must be a path"), ({"path": "a\0"}, "must be a path"),
    ({"validation": 5}, "holds 5, expected"), ({"validation": {"path": "RoboMind", "kind": "real"}}, "kind is unknown"),
    ({"validation": "./RoboTwin"}, "./RoboTwin is trained on and held out")])
def test_a_wrong_entry_of_a_mixture_is_one_line(table_3, change, message):
    stored = json.loads(Path(table_3).read_text())
    (stored if "validation" in change else stored["datasets"][1]).update(change)
    Path(table_3).write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=message):
        open_corpus(table_3, 3)


@pytest.mark.parametrize("named, message", [
    ("other", "other is a mixture, where one dataset is expected: name the datasets that it lists"),
    ("other/mixture.json", "other/mixture.json is a mixture, where"),
    ("RoboTwin/episode.npz", "RoboTwin/episode.npz is a file of a dataset: name the folder that it is in")])
def test_a_mixture_lists_folders_of_datasets_and_no_other_mixture(table_3, named, message):
    folder = Path(table_3).parent
    (folder / "other").mkdir()
    (folder / "other/mixture.json").write_text(json.dumps({"datasets": [{"path": "../RoboTwin"}]}))
    (folder / "RoboTwin/episode.npz").touch()
    Path(table_3).write_text(json.dumps({"datasets": [{"path": named}]}))
    with pytest.raises(ValueError, match=message):
        open_corpus(table_3, 3)
    with pytest.raises(ValueError, match="episode.npz: no folder or mixture file is there"):
        open_corpus(folder / "RoboTwin/episode.npz", 3)


def test_a_validation_dataset_may_have_a_robot_of_its_own_and_folders_called_alike_are_told_apart(tmp_path):
    """RoboTwin's folders are <task>/aloha-agilex: one name for all."""
    for task in ("stack", "pour", "apart"):
        write_folder(tmp_path / task / "arm", d=14, robot=np.array("somebody"), task=np.array([task] * 2))
    rows = [{"path": f"{task}/arm", "robot": "aloha"} for task in ("stack", "pour")]
    listing = tmp_path / "mixture.json"
    listing.write_text(json.dumps({"datasets": rows, "validation": {"path": "apart/arm", "robot": "aloha"}}))
    corpus = open_corpus(listing, 3)
    assert [source.name for source in corpus.sources.values()] == ["stack/arm", "pour/arm"] and corpus.held_out.robot == "aloha"
    listing.write_text(json.dumps({"datasets": [rows[0] | {"name": "first"}, rows[1]], "robot": "dex"}))
    corpus = open_corpus(listing, 3, robot="aloha")
    assert [source.name for source in corpus.sources.values()] == ["first", "pour/arm"] and corpus.held_out.robot == "aloha"
    listing.write_text(json.dumps({"datasets": [rows[0], {"path": "pour/arm"}], "robot": "dex"}))
    assert [source.robot for source in open_corpus(listing, 3).sources.values()] == ["aloha", "dex"]


@pytest.mark.parametrize("validation, message", [
    ({"robot": np.array("franka")}, "held out is of robot 'franka', trained is a2d, agilex_3rgb, aloha, genie1"),
    ({"action": None}, "held out is human video, without actions, trained is")])
def test_a_validation_dataset_of_another_robot_is_refused(table_3, tmp_path, validation, message):
    """It would be measured with statistics that nobody took."""
    write_folder(tmp_path / "apart", d=8, **validation)
    stored = json.loads(Path(table_3).read_text())
    Path(table_3).write_text(json.dumps(stored | {"validation": "apart"}))
    with pytest.raises(ValueError, match=message):
        open_corpus(table_3, 3)


# ---- human video in LeRobot's format ----------------------------------------------------------------------

@pytest.fixture(params=[(HEAD,), (HEAD, "frame_index")], ids=["pictures alone", "with row numbers"])
def people(request, tmp_path):
    """EgoDex-like: one head camera and a task; no wrists, no state, no actions."""
    root = write_dataset(tmp_path / "people", has_action=False)
    edit_info(root, features={key: feature for key, feature in
                              json.loads((root / "meta/info.json").read_text())["features"].items()
                              if key in request.param})
    return root


def test_lerobot_video_of_people_trains_l_gen_alone_in_the_same_batches(people, tmp_path):
    """Sec. 3.3, D_1 and D_2: beside a robot's data, by weight; what masks leave is tests/paper/test_model.py's."""
    robot = write_folder(tmp_path / "arm")
    (tmp_path / "mixture.json").write_text(json.dumps({"datasets": [{"path": "arm"}, {"path": "people", "weight": 2}]}))
    corpus = open_corpus(tmp_path / "mixture.json", 3)
    assert [row.kind for row in corpus.listed] == ["robot", "human"] and corpus.sources[1].views == {"head": HEAD} and robot.exists()
    config = get_config("conveyor", SMALL | {"m": 3, "full_windows": False, "batch_size": 6})
    stats = statistics(corpus.sources, corpus.windows, config.model.chunk, "absolute", 1e-3)
    dealt = lpt.deal(corpus.frames, corpus.weights, 1, config.data.lpt_workers)
    mixture = Mixture(config, {stats.robot: stats}, corpus.sources, corpus.windows, dealt[0], 0)
    batch, _, _ = next(iter(mixture.loader(0, 1)))
    acts = batch.action_mask.any(-1).any(-1)
    assert 0 < acts.sum() < 6 and batch.view_mask[~acts].tolist() == [[True, False, False]] * int((~acts).sum())
    assert not batch.state[~acts].any() and not batch.dim_mask[~acts].any() and batch.future_mask[~acts].any()
