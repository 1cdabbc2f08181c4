"""Equal to the authors' released code, component by component, on small random models it was run on.

tests/data/{3b,2b}_small.safetensors hold their weights, inputs and outputs (float32, CPU). The weights come in through
support/weights/loading.py, so its key map is under test as well. Comparisons are made where tokens are valid: what stands in
a masked token is read by nobody. In time and sign the two conventions mirror each other: tau = 1 - t, v = -v.

    pytest tests/paper/test_parity_release.py -s        prints the table of errors in docs/weights.md
"""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import flow
import model as model_module
from attention_mask import draw_of_token, segment_mask, segments, valid_tokens
from support.rotary import positions
from config import ModelConfig
from cosmos_vae import CosmosVAE
from data import Batch
from support.weights.key_maps import RELEASE, translate
from support.weights.release import load_release

DATA = Path(__file__).parents[1] / "data"
COMMON = dict(layers=2, heads=4, kv_heads=2, text_tokens=6, vocab=256, vae="cosmos", vae_size=256, chunk=8,
              noise_on_padding=True, und_tail=True, tau_density="release")
CONFIGS = {
    "3b": ModelConfig(
        backbone="qwen3vl", head_dim=32, und_width=64, und_mlp=128, gen_width=48, gen_mlp=96, act_width=48, act_mlp=96,
        rope_theta=5e6, mrope_sections=(6, 5, 5), image_size=64, view_tokens=(248, 249), vit_layers=3, vit_width=32,
        vit_mlp=64, vit_heads=2, vit_patch=16, vit_grid=6, **COMMON),
    "2b": ModelConfig(
        backbone="internvl3", head_dim=16, und_width=64, und_mlp=96, gen_width=64, gen_mlp=96, act_width=64, act_mlp=96,
        qkv_bias=True, qk_norm=False, rope_theta=1e4,   # the release's 2B never sets the backbone's 1e6
        image_size=56, vit_layers=2, vit_width=32, vit_mlp=64, vit_heads=2, vit_patch=14, vit_grid=4, **COMMON),
}
TEXT_SCALE = {"3b": 1.0, "2b": math.sqrt(64)}   # the release's 2B multiplies text embeddings by sqrt(D)
CASES = [(scale, case) for scale in CONFIGS for case in ("full", "miss", "miss2")]
TOLERANCE = 1e-4


class Fixture(dict):
    """Tensors by short name; `sd` holds the state dict."""

    def __init__(self, *names):
        super().__init__()
        self.sd = {}
        for name in names:
            with safe_open(DATA / f"{name}.safetensors", "pt") as file:
                for key in file.keys():
                    (self.sd if key.startswith("sd.") else self)[key.removeprefix("sd.")] = file.get_tensor(key)


@pytest.fixture(scope="module")
def stored():
    return {scale: Fixture(*(path.stem for path in sorted(DATA.glob(f"{scale}_small*.safetensors"))))
            for scale in CONFIGS}


@pytest.fixture(scope="module")
def published(stored, tmp_path_factory):
    """Each small model as a directory of the published form."""
    folders = {}
    for scale, fixture in stored.items():
        folders[scale], tensors = tmp_path_factory.mktemp(scale), dict(fixture.sd)
        if scale == "3b":   # safetensors keeps one of the tied pair
            tensors = {key: x for key, x in tensors.items() if not key.endswith("embed_tokens.weight")}
        else:
            for key in list(tensors):
                if key.endswith("embed_tokens.weight"):
                    tensors[key] = tensors[key] * TEXT_SCALE[scale]
                if key.endswith((".attention.q_proj.weight", ".attention.k_proj.weight", ".attention.v_proj.weight")):
                    tensors[key.replace("weight", "bias")] = torch.zeros(len(tensors[key]))   # it drops these biases
        save_file(tensors, folders[scale] / "model.safetensors", metadata={"format": "pt"})
    return folders


@pytest.fixture(scope="module")
def load(published):
    """(scale, rope_bf16) -> the model, loaded through the key map."""
    def build(scale, rope_bf16=False):
        config = ModelConfig(**{**vars(CONFIGS[scale]), "rope_bf16": rope_bf16})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model_module, "CosmosVAE", partial(CosmosVAE, 32, (1, 1), 1))
            return load_release(config, published[scale])[0]
    return build


def inputs(scale, fixture, case):
    """The stored inputs as our Batch, eps (B, 1, k, d_a), tau (B, 1)."""
    get = lambda name: fixture[f"in.{case}.{name}"]
    images, masks = get("images_u8"), get("img_masks")
    if scale == "3b":
        text = slice(-CONFIGS[scale].text_tokens, None)
        ids, mask = get("input_ids")[:, text], get("attention_mask")[:, text].bool()
    else:
        ids, mask = get("lang_tokens"), get("lang_masks").bool()
    B, d = len(images), 32
    batch = Batch(image=images[:, :, 1], frames=images, view_mask=masks, text_ids=ids, text_mask=mask,
                  state=get("state"), dim_mask=torch.ones(B, d, dtype=torch.bool), action=get("actions"),
                  action_mask=torch.ones(B, 8, d, dtype=torch.bool), future_mask=torch.ones(B, dtype=torch.bool))
    return batch, get("noise")[:, None], 1 - get("time")[:, None]


