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


@pytest.mark.parametrize("und_tail", [False, True])
def test_built_and_not_built_are_the_totals_of_table_1(name, und_tail):
    """Table 1: 1.8B and 3.2B, to the last parameter of the release's layout."""
    config = replace(CONFIGS[name].model, und_tail=und_tail)
    rows = count_parameters(on_meta(config))
    assert rows["total"] == sum(sizes(on_meta(config)).values())
    assert rows["total"] == rows["und"] + rows["gen"] + rows["act"] + rows["projections"] + rows["vae"]
    assert rows["total"] + sum(not_built(config).values()) == TOTAL[name]


def test_the_experts_have_the_sizes_of_table_1(name):
    """Table 1: Und. Expert 0.94B and 2.13B (all of not_built is its), Gen. and Act. 0.36B and 0.44B."""
    rows = count_parameters(on_meta(CONFIGS[name].model))
    assert (rows["gen"], rows["act"], rows["vae"]) == (EXPERT[name], EXPERT[name], VAE)
    absent = sum(not_built(CONFIGS[name].model).values())
    assert rows["und"] + absent == UND[name]


def test_without_the_generation_expert_the_totals_are_still_those_of_table_1(name):
    """Fig. 9's ablation builds no expert, no projections, no tokenizer: not_built lists them."""
    config = replace(CONFIGS[name].model, gen_expert=False)
    full, cut = sizes(on_meta(CONFIGS[name].model)), sizes(on_meta(config))
    assert set(cut) < set(full) and not any("gen" in key or "vae" in key for key in cut)
    rows = count_parameters(on_meta(config))
    assert rows["gen"] == rows["vae"] == 0
    built, absent = sum(cut.values()), sum(not_built(config).values())
    assert built + absent == TOTAL[name]


def test_the_printed_table_rounds_to_the_papers(name):
    """`python -m bench params` and train.py show what is built, what the release holds and Table 1 side by side."""
    paper = PAPER[name.removesuffix("_release")]
    rows = {words[0]: words[1:] for words in map(str.split, table(CONFIGS[name])[1:])}
    for part, billions in paper.items():
        assert rows[part][2] == f"{billions}B" and abs(float(rows[part][1]) / 1e3 - billions) < 0.05
    assert float(rows["total"][1]) == round(TOTAL[name] / 1e6, 2)


def test_inference_and_training_run_at_full_size_with_the_shapes_of_the_paper(name, random_batch):
    """Sec. 3.2: 256 tokens a view at 448 px, 49 at 224 px; 96 generation tokens; latents of 32 x 32 x 16. The chunk of
    50 actions is the release's."""
    config, n = CONFIGS[name].model, N_UND[name] + 96
    model, batch = on_meta(config), random_batch(config, 2).to("meta")
    prefix = model.prefill(batch)
    shapes = {x.shape for pair in prefix.kv for x in pair}
    assert len(prefix.kv) == config.layers and shapes == {(2, config.kv_heads, n, config.head_dim)}
    assert prefix.gen_out.shape == (2, 96, config.gen_width) and prefix.bias.shape == (2, 1, 51, n + 51)
    assert model.sample_actions(batch, torch.empty(2, 50, 32, device="meta"), 1, prefix).shape == (2, 50, 32)
    assert model.imagine(batch, prefix).shape == (2, 3, 16, 32, 32)
    eps, tau = torch.empty(2, 1, 50, 32, device="meta"), torch.empty(2, 1, device="meta")
    losses = model(batch, eps, tau, latents=True)
    assert losses.z.shape == (2, 3, 3, 16, 32, 32) and losses.z_hat.shape == (2, 3, 16, 32, 32)
