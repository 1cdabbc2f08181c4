"""bench/naming.py, the arm that must show where the named target is now."""

import runpy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import model as model_module
from bench import trial
from bench.naming import NamesPlace, silhouettes
from model import InternVLA_A1
from support.data.prompts import token_ids
from support.weights import loading
from worlds import conveyor
from worlds.conveyor.setting import COLOURS


@pytest.fixture
def config(tiny):
    return replace(tiny, gen_expert=False, und_frames=2, text_tokens=24)


@pytest.fixture
def seen(config, random_batch):
    """settings -> a Batch of noise, but with the head pictures and instructions of these scenes at frame t."""
    def make(settings):
        scenes, batch = conveyor.Scenes(settings), random_batch(config, len(settings))
        for _ in range(conveyor.M):
            scenes.step(scenes.state())
        batch.frames[:, 0, 1] = torch.from_numpy(scenes.render()[:, 0]).permute(0, 3, 1, 2)
        batch.image[:, 0, -3:] = batch.frames[:, 0, 1]
        texts = [token_ids(s.instruction, config.text_tokens) for s in settings]
        batch.text_ids, batch.text_mask = (torch.from_numpy(np.array(column)) for column in zip(*texts))
        return batch
    return make


@pytest.mark.parametrize("appearance", ("sim", "real", "human"))
def test_the_silhouette_lies_where_the_named_target_is_now_in_every_look(seen, appearance):
    settings = conveyor.settings("dynamic", 100, seed=4, appearance=appearance, distractor=1.0)
    picture = F.fold(silhouettes(seen(settings)).transpose(1, 2), 16, 4, stride=4)[:, 0]      # (N, 16, 16)
    middle = (torch.arange(16) + 0.5) / 8 - 1
    x, y = ((picture.sum(axis) @ middle) / picture.sum((1, 2)) for axis in (1, 2))
    assert max(abs(float(x[i]) - s.x) + abs(float(y[i]) + s.y) for i, s in enumerate(settings)) < 0.06   # 2 is the width
    assert (picture.sum((1, 2)) > 5).all()   # cells, of 4 x 4 pixels


def test_what_its_loss_comes_to_tells_places_from_names(seen):
    """The mean silhouette; both places, and not which object is meant; all of it: docs/evidence.md quotes the three."""
    settings = conveyor.settings("dynamic", 300, seed=5)
    batch = seen(settings)
    true, found = silhouettes(batch), []
    for colour in COLOURS:
        ids, mask = token_ids(colour, batch.text_ids.shape[1])
        there = replace(batch, text_ids=torch.from_numpy(ids).expand_as(batch.text_ids),
                        text_mask=torch.from_numpy(mask).expand_as(batch.text_mask))
        found.append(silhouettes(there))
    objects = torch.stack([x.flatten(1).any(1) for x in found]).sum(0)
    assert objects.tolist() == [1 if s.distractor is None else 2 for s in settings]
    for said, quoted in ((true.mean(0).expand_as(true), 0.16), (sum(found) / objects[:, None, None], 0.09), (true, 0.03)):
        assert float(F.binary_cross_entropy(said, true)) == pytest.approx(quoted, abs=0.006)


def test_what_is_not_seen_is_not_counted(config, seen, noise):
    batch = seen(conveyor.settings("static", 4, seed=4))
    batch.frames[1, 0, 1] = 128
    model = NamesPlace(config)
    eps, tau = noise(config, 4, 2)
    losses = model(batch, eps, tau)
    assert int(losses.gen_count) == 3 * 256 and model.counts(batch, tau) == (int(losses.act_count), 3 * 256)
    assert losses.gen_sum.isfinite() and not silhouettes(batch)[1].any()


def test_its_loss_teaches_the_understanding_expert_and_nothing_else(config, seen, noise):
    """Eight scenes by heart: the loss falls far below that of the same answer for all."""
    torch.manual_seed(0)
    batch, model, (eps, tau) = seen(conveyor.settings("static", 8, seed=4)), NamesPlace(config), noise(config, 8)
    share, losses = silhouettes(batch).mean(), []
    same = float(F.binary_cross_entropy(share, share))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        found = model(batch, eps, tau)
        losses.append(float(found.gen_sum.detach() / found.gen_count))
        optimizer.zero_grad()
        found.gen_sum.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * same
    assert model.act.action_out_proj.weight.grad is None and model.und.visual.convs[0].weight.grad.abs().sum() > 0


def test_a_trial_builds_this_arm_and_leaves_the_model_as_it_was_also_when_it_fails(monkeypatch):
    """Programs that run in one process share model.py."""
    built = []

    def train(path, run_name):
        built.append((model_module.InternVLA_A1, loading.InternVLA_A1, NamesPlace.weight, sys.argv))
        raise ValueError("a run that fails")
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(runpy, "run_path", train)
    for flags in ("--steps 5 --name_place 0.5", "--steps 5"):
        with pytest.raises(ValueError, match="a run that fails"):
            trial.run(["out", "7", "1", *flags.split()])
    assert [row[:3] for row in built] == [(NamesPlace, NamesPlace, 0.5), (InternVLA_A1, InternVLA_A1, 1.0)]
    assert all("--name_place" not in argv and argv[:3] == ["train.py", "--steps", "5"] for *_, argv in built)
    assert model_module.InternVLA_A1 is loading.InternVLA_A1 is InternVLA_A1