def valid_parts(model, batch):
    """valid tokens of und, gen and act, each (B, n) bool."""
    u, g = model.layout.n_und, model.layout.n_gen
    valid = valid_tokens(model.layout, batch.view_mask, batch.text_mask)
    return valid[:, :u], valid[:, u:u + g], valid[:, u + g:]


def run_training(scale, model, fixture, case):
    """One forward pass with everything on the way recorded: name -> (ours, theirs)."""
    batch, eps, tau = inputs(scale, fixture, case)
    seen = {}
    hooks = [model.layers[0].register_forward_pre_hook(lambda _, args: seen.update(entering=args[0])),
             model.layers[-1].register_forward_hook(lambda _, args, out: seen.update(leaving=out[0]))]
    velocity = model.act.velocity
    model.act.velocity = lambda *args: seen.setdefault("velocity", velocity(*args))
    losses = model(batch, eps, tau, latents=True)
    model.act.velocity = velocity
    for hook in hooks:
        hook.remove()

    theirs = lambda name: fixture[f"out.{case}.train.{name}"]
    pairs, norms = {}, (model.und.norm, model.gen.norm, model.act.norm)
    for stream, name, norm, valid in zip(("und", "gen", "act"), ("prefix", "middle", "suffix"), norms,
                                         valid_parts(model, batch)):
        pairs[f"{stream} embeddings"] = seen["entering"][stream][valid], theirs(f"{name}_embs")[valid]
        pairs[f"{stream} output"] = norm(seen["leaving"][stream])[valid], theirs(f"{name}_out")[valid]
    shown = batch.view_mask
    thin = lambda z: z[shown][..., ::4, ::4]   # as stored; L_gen below covers every element
    pairs["z_t+m"] = thin(losses.z[:, :, 2]), theirs("future_cosmos")[shown]
    pairs["predicted latents"] = thin(losses.z_hat), theirs("pred_cosmos")[shown]
    pairs["velocity"] = seen["velocity"][:, 0], -theirs("velocity")
    error = (seen["velocity"] - flow.velocity_target(batch.action[:, None], eps)).square()[:, 0]
    pairs["action loss, per element"] = error, theirs("loss_action")
    pairs["L_gen"] = losses.gen_sum / losses.gen_count, theirs("loss_gen")
    pairs["L_act"] = losses.act_sum / losses.act_count, theirs("loss_action").mean()
    return pairs, losses


ERRORS = {}


@pytest.fixture(scope="module", autouse=True)
def table():
    """Prints the largest error of each comparison over the three cases, for -s."""
    yield
    print(f"\n{'largest error':<36}{'3B':>9}{'2B':>9}")
    for name, row in ERRORS.items():
        print(f"{name:<36}" + "".join(f"{row[scale]:9.1e}" if scale in row else f"{'':>9}" for scale in CONFIGS))


def note(scale, name, error):
    row = ERRORS.setdefault(name, {})
    row[scale] = max(row.get(scale, 0.0), float(error))
    return row[scale]


def largest(ours, theirs):
    """The largest error, of values above 1 relative: how large an error rounding makes depends on the processor."""
    return float(((ours - theirs).detach().abs() / theirs.abs().clamp(min=1)).max())


@pytest.mark.parametrize("scale, case", CASES)
def test_training_equals_the_release(load, stored, scale, case):
    """Sec. 3.2 and 3.3: embeddings, streams, latents, velocity and both losses."""
    with torch.no_grad():
        pairs, _ = run_training(scale, load(scale), stored[scale], case)
    errors = {name: largest(*pair) for name, pair in pairs.items()}
    for name, error in errors.items():
        note(scale, name, error)
    assert max(errors.values()) < TOLERANCE, errors


def test_the_vision_tower_equals_the_release(load, stored):
    """Sec. 3.2 Understanding Expert: Qwen3-VL's tower and merger; InternVL3's are in the embeddings above."""
    for case in ("full", "miss", "miss2"):
        batch, _, _ = inputs("3b", stored["3b"], case)
        with torch.no_grad():
            ours = load("3b").und.visual(batch.image.flatten(0, 1).float() / 255).unflatten(0, (2, 3))
        theirs = stored["3b"][f"out.{case}.train.vision_out"].unflatten(1, (3, 4))
        error = largest(ours[batch.view_mask], theirs[batch.view_mask])
        assert note("3b", "vision tokens", error) < TOLERANCE


