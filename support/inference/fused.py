"""What the engine computes with: a built model's weights, joined and folded, and the four functions it compiles.

`BlockWeights` and `ViTWeights` are plain tuples of tensors, so that one compiled function serves every layer: `block`
those of the three experts, `vit_block` those of a vision tower. `encode` and `decode` are the VAE's two ways.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from flow import tau_embedding
from support.vision import InternViT, QwenViT


# ---- weights ----------------------------------------------------------------------------------------------------

def join(layers):
    """Linear layers of one input -> (weight, bias) of all their outputs; the layers' weights become views of it."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])
    for layer, part in zip(layers, weight.split([layer.out_features for layer in layers])):
        layer.weight = torch.nn.Parameter(part, requires_grad=False)
    return weight, bias


class BlockWeights(NamedTuple):
    """One expert's layer. Without `o` it gives keys and values alone."""

    norm: torch.Tensor
    qkv: tuple               # (weight, bias or None)
    qk_norm: torch.Tensor    # (A + G, d), or None
    o: torch.Tensor = None
    mlp_norm: torch.Tensor = None
    gate_up: torch.Tensor = None
    down: torch.Tensor = None

    @classmethod
    def of(cls, block, config):
        """block: experts.Block."""
        attention, scale = block.self_attn, None
        heads = {"k": config.kv_heads} if block.kv_only else {"q": config.heads, "k": config.kv_heads}
        if config.qk_norm:
            scale = torch.cat([getattr(attention, f"{name}_norm").weight.detach().expand(rows, -1)
                               for name, rows in heads.items()])
        weights = cls(block.input_layernorm.weight.detach(),
                      join([getattr(attention, f"{name}_proj") for name in (*heads, "v")]), scale)
        if block.kv_only:
            return weights
        return weights._replace(
            o=attention.o_proj.weight.detach(), mlp_norm=block.post_attention_layernorm.weight.detach(),
            gate_up=join([block.mlp.gate_proj, block.mlp.up_proj])[0], down=block.mlp.down_proj.weight.detach())

    def keys_values_alone(self, config):
        """The same layer when nothing reads its output: q's rows are left out."""
        (weight, bias), rows = self.qkv, config.heads * config.head_dim
        return BlockWeights(self.norm, (weight[rows:], None if bias is None else bias[rows:]),
                            None if self.qk_norm is None else self.qk_norm[config.heads:])


class ViTWeights(NamedTuple):
    """One layer of a vision tower, InternViT's or Qwen3-VL's; each pair is (weight, bias)."""

    norm: tuple
    qkv: tuple
    proj: tuple
    mlp_norm: tuple
    fc1: tuple
    fc2: tuple
    scales: tuple            # InternViT's LayerScale, or (None, None)

    @classmethod
    def of(cls, layer):
        def pair(module):
            return module.weight.detach(), module.bias.detach()

        if hasattr(layer, "lambda_1"):
            parts = layer.attention
            return cls(pair(layer.layernorm_before), join([parts[name] for name in ("q_proj", "k_proj", "v_proj")]),
                       pair(parts["projection_layer"]), pair(layer.layernorm_after), pair(layer.mlp["fc1"]),
                       pair(layer.mlp["fc2"]), (layer.lambda_1.detach(), layer.lambda_2.detach()))
        return cls(pair(layer.norm1), pair(layer.attn["qkv"]), pair(layer.attn["proj"]), pair(layer.norm2),
                   pair(layer.mlp["linear_fc1"]), pair(layer.mlp["linear_fc2"]), (None, None))


def fold_compression(gen):
    """GenExpert's 1x1 and k x k convolution -> (weight (D, 16 * k * k), bias (D,)) of one product over a patch."""
    inner, outer = gen.proj_in.weight.detach()[:, :, 0, 0].float(), gen.compress.weight.detach().float()
    weight = torch.einsum("ochw,ci->oihw", outer, inner).flatten(1)
    bias = gen.compress.bias.detach().float() + torch.einsum("ochw,c->o", outer, gen.proj_in.bias.detach().float())
    return weight.to(gen.compress.weight.dtype), bias.to(gen.compress.weight.dtype)


