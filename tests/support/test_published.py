"""Beside the weights: tokenizers, config.json, train_config.json and stats.json, in and out.

What the other side computes is written here anew from its formulas, in float32 as there.
"""

import json
import socket
import time
from dataclasses import asdict, replace

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
from support.weights.__main__ import parse
from support.weights.loading import with_tokenizer
from support.weights.release import export_run, import_release, load_release, release_settings
from support.weights.tensor_files import find

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
def test_an_export_acts_there_and_imported_again_as_the_run_does(published, small, tmp_path, words, mode, robot, capsys):
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
    features = {"state": row.state, "action": row.action} if row else {"state": ["observation.state"], "action": ["action"]}
    there = released(out, robot, features, by_robot[robot].relative, ours, eps, state, batch)
    here = [policy.stats.actions(policy.model.sample_actions(policy.batch([pictures], state[None], ["pick"]), eps).numpy(),
                                 state[None])[0] for policy in (ours, theirs)]
    moves = np.arange(len(state)) != 2   # an idle dimension is commanded as its mean; here by the Statistics' own rule
    error = max(np.abs(there - a)[:, moves].max() for a in here)
    idle = by_robot[robot].action_mean[2] + (state[2] if mode == "delta" else 0)
    print(f"\nexport, {robot}, {mode}: largest difference of an action {error:.1e}, idle {np.abs(there[:, 2] - idle).max():.1e}")
    assert error < 1e-5 and np.abs(there[:, 2] - idle).max() < 1e-5
