"""The comparison arm of `bench.py --config`: the same chunk from the same weights, computed the usual way.

Written from a description of how the released code spends its time, so that a ratio to it means something: layers as in
Hugging Face's models (seven operations a normalisation, rotary tables recomputed, keys and values repeated for grouped
heads, scores and float32 softmax spelled out), a cache that is concatenated in every layer of every step, masks and
positions rebuilt in every step, a Euler loop whose end is a tensor's value, attention per image in the vision tower and
one call per view in the 2B's, DeepStack mergers whose output is dropped, a whole last understanding layer, image tokens
put in place by a boolean mask, both frames encoded by the VAE in its default memory layout, two convolutions one after
the other. Not followed: x * sigmoid(x) spelled out in the VAE, and TorchScript around it.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from attention_mask import MASKED, draws, segment_mask, segments, valid_tokens
from support.rotary import positions, rotary_tables
from support.vision import InternViT, QwenViT, merge_2x2

DEEPSTACK_LAYERS = (5, 11, 17)


def rotate_half(x):
    one, two = x.chunk(2, -1)
    return torch.cat((-two, one), -1)


def apply_rotary(query, key, cos, sin):
    cos, sin = cos.to(query.dtype), sin.to(query.dtype)
    return query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin


def repeat_kv(x, times):
    B, G, n, d = x.shape
    return x[:, :, None].expand(B, G, times, n, d).reshape(B, G * times, n, d)


def eager_attention(query, key, value, mask=None):
    """(B, A, Nq, d), (B, G, Nk, d) -> (B, Nq, A, d)."""
    times = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, times), repeat_kv(value, times)
    scores = torch.matmul(query, key.transpose(2, 3)) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous()


class PlainArm:
    """plain(batch, eps) -> actions, as model.sample_actions(batch, eps). Build it before an Engine on the same model:
    it keeps its own copy of the VAE, which the engine stores channels-last. model: built with und_tail=True."""

    def __init__(self, model):
        self.model, self.config, tower = model, model.config, model.und.visual
        if not model.config.und_tail:
            raise ValueError("the plain arm computes the whole last understanding layer: build the model with und_tail")
        self.vae = copy.deepcopy(model.vae)
        self.mergers = []
        if isinstance(tower, QwenViT):   # the release runs them and drops what they give
            wide, norm = 4 * model.config.vit_width, nn.LayerNorm(4 * model.config.vit_width, eps=1e-6)
            self.mergers = [nn.Sequential(copy.deepcopy(norm), nn.Linear(wide, wide), nn.GELU(),
                                          nn.Linear(wide, model.config.und_width)).to(tower.pos_embed.weight)
                            for _ in DEEPSTACK_LAYERS]

    @torch.no_grad()
    def __call__(self, batch, eps):
        self.cache = {}
        x = self.embed_prefix(batch)
        u, g = self.model.layout.n_und, self.model.layout.n_und + self.model.layout.n_gen
        x = self.expert("und", x, batch, slice(0, u), keep=True)
        self.model.und.norm(x)
        z = self.latents(batch)
        x = self.model.gen.embed(z).to(self.model.dtype)
        self.expert("gen", x, batch, slice(u, g), keep=True)
        return self.denoise(batch, eps, slice(g, None))

    def embed_prefix(self, batch):
        und, config = self.model.und, self.config
        pixels = batch.image.flatten(0, 1).float() / 255
        if pixels.shape[-1] != config.image_size:
            pixels = F.interpolate(pixels, (config.image_size,) * 2, mode="bicubic", antialias=True, align_corners=False)
        if isinstance(und.visual, InternViT):
            image = torch.cat([self.intern_vit(pixels[v:v + 1]) for v in range(len(pixels))])
        else:
            image = self.qwen_vit(pixels)
        before, after = config.view_tokens
        per_view = torch.tensor([before] + [0] * image.shape[1] + [after], device=image.device)
        ids = torch.cat([per_view.repeat(3)[None].expand(len(batch.text_ids), -1), batch.text_ids], 1)
        places = torch.zeros_like(ids, dtype=torch.bool)
        for v in range(3):
            places[:, v * len(per_view) + 1:(v + 1) * len(per_view) - 1] = True
        x = und.embed_tokens(ids)
        x[places] = image.flatten(0, 1)
        return x.to(self.model.dtype)

    def qwen_vit(self, pixels):
        tower, n = self.model.und.visual, len(pixels)
        x = (pixels * 2 - 1).to(tower.patch_embed.weight.dtype)
        x = tower.patch_embed(torch.stack([x, x], 2))[:, :, 0]
        side = x.shape[-1]
        table = tower.pos_embed.weight.view(tower.grid, tower.grid, -1).permute(2, 0, 1)[None]
        table = F.interpolate(table.float(), (side, side), mode="bilinear", align_corners=True).to(x.dtype)
        x = (x + table).flatten(2).transpose(1, 2)
        line = torch.arange(side, device=x.device)[:, None] * tower.frequency
        angle = torch.cat([line.repeat_interleave(side, 0), line.repeat(side, 1)], -1).repeat(1, 2)
        for i, layer in enumerate(tower.blocks):
            qkv = layer.attn["qkv"](layer.norm1(x)).unflatten(-1, (3, layer.heads, -1))
            query, key, value = (part.transpose(1, 2).float() if j < 2 else part.transpose(1, 2)
                                 for j, part in enumerate(qkv.unbind(2)))
            query, key = (part.to(x.dtype) for part in apply_rotary(query, key, angle.cos(), angle.sin()))
            y = torch.cat([eager_attention(query[b:b + 1], key[b:b + 1], value[b:b + 1]) for b in range(n)])
            x = x + layer.attn["proj"](y.flatten(2))
            x = x + layer.mlp["linear_fc2"](F.gelu(layer.mlp["linear_fc1"](layer.norm2(x)), approximate="tanh"))
            if i in DEEPSTACK_LAYERS:
                self.mergers[DEEPSTACK_LAYERS.index(i)](merge_2x2(x.unflatten(1, (side, side))))
        x = merge_2x2(tower.merger["norm"](x).unflatten(1, (side, side)))
        return tower.merger["linear_fc2"](F.gelu(tower.merger["linear_fc1"](x)))

    def intern_vit(self, pixels):
        tower = self.model.und.visual
        x = tower.patch_embed(((pixels - tower.mean) / tower.std).to(tower.patch_embed.weight.dtype))
        side = x.shape[-1]
        x = torch.cat([tower.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1) + tower.position_embeddings
        for layer in tower.layers:
            y = layer.layernorm_before(x)
            parts = (layer.attention[name](y).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
                     for name in ("q_proj", "k_proj", "v_proj"))
            y = layer.attention["projection_layer"](eager_attention(*parts).flatten(2))
            x = x + layer.lambda_1 * y
            x = x + layer.lambda_2 * layer.mlp["fc2"](F.gelu(layer.mlp["fc1"](layer.layernorm_after(x))))
        x = merge_2x2(x[:, 1:].unflatten(1, (side, side)))
        x = tower.projector["linear_1"](tower.projector["layer_norm"](x))
        return tower.projector["linear_2"](F.gelu(x))

    def latents(self, batch):
        frames, size = batch.frames[:, :, :2], self.config.vae_size
        x = frames.flatten(0, 2).float() / 127.5 - 1
        if x.shape[-1] != size:
            x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        return self.vae.encode(x.to(next(self.vae.parameters(), x).dtype)).float().unflatten(0, frames.shape[:3])

    def expert(self, name, x, batch, part, keep):
        """One expert over its tokens: mask, positions and tables rebuilt, then the layers. `keep` extends the cache."""
        model, layout = self.model, self.model.layout
        valid = valid_tokens(layout, batch.view_mask, batch.text_mask)
        allowed = segment_mask(segments(layout).to(x.device), draws(layout).to(x.device), valid)
        last = layout.n_und + layout.n_gen + layout.n_act if part.stop is None else part.stop
        mask = torch.where(allowed[:, None, part, :last], 0.0, MASKED).to(x.dtype)
        position = positions(layout, batch.view_mask, batch.text_mask)
        cos, sin = (table[:, :, part] for table in rotary_tables(position, model.rope_frequency, model.rope_axis))
        for i, layer in enumerate(model.layers):
            block = getattr(layer, name)
            attention, y = block.self_attn, block.input_layernorm(x)
            query = attention.q_norm(attention.heads(attention.q_proj(y))).transpose(1, 2)
            key = attention.k_norm(attention.heads(attention.k_proj(y))).transpose(1, 2)
            value = attention.heads(attention.v_proj(y)).transpose(1, 2)
            query, key = apply_rotary(query, key, cos, sin)
            if i in self.cache:
                key, value = torch.cat([self.cache[i][0], key], 2), torch.cat([self.cache[i][1], value], 2)
            if keep:
                self.cache[i] = key, value
            x = x + attention.o_proj(eager_attention(query, key, value, mask).flatten(2))
            x = x + block.mlp(block.post_attention_layernorm(x))
        return x

    def denoise(self, batch, eps, part):
        """A loop that asks a tensor whether to go on: on a GPU each step waits for the host."""
        model, steps = self.model, self.config.euler_steps
        real = 1.0 if self.config.noise_on_padding else batch.dim_mask[:, None].float()
        a, dt = eps * real, torch.tensor(-1.0 / steps, device=eps.device)
        time = torch.tensor(1.0, device=eps.device)
        while time >= -dt / 2:   # noise level 1, 0.9, ... 0.1
            x = model.act.embed(batch.state, a[:, None], (1 - time).expand(len(a), 1)).to(model.dtype)
            x = self.expert("act", x, batch, part, keep=False)
            a = a - dt * model.act.velocity(x, 1)[:, 0] * real
            time = time + dt
        return a
