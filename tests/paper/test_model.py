"""The whole network, Sec. 3.2 and 3.3: token compression, decoding, the two losses, three paths."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from config import CONFIGS
from cosmos_vae import CosmosVAE
from data import Batch, observation
from experts import GenExpert, RMSNorm
from support.data.statistics import Statistics
from support.rotary import rotary_frequencies
from model import Losses
from support.weights.loading import slow_products, to_compute


def rows(batch, chosen):
    """The samples `chosen` (a slice) of a batch."""
    return Batch(**{name: value[chosen] for name, value in vars(batch).items()})


def recorded(model, batch, eps, tau):
    """forward, and what entered and left the action projections: Losses, a_tau, v_theta (B, R, k, d_a)."""
    seen = []
    hooks = [model.act.action_in_proj.register_forward_pre_hook(lambda module, x: seen.append(x[0])),
             model.act.action_out_proj.register_forward_hook(lambda module, x, out: seen.append(out))]
    losses = model(batch, eps, tau, latents=model.config.gen_expert)
    for hook in hooks:
        hook.remove()
    return losses, seen[0], seen[1].detach()


def gradients(model, loss):
    """name -> gradient, None where the loss does not reach; the model is left without gradients."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(found, expected, tolerance):
    """The whole gradient to `tolerance` of its norm; each parameter's to ten times that, or lost in it."""
    errors = {name: (found[name] - gradient).norm().item() for name, gradient in expected.items()}
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm().item()
    assert sum(error ** 2 for error in errors.values()) ** 0.5 <= tolerance * norm
    for name, gradient in expected.items():
        assert errors[name] <= 10 * tolerance * max(gradient.norm().item(), 1e-3 * norm), name


def is_action(name):
    return name.startswith("act.") or ".act." in name


# ---- Understanding Expert ----------------------------------------------------------------------------------

def test_views_become_visual_tokens_and_the_instruction_text_tokens(variant, build, random_batch):
    """Sec. 3.2: "the multi-view observation [...] is encoded into visual tokens", l "into text tokens"."""
    model, batch = build(variant), random_batch(variant, 2)
    x, table = model.und.embed(batch.image, batch.text_ids), model.und.embed_tokens.weight
    if variant.learned_positions:
        x = x - model.und.position
    side = 4 if variant.backbone == "tiny" else 2
    per_view = side * side + len(variant.view_tokens)
    assert x.shape == (2, 3 * per_view + variant.text_tokens, variant.und_width)
    torch.testing.assert_close(x[:, 3 * per_view:], table[batch.text_ids])
    for v in range(3):
        first, last = v * per_view, (v + 1) * per_view - 1
        for edge, word in zip((first, last), variant.view_tokens):
            assert torch.equal(x[:, edge], table[word].expand(2, -1))
        other = batch.image.clone()
        other[:, v] = 255 - other[:, v]
        y = model.und.embed(other, batch.text_ids) - (model.und.position if variant.learned_positions else 0)
        moved = (x != y).any(-1).all(0)
        edges = len(variant.view_tokens) // 2
        assert moved.nonzero().flatten().tolist() == list(range(first + edges, last + 1 - edges))


def test_interleaved_mrope_gives_each_axis_its_section():
    """Sec. 3.2 adopts Qwen3-VL: frequencies go to time, row, column in turn, the slowest to time alone."""
    cases = ((24, 20, 20), [0, 1, 2] * 20 + [0] * 4), ((4, 2, 2), [0, 1, 2, 0, 1, 2, 0, 0])
    for sections, expected in cases:
        config = replace(CONFIGS["a1_3b"].model, head_dim=2 * len(expected), mrope_sections=sections)
        frequency, axis = rotary_frequencies(config)
        assert axis.tolist() == expected
        wanted = [5e6 ** (-i / len(expected)) for i in range(len(expected))]
        torch.testing.assert_close(frequency, torch.tensor(wanted))