@pytest.mark.parametrize("scale, case", CASES)
def test_mask_and_positions_equal_the_release(load, stored, scale, case):
    """Sec. 3.2 Attention Mechanism, at the rows and columns of tokens that exist."""
    model, (batch, _, _) = load(scale), inputs(scale, stored[scale], case)
    layout, valid = model.layout, valid_tokens(model.layout, batch.view_mask, batch.text_mask)
    allowed = segment_mask(segments(layout), draw_of_token(layout), valid)
    theirs = stored[scale][f"out.{case}.train.att_2d_mask"].bool()
    assert torch.equal(allowed[valid], theirs[valid])
    ids = stored[scale][f"out.{case}.train.position_ids"]
    ids = ids.permute(1, 2, 0) if ids.dim() == 3 else ids[..., None].expand(-1, -1, 3)
    assert torch.equal(positions(layout, batch.view_mask, batch.text_mask)[valid], ids[valid])


@pytest.mark.parametrize("scale, case", CASES)
def test_every_gradient_norm_equals_the_release(load, stored, scale, case):
    """Eq. (4) backwards: the norm of each parameter's gradient, and which have none."""
    model, fixture = load(scale), stored[scale]
    _, losses = run_training(scale, model, fixture, case)
    losses.total(0.01, losses.act_count, losses.gen_count).backward()
    parameters, compared, worst_error = dict(model.named_parameters()), 0, 0.0
    for key, norm in json.loads((DATA / "gradient_norms.json").read_text())[scale][case].items():
        ours = translate(key, RELEASE)[0]
        if ours is None:
            assert norm is None or key.endswith("lm_head.weight"), f"{key} is trained there and not built here"
            continue
        grad = parameters[ours].grad
        if norm is None:
            assert grad is None, f"{ours} has a gradient, {key} has none"
            continue
        ours_norm = 0.0 if grad is None else grad.norm().item()   # the release pads attention over unread queries: zeros
        scaled = ours_norm * (TEXT_SCALE[scale] if ours == "und.embed_tokens.weight" else 1)
        worst_error = max(worst_error, abs(scaled - norm) / max(norm, 1e-3))
        assert scaled == pytest.approx(norm, rel=1e-3, abs=1e-6), ours
        compared += 1
    assert compared > 100
    note(scale, "any gradient's norm, relative", worst_error)


@pytest.mark.parametrize("scale, case", CASES)
def test_ten_euler_steps_equal_the_release(load, stored, scale, case):
    """Eq. (3): all velocities and the chunk. Where a view is missing, the release's 3B gives the action tokens other
    positions in inference than in training; its chunk with the training positions is the reference there."""
    model, fixture = load(scale), stored[scale]
    batch, _, _ = inputs(scale, fixture, case)
    velocities, times, v_theta = [], [torch.ones(())], model.v_theta
    for _ in range(9):
        times.append(times[-1] - 0.1)   # it adds up time in float32, and its shortest period is 0.004

    def recorded(prefix, batch, a_tau, tau):
        there = 1 - times[len(velocities)].item()
        assert tau == pytest.approx(there, abs=1e-6)
        velocities.append(v_theta(prefix, batch, a_tau, there))
        return velocities[-1]

    model.v_theta = recorded
    chunk = model.sample_actions(batch, fixture[f"in.{case}.sample_noise"])
    retrained = scale == "3b" and case != "full"
    theirs = fixture[f"out.{case}.infer.actions_10" + ("_trainpos" if retrained else "")]
    errors = {"sampled chunk": largest(chunk, theirs)}
    if not retrained:
        there = -fixture[f"out.{case}.infer.velocities"]
        errors["ten velocities"] = largest(torch.stack(velocities), there)
    for name, error in errors.items():
        note(scale, name, error)
    assert len(velocities) == 10 and max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("scale", CONFIGS)
def test_rotary_frequencies_rounded_through_bfloat16_equal_the_release(load, stored, scale):
    """[release] its .to(bfloat16) rounds the rotary buffers: without the same rounding the velocity is 1e-2 off."""
    fixture = stored[scale]
    batch, eps, tau = inputs(scale, fixture, "full")
    errors = {}
    for rounded in (True, False):
        model = load(scale, rounded)
        chunk = model.sample_actions(batch, fixture["in.full.sample_noise"])
        errors[rounded] = largest(chunk, fixture["bf16rope.actions_10"])
    note(scale, "chunk, bfloat16 rotary frequencies", errors[True])
    assert errors[True] < TOLERANCE < 1e-3 < errors[False]


@pytest.mark.parametrize("scale", CONFIGS)
def test_the_tau_embedding_equals_the_release(stored, scale):
    """Sec. 3.2 Action Expert: the release feeds its time, which is our noise level."""
    fixture = stored[scale]
    ours = flow.tau_embedding(1 - fixture["in.time_embed.t"].double(), fixture["out.time_embed.raw64"].shape[1])
    assert note(scale, "tau embedding", (ours - fixture["out.time_embed.raw64"]).abs().max()) < 1e-6
