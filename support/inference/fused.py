"""What the engine computes with: a built model's weights, joined and folded, and the layer of an expert.

`block` serves every layer of the three experts, because a layer's weights are a plain tuple of tensors."""

from typing import NamedTuple

import torch
import torch.nn.functional as F


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
        qkv = join([getattr(attention, f"{name}_proj") for name in (*heads, "v")])
        rest = () if block.kv_only else (
            attention.o_proj.weight.detach(), block.post_attention_layernorm.weight.detach(),
            join([block.mlp.gate_proj, block.mlp.up_proj])[0], block.mlp.down_proj.weight.detach())
        return cls(block.input_layernorm.weight.detach(), qkv, scale, *rest)


@torch.no_grad()
def fold_compression(gen):
    """GenExpert's 1x1 and k x k convolution -> (weight (D, 16 * k * k), bias (D,)) of one product over a patch."""
    inner, outer = gen.proj_in.weight[:, :, 0, 0].float(), gen.compress.weight.float()
    weight = torch.einsum("ochw,ci->oihw", outer, inner).flatten(1)
    bias = gen.compress.bias.float() + outer.sum((2, 3)) @ gen.proj_in.bias.float()
    return weight.to(gen.compress.weight.dtype), bias.to(gen.compress.weight.dtype)


# ---- the compiled regions ---------------------------------------------------------------------------------------

SHAPES = 64   # that each compiled function may take, over all layouts; torch's own limit is 8


def rms_norm(x, weight, eps):
    """In float32, returned in x's dtype, as experts.RMSNorm."""
    return F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).to(x.dtype)


def attend(query, key, value, bias):
    """query (B, N, A, d), key and value (B, G, n, d), bias (B, 1, 1 or N * A / G, n) -> (B, N, A * d).

    The A / G heads of one key head are further rows of the same product: head by head, N rows each."""
    B, N, A, d = query.shape
    G = key.shape[1]
    rows = query.view(B, N, G, A // G, d).permute(0, 2, 3, 1, 4).reshape(B, G, -1, d)
    out = F.scaled_dot_product_attention(rows, key, value, attn_mask=bias)
    return out.view(B, G, A // G, N, d).permute(0, 3, 1, 2, 4).reshape(B, N, A * d)


def block(x, w, keys, values, start, rotary, bias, eps):
    """One expert's layer over rows that follow `start` cached ones, and see them and one another where bias lets them.

    x (B, n, D); keys, values (B, G, all, d), rows start to start + n are written. rotary: None, or cos and sin
    (B, n, 1, d), sin's first half negated. bias: as `attend`, over start + n keys. -> (B, n, D), None without w.o."""
    B, n, _ = x.shape
    G, d, end = keys.shape[1], keys.shape[3], start + n
    y = F.linear(rms_norm(x, w.norm, eps), *w.qkv).view(B, n, -1, d)
    y, value = y[:, :, :-G], y[:, :, -G:]
    if w.qk_norm is not None:
        y = F.rms_norm(y.float(), (d,), None, eps) * w.qk_norm.float()
    if rotary is not None:
        cos, sin = rotary
        y = torch.addcmul(y * cos, y.roll(d // 2, -1), sin)
    y = y.to(x.dtype)
    keys[:, :, start:end] = y[:, :, -G:].transpose(1, 2)
    values[:, :, start:end] = value.transpose(1, 2)
    if w.o is None:
        return None
    x = x + F.linear(attend(y[:, :, :-G], keys[:, :, :end], values[:, :, :end], bias), w.o)
    gate, up = F.linear(rms_norm(x, w.mlp_norm, eps), w.gate_up).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, w.down)


def compiled(function, backend=None):
    """torch.compile for up to SHAPES shapes, beyond which the result raises ValueError, one line."""
    fast = torch.compile(function, fullgraph=True, dynamic=False, backend=backend or "inductor")

    def call(*args):
        settings = torch._dynamo.config   # which torch keeps per thread
        settings.recompile_limit = max(settings.recompile_limit, SHAPES)
        try:
            return fast(*args)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise ValueError(f"more than {SHAPES} shapes of '{function.__name__}' to compile (numbers of samples, "
                             "sets of cameras): keep to fewer, or use --engine eager") from error
    return call