# ---- Action Expert -----------------------------------------------------------------------------------------

def test_the_action_expert_has_a_state_token_and_an_action_token_for_each_step(variant, build, noise):
    """Sec. 3.2: "tokens [...] are split into a state token and action tokens", in and out, for each draw."""
    act, k, (a_tau, tau) = build(variant).act, variant.chunk, noise(variant, 2, R=2)
    random = torch.Generator().manual_seed(0)
    q_t, h = (torch.randn(2, *shape, generator=random) for shape in ((variant.state_dim,), (2 * (1 + k), variant.act_width)))
    x, v = act.embed(q_t, a_tau, tau), act.velocity(h, 2)
    assert x.shape == h.shape and v.shape == (2, 2, k, variant.action_dim)

    def moved(y):
        return (x != y).any(-1).all(0).nonzero().flatten().tolist()

    assert moved(act.embed(q_t + 1, a_tau, tau)) == [0, 1 + k]
    for r in range(2):
        state = r * (1 + k)
        later = tau.clone()
        later[:, r] += 0.1
        assert moved(act.embed(q_t, a_tau, later)) == list(range(state + 1, state + 1 + k))
        for step in range(-1, k):   # -1: the state token, from which nothing is read
            other, out = a_tau.clone(), h.clone()
            out[:, state + 1 + step] += torch.randn(variant.act_width, generator=random)
            read = (act.velocity(out, 2) != v).any(-1).all(0).nonzero().tolist()
            assert read == ([[r, step]] if step >= 0 else [])
            if step >= 0:
                other[:, r, step] += 1
                assert moved(act.embed(q_t, other, tau)) == [state + 1 + step]


# ---- Generation Expert -------------------------------------------------------------------------------------

def test_six_images_become_96_tokens(imagining, build, random_batch):
    """Sec. 3.2 Token Compression: "the 6 images (3 views x 2 timestamps) is compacted to just 96 tokens"."""
    model, batch = build(imagining), random_batch(imagining, 2)
    z = model.phi_cosmos(batch.frames[:, :, :2])
    tokens = model.gen.embed(z)
    assert z.shape == (2, 3, 2, 16, 8, 8) and tokens.shape == (2, 96, imagining.gen_width)
    for v in range(3):
        for t in range(2):
            for row in range(4):
                other = z.clone()
                other[:, v, t, :, 2 * row:2 * row + 2, 4:6] += 1   # the third 2 x 2 latents of a row
                moved = (model.gen.embed(other) != tokens).any(-1).any(0)
                assert moved.nonzero().flatten().tolist() == [v * 32 + t * 16 + row * 4 + 2]


def test_a_deconvolution_brings_back_a_32x32_grid():
    """Sec. 3.2 Parallel Decoding: 48 tokens after the temporal mean, "via a deconvolution layer back to a 32 x 32 grid"."""
    x = torch.randn(2, 96, 8, generator=torch.Generator().manual_seed(0))
    mean = [(x[:, v * 32 + n] + x[:, v * 32 + 16 + n]) / 2 for v in range(3) for n in range(16)]   # of t - m and t
    torch.testing.assert_close(GenExpert.pool(x), torch.stack(mean, 1))
    wide = GenExpert(replace(CONFIGS["a1_3b"].model, gen_width=8))
    assert wide.decode(x).shape == (2, 3, 16, 32, 32)
    small = GenExpert(replace(CONFIGS["conveyor"].model, gen_width=8))
    assert small.decode(x).shape == (2, 3, 16, 8, 8)


