"""python -m bench gradients: the pulls of the two losses are those of training's own backward pass."""

import pytest
import torch

import bench.__main__ as bench
from bench import gradients, saving
from config import get_config
from model import InternVLA_A1
from support.training.memory import synthetic


def test_a_pull_is_the_gradient_that_training_would_add_to_an_expert():
    config = get_config("conveyor", {"layers": 2}).model
    torch.manual_seed(0)
    model, inputs = InternVLA_A1(config), synthetic(config, 2)
    found = gradients.pulls(model, [(*inputs, None)])
    grads = {}
    for name, weights in (("L_act", (0.0, 1)), ("L_gen", (1.0, 0))):
        model.zero_grad()
        losses = model(*inputs)
        (weights[0] * losses.gen_sum / losses.gen_count + weights[1] * losses.act_sum / losses.act_count).backward()
        for expert in ("und", "gen"):
            own = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for key, p in model.named_parameters()
                   if key.startswith(f"{expert}.") or f".{expert}." in key]
            grads[expert, name] = torch.cat([g.flatten() for g in own])
    for expert in ("und", "gen"):
        act, gen = grads[expert, "L_act"], grads[expert, "L_gen"]
        assert found[expert]["L_act"] == pytest.approx(float(act.norm()), rel=1e-4)
        assert found[expert]["L_gen"] == pytest.approx(float(gen.norm()), rel=1e-4)
        assert found[expert]["cosine"] == pytest.approx(float(act @ gen / act.norm() / gen.norm()), abs=1e-4)


def test_a_checkpoint_that_is_missing_is_said_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(saving, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="nowhere is not a directory"):
        bench.run(["gradients", "--checkpoint", str(tmp_path / "nowhere")])
    assert not list(tmp_path.iterdir())
