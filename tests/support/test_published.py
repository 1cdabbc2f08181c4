"""Beside the weights: tokenizers, config.json, train_config.json and stats.json, in and out.

What the other side computes is written here anew from its formulas, in float32 as there.
"""

import json
import socket
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from config import CONFIGS, to_dict
from data import observation
from support import checkpoint
from support.data import prompts
from support.data.robots import ROBOTS
from support.data.statistics import Statistics, in_checkpoint
from support.inference.policy import Policy
from support.weights import start
from support.weights.__main__ import parse
from support.weights.loading import find, with_tokenizer
from support.weights.release import export_run, import_release, load_release, release_settings

from test_bad_input import RUN, write_folder
from test_weights import published, small, small_vae   # fixtures: the authors' small 3B in the published form

THEIRS = {"dataset": {"type": "qwena1", "action_mode": "delta", "root": "/mnt/cluster/data"}, "resume": True,
          "steps": 25_000_000, "batch_size": 28, "scheduler": {"num_decay_steps": 25_000_000},
          "policy": {"type": "qwena1", "chunk_size": 8, "pretrained_path": "/mnt/cluster/outputs/01310000"}}


@pytest.fixture
def words(tmp_path):
    """A byte-level BPE of three merges, in Qwen's files."""
    folder = tmp_path / "words"
    folder.mkdir()
    pieces = ["p", "i", "c", "k", "u", "Ġ", "pi", "ck", "pick"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\np i\nc k\npi ck\n")
    return folder


def write(path, **fields):
    path.write_text(json.dumps(fields))


# ---- export and import -------------------------------------------------------------------------------------------

def run_of(config, model, tmp_path, words, mode):
    """A checkpoint of two robots, one of the table and one of the user's own, each with an idle joint."""
    random, by_robot = np.random.default_rng(0), {}
    for robot, relative in (("genie1", ROBOTS["genie1"].relative), ("my arm", (True, True, True, False, True))):
        d = len(relative)
        std = random.uniform(0.05, 2, (2, d))
        std[:, 2] = 1   # passed through unscaled
        by_robot[robot] = Statistics(robot, mode, 10.0, *map(tuple, np.stack(
            [random.normal(size=d), std[0], random.normal(size=d), std[1]])), 7, unscaled=("state 2", "action 2"),
            relative=relative, action_names=tuple(f"joint {i}" for i in range(d)))
    stored = to_dict(config)
    stored["model"]["tokenizer"] = checkpoint.OWN_TOKENIZER
    return checkpoint.save(tmp_path / "run", 40, model.state_dict(), {}, {"step": 40, "config": stored,
                           **in_checkpoint(by_robot)}, tokenizer=prompts.tokenizer_files(words)), by_robot


def released(out, robot, features, relative, policy, eps, state, batch):
    """The released code's action: (x - mean) / (std + 1e-6), padded, its network; then x * (std + 1e-6) + mean, and in
    delta mode + the state where its mask says so."""
    stats = json.loads((out / "stats.json").read_text())[robot]
    moments = {kind: {m: torch.tensor(sum((stats[key][m] for key in features[kind]), [])) for m in ("mean", "std")}
               for kind in features}
    q, d = torch.from_numpy(state), len(state)
    batch = replace(batch, state=torch.nn.functional.pad((q - moments["state"]["mean"]) /
                                                         (moments["state"]["std"] + 1e-6), (0, 32 - d))[None])
    x = policy.model.sample_actions(batch, eps)[0, :, :d]   # equal to theirs: tests/paper/test_parity_release.py
    a = x * (moments["action"]["std"] + 1e-6) + moments["action"]["mean"]
    mode = json.loads((out / "train_config.json").read_text())["dataset"]["action_mode"]
    return (a + torch.where(torch.tensor(relative), q, 0) if mode == "delta" else a).numpy()


@pytest.mark.parametrize("mode", ["delta", "absolute"])
@pytest.mark.parametrize("robot", ["genie1", "my arm"])
@torch.inference_mode()
def test_an_export_acts_there_and_imported_again_as_the_run_does(published, small, tmp_path, words, mode, robot,
                                                                 capsys):
    config = replace(CONFIGS["small"], model=replace(small, chunk=6, euler_steps=5),
                     data=replace(CONFIGS["small"].data, action_mode=mode))
    run, by_robot = run_of(config, load_release(small, published)[0], tmp_path, words, mode)
    out = tmp_path / "export"
    export_run(parse(["export", str(run), str(out), "--base", str(published)]))
    arguments = parse(["import", str(out), str(tmp_path / "again"), "--robot", robot])
    arguments.config = "small"
    import_release(arguments)
    assert "another network: letterbox" in capsys.readouterr().out   # a smaller one, and it is said
    ours, again = Policy.load(run, robot=robot, engine="plain"), Policy.load(tmp_path / "again", engine="plain")
    assert (again.config.model.chunk, again.config.model.euler_steps, again.config.data.action_mode) == (6, 5, mode)
    directory, config, stats = release_settings(out, "small", robot, None)   # infer.py --weights
    assert stats == again.stats == replace(by_robot[robot], state_std=stats.state_std, action_std=stats.action_std)
    theirs = Policy(load_release(config.model, directory)[0], config, stats)   # in float32, as the run is
    random, row = np.random.default_rng(1), ROBOTS.get(robot)
    state = random.normal(size=len(by_robot[robot].state_mean)).astype(np.float32)
    pictures = {view: random.integers(0, 256, (2, 48, 64, 3), dtype=np.uint8) for view in ("head", "left_wrist")}
    batch, eps = ours.batch([pictures], state[None], ["pick"]), ours.noise(1)
    assert batch.text_ids[0, 0] == 8   # by the tokenizer that went with it
    features = {"state": row.state if row else ["observation.state"], "action": row.action if row else ["action"]}
    there = released(out, robot, features, by_robot[robot].relative, ours, eps, state, batch)
    here = [policy.stats.actions(policy.model.sample_actions(policy.batch([pictures], state[None], ["pick"]),
                                                             eps).numpy(), state[None])[0] for policy in (ours, theirs)]
    moves = np.arange(len(state)) != 2   # an idle dimension is commanded as its mean; here by the Statistics' own rule
    error = max(np.abs(there - a)[:, moves].max() for a in here)
    idle = by_robot[robot].action_mean[2] + (state[2] if mode == "delta" else 0)
    idle = np.abs(there[:, 2] - idle).max()
    print(f"\nexport, {robot}, {mode}: largest difference of an action {error:.1e}, of an idle one {idle:.1e}")
    assert error < 1e-5 and idle < 1e-5


# ---- what the files say ------------------------------------------------------------------------------------------

def read(published, **flags):
    return release_settings(published, "small", flags.pop("robot", None), flags.pop("mode", None), **flags)[1:]


def test_what_the_weights_are_is_read_and_how_they_were_made_is_only_reported(published, small, capsys):
    """Their train_config.json resumes a run of 25,000,000 steps in a folder of their cluster."""
    write(published / "train_config.json", **THEIRS)
    write(published / "config.json", type="qwena1", chunk_size=8, num_inference_steps=7, qwen3_vl_variant="qwen3_vl_2l")
    config, stats = read(published)   # the only robot needs no name
    assert (config.model.chunk, config.model.euler_steps, config.data.action_mode) == (8, 7, "delta")
    assert config.train == CONFIGS["small"].train and stats.robot == "genie1"
    assert read(published, mode="delta")[0] == config
    said = capsys.readouterr().out
    for part in ("resume = true", "steps = 25000000", "batch_size = 28", 'path = "/mnt/cluster/outputs/01310000"',
                 "scheduler.num_decay_steps = 25000000", "30 frames/s (assumed: no file says it)"):
        assert part in said, part
    write(published / "train_config.json", dataset={"action_mode": "abs"})
    assert read(published)[1].action_mode == "absolute"
    write(published / "train_config.json", dataset={"data_transforms": {"inputs": [{"type": "delta_action"}]}})
    assert read(published)[1].action_mode == "delta"
    arguments = train.parse(["--config", "small", "--weights", str(published)])   # the same reading
    assert start.settings(arguments, CONFIGS["small"], start.chosen(arguments, published), published).model.chunk == 8


@pytest.mark.parametrize("change, flags, message", [
    ({}, {"mode": "absolute"}, "--action_mode absolute contradicts .*json: dataset.action_mode, which says delta"),
    ({"config": {"chunk_size": 9}}, {}, "train_config.json: policy.chunk_size is 8, .*config.json: chunk_size says 9"),
    ({"config": {"type": "interna1"}}, {}, "policy.type is 'qwena1', .*config.json: type says internvl3"),
    ({"config": {"type": "pi0"}}, {}, "config.json: type is 'pi0', which is not known here"),
    ({"config": {"qwen3_vl_variant": "qwen3_vl_28l"}}, {}, "says layers 28, --config small has 2"),
    ({"config": {"chunk_size": 10 ** 400}}, {}, "config.json: chunk_size is 1000.* not known"),
    ({"config": {"chunk_size": -1}}, {}, "config.json: chunk_size is -1, which is not known"),
    ({"config": {"chunk_size": [8]}}, {}, r"config.json: chunk_size is \[8\], which is not known"),
    ({"train": {"dataset": {"action_mode": "rel"}}}, {}, "dataset.action_mode is 'rel'"),
    ({"train": {"dataset": [1]}}, {}, "--action_mode absolute.delta is needed: no file of"),
    ({"stats": {}}, {}, "--robot is needed: .*stats.json is of no robot"),
    ({"stats": {"genie1": {}, "aloha": {}}}, {}, "--robot is needed: .*stats.json is of genie1, aloha"),
    ({"stats": {"genie1": {}}}, {}, "robot 'genie1' has no mean of states.left_joint.position, only nothing"),
    ({"stats": {"my_arm": {}}}, {}, "--robot my_arm: unknown.*or give a .json file"),
    ({"text": "[" * 100_000}, {}, "stats.json is no JSON"),
    ({}, {"revision": "main"}, "--revision main is of a hub id, .*published is a directory"),
    ({}, {"fps": -1.0}, "statistics are missing or not of this version.*frames/s")])
def test_a_flag_or_file_that_contradicts_or_cannot_be_is_one_line(published, small, change, flags, message):
    write(published / "train_config.json", **change.get("train", THEIRS))
    write(published / "config.json", **change.get("config", {}))
    if "stats" in change:
        write(published / "stats.json", **change["stats"])
    if "text" in change:
        (published / "stats.json").write_text(change["text"])
    with pytest.raises(ValueError, match=message) as refusal:
        read(published, **flags)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 900


@pytest.mark.parametrize("value", [[0.5] * 6, [0.5] * 6 + ["x"], [0.5] * 6 + [1e300], [0.5] * 6 + [None], [[1], [1, 2]],
                                   [0.5] * 6 + [10 ** 400], "text", None, {}, [-1.0] * 7])
def test_statistics_that_are_no_numbers_are_refused_by_name(published, small, value):
    stored = json.loads((published / "stats.json").read_text())
    stored["genie1"]["actions.left_joint.position"]["std"] = value
    write(published / "stats.json", **stored)
    with pytest.raises(ValueError, match="stats.json: .*(std of actions.left_joint.position|action mean and std)"):
        read(published, mode="delta")


def test_a_robot_file_names_what_the_table_does_not_know(published, small, tmp_path):
    write(published / "stats.json", my_arm={"observation.state": {"mean": [0, 1], "std": [1, 1]},
                                            "hand": {"mean": [1, 2, 3], "std": [1, 2, 3]}})
    write(tmp_path / "arm.json", name="my_arm", action=["hand"], delta=[2, -1])
    _, stats = read(published, robot=str(tmp_path / "arm.json"), mode="absolute", fps=20.0)
    assert (stats.fps, stats.state_mean, stats.action_std) == (20.0, (0, 1), (1 + 1e-6, 2 + 1e-6, 3 + 1e-6))
    for wide in ([], [1] * 40):
        write(published / "stats.json", my_arm=dict.fromkeys(("observation.state", "hand"), {"mean": wide, "std": wide}))
        with pytest.raises(ValueError, match="stats.json.* of robot 'my_arm' must be|the state of .* has 40 dimensions, the model"):
            read(published, robot=str(tmp_path / "arm.json"), mode="absolute")
    write(published / "stats.json", my_arm=dict.fromkeys(("observation.state", "hand"), {"mean": [1], "std": [1]}))
    write(tmp_path / "arm.json", name="my_arm", action=["hand"])
    with pytest.raises(ValueError, match="a delta mask of 0 dimensions.* 1 of action: give --robot FILE"):
        read(published, robot=str(tmp_path / "arm.json"), mode="delta")


# ---- tokenizers --------------------------------------------------------------------------------------------------

@pytest.fixture
def no_network(monkeypatch):
    def connect(*args, **kwargs):
        raise AssertionError("something was fetched")
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr("huggingface_hub.snapshot_download", connect)


@pytest.mark.parametrize("name", ["evil-org/evil-repo", "DIR", "../run", "/", "\0", "x" * 10_000])
def test_a_tokenizer_that_a_checkpoint_names_is_neither_fetched_nor_followed(tmp_path, tiny, build, no_network, name):
    """Also where that directory has code that a library would run."""
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "evil.py").write_text(f"import pathlib; pathlib.Path('{tmp_path}/PWNED').touch()\nclass T: pass\n")
    write(evil / "tokenizer_config.json", tokenizer_class="T", auto_map={"AutoTokenizer": ["evil.T", None]})
    write(evil / "config.json", model_type="x", auto_map={"AutoTokenizer": "evil.T", "AutoConfig": "evil.T"})
    config = replace(CONFIGS["conveyor"], model=replace(tiny, tokenizer=name.replace("DIR", str(evil))))
    stats = Statistics("arm", "absolute", 30.0, (0.0,), (1.0,), (0.0,), (1.0,), 1)
    path = checkpoint.save(tmp_path / "run", 1, build(tiny).state_dict(), {}, {"config": to_dict(config),
                                                                                **in_checkpoint({"arm": stats})})
    began = time.process_time()
    with pytest.raises(ValueError, match="whose files do not stand in it: give --tokenizer DIR") as refusal:
        Policy.load(path)
    assert time.process_time() - began < 1 and "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="evil cannot be loaded .*: give --tokenizer a directory"):
        Policy.load(path, tokenizer=str(evil))
    assert not (tmp_path / "PWNED").exists()


