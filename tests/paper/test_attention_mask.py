"""Who sees whom, Sec. 3.2 Attention Mechanism: seen from outside, by changing one token."""

from types import SimpleNamespace

import pytest
import torch

from attention_mask import Layout, attention_bias, draw_of_token, segment_mask, segments, valid_tokens
from experts import attend
from support.rotary import positions

DRAWS = 2
SEES = {"und": "und", "gen": "und gen", "state": "und gen state", "action": "und gen state action"}


def written_out(config, view_mask, text_mask):
    """The sequence as one (segment, draw, exists) for each token, without any help from attention_mask.py."""
    side = 4 if config.backbone == "tiny" else 2
    per_view = side * side + len(config.view_tokens)
    tokens = [("und", None, seen) for seen in view_mask for _ in range(per_view)]
    tokens += [("und", None, word) for word in text_mask]
    if config.gen_expert:
        tokens += [("gen", None, seen) for seen in view_mask for _ in range(2 * 16)]
    for r in range(DRAWS):
        tokens += [("state", r, True)] + [("action", r, True)] * config.chunk
    return tokens


@pytest.fixture(scope="module")
def influence(variant, build, random_batch):
    """tokens, and changed[i, j]: token i's output changes when token j's input does, after two layers."""
    config, model = variant, build(variant)
    batch = random_batch(config, 2, cameras=[[True] * 3, [True, False, True]])
    view, text = batch.view_mask[1:], batch.text_mask[1:].clone()
    text[:, -2:] = False
    bias, rotary = model._sequence(SimpleNamespace(view_mask=view, text_mask=text), DRAWS)
    widths = {"und": (model.layout.n_und, config.und_width), "gen": (model.layout.n_gen, config.gen_width),
              "act": (DRAWS * (1 + config.chunk), config.act_width)}
    random = torch.Generator().manual_seed(2)
    inputs = {name: torch.randn(1, *shape, generator=random) for name, shape in widths.items() if shape[0]}

    @torch.no_grad()
    def stack(streams):
        for layer in model.layers:
            streams, _ = layer(streams, rotary, bias)
        return streams

    before, columns = stack(inputs), []
    for name, x in inputs.items():
        for j in range(x.shape[1]):
            moved = x.clone()
            moved[:, j] += torch.randn(x.shape[2], generator=random)
            after = stack({**inputs, name: moved})
            columns.append(torch.cat([(after[key] != before[key]).any(-1)[0] for key in inputs]))
    return written_out(config, view[0].tolist(), text[0].tolist()), torch.stack(columns, 1)


def test_the_influence_is_exactly_the_cumulative_segment_mask(influence):
    """Sec. 3.2: "tokens in a later block can attend to all earlier blocks, while earlier blocks cannot attend forward",
    und and gen tokens "are fully bidirectionally attended": all pairs of tokens. What does not exist is seen by nobody,
    and a draw [ours] sees no other."""
    tokens, changed = influence
    expected = torch.tensor([[i == j or (k[2] and k[0] in SEES[q[0]].split() and k[1] in (None, q[1]))
                              for j, k in enumerate(tokens)] for i, q in enumerate(tokens)])
    assert torch.equal(changed, expected)


def test_the_state_token_attends_only_to_itself_and_the_tokens_from_earlier_blocks(influence):
    """Sec. 3.2, in these words; "action tokens attend to the state token", and not the reverse."""
    tokens, changed = influence
    for i, token in enumerate(tokens):
        if token[0] == "state":
            seen = {tokens[j][:2] for j in changed[i].nonzero().flatten().tolist()}
            assert seen == {("und", None), ("state", token[1])} | {("gen", None) for other in tokens if other[0] == "gen"}


# ---- the matrix itself -------------------------------------------------------------------------------------

def picture(text):
    return torch.tensor([[c == "1" for c in line if c in ".1"] for line in text.strip().splitlines()])