def test_a_token_is_decoded_to_its_own_place_of_its_own_view(imagining, build):
    """Sec. 3.2 Parallel Decoding: 16 tokens per view, in the places that Token Compression took them from."""
    gen = build(imagining).gen
    h = torch.randn(1, 96, imagining.gen_width, generator=torch.Generator().manual_seed(0))
    still = gen.decode(h)
    for v, t, row, column in ((0, 0, 0, 0), (1, 1, 2, 1), (2, 0, 3, 3)):
        other = h.clone()
        other[:, v * 32 + t * 16 + row * 4 + column] += torch.randn(imagining.gen_width)
        moved = (gen.decode(other) != still).any(2)[0]
        expected = torch.zeros(3, 8, 8, dtype=torch.bool)
        expected[v, 2 * row:2 * row + 2, 2 * column:2 * column + 2] = True
        assert torch.equal(moved, expected)


# ---- Eq. (1) -----------------------------------------------------------------------------------------------

def test_no_gradient_reaches_the_tokenizer_or_z_of_the_future(tiny, build, random_batch, noise):
    """Eq. (1): "sg[.] indicates the stop-gradient operation", even for a tokenizer that could be trained."""
    model, batch = build(tiny), random_batch(tiny, 2)
    model.vae = CosmosVAE(channels=32, channels_mult=(1, 1, 1), num_res_blocks=1)
    assert not batch.frames.is_floating_point()
    losses = model(batch, *noise(tiny, 2), latents=True)
    assert losses.z.grad_fn is None and not losses.z.requires_grad
    found = gradients(model, losses.total(1.0, losses.act_count, losses.gen_count))
    assert all(value is None for name, value in found.items() if name.startswith("vae."))
    assert all(value.abs().sum() > 0 for name, value in found.items() if name.startswith("gen."))


def test_the_future_frame_is_a_target_and_nothing_else(imagining, build, random_batch, noise):
    """Eq. (1): f_gen(z_{t-m}, z_t; h_und) sees no z_{t+m}; another future changes L_gen alone."""
    model, batch, (eps, tau) = build(imagining), random_batch(imagining, 2), noise(imagining, 2)
    other = rows(batch, slice(None))
    other.frames = batch.frames.clone()
    other.frames[:, :, 2] = 255 - other.frames[:, :, 2]
    one, _, velocity = recorded(model, batch, eps, tau)
    two, _, same_velocity = recorded(model, other, eps, tau)
    assert one.gen_sum != two.gen_sum and not torch.equal(one.z[:, :, 2], two.z[:, :, 2])
    assert torch.equal(one.z_hat, two.z_hat) and torch.equal(one.z[:, :, :2], two.z[:, :, :2])
    assert torch.equal(velocity, same_velocity) and torch.equal(one.act_sum, two.act_sum)
    assert torch.equal(model.sample_actions(batch, eps[:, 0]), model.sample_actions(other, eps[:, 0]))
    other.frames = batch.frames[:, :, :2]   # inference has no third frame
    assert torch.equal(model.sample_actions(batch, eps[:, 0]), model.sample_actions(other, eps[:, 0]))


def test_both_past_frames_reach_the_imagined_latents_and_the_actions(imagining, build, random_batch, noise):
    """Sec. 3.2: "frames from two timestamps: the current timestep t and a historical timestep t - 15"."""
    model, batch, (eps, tau) = build(imagining), random_batch(imagining, 2), noise(imagining, 2)
    one, _, velocity = recorded(model, batch, eps, tau)
    for time in range(2):
        other = rows(batch, slice(None))
        other.frames = batch.frames.clone()
        other.frames[:, :, time] = 255 - other.frames[:, :, time]
        two, _, other_velocity = recorded(model, other, eps, tau)
        assert (one.z_hat != two.z_hat).any() and (velocity != other_velocity).any()


