"""Validation measures what it says: foresight in latents, and in pixels around what a world watches."""

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
from worlds.training import marked
from support.data.kept_statistics import statistics

CONFIG = get_config("conveyor")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """The held-out source, its windows and statistics of a small dataset."""
    root = tmp_path_factory.mktemp("world")
    conveyor.write_dataset(root, episodes=10)
    corpus = open_corpus(root, CONFIG.data.m, CONFIG.data.full_windows)
    source = corpus.held_out
    return source, corpus.held_out_windows, statistics({0: source}, {0: corpus.held_out_windows}, CONFIG.model.chunk,
                                                               "absolute", 1e-3)


class Seer(nn.Module):
    """A model whose foresight is a given function of the true latents z (B, V, 3, 16, g, g) at t - m, t, t + m."""

    def __init__(self, foresee):
        super().__init__()
        self.foresee, self.vae, self.weight = foresee, DctVAE(), nn.Parameter(torch.zeros(()))

    def forward(self, batch, eps, tau, latents):
        z = self.vae.encode(batch.frames.flatten(0, 2).float() / 127.5 - 1).unflatten(0, batch.frames.shape[:3])
        zero = torch.zeros(())
        return Losses(zero, zero, zero, zero, self.foresee(z), z)

    def to_pictures(self, z):
        x = self.vae.decode(z.flatten(0, -4)).unflatten(0, z.shape[:-3])
        return ((x.clamp(-1, 1) + 1) * 127.5).round().byte()


def scores(held_out, foresee):
    """({kind of score: value}, Foresight)."""
    source, rows, stats = held_out
    batches = validation.held_out_batches(CONFIG, stats, source, rows, 64)
    found, shown = validate(Seer(foresee), CONFIG, batches, marked(source))
    return {name.removeprefix("foresight_"): x for name, x in found.items() if name.startswith("foresight_")}, shown


def test_perfect_foresight_scores_0_and_copying_the_present_scores_1(held_out):
    """Latent errors exactly; pixels up to what the tokenizer loses, which is far less than the movement."""
    (perfect, shown), (copying, still) = scores(held_out, lambda z: z[:, :, 2]), scores(held_out, lambda z: z[:, :, 1])
    names = {f"{suite}_{view}" for suite in conveyor.SUITES for view in ("head", "wrist")}
    assert perfect.keys() == copying.keys() == names | {"crop_target", "crop_distractor"}
    assert all(perfect[name] == 0 and copying[name] == 1 for name in names)
    for name in ("crop_target", "crop_distractor"):
        assert perfect[name] < 0.2 and 0.8 < copying[name] < 1.2, name
    assert torch.equal(shown.imagined, shown.true) and torch.equal(still.imagined, still.present)   # the same window
    assert torch.equal(shown.true, still.true) and not torch.equal(shown.true, shown.present)


def test_the_crop_score_looks_where_the_object_will_be_and_nowhere_else(held_out, monkeypatch):
    """The truth shown only within a window around the target's place at t + m is perfect there, and not elsewhere."""
    source, rows, stats = held_out
    size, half = CONFIG.model.vae_size, round(conveyor.RADIUS * CONFIG.model.vae_size / 2)
    places = iter([source.labels(e)["target"][t + CONFIG.data.m] for batch in validation.held_out_batches(
        CONFIG, stats, source, rows, 64) for e, t in batch[3]])

    def peek(self, z):   # z holds pictures here, (B, 3, size, size)
        if z.dim() == 5:   # those of the figure
            return z.byte()
        shown = torch.zeros_like(z)
        for picture, (x, y) in zip(range(len(z)), places):
            row, column = round((1 - y) / 2 * size), round((x + 1) / 2 * size)
            part = (slice(max(0, row - half), row + half), slice(max(0, column - half), column + half))
            shown[picture][:, *part] = z[picture][:, *part]
        return shown.byte()

    monkeypatch.setattr(Seer, "to_pictures", peek)
    monkeypatch.setattr(Seer, "forward", lambda self, batch, eps, tau, latents: Losses(
        *[torch.zeros(())] * 4, batch.frames[:, :, 2].float(), batch.frames.float()))
    found, _ = scores(held_out, None)
    assert found["crop_target"] == 0 and found["crop_distractor"] > 0.3
