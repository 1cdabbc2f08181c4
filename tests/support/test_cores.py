"""What makes a step on a CPU faster, and changes nothing: halves at once, and two convolutions as one."""

from dataclasses import replace

import pytest
import torch

import train
from config import CONFIGS
from model import InternVLA_A1
from support.training.prepare import Cores, fold_compression
from support.training.ranks import Ranks


@pytest.fixture
def config(tiny):
    return replace(CONFIGS["conveyor"], model=tiny)


@pytest.fixture
def step(config, random_batch, noise):
    """Cores of a training config, of so many threads -> (gradients by name, losses) of a batch of 5 on them."""
    torch.manual_seed(0)
    model, ranks = InternVLA_A1(config.model), Ranks()
    whole = (random_batch(config.model, 5, [[True] * 3] * 4 + [[True, False, False]], human=(4,)),
             *noise(config.model, 5, R=2))

    def gradients(cores, each=None):
        model.zero_grad()
        micro = cores.parts([whole])
        counts = train.elements(model, micro)
        losses = train.gradients(model, micro, config, ranks, counts, each or cores.each)
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, losses, counts
    return gradients


@pytest.fixture
def two(config, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return Cores(replace(config.train, accumulate=1, batch_size=5, optimizer="fp32", compile=False), Ranks())


def test_a_rank_that_draws_for_others_takes_its_micro_batches_as_they_are(config, monkeypatch):
    """One after the other: only a single one is halved, and none is dropped."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    ranks = Ranks()
    ranks.take_over(2)
    cores = Cores(replace(config.train, accumulate=1, batch_size=5, optimizer="fp32", compile=False), ranks)
    assert cores.parts(["one", "two"]) == ["one", "two"]


def test_two_halves_at_once_give_the_gradients_of_one_after_the_other_to_the_bit(step, two):
    apart, losses, _ = step(two, each=map)
    for _ in range(5):
        found, same, _ = step(two)
        assert same == losses and all(torch.equal(found[name], value) for name, value in apart.items())


def test_two_halves_give_the_losses_counts_and_gradients_of_the_whole_batch(step, two):
    found, *same = step(two)
    two.pool = None
    whole, losses, counts = step(two)
    assert same == [pytest.approx(losses, rel=1e-5), counts]
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("threads, settings", [
    (1, {}), (2, {"accumulate": 2}), (2, {"batch_size": 1}), (2, {"optimizer": "offload"}), (2, {"compile": True})])
def test_a_batch_stays_whole_where_halves_gain_nothing_or_would_depend_on_their_order(config, threads, settings,
                                                                                      monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    micro = [object()]
    assert Cores(replace(config.train, **{"accumulate": 1, "batch_size": 8} | settings), Ranks()).parts(micro) is micro


def test_the_two_convolutions_of_token_compression_are_one_function_folded_or_not(build, imagining, noise, random_batch):
    model = build(imagining)
    batch, (eps, tau) = random_batch(imagining, 2), noise(imagining, 2)

    def step():
        model.zero_grad()
        losses = model(batch, eps, tau)
        losses.total(0.3, *model.counts(batch, tau)).backward()
        return [losses.gen_sum, losses.act_sum, *(p.grad for p in model.gen.parameters())]
    plain = step()
    fold_compression(model.gen)
    torch.testing.assert_close(step(), plain, rtol=1e-4, atol=1e-5)