@pytest.mark.parametrize("und_frames", [1, 2])
def test_without_a_generation_expert_the_past_reaches_the_actions_through_und_frames_alone(tiny, build, und_frames):
    """From pictures on: [ours], history without generation. A missing view stays masked."""
    config = replace(tiny, gen_expert=False, und_frames=und_frames)
    stats = Statistics("arm", "absolute", 30.0, *([(0.0,) * 6, (1.0,) * 6] * 2), 1, relative=(False,) * 6)
    model, eps = build(config), torch.randn(1, config.chunk, config.action_dim)
    now, before, other = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8).numpy()
    chunks = []
    for past in (before, other):
        arrays = observation(config, stats, {"head": [past, now]}, np.zeros(6), "go")
        assert arrays["image"].shape == (3, 3 * und_frames, 64, 64)
        assert (arrays["image"][0, -3:].permute(1, 2, 0).numpy() == now).all()
        chunks.append(model.sample_actions(Batch(**{key: x[None] for key, x in arrays.items()}), eps))
    assert torch.equal(*chunks) == (und_frames == 1)


def test_l_gen_is_the_squared_error_of_future_latents_of_real_views(imagining, build, random_batch, noise):
    """Eq. (1), in loops: views that exist, futures inside the episode; "present" is an ablation."""
    batch = random_batch(imagining, 3, cameras=[[True] * 3, [True, False, True], [True, True, False]])
    batch.future_mask[2] = False
    for target, time in (("future", 2), ("present", 1)):
        model = build(replace(imagining, gen_target=target))
        losses = model(batch, *noise(imagining, 3), latents=True)
        pairs = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)]
        expected = sum((losses.z_hat[b, v] - losses.z[b, v, time]).square().sum() for b, v in pairs)
        torch.testing.assert_close(losses.gen_sum, expected)
        assert losses.gen_count == len(pairs) * 16 * 8 * 8


def test_imagine_is_z_hat_of_training(imagining, build, random_batch, noise, cameras):
    """Sec. 3.2 Parallel Decoding: one forward pass, the same at inference as in training."""
    model, batch = build(imagining), random_batch(imagining, 7, cameras)
    z_hat = model(batch, *noise(imagining, 7), latents=True).z_hat
    assert z_hat.abs().max() > 0.1
    there = batch.view_mask
    torch.testing.assert_close(model.imagine(batch)[there], z_hat[there], rtol=0, atol=1e-5)


def test_imagine_without_a_generation_expert_is_refused(tiny, build, random_batch):
    """Fig. 9: the ablation has no foresight to show."""
    config = replace(tiny, gen_expert=False)
    with pytest.raises(ValueError, match="gen_expert"):
        build(config).imagine(random_batch(config, 1))


def test_pictures_of_z_are_the_pictures(tiny, build):
    """Sec. 3.2: "the COSMOS VAE decoder reconstructs the predicted future frames" from latents."""
    model = build(tiny)
    grey = torch.tensor([0, 17, 128, 255], dtype=torch.uint8)
    flat = grey.view(1, 1, 4, 1, 1, 1).expand(1, 1, 4, 3, 64, 64)
    assert torch.equal(model.to_pictures(model.phi_cosmos(flat)), flat)


# ---- Eq. (2) and Eq. (4) -----------------------------------------------------------------------------------

def test_l_act_is_eq_2_over_real_dimensions_and_steps(variant, build, random_batch, noise):
    """Eq. (2): || v_theta(q_t, (1 - tau) eps + tau a) - (a - eps) ||^2, written out in loops."""
    model, batch, (eps, tau) = build(variant), random_batch(variant, 3), noise(variant, 3, R=2)
    losses, a_tau, v = recorded(model, batch, eps, tau)
    total = count = 0
    for b, steps in enumerate((4, 3, 2)):   # random_batch's chunks end there
        for r in range(2):
            a, e, t = batch.action[b, :, :6], eps[b, r, :, :6], tau[b, r]
            torch.testing.assert_close(a_tau[b, r, :, :6], (1 - t) * e + t * a)
            assert (a_tau[b, r, :, 6:] == 0).all()
            total += (v[b, r, :steps, :6] - (a - e)[:steps]).square().sum()
            count += steps * 6
    torch.testing.assert_close(losses.act_sum.detach(), total)
    assert losses.act_count == count


