"""support/training/memory.py: what is predicted is what tensors take, and --fit chooses by it."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from config import CONFIGS, get_config
from experts import attend
from support.training import memory, optimizers
from support.training.prepare import checkpoint_layers


def whole_step(config):
    """Peak bytes of an optimizer step of two micro-batches on fake tensors, gradients and states growing as they do."""
    train = config.train
    model = memory.skeleton(config.model, train.optimizer == "fp32", train.frozen)
    with FakeTensorMode(allow_non_fake_inputs=True), memory.Peak() as peak, memory.card_attention():
        model.to_empty(device="cpu")
        masters = {name: torch.empty(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        optimizer = optimizers.adamw(train.optimizer, model, masters)
        if train.checkpoint_layers:
            checkpoint_layers(model)
        peak.peak = peak.now
        for _ in range(2):
            model(*memory.synthetic(config.model, train.batch_size)).total(1.0, 1, 1).backward()
        norm = optimizers.global_norm(optimizer.parameters.values())
        optimizer.step(train.lr, optimizers.clip_scale(norm, train.clip))
        return peak.peak


def setting(config, **train):
    return replace(config, train=replace(config.train, **train))


@pytest.mark.parametrize("kind, recompute", [("fp32", False), ("fp32", True), ("split", True), ("offload", True)])
def test_the_prediction_is_what_a_real_step_takes(variant, kind, recompute):
    """Four small networks, real tensors on the CPU, every storage counted: within 10 %."""
    config = replace(get_config("conveyor"), model=replace(variant, und_width=2 * variant.und_width))
    config = setting(config, optimizer=kind, checkpoint_layers=recompute, batch_size=8)
    predicted, measured = memory.predict(config).device, memory.real_step(config)
    assert predicted == pytest.approx(measured, rel=0.1)


def at_depth(name, layers, B):
    config = get_config(name, {"batch_size": B})
    return replace(config, model=replace(config.model, layers=layers, vit_layers=layers))


@pytest.mark.parametrize("name, layers, B", [("a1_2b", 2, 4), ("a1_2b", 2, 12), ("a1_3b", 5, 4)])
def test_the_prediction_is_what_a_whole_step_takes_at_full_width(name, layers, B):
    """split, recomputed: fake tensors, within 10 %."""
    config = setting(at_depth(name, layers, B), optimizer="split")
    assert memory.predict(config).device == pytest.approx(whole_step(config), rel=0.1)


@pytest.mark.parametrize("name, kind, device, host", [("a1_2b", "split", 10, 0), ("a1_3b", "offload", 4, 12)])
def test_the_presets_fit_a_card_of_24_gb(name, kind, device, host):
    """All parameters trained; weights, gradients and states are the optimizer's bytes a parameter, the VAE's beside."""
    config = CONFIGS[name]
    need = memory.predict(config, activations=0)
    trained = memory.sizes(config.model, False, frozenset())[3]
    assert config.train.optimizer == kind and not config.train.frozen and config.train.checkpoint_layers
    assert need.device == pytest.approx(device * trained + 2 * 76_789_472, rel=0.002)
    assert need.host >= host * trained and need.device < 16.5 * 2 ** 30
    assert need.disk == pytest.approx((2 + memory.STATE[kind]) * trained + 2 * 76_789_472, rel=0.002)


def test_fit_takes_the_first_setting_that_fits_fast_optimizers_first_and_keeps_the_effective_batch(monkeypatch):
    """With activations of 1 GiB a sample, 0.1 when recomputed: larger cards get less recomputation."""
    monkeypatch.setattr(memory, "fake_step", lambda model, fp32, frozen, recompute, B: B * 2 ** 30 * (0.1 if recompute else 1))
    config = get_config("a1_2b")
    chosen = {gb: memory.fit(config, gb).train for gb in (80, 24, 14, 8)}
    assert {gb: (t.optimizer, t.checkpoint_layers, t.batch_size) for gb, t in chosen.items()} == {
        80: ("split", False, 8), 24: ("split", False, 4), 14: ("offload", False, 4), 8: ("offload", True, 8)}
    assert {t.batch_size * t.accumulate for t in chosen.values()} == {128}
    with pytest.raises(ValueError, match="nothing fits 4 GiB.*--freeze und, or several cards with --shard"):
        memory.fit(config, 4)
    for own, kinds in (("fp32", "fp32 split offload"), ("offload", "split offload")):   # a large card need not offload
        tried = [choice.train.optimizer for choice in memory.settings(setting(config, optimizer=own))]
        assert list(dict.fromkeys(tried)) == kinds.split()


def test_a_dry_run_that_runs_out_of_memory_is_one_line(monkeypatch):
    """The prediction is not the last word: a card may hold less than it says."""
    def full(config):
        raise torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(memory, "real_step", full)
    monkeypatch.setattr(memory, "table", lambda *args: [])
    monkeypatch.setattr(memory, "predict", lambda config: memory.Need(1, 1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="^out of memory at a peak of .*--batch_size 32"):
        memory.dry_run(get_config("conveyor"), torch.device("cpu"), 24)


@pytest.mark.parametrize("freeze, least", [("und", 0.25), ("vision", 0.05), ("embed", 0.05)])
def test_what_is_frozen_takes_no_gradient_and_no_state(freeze, least):
    """--freeze und|vision|embed."""
    whole = memory.predict(get_config("a1_2b"), activations=0)
    less = memory.predict(get_config("a1_2b", {"freeze": freeze}), activations=0)
    assert less.weights == whole.weights
    for part in ("gradients", "states"):
        assert getattr(less, part) < (1 - least) * getattr(whole, part)


def test_attention_is_counted_as_a_card_does_it():
    """Grouped keys and values are repeated for the 8 heads, and no matrix of scores is stored."""
    with FakeTensorMode(), memory.Peak() as peak, memory.card_attention():
        q, k, v = (torch.empty(1, heads, 2048, 64, requires_grad=True) for heads in (8, 2, 2))
        bias, scores = torch.empty(1, 1, 2048, 2048), 8 * 2048 * 2048 * 4
        before = peak.now
        out = attend(q, k, v, bias)
        assert peak.peak - before >= 3 * q.nbytes   # both, repeated, and what comes out
        out.sum().backward()
        assert peak.peak - before < 8 * q.nbytes < scores / 2
