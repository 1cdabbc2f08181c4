"""The yardsticks of the embedded world measure what they say: foresight, crops, closed loop and its controls."""

import numpy as np
import pytest
import torch
from torch import nn

from worlds import conveyor
from config import get_config
from support.tiny import DctVAE
from data import open_corpus
from model import Losses
from support.training import validation
from support.training.validation import validate
from worlds.closed_loop import WRONG_ARM, WRONG_COLOUR, closed_loop, shuffled_images, wrong_text
from support.data.statistics import statistics

CONFIG = get_config("conveyor")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """The held-out source, its windows and statistics of a small dataset."""
    root = tmp_path_factory.mktemp("world")
    conveyor.write_dataset(root, episodes=10)
    corpus = open_corpus(root, CONFIG.data.m, CONFIG.data.full_windows)
    source = corpus.held_out
    return source, corpus.held_out_windows, statistics([source], [corpus.held_out_windows], CONFIG.model.chunk,
                                                               "absolute", 1e-3)


class Seer(nn.Module):
    """A model whose foresight is a given function of the true latents z (B, V, 3, 16, g, g) at t - m, t, t + m."""

    def __init__(self, foresee):
        super().__init__()
        self.foresee, self.vae, self.weight = foresee, DctVAE(), nn.Parameter(torch.zeros(()))

    def forward(self, batch, eps, tau, pictures):
        z = self.vae.encode(batch.frames.flatten(0, 2).float() / 127.5 - 1).unflatten(0, batch.frames.shape[:3])
        zero = torch.zeros(())
        return Losses(zero, zero, zero, zero, self.foresee(z), z)

    def to_pictures(self, z):
        return ((self.vae.decode(z).clamp(-1, 1) + 1) * 127.5).round().byte()


def scores(held_out, foresee, limit=64):
    source, rows, stats = held_out
    found = validate(Seer(foresee), CONFIG, stats, source, rows, limit)
    return {name.removeprefix("foresight_"): x for name, x in found.items() if name.startswith("foresight_")}


def test_perfect_foresight_scores_0_and_copying_the_present_scores_1(held_out):
    """Latent errors exactly; pixels up to what the tokenizer loses, which is far less than the movement."""
    perfect, copying = scores(held_out, lambda z: z[:, :, 2]), scores(held_out, lambda z: z[:, :, 1])
    names = {f"{suite}_{view}" for suite in conveyor.SUITES for view in ("head", "wrist")}
    assert perfect.keys() == copying.keys() == names | {"crop_target", "crop_distractor"}
    assert all(perfect[name] == 0 and copying[name] == 1 for name in names)
    for name in ("crop_target", "crop_distractor"):
        assert perfect[name] < 0.2 and 0.8 < copying[name] < 1.2, name


def test_the_crop_score_looks_where_the_object_will_be_and_nowhere_else(held_out, monkeypatch):
    """The truth shown only within a window around the target's place at t + m is perfect there, and not elsewhere."""
    source, rows, stats = held_out
    size, half = CONFIG.model.vae_size, round(conveyor.RADIUS * CONFIG.model.vae_size / 2)
    places = iter([source.labels(e)["target"][t + CONFIG.data.m] for batch in validation.held_out_batches(
        CONFIG, stats, source, rows, 64) for e, t in batch[3]])

    def peek(self, z):   # z holds pictures here, (B, 3, size, size)
        shown = torch.zeros_like(z)
        for picture, (x, y) in zip(range(len(z)), places):
            row, column = round((1 - y) / 2 * size), round((x + 1) / 2 * size)
            part = (slice(max(0, row - half), row + half), slice(max(0, column - half), column + half))
            shown[picture][:, *part] = z[picture][:, *part]
        return shown.byte()

    monkeypatch.setattr(Seer, "to_pictures", peek)
    monkeypatch.setattr(Seer, "forward", lambda self, batch, eps, tau, pictures: Losses(
        *[torch.zeros(())] * 4, batch.frames[:, :, 2].float(), batch.frames.float()))
    found = scores(held_out, None)
    assert found["crop_target"] == 0 and found["crop_distractor"] > 0.3


def test_the_policy_looks_once_and_its_whole_chunk_runs_open_loop():
    """A second look would show how far the target has moved to a policy that sees one frame at a time."""
    looks = []

    def policy(past, now, states, tasks):
        looks.append(len(now))
        return np.repeat(states[:, None], conveyor.CHUNK, 1)

    report, rollouts = closed_loop(policy, 5, seed=1)
    assert looks == [5, 5]   # once a suite
    assert all(not report[suite]["success"] and not rollouts[suite].closed.any() for suite in conveyor.SUITES)


def test_closed_loop_counts_what_the_expert_takes():
    report, _ = closed_loop(conveyor.scripted_action, 100, seed=2)
    assert all(report[suite]["success"] >= 0.98 and report[suite]["episodes"] == 100 for suite in conveyor.SUITES)


def test_the_controls_change_the_text_or_the_pictures_and_nothing_else():
    """A policy that gets a wrong text and one whose images are shuffled."""
    seen = []
    past, now = np.arange(3), np.arange(3) + 10
    states, tasks = np.zeros((3, 6)), ["left pick red disc", "right pick green cross", "left pick blue square"]

    def policy(*what):
        seen.append(what)

    wrong_text(policy, WRONG_ARM)(past, now, states, tasks)
    wrong_text(policy, WRONG_COLOUR)(past, now, states, tasks)
    shuffled_images(policy)(past, now, states, tasks)
    assert seen[0][3] == ["right pick red disc", "left pick green cross", "right pick blue square"]
    assert seen[1][3] == ["left pick green disc", "right pick blue cross", "left pick red square"]
    assert seen[2][3] == tasks and all(what[2] is states for what in seen)
    assert all(np.array_equal(what[0], past) and np.array_equal(what[1], now) for what in seen[:2])
    assert (seen[2][0] != past).all() and (seen[2][1] != now).all() and (seen[2][1] - seen[2][0] == 10).all()