def test_noise_on_dimensions_that_do_not_exist_changes_nothing(variant, build, random_batch, noise):
    """Sec. 3.4: padding to a common width is not an action; [release] trains on it."""
    batch, (eps, tau) = random_batch(variant, 3), noise(variant, 3)
    other = eps.clone()
    other[..., 6:] += 1
    for padded in (False, True):
        model = build(replace(variant, noise_on_padding=padded))
        assert torch.equal(model(batch, eps, tau).act_sum, model(batch, other, tau).act_sum) != padded


def test_the_total_loss_is_lambda_l_gen_plus_l_act():
    """Eq. (4): L_total = lambda L_gen + L_act, means over the elements of the optimizer step; none: 0."""
    assert CONFIGS["a1_2b"].model.lambda_gen == CONFIGS["a1_3b"].model.lambda_gen == 0.01
    losses = Losses(torch.tensor(6.0), torch.tensor(40.0), torch.tensor(3), torch.tensor(8))
    assert losses.total(0.01, 3, 8).item() == pytest.approx(0.01 * 40 / 8 + 6 / 3)
    empty = Losses(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0), torch.tensor(0))
    assert empty.total(0.01, 0, 0).item() == 0


def test_counts_are_those_of_the_forward_pass(variant, build, random_batch, noise):
    """Eq. (4) divides by counts that are known before any forward pass of the optimizer step."""
    cameras = [[True] * 3, [True, False, True], [True] * 3, [False, True, False]]
    batch = random_batch(variant, 4, cameras, human=(2,))
    batch.future_mask[0] = False
    model = build(variant)
    eps, tau = noise(variant, 4, R=2)
    losses = model(batch, eps, tau)
    act, gen = model.counts(batch, tau)
    assert (act, gen) == (losses.act_count, losses.gen_count)
    assert act == 2 * 6 * (4 + 3 + 4) and gen == (6 * 16 * 64 if variant.gen_expert else 0)


# ---- data without actions ----------------------------------------------------------------------------------

def test_human_video_gives_the_action_expert_exactly_zero_gradient(variant, build, random_batch, noise):
    """Sec. 3.3: D_1 includes "human video data without action labels"; zero, not None: one graph for all."""
    model, batch = build(variant), random_batch(variant, 2, human=(0, 1))
    eps, tau = noise(variant, 2)
    losses, counts = model(batch, eps, tau), model.counts(batch, tau)
    assert counts[0] == losses.act_count == losses.act_sum == 0
    loss = losses.total(0.3, *counts)
    assert torch.isfinite(loss) and (loss > 0) == variant.gen_expert
    found = gradients(model, loss)
    action = [value for name, value in found.items() if is_action(name)]
    assert action and all(value is not None and (value == 0).all() for value in action)
    if variant.gen_expert:
        others = [value for name, value in found.items() if not is_action(name)]
        assert all(torch.isfinite(value).all() for value in others) and any(value.any() for value in others)


def test_a_batch_without_any_valid_element_has_loss_0(variant, build, random_batch, noise):
    """Eq. (4): human video at the end of an episode has neither target; 0, never NaN."""
    model, batch = build(variant), random_batch(variant, 2, human=(0, 1))
    batch.future_mask[:] = False
    eps, tau = noise(variant, 2)
    counts = model.counts(batch, tau)
    loss = model(batch, eps, tau).total(0.3, *counts)
    assert counts == (0, 0) and loss == 0
    assert all((value == 0).all() for value in gradients(model, loss).values())


def test_the_losses_reach_every_parameter(variant, build, random_batch, noise):
    """Sec. 3.3: "we jointly optimize the model"; what no loss reaches is not built."""
    model, batch = build(variant), random_batch(variant, 2)
    eps, tau = noise(variant, 2)
    losses = model(batch, eps, tau)
    for name, value in gradients(model, losses.total(1.0, *model.counts(batch, tau))).items():
        assert value is not None and torch.isfinite(value).all(), name
        cancels = name.endswith("attention.k_proj.bias")   # without rotation it shifts all scores alike
        assert value.any() or cancels, name