def fold_action_embedding(act, steps):
    """ActExpert's maps before the first nonlinearity -> (weight (D, d_a), bias (steps, D)), float32.

    W_x (W_a a + b_a) + W_tau embedding(tau) + b: everything but W_x W_a a is a constant of the Euler step.
    """
    D = act.action_in_proj.out_features
    of_action, of_tau = act.action_time_mlp_in.weight.detach().double().split(D, 1)
    tau = torch.arange(steps, dtype=torch.float64, device=of_tau.device) / steps
    bias = tau_embedding(tau, D).double() @ of_tau.T + act.action_time_mlp_in.bias.detach().double()
    bias = bias + of_action @ act.action_in_proj.bias.detach().double()
    return (of_action @ act.action_in_proj.weight.detach().double()).float(), bias.float()


# ---- the compiled regions ---------------------------------------------------------------------------------------

FEW_ROWS = 128   # of x, below which the weight stands on the left
SHAPES = 64      # that each compiled function may take, over all layouts; torch's own limit is 8


def linear(x, weight, bias=None):
    """x W^T + b: x (..., K), weight (N, K), bias (N,) or None -> (..., N).

    On a CPU oneDNN repacks its right operand at every call, and with few rows of x the weight is by far the larger
    operand: W x^T, the same product, is faster. Nowhere else does the order matter.
    """
    if x.device.type == "cpu" and bias is None and x.numel() // x.shape[-1] <= FEW_ROWS:
        return (weight @ x.reshape(-1, x.shape[-1]).T).T.view(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


def rms_norm(x, weight, eps):
    """In float32, returned in x's dtype, as experts.RMSNorm."""
    return F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).to(x.dtype)


def signed(cos, sin):
    """cos and sin of half a head (..., d/2) -> the tables `turn` reads (..., d)."""
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def turn(x, rotary):
    """Rotary embedding of x (B, N, heads, d) float32 by the tables of `signed`, each (B, N, 1, d)."""
    cos, sin = rotary
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def attend(query, key, value, bias):
    """query (B, N, A, d), key and value (B, G, n, d), bias (B, 1, 1, n) or None -> (B, N, A * d).

    No mask depends on the query, so the A / G heads of one key head are further rows of the same product.
    """
    B, N, A, d = query.shape
    G = key.shape[1]
    rows = query.view(B, N, G, A // G, d).permute(0, 2, 3, 1, 4).reshape(B, G, -1, d)
    out = F.scaled_dot_product_attention(rows, key, value, attn_mask=bias)
    return out.view(B, G, A // G, N, d).permute(0, 3, 1, 2, 4).reshape(B, N, A * d)


def block(x, w, keys, values, start, pieces, rotary, bias, eps):
    """One expert's layer over rows that follow `start` cached ones.

    x (B, n, D); keys, values (B, G, all, d), rows start to start + n are written. pieces: (rows, visible) pairs in
    order, that many rows see the first `visible` keys. bias (B, 1, 1, all) or None. -> (B, n, D), or None without w.o.
    """
    B, n, _ = x.shape
    G, d = keys.shape[1], keys.shape[3]
    y = linear(rms_norm(x, w.norm, eps), *w.qkv).view(B, n, -1, d)
    y, value = y[:, :, :-G], y[:, :, -G:]
    if w.qk_norm is not None:
        y = F.rms_norm(y.float(), (d,), None, eps) * w.qk_norm.float()
    if rotary is not None:
        y = turn(y.float(), rotary)
    y = y.to(x.dtype)
    keys[:, :, start:start + n] = y[:, :, -G:].transpose(1, 2)
    values[:, :, start:start + n] = value.transpose(1, 2)
    if w.o is None:
        return None
    first, attended = 0, []
    for rows, visible in pieces:
        seen = None if bias is None else bias[..., :visible]
        attended.append(attend(y[:, first:first + rows, :-G], keys[:, :, :visible], values[:, :, :visible], seen))
        first += rows
    x = x + linear(attended[0] if len(pieces) == 1 else torch.cat(attended, 1), w.o)
    gate, up = linear(rms_norm(x, w.mlp_norm, eps), w.gate_up).chunk(2, -1)
    return x + linear(F.silu(gate) * up, w.down)


def vit_block(x, w, heads, rotary, eps=1e-6):
    """One layer of a vision tower: x (n, N, D) -> the same; all views in one batch."""
    qkv = linear(F.layer_norm(x, x.shape[-1:], *w.norm, eps), *w.qkv).unflatten(-1, (3 * heads, -1))
    if rotary is not None:
        query, key = turn(qkv[:, :, :2 * heads].float(), rotary).to(x.dtype).chunk(2, 2)
    else:
        query, key = qkv[:, :, :heads], qkv[:, :, heads:2 * heads]
    y = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (query, key, qkv[:, :, 2 * heads:])))
    y = linear(y.transpose(1, 2).flatten(2), *w.proj)
    x = x + (y if w.scales[0] is None else y * w.scales[0])
    y = F.gelu(linear(F.layer_norm(x, x.shape[-1:], *w.mlp_norm, eps), *w.fc1),
               approximate="none" if rotary is None else "tanh")
    y = linear(y, *w.fc2)
    return x + (y if w.scales[1] is None else y * w.scales[1])