def test_a_tokenizer_is_read_from_its_files_alone_and_gives_the_ids_that_the_library_gives(words, tmp_path, no_network):
    """Whatever tokenizer_config.json says: it is not read."""
    from transformers import AutoTokenizer, Qwen2TokenizerFast
    library = Qwen2TokenizerFast(vocab=str(words / "vocab.json"), merges=str(words / "merges.txt"))
    library.save_pretrained(tmp_path / "whole")
    texts = ("pick up", "  pick\n", "ick", "", "<|endoftext|>", "kiup pick")
    expected = [AutoTokenizer.from_pretrained(tmp_path / "whole")(text)["input_ids"] for text in texts]
    write(tmp_path / "whole/tokenizer_config.json", tokenizer_class="Unknown", auto_map={"AutoTokenizer": "evil.T"})
    for folder in (words, tmp_path / "whole"):
        assert [prompts.token_ids(text, len(ids) or 1, str(folder))[0][:len(ids)].tolist()
                for text, ids in zip(texts, expected)] == expected


@pytest.mark.parametrize("name, text", [
    ("tokenizer.json", "{}"), ("tokenizer.json", "[" * 100_000), ("tokenizer.json", ""), ("vocab.json", "[]"),
    ("vocab.json", '{"p": -1}'), ("merges.txt", "p i k\n")])