def test_nothing_reads_the_tail_of_the_last_understanding_layer(variant, build, random_batch, noise):
    """Table 1 counts parameters that no other expert depends on; und_tail builds them for parity tests."""
    model, whole = build(variant), build(replace(variant, und_tail=True))
    missing, unexpected = whole.load_state_dict(model.state_dict(), strict=False)
    assert missing and not unexpected
    batch, (eps, tau) = random_batch(variant, 2), noise(variant, 2)
    one, two = model(batch, eps, tau), whole(batch, eps, tau)
    torch.testing.assert_close(one.act_sum, two.act_sum)
    torch.testing.assert_close(one.gen_sum, two.gen_sum)
    found = gradients(whole, two.total(1.0, 1, 1))
    assert {name for name, value in found.items() if value is None or not value.any()} == set(missing)
    torch.testing.assert_close(whole.sample_actions(batch, eps[:, 0]), model.sample_actions(batch, eps[:, 0]))


# ---- sums that must add up ---------------------------------------------------------------------------------

def test_four_draws_are_four_passes(variant, build, random_batch, noise):
    """[ours] R = 4 draws of (tau, eps) behind one prefix: losses and gradients of four passes with R = 1."""
    model, (eps, tau) = build(variant), noise(variant, 3, R=4)
    batch = random_batch(variant, 3, cameras=[[True] * 3, [True, False, True], [False, True, True]])
    four = model(batch, eps, tau)
    ones = [model(batch, eps[:, r:r + 1], tau[:, r:r + 1]) for r in range(4)]
    torch.testing.assert_close(four.act_sum, sum(one.act_sum for one in ones), rtol=1e-5, atol=0)
    assert four.act_count == sum(one.act_count for one in ones)
    for one in ones:
        torch.testing.assert_close(four.gen_sum, one.gen_sum, rtol=1e-5, atol=0)
    n_act, n_gen = model.counts(batch, tau)
    together = gradients(model, four.total(0.3, n_act, n_gen))
    apart = gradients(model, sum(one.total(0.3 / 4, n_act, n_gen) for one in ones))
    assert_same_gradients(together, apart, 1e-5)


def test_micro_batches_of_any_size_add_up_to_the_same_first_step(variant, build, random_batch, noise):
    """Table 2: the batch is what the optimizer steps on; how train.py cuts it changes nothing."""
    model, (eps, tau) = build(variant), noise(variant, 8, R=2)
    cameras = [[True] * 3, [True, False, True], [False, False, True], [True] * 3] * 2
    batch = random_batch(variant, 8, cameras, human=(2, 3, 4))   # with parts of two, one is all human video
    batch.future_mask[6:] = False

    def first_step(size):
        parts = [slice(first, first + size) for first in range(0, 8, size)]
        micro = [(rows(batch, part), eps[part], tau[part]) for part in parts]
        counts = [model.counts(part, at) for part, _, at in micro]
        assert size == 8 or len(set(counts)) > 1
        assert (0 in [act for act, _ in counts]) == (size == 2)
        n_act, n_gen = (sum(column) for column in zip(*counts))
        model.zero_grad(set_to_none=True)
        for part, noised, at in micro:
            model(part, noised, at).total(0.3, n_act, n_gen).backward()
        return {name: p.grad for name, p in model.named_parameters()}

    whole = first_step(8)
    for size in (4, 2):
        assert_same_gradients(first_step(size), whole, 1e-6)


