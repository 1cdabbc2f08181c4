"""An error says what, where and what to type next, in one line on stderr, with exit code 2. One case runs for real."""

import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from worlds import conveyor
from config import get_config, to_dict
from support.data.folder import FolderSource
from model import InternVLA_A1
from support import checkpoint
from support.data.statistics import Statistics

ROOT = Path(__file__).parents[2]
SMALL = {"layers": 1, "image_size": 32, "vae_size": 32, "chunk": 4, "text_tokens": 8}
RUN = [f"--{key}={value}" for key, value in {
    **SMALL, "batch_size": 8, "steps": 2, "warmup_steps": 1, "full_windows": "false",
    "action_draws": 1, "m": 4}.items()]


def write_folder(root, T=12, d=6, views=("head",), **arrays):
    """A good dataset of two episodes, PNG files; `arrays` replace what is in episode.npz, None removes."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    numbers = {"state": rng.uniform(-1, 1, (T, d)), "action": rng.uniform(-1, 1, (T, d)), "fps": np.array(30),
               "ends": np.array([T - 4, T]), "task": np.array(["go", "stop"])} | arrays
    np.savez(root / "episode.npz", **{key: x for key, x in numbers.items() if x is not None})
    for view in views:
        (root / view).mkdir()
        for t in range(T):
            picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(picture).save(root / view / f"{t:06d}.png")
    return root


# ---- flags -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("argv, words", [
    (["--batch", "4"], "unknown flag --batch"),        # no abbreviations
    (["--steps", "many"], "--steps: expected a whole number, got 'many'"),
    (["--lr", "nan"], "--lr: expected a finite number, got 'nan'"),
    (["--full_windows", "maybe"], "--full_windows: expected true or false, got 'maybe'"),
    (["--tau_density", "papr"], "--tau_density: invalid choice: 'papr'"),
    (["--config", "a1_2bb"], "did you mean a1_2b?"),
    (["--heads", "3", "--kv_heads", "2"], "heads (3) must be a multiple of kv_heads (2)"),
    (["--steps", "0"], "--steps must be at least 1, got 0"),
    (["--vae_size", "40"], "--vae_size must be a multiple of 32, got 40"),
    (["--lr", "-1"], "--lr must be above 0, got -1.0"),
    (["--m", "-15"], "--m must be at least 1, got -15"),   # the future in the place of the past
    (["--head_dim", "15"], "--head_dim must be a multiple of 2, got 15"),
    (["--und_width", "66"], "--und_width must be a multiple of 4, got 66"),   # sines and cosines of row and column
    (["--config", "a1_2b", "--learned_positions", "true"], "--learned_positions needs --backbone tiny"),
    (["--config", "a1_2b", "--image_size", "56"], "internvl3's position table has 32 x 32 places"),
    (["--eval_seed", "-1"], "--eval_seed must be at least 0"),   # not after the training
])
def test_a_malformed_flag_is_refused(refuses, argv, words):
    assert words in refuses("train.py", *argv)


def test_closed_loop_episodes_below_1_are_refused_before_any_work(refuses, tmp_path, a_checkpoint):
    """--episodes: not an arithmetic error after hours of training."""
    data = write_folder(tmp_path / "good", robot=np.array("conveyor"))
    assert "--episodes" in refuses("train.py", "--data", data, *RUN, "--episodes", 0)
    assert "--episodes" in refuses("infer.py", "--closed-loop", "--checkpoint", a_checkpoint, "--episodes", 0)


def test_a_chunk_that_cannot_decide_a_scene_is_refused_before_training(refuses, tmp_path):
    data = write_folder(tmp_path / "good", T=80, robot=np.array("conveyor"), ends=np.array([40, 80]))
    assert "--chunk 4 is too short: in the robot's world 16 actions" in refuses("train.py", "--data", data, *RUN)


@pytest.mark.parametrize("flags, says", [
    ("--chunk 4", "too short"), ("--rtc_delay 16", "a chunk has 16 actions"),
    ("--und_mlp 1048576 --layers 9 --und_width 65536", "the weights of this network take")])
def test_settings_that_no_data_can_meet_are_refused_before_a_world_writes_its_data(refuses, monkeypatch, flags, says):
    monkeypatch.setattr("worlds.conveyor.prepare", lambda root: 1 / 0)   # ends with exit code 1
    assert says in refuses("train.py", "--config", "conveyor", *flags.split())


# ---- datasets ----------------------------------------------------------------------------------------------

def test_the_dataset_of_these_tests_trains_when_nothing_is_wrong_with_it(tmp_path):
    """What follows is refused for its one fault; this one runs for real, in its own process."""
    argv = ["--data", write_folder(tmp_path / "good"), "--out", tmp_path / "run", "--threads", 1, *RUN]
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), *map(str, argv)], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and (tmp_path / "run" / "report.json").exists()


def test_data_that_points_nowhere_is_named(refuses, tmp_path):
    assert "nowhere: no folder or mixture file is there" in refuses("train.py", "--data", tmp_path / "nowhere", *RUN)
    (tmp_path / "hollow").mkdir()
    assert "hollow holds no dataset: expected" in refuses("train.py", "--data", tmp_path / "hollow", *RUN)


def nan_at(row, T=12):
    x = np.zeros((T, 6))
    x[row, 3] = np.nan
    return x


@pytest.mark.parametrize("arrays, words", [
    ({"T": 4, "state": np.zeros((0, 6)), "action": np.zeros((0, 6)), "ends": np.zeros(0, int),
      "task": np.array([])}, ["is empty"]),
    ({"state": nan_at(9)}, ["episode 1, 'state', row 1: nan is not finite"]),
    ({"action": np.zeros((11, 6))}, ["11 rows of 'action'"]),
    ({"ends": np.array([8, 8, 12]), "task": np.array(["a", "b", "c"])}, ["empty episode"]),
    ({"fps": None}, ["no array 'fps'"]),
    ({"task": np.array(["go".encode("utf-16-le") + b"!", b"stop"])}, ["'task' holds NUL characters"]),
    ({"action": None}, ["no dataset of the mixture has actions"]),
    ({"views": ()}, ["no pictures; expected head.npy"]),
    ({"ends": np.array([12]), "task": np.array(["go"])}, ["record a second one"]),
    ({"state": np.zeros(12)}, ["state"]),
    ({"robot": np.array("conveyor"), "d": 5, "T": 60}, ["robot 'conveyor'", "6", "5"]),
])
def test_a_faulty_dataset_is_refused_with_dataset_episode_and_frame(refuses, tmp_path, arrays, words):
    """Before any long work."""
    chunk = conveyor.CHUNK if "robot" in arrays else SMALL["chunk"]
    line = refuses("train.py", "--data", write_folder(tmp_path / "faulty", **arrays), *RUN, "--chunk", chunk)
    assert all(word in line for word in words), line
    assert "faulty" in line or "robot" in line or "mixture" in line


@pytest.mark.parametrize("key", ["state", "action"])
def test_numbers_wider_than_the_model_are_refused(refuses, tmp_path, key):
    """Padding is to 32 dimensions; 33 are too many."""
    root = write_folder(tmp_path / "wide", **{key: np.random.default_rng(0).uniform(-1, 1, (12, 33))})
    line = refuses("train.py", "--data", root, *RUN)
    assert f"the {key}" in line and "33 dimensions" in line and "at most 32" in line


@pytest.mark.parametrize("loaders", [0, 1])
def test_a_corrupt_picture_is_named(refuses, tmp_path, loaders):
    """One line with the file's name, also when a loader process meets it."""
    for name, spoilt in (("garbage", lambda raw: b"no picture"), ("torn", lambda raw: raw[:len(raw) // 2])):
        root = write_folder(tmp_path / name)
        for t in range(8):
            path = root / "head" / f"{t:06d}.png"
            path.write_bytes(spoilt(path.read_bytes()))
        line = refuses("train.py", "--data", root, "--loaders", loaders, *RUN)
        assert f"{name}/head/00000" in line and ".png cannot be read" in line


def test_a_view_with_another_number_of_pictures_than_frames_is_named(refuses, tmp_path):
    """A lost picture would shift all later ones."""
    root = write_folder(tmp_path / "lost", views=("head", "left_wrist"))
    (root / "left_wrist" / "000011.png").unlink()
    line = refuses("train.py", "--data", root, *RUN)
    assert "lost: view left_wrist has 11 pictures (000000.png to 000010.png), not 12" in line


def test_a_frame_whose_picture_is_not_stored_is_never_replaced_by_another(tmp_path):
    """`stored`: a dataset of key frames answers for those alone (infer.py --cut asks for any frame)."""
    root = write_folder(tmp_path / "keys", T=12, views=(), stored=np.array([0, 5, 11]))
    np.save(root / "head.npy", np.stack([np.full((16, 16, 3), t, np.uint8) for t in (0, 5, 11)]))
    source = FolderSource(root)
    assert source.frame("head", 0, 5)[0, 0, 0] == 5 and source.frame("head", 1, 3)[0, 0, 0] == 11
    with pytest.raises(ValueError, match="keys.*frame 4"):
        source.frame("head", 0, 4)
    with pytest.raises(ValueError, match="episode 0, frame 11"):   # which is another episode's
        source.frame("head", 0, 11)


@pytest.mark.parametrize("name, content", [
    ("episode.npz", b"garbage"), ("episode.npz", b"PK\x03\x04 torn"), ("mixture.json", b"{"),
    ("mixture.json", b'{"robot": "conveyor"}'), ("head.npy", b"garbage")])
def test_a_corrupt_file_of_a_dataset_is_named(refuses, tmp_path, name, content):
    """What and where, whichever file it is."""
    root = write_folder(tmp_path / "broken", views=())
    np.save(root / "head.npy", np.zeros((12, 16, 16, 3), np.uint8))
    (root / name).write_bytes(content)
    line = refuses("train.py", "--data", root, *RUN)
    assert "broken" in line and name in line


# ---- inference ---------------------------------------------------------------------------------------------

STATS = Statistics(robot="arm", action_mode="absolute", fps=30.0, state_mean=(0.1,) * 6, state_std=(1.0,) * 6,
                   action_mean=(0.2,) * 6, action_std=(1.0,) * 6, windows=1)


def save_checkpoint(run, model, stored=None):
    """Weights of a ModelConfig, with the config `stored` (a dict) beside them; default: the one they fit."""
    torch.manual_seed(0)
    stored = stored or to_dict(replace(get_config("conveyor"), model=model))
    state = {"step": 1, "config": stored, "statistics": asdict(STATS), "versions": {}, "log_length": 0}
    return checkpoint.save(run, 1, InternVLA_A1(model).state_dict(), {}, state)


@pytest.fixture(scope="module")
def a_checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("runs") / "small", get_config("conveyor", SMALL).model)


@pytest.fixture
def pictures(tmp_path):
    """A good image folder of a robot with two cameras."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for view in ("head", "left_wrist"):
        for time in ("past", "now"):
            Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(folder / f"{view}_{time}.png")
    np.save(folder / "state.npy", np.zeros(6, np.float32))
    (folder / "task.txt").write_text("pick up\n")
    return folder


def test_infer_alone_takes_the_newest_run(script, pictures, a_checkpoint, tmp_path, monkeypatch, capsys):
    """`python infer.py --image-dir DIR`: actions.npy (k, d_a) float32 in the robot's units; what is used is named."""
    run = tmp_path / "runs" / "mine"
    shutil.copytree(a_checkpoint, run / Path(a_checkpoint).name)
    monkeypatch.chdir(tmp_path)
    script("infer.py", "--image-dir", pictures)
    actions, printed = np.load(pictures / "result" / "actions.npy"), capsys.readouterr().out
    assert actions.shape == (4, 6) and actions.dtype == np.float32 and np.isfinite(actions).all()
    assert "missing views are masked: right_wrist" in printed and str(Path("runs/mine")) in printed


@pytest.mark.parametrize("name, content, words", [
    ("left_wrist_now.png", None, ["left_wrist_now.png is missing", "past and now"]),
    ("head_now.png", b"no picture", ["head_now.png cannot be read"]),
    ("state.npy", np.zeros(7, np.float32), ["state.npy has shape (7,)", "6 state dimensions"]),
    ("state.npy", np.array([0, 0, np.nan, 0, 0, 0]), ["state.npy, row 2: nan is not finite"]),
    ("state.npy", b"garbage", ["state.npy cannot be read"]),
    ("task.txt", None, ["--task is missing", "task.txt"]),
    ("task.txt", "pick up".encode("utf-16-le"), ["task.txt holds NUL characters, as UTF-16"]),
    ("states.npy", np.zeros(6), ["states.npy is not read, state.npy"]), ("state.csv", b"0", ["state.csv is not read"]),
    ("qpos.npy", np.zeros(6), ["qpos.npy is not read, state.npy"]),
    ("true_action.npy", np.zeros((4, 6)), ["true_action.npy is not read", "true_actions.npy"]),
    ("true_actions.npy", np.zeros((4, 5)), ["(4, 5)", "(steps, 6)"]),
    ("true_actions.npy", b"garbage", ["true_actions.npy"]),
])
def test_a_faulty_image_folder_is_refused_with_the_file(refuses, pictures, a_checkpoint, name, content, words):
    """A file is deleted, or bytes or an array stand in it."""
    if content is None:
        (pictures / name).unlink()
    elif isinstance(content, bytes):
        (pictures / name).write_bytes(content)
    else:
        np.save(pictures / name, content)
    line = refuses("infer.py", "--image-dir", pictures, "--checkpoint", a_checkpoint)
    assert all(word in line for word in words), line


def test_a_faulty_state_file_is_refused(refuses, pictures, a_checkpoint):
    path = pictures / "given.json"
    for text, words in (("[0, 0, 0]", "has shape (3,)"), ('{"x": 1}', "holds a dict, expected a list")):
        path.write_text(text)
        assert words in refuses("infer.py", "--image-dir", pictures, "--checkpoint", a_checkpoint, "--state", path)


def test_infer_names_a_folder_checkpoint_or_flag_that_does_not_exist(refuses, tmp_path, pictures, a_checkpoint):
    (tmp_path / "hollow").mkdir()
    for folder, words in (("nowhere", "nowhere: no such folder"), ("hollow", "no picture found")):
        assert words in refuses("infer.py", "--image-dir", tmp_path / folder, "--checkpoint", a_checkpoint)
    nowhere = tmp_path / "nowhere"
    assert "nowhere is not a directory" in refuses("infer.py", "--image-dir", pictures, "--checkpoint", nowhere)
    assert "no good checkpoint under runs" in refuses("infer.py", "--image-dir", pictures)
    assert "did you mean --image-dir?" in refuses("infer.py", "--image_dir", pictures)
    assert "--image-dir DIR" in refuses("infer.py")
    assert "drives 'arm'" in refuses("infer.py", "--closed-loop", "--checkpoint", a_checkpoint)


@pytest.mark.parametrize("other", [{"layers": 2}, {"gen_mlp": 96}, {"gen_expert": False}],
                         ids=["deeper", "narrower", "no_gen"])
def test_a_checkpoint_of_another_config_is_refused(refuses, tmp_path, pictures, other):
    """Weights that do not fit the config stored beside them, by name or by shape."""
    config = get_config("conveyor", SMALL)
    path = save_checkpoint(tmp_path / "run", replace(config.model, **other), to_dict(config))
    line = refuses("infer.py", "--image-dir", pictures, "--checkpoint", path)
    assert "does not fit this config" in line and ("gen." in line or "layers." in line)
    assert len(line) < 1000


def test_a_checkpoint_of_another_version_names_the_fields(refuses, tmp_path, pictures):
    config = get_config("conveyor", SMALL)
    stored = to_dict(config)
    stored["model"]["dropout"] = stored["model"].pop("chunk")
    path = save_checkpoint(tmp_path / "run", config.model, stored)
    line = refuses("infer.py", "--image-dir", pictures, "--checkpoint", path)
    assert "missing ['chunk'], unknown ['dropout']" in line


@pytest.mark.parametrize("argv, words", [
    (["--frame", "12"], "--frame 12: episode 1 of"), (["--frame", "-1"], "--frame -1"),
    (["--episode", "2"], "--episode 2"), (["--episode", "-3"], "--episode -3")])
def test_a_cut_outside_the_dataset_is_refused(refuses, tmp_path, argv, words):
    """It is not wrapped around silently."""
    assert words in refuses("infer.py", "--cut", write_folder(tmp_path / "set"), "--frame", 1, *argv)
    assert not (tmp_path / "cut").exists()
