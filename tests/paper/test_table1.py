"""Table 1: the numbers of parameters, on the meta device, and the token counts of Sec. 3.2 at full size."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from config import CONFIGS
from support import table1
from support.table1 import PAPER, count_parameters, not_built, table

TOTAL = {"a1_2b": 1_835_996_688, "a1_3b": 3_222_760_208, "a1_3b_release": 3_222_760_208}   # 1.8B and 3.2B
UND = {"a1_2b": 938_119_296, "a1_3b": 2_127_532_032, "a1_3b_release": 2_127_532_032}       # 0.94B and 2.13B
EXPERT = {"a1_2b": 357_898_112, "a1_3b": 440_467_456, "a1_3b_release": 440_467_456}        # 0.36B and 0.44B
VAE = 76_789_472
N_UND = {"a1_2b": 3 * (256 + 2) + 48, "a1_3b": 3 * (49 + 2) + 48, "a1_3b_release": 3 * (64 + 2) + 48}


@pytest.fixture(scope="module", params=TOTAL)
def name(request):
    return request.param


on_meta = cache(table1.on_meta)


def sizes(model):
    return {key: p.numel() for key, p in model.named_parameters()}


def test_built_and_not_built_are_the_totals_of_table_1(name):
    """Table 1: 1.8B and 3.2B, to the last parameter of the release's layout."""
    model, config = on_meta(CONFIGS[name].model), CONFIGS[name].model
    rows = count_parameters(model)
    assert rows["total"] == sum(sizes(model).values())
    assert rows["total"] + sum(not_built(config).values()) == TOTAL[name]
    assert rows["total"] == rows["und"] + rows["gen"] + rows["act"] + rows["projections"] + rows["vae"]


def test_the_experts_have_the_sizes_of_table_1(name):
    """Table 1: Und. Expert 0.94B and 2.13B (all of not_built is its), Gen. and Act. 0.36B and 0.44B."""
    rows = count_parameters(on_meta(CONFIGS[name].model))
    assert (rows["gen"], rows["act"], rows["vae"]) == (EXPERT[name], EXPERT[name], VAE)
    absent = sum(not_built(CONFIGS[name].model).values())
    assert rows["und"] + absent == UND[name]


def test_the_tokenizer_is_frozen_and_all_else_is_trained(name):
    """Table 1 counts the COSMOS tokenizer; Sec. 3.3 trains the three experts."""
    for key, p in on_meta(CONFIGS[name].model).named_parameters():
        assert p.requires_grad != key.startswith("vae."), key


def test_without_the_generation_expert_the_totals_are_still_those_of_table_1(name):
    """Fig. 9's ablation builds no expert, no projections, no tokenizer: not_built lists them."""
    config = replace(CONFIGS[name].model, gen_expert=False)
    full, cut = sizes(on_meta(CONFIGS[name].model)), sizes(on_meta(config))
    assert set(cut) < set(full) and not any("gen" in key or "vae" in key for key in cut)
    rows = count_parameters(on_meta(config))
    assert rows["gen"] == rows["vae"] == 0
    built, absent = sum(cut.values()), sum(not_built(config).values())
    assert built + absent == TOTAL[name]


def test_und_tail_builds_exactly_what_nothing_reads_of_the_last_understanding_layer(name):
    """Table 1 counts the whole backbone: query, output, MLP and norms of its last layer are the tail."""
    config = CONFIGS[name].model
    whole = replace(config, und_tail=True)
    with_tail, without = sizes(on_meta(whole)), sizes(on_meta(config))
    last = f"layers.{config.layers - 1}.und"
    parts = ["self_attn.q_proj.weight", "self_attn.o_proj.weight", "post_attention_layernorm.weight",
             "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"]
    parts += ["self_attn.q_proj.bias"] if config.qkv_bias else []
    parts += ["self_attn.q_norm.weight"] if config.qk_norm else []
    moved = {key: with_tail[key] for key in set(with_tail) - set(without)}
    assert set(moved) == {f"{last}.{part}" for part in parts} | {"und.norm.weight"}
    assert set(without) < set(with_tail)

    before, after = not_built(config), not_built(whole)
    gone = {key: before[key] for key in set(before) - set(after)}
    assert {key: before[key] for key in after} == after
    for key, count in gone.items():
        part = key.removeprefix(f"language_model.layers.{config.layers - 1}.").removeprefix("language_model.")
        assert count == sum(size for path, size in moved.items() if f".{part}." in path)
    assert sum(gone.values()) == sum(moved.values())


def test_the_printed_table_rounds_to_the_papers(name):
    """`python -m bench params` and train.py show what is built, what the release holds and Table 1 side by side."""
    paper = PAPER[name.removesuffix("_release")]
    rows = {words[0]: words[1:] for words in map(str.split, table(CONFIGS[name])[1:])}
    for part, billions in paper.items():
        assert rows[part][2] == f"{billions}B" and abs(float(rows[part][1]) / 1e3 - billions) < 0.05
    assert float(rows["total"][1]) == round(TOTAL[name] / 1e6, 2)


def test_the_token_counts_of_the_presets(name, random_batch):
    """Sec. 3.2 and 4: 256 tokens a view at 448 px, 49 at 224 px; 96 generation and 1 + 50 action tokens."""
    config = CONFIGS[name].model
    model, batch = on_meta(config), random_batch(config, 2).to("meta")
    before, h_gen, rotary, bias = model.prefill(batch)
    assert len(before) == config.layers
    for key, value in before:
        assert key.shape == value.shape == (2, config.kv_heads, N_UND[name] + 96, config.head_dim)
    assert h_gen.shape == (2, 96, config.gen_width)
    assert bias.shape == (2, 1, 51, N_UND[name] + 96 + 51)
    assert rotary[0].shape == rotary[1].shape == (2, 1, 51, config.head_dim)


def test_inference_and_training_run_at_full_size_with_the_shapes_of_the_paper(name, random_batch):
    """Sec. 3.2: the predicted latents are 32 x 32 x 16, the chunk has 50 actions of 32 dimensions."""
    config = CONFIGS[name].model
    model, batch = on_meta(config), random_batch(config, 2).to("meta")
    prefix = model.prefill(batch)
    assert model.sample_actions(batch, torch.empty(2, 50, 32, device="meta"), 1, prefix).shape == (2, 50, 32)
    assert model.imagine(batch, prefix).shape == (2, 3, 16, 32, 32)
    eps, tau = torch.empty(2, 1, 50, 32, device="meta"), torch.empty(2, 1, device="meta")
    losses = model(batch, eps, tau, pictures=True)
    assert losses.z.shape == (2, 3, 3, 16, 32, 32) and losses.z_hat.shape == (2, 3, 16, 32, 32)