def test_the_mask_with_a_missing_view_padded_text_and_two_draws_is_the_hand_drawn_picture():
    """Sec. 3.2: without the first of two views and the second of two words; two draws [ours] of two actions."""
    drawn = picture("""
        .1 1. | .. | . .. . ..
        .1 1. | .. | . .. . ..
        .1 1. | .. | . .. . ..
        .1 1. | .. | . .. . ..
        .1 1. | .1 | . .. . ..
        .1 1. | .1 | . .. . ..
        .1 1. | .1 | 1 .. . ..
        .1 1. | .1 | 1 11 . ..
        .1 1. | .1 | 1 11 . ..
        .1 1. | .1 | . .. 1 ..
        .1 1. | .1 | . .. 1 11
        .1 1. | .1 | . .. 1 11
    """)
    layout = Layout(side=1, text=2, gen=1, chunk=2, views=2, draws=2)
    valid = valid_tokens(layout, torch.tensor([[False, True]]), torch.tensor([[True, False]]))
    assert torch.equal(segment_mask(segments(layout), draw_of_token(layout), valid)[0], drawn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_a_row_without_any_visible_key_stays_finite_forward_and_backward(dtype, kv_heads):
    """Sec. 3.2: a token that does not exist may see nothing; it must not poison those that do."""
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 3, 8, generator=random).to(dtype).requires_grad_()
                         for heads in (2, kv_heads, kv_heads))
    seen = torch.tensor([[[True, False, False], [False, False, False], [True, True, False]]])
    bias = attention_bias(seen, dtype)
    assert torch.isfinite(bias).all()   # not every kernel forgives a row of -inf
    out = attend(query, key, value, bias)
    out.float().square().sum().backward()
    for tensor in (out, query.grad, key.grad, value.grad):
        assert torch.isfinite(tensor).all()
    alone = value[:, :, 0].repeat_interleave(2 // kv_heads, 1).flatten(1)
    assert torch.equal(out[:, 0], alone)   # one visible key: its value, and nothing of the others


def test_attention_is_softmax_over_the_allowed_keys():
    """Sec. 3.2: masked self-attention written out; two query heads share each key and value head."""
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 5, 8, generator=random) for heads in (4, 2, 2))
    seen = torch.rand(1, 5, 5, generator=random) < 0.6
    seen[:, :, 0] = True
    out = attend(query, key, value, attention_bias(seen)).unflatten(-1, (4, 8))
    for head in range(4):
        for i in range(5):
            keys = seen[0, i].nonzero().flatten()
            weight = (key[0, head // 2, keys] @ query[0, head, i] / 8 ** 0.5).softmax(0)
            torch.testing.assert_close(out[0, i, head], weight @ value[0, head // 2, keys])


# ---- positions ---------------------------------------------------------------------------------------------

VIEWS = torch.tensor([[True, True, True], [True, False, True]])
WORDS = torch.tensor([[True, True, True], [True, True, False]])


def test_positions_of_a_one_axis_sequence_are_the_hand_computed_ones():
    """Sec. 3.2: o_t, l, then generation, then action tokens; what is missing takes no position."""
    layout = Layout(side=2, text=3, gen=2, chunk=2, marks=1)
    found = positions(layout, VIEWS, WORDS)
    assert torch.equal(found[..., 0], found[..., 1]) and torch.equal(found[..., 0], found[..., 2])
    line = found[..., 0]
    assert line[0].tolist() == list(range(30))
    exists = valid_tokens(layout, VIEWS, WORDS)[1]
    assert exists.tolist() == ([True] * 6 + [False] * 6 + [True] * 6 + [True, True, False]
                               + [True, True, False, False, True, True] + [True] * 3)
    assert line[1][exists].tolist() == list(range(21))   # 6 + 6 image, 2 text, 2 + 2 gen, 3 act


def test_positions_of_an_mrope_sequence_are_the_hand_computed_ones():
    """Sec. 3.2 adheres to Qwen3-VL: an image has a row and a column and advances by its side."""
    layout = Layout(side=2, text=3, gen=2, chunk=2, marks=1, mrope=True, draws=2)
    found = positions(layout, VIEWS, WORDS)

    def view(s):
        image = [[s + 1, s + 1, s + 1], [s + 1, s + 1, s + 2], [s + 1, s + 2, s + 1], [s + 1, s + 2, s + 2]]
        return [[s, s, s]] + image + [[s + 3, s + 3, s + 3]]

    def line(first, last):
        return [[n, n, n] for n in range(first, last + 1)]

    full = view(0) + view(4) + view(8) + line(12, 14) + line(15, 20) + 2 * line(21, 23)   # draws stand side by side
    assert found[0].tolist() == full
    exists = valid_tokens(layout, VIEWS, WORDS)[1]
    part = view(0) + view(4) + line(8, 9) + line(10, 13) + 2 * line(14, 16)
    assert found[1][exists].tolist() == part