def test_a_torn_tokenizer_is_one_line(words, tiny, name, text):
    (words / name).write_text(text)
    with pytest.raises(ValueError, match=f"tokenizer .*words: .*{name}.* cannot be read") as refusal:
        with_tokenizer(tiny, "nowhere", str(words))
    assert "\n" not in str(refusal.value)


def test_a_tokenizer_of_another_network_is_refused(words, tiny):
    write(words / "vocab.json", **json.loads((words / "vocab.json").read_text()), z=300)
    with pytest.raises(ValueError, match="has token ids up to 300, the network has 256 text embeddings"):
        with_tokenizer(replace(tiny, vocab=256), "nowhere", str(words))
    with pytest.raises(ValueError, match="/no/where is no directory here, and no hub id"):
        find("/no/where", checkpoint.TOKENIZER)


def test_a_runs_tokenizer_goes_with_its_checkpoints(words, tmp_path, tiny, build):
    """Its files are listed in the manifest, and a checkpoint that lost or changed one is damaged."""
    path = checkpoint.save(tmp_path / "run", 1, {}, {}, {}, tokenizer=prompts.tokenizer_files(words))
    assert checkpoint.load_tokenizer(path) == prompts.tokenizer_files(words)
    moved = path.rename(tmp_path / "moved")
    assert with_tokenizer(replace(tiny, tokenizer="x/y"), moved).tokenizer == str(moved)
    good = (moved / "vocab.json").read_bytes()
    (moved / "vocab.json").write_bytes(good.replace(b"1", b"2"))
    with pytest.raises(checkpoint.CheckpointError, match="vocab.json is damaged"):
        checkpoint.verify(moved)
    (moved / "vocab.json").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="vocab.json"):
        checkpoint.verify(moved, ())
    (moved / "vocab.json").write_bytes(good)
    (moved / "tokenizer.json").write_text("{}")
    with pytest.raises(checkpoint.CheckpointError, match="tokenizer.json is not listed"):
        checkpoint.verify(moved)


