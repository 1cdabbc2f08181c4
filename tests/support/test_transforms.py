"""Pictures, states and actions reach the model as in the release: letterbox, enlargement, delta and normalisation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from config import ModelConfig
from support.data.statistics import pad
from experts import UndExpert
from support.data import prompts
from support.data.letterbox import fit, letterbox
from support.data.robots import ROBOTS, release_statistics
from support.data.statistics import Statistics, reference

DATA = Path(__file__).parents[1] / "data"
STORED = load_file(DATA / "transforms.safetensors")


@pytest.mark.parametrize("shape", ["wide", "tall", "up", "same"])
def test_the_letterbox_equals_the_release(shape):
    """[release] bilinear without antialias, centred on black; ours is rounded to 8 bits afterwards."""
    x, expected = STORED[f"in.resize.{shape}"], STORED[f"out.resize.{shape}"]
    torch.testing.assert_close(fit(x, 28), expected, atol=1e-6, rtol=0)
    picture = (x[0] * 255).round().byte()
    rounded = letterbox(picture.permute(1, 2, 0).numpy(), 28).float()
    torch.testing.assert_close(rounded, fit(picture[None].float(), 28)[0], atol=0.5 + 1e-4, rtol=0)


def test_the_enlarged_view_equals_qwens_image_processor():
    """[release] its processor enlarges the 224 px view to 256 px, bicubic, antialiased and not clamped."""
    stored = load_file(DATA / "qwen_processor_224.safetensors")
    config = ModelConfig(backbone="qwen3vl", image_size=256, letterbox=224, vit_layers=1, vit_width=32, vit_mlp=64,
                         vit_heads=2, vit_patch=16, vit_grid=16, view_tokens=())
    und, seen = UndExpert(config), {}
    und.visual.register_forward_pre_hook(lambda _, args: seen.update(pixels=args[0]))
    und.embed(stored["frame"][None, None], torch.zeros(1, config.text_tokens, dtype=torch.long))
    x = seen["pixels"] * 2 - 1
    assert x.min() < -1 and x.max() > 1
    patches = x.reshape(1, 3, 8, 2, 16, 8, 2, 16).permute(0, 2, 5, 3, 6, 1, 4, 7)[..., None, :, :]
    patches = patches.expand(*patches.shape[:6], 2, 16, 16).reshape(256, 1536)
    torch.testing.assert_close(patches[::4], stored["patches_every_4th"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["delta", "abs"])
@pytest.mark.parametrize("robot", ["genie1", "aloha", "franka"])
def test_states_and_actions_are_normalised_as_in_the_release(robot, mode, tmp_path):
    """Sec. 3.4: relative to the state at t, grippers absolute, mean and deviation, padded to 32."""
    row = ROBOTS[robot]
    features = {"state": list(zip(row.state, row.widths)), "action": list(zip(row.action, row.widths))}
    assert list(row.relative) == STORED[f"in.{robot}.delta_mask"].tolist()
    moments = {feature: {m: STORED[f"in.{robot}.stats.{feature}.{m}"].tolist() for m in ("mean", "std")}
               for kind in features for feature, _ in features[kind]}
    (tmp_path / "stats.json").write_text(json.dumps({robot: moments}))
    action_mode = {"delta": "delta", "abs": "absolute"}[mode]
    stats = Statistics(robot, action_mode, 30.0, windows=0, relative=row.relative,
                       **release_statistics(tmp_path / "stats.json", robot))

    def raw(kind):
        return np.concatenate([STORED[f"in.{robot}.raw.{feature}"].numpy().reshape(-1, width).astype(np.float32)
                               for feature, width in features[kind]], -1)

    state, action = raw("state")[0], raw("action")
    relative = action - reference(row.relative, action_mode, state)
    found = {"state": pad(stats.normalise("state", state), 32, "state"),
             "action": pad(stats.normalise("action", relative), 32, "action")}
    for kind in found:
        np.testing.assert_allclose(found[kind], STORED[f"out.{robot}.{mode}.{kind}"].numpy(), atol=1e-5)
    np.testing.assert_allclose(stats.actions(found["action"], state), action, atol=1e-5)


@pytest.fixture
def words(tmp_path):
    """A byte-level BPE vocabulary of three merges, in Qwen's files."""
    pieces = ["p", "i", "c", "k", "u", "Ġ", "pi", "ck", "pick"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\np i\nc k\npi ck\n")
    return str(tmp_path)


def test_the_instruction_is_given_raw_and_padded_on_the_right(words):
    """[release] no template, no special tokens around the task."""
    ids, mask = prompts.token_ids("pick up", 6, words)
    assert ids.tolist() == [8, 5, 4, 0, 0, 0] and mask.tolist() == [True] * 4 + [False] * 2


def test_a_prompt_beyond_the_budget_is_cut_with_one_warning_that_shows_what_is_lost(words):
    with pytest.warns(UserWarning, match=r"4 tokens, the budget is 2: 'up' is cut off.*--text_tokens 4"):
        ids, mask = prompts.token_ids("pick up", 2, words)
    assert ids.tolist() == [8, 5] and mask.all()
    with pytest.warns(UserWarning, match="'up' is cut off"):
        prompts.token_ids("pick up", 5)


def test_a_missing_tokenizer_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match="give --tokenizer a directory with tokenizer.json"):
        prompts.token_ids("pick", 4, str(tmp_path))