def encode(vae, pixels):
    """pixels (n, 3, s, s) in [-1, 1] -> latents (n, 16, g, g) float32."""
    return vae.encode(pixels).float()


def decode(vae, z):
    """latents (n, 16, g, g) in the VAE's dtype -> pixels (n, 3, s, s) in [-1, 1], float32."""
    return vae.decode(z).float()


def compiled(function, **options):
    """torch.compile for up to SHAPES shapes, beyond which the result raises ValueError, one line.

    torch keeps its own limit per thread, so it is raised where the call is made.
    """
    fast = torch.compile(function, fullgraph=True, dynamic=False, **options)

    def call(*args):
        settings = torch._dynamo.config
        if settings.recompile_limit < SHAPES:
            settings.recompile_limit = SHAPES
        try:
            return fast(*args)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise ValueError(f"more than {SHAPES} shapes of '{function.__name__}' to compile (numbers of samples, "
                             "sets of cameras): keep to fewer, or use --engine eager") from error
    return call


class Vision:
    """A tower of support/vision.py over joined layers, with its tables. conveyor's convolutions stay as they are."""

    def __init__(self, tower, config):
        self.tower, self.layers, self.heads, self.rotary = tower, [], config.vit_heads, None
        if isinstance(tower, InternViT):
            self.layers = [ViTWeights.of(layer) for layer in tower.layers]
        elif isinstance(tower, QwenViT):
            self.layers = [ViTWeights.of(layer) for layer in tower.blocks]
            weight = tower.patch_embed.weight.detach()
            self.patch = weight.float().sum(2).to(weight.dtype)   # a still image fills both times of the kernel
            table, angle = tower.tables(config.image_size // config.vit_patch)
            self.table = table.detach().contiguous()
            self.rotary = signed(angle.cos()[None, :, None], angle.sin()[None, :, None])

    def __call__(self, pixels, block):
        """pixels (n, 3, S, S) in [0, 1] -> (n, tokens, D). block: `vit_block`, perhaps compiled."""
        if not self.layers:
            return self.tower(pixels)
        if self.rotary is None:
            x = self.tower.patches(pixels)
        else:
            pixels = (pixels * 2 - 1).to(self.patch.dtype)
            x = F.conv2d(pixels, self.patch, self.tower.patch_embed.bias, self.patch.shape[-1])
            x = x.flatten(2).transpose(1, 2) + self.table
        for w in self.layers:
            x = block(x, w, self.heads, self.rotary)
        return self.tower.tokens(x)