# ---- inference ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tau", [0.0, 0.25, 0.875])   # exact in float32: the embedding's shortest period is 0.004
def test_the_cached_path_is_the_joint_path(variant, build, random_batch, noise, cameras, tau):
    """Sec. 3.2: "utilizing the preceding [...] tokens as the KV cache": seven camera subsets, padded text."""
    model, batch = build(variant), random_batch(variant, 7, cameras)
    eps, _ = noise(variant, 7)
    _, a_tau, v = recorded(model, batch, eps, torch.full((7, 1), tau))
    with torch.no_grad():
        cached = model.v_theta(model.prefill(batch), batch, a_tau[:, 0], tau)
    assert v.abs().max() > 0.1
    torch.testing.assert_close(cached, v[:, 0] * batch.dim_mask[:, None], rtol=0, atol=1e-5)


def test_what_a_missing_view_or_padding_holds_changes_no_bit(variant, build, random_batch, noise, cameras):
    """Sec. 3.4: datasets differ in cameras; the pixels of one that does not exist are nobody's input."""
    model, batch, (eps, tau) = build(variant), random_batch(variant, 7, cameras), noise(variant, 7)
    noisy = random_batch(variant, 7, cameras, seed=5)
    batch.future_mask[6] = False
    other, there = rows(batch, slice(None)), batch.view_mask
    other.image = torch.where(there[:, :, None, None, None], batch.image, noisy.image)
    other.frames = torch.where(there[:, :, None, None, None, None], batch.frames, noisy.frames)
    other.frames[6, :, 2] = noisy.frames[6, :, 2]   # a future outside the episode
    other.text_ids = torch.where(batch.text_mask, batch.text_ids, noisy.text_ids)
    assert (other.image != batch.image).any() and (other.text_ids != batch.text_ids).any()

    def everything(batch):
        losses = model(batch, eps, tau)
        out = [losses.act_sum.detach(), losses.gen_sum.detach(), model.sample_actions(batch, eps[:, 0])]
        if variant.gen_expert:
            out.append(model.imagine(batch)[there])
        return out + list(gradients(model, losses.total(0.3, *model.counts(batch, tau))).values())

    for one, two in zip(everything(batch), everything(other), strict=True):
        assert torch.equal(one, two)
    other.image = torch.where(there[:, :, None, None, None], noisy.image, batch.image)
    assert not torch.equal(model.sample_actions(batch, eps[:, 0]), model.sample_actions(other, eps[:, 0]))


def test_norms_action_projections_and_rotary_tables_stay_float32(variant, build, random_batch, noise):
    """Inference computes in bfloat16, except where its eight bits would show."""
    model, before = to_compute(build(variant), torch.bfloat16), build(variant).state_dict()
    assert model.dtype == torch.bfloat16
    single = {name: module.weight for name, module in model.named_modules() if isinstance(module, RMSNorm)}
    projections = ("action_", "state_proj")
    single |= {name: p for name, p in model.act.named_parameters() if name.startswith(projections)}
    single |= {name: value for name, value in model.named_buffers() if "frequency" in name}
    assert len(single) > 10 and not [name for name, value in single.items() if value.dtype != torch.float32]
    own = model.state_dict()   # what stays float32 was never rounded on the way
    assert all(torch.equal(own[name], x) for name, x in before.items() if own[name].dtype == torch.float32)
    batch, (eps, _) = random_batch(variant, 2), noise(variant, 2)
    exact, found = (m.sample_actions(batch, eps[:, 0]) for m in (build(variant), model))
    assert found.dtype == torch.float32
    assert (found - exact).abs().mean() < 0.02 * exact[exact != 0].abs().mean()


@pytest.mark.parametrize("native", [True, False])
def test_a_cpu_that_computes_bfloat16_in_software_is_said_of_a_model_in_bfloat16(tiny, build, monkeypatch, native):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    model = build(tiny)
    assert slow_products(model) == []
    said = slow_products(to_compute(model, torch.bfloat16))
    assert len(said) == (not native) and all("many times as long as in float32" in line for line in said)