def test_a_run_goes_on_and_starts_others_when_its_tokenizers_directory_is_gone(words, tmp_path, capsys):
    data = write_folder(tmp_path / "arm", task=np.array(["pick", "pick up"]))
    flags = ["--data", str(data), *RUN, "--eval_windows", "2"]
    train.run([*flags, "--tokenizer", str(words), "--out", str(tmp_path / "run")])
    gone = words.rename(tmp_path / "gone")
    train.run([*flags, "--resume", "--out", str(tmp_path / "run")])
    train.run([*flags, "--resume", "--out", str(tmp_path / "run"), "--tokenizer", str(gone)])   # the same, elsewhere
    train.run([*flags, "--from", str(tmp_path / "run"), "--out", str(tmp_path / "other")])
    for name in ("run", "other"):
        path = checkpoint.resolve(tmp_path / name)
        assert checkpoint.load_tokenizer(path) == prompts.tokenizer_files(gone)
        assert checkpoint.load(path)[1]["config"]["model"]["tokenizer"] == checkpoint.OWN_TOKENIZER
    (gone / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match="was trained with another tokenizer"):
        train.run([*flags, "--resume", "--out", str(tmp_path / "run"), "--tokenizer", str(gone)])
    state = json.loads((path / "state.json").read_text())
    state["config"]["model"]["tokenizer"] = "of/old"   # and no files
    old = checkpoint.save(tmp_path / "old", 2, checkpoint.load(path)[0], checkpoint.load_optimizer(path), state)
    for more, message in ((["--resume", "--out", str(old.parent)], "with another config .--tokenizer"),
                          (["--from", str(old), "--out", str(tmp_path / "x")], "'of/old', whose files do not stand")):
        with pytest.raises(ValueError, match=message):
            train.run([*flags, *more])


# ---- the image tokenizer -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags", ["--config a1_2b --init_und X --data conveyor", "--config conveyor --vae cosmos"])
def test_a_random_image_tokenizer_is_never_taken_without_a_word(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--init_vae DIR is missing.* the image tokenizer would be random"):
        train.run(flags.split())


def test_where_it_is_asked_for_it_is_said(small):
    (line,) = start.start(SimpleNamespace(config=small))
    assert line.startswith("the image tokenizer is random, as --init scratch asks")
