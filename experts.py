"""The three experts of Sec. 3.2 and the transformer block they share.

One `Block` serves Qwen2.5 (bias in q, k, v) and Qwen3 (RMSNorm on q and k). What an expert has for itself:

    UndExpert   o_t and l -> tokens: a vision tower (InternViT, Qwen3-VL's, or a small conv stem) and text embeddings
    GenExpert   z_{t-m}, z_t -> 96 tokens (Token Compression), and back to z_hat_{t+m} (Parallel Decoding)
    ActExpert   q_t, a_tau, tau -> state and action tokens, and back to the velocity

The blocks themselves live in model.py's `JointLayer`, because attention is joint. Parameter names follow Hugging
Face's where a counterpart exists. DeepStack and lm_head are not built: nothing in InternVLA-A1 reads them.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from flow import tau_embedding


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32, returned in x's dtype."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(x.dtype)


def rotary_frequencies(config):
    """Inverse frequencies (d/2,) float32 and the axis (0 time, 1 row, 2 column) each is driven by (d/2,) int64.

    Interleaved M-RoPE: among the first 3 * s frequencies every third belongs to the row (column) axis, s being
    that axis's section; all others to time.
    """
    half = config.head_dim // 2
    # Explicitly on the CPU, like every buffer here: parameters may be built on the meta device, constants may not.
    frequency = config.rope_theta ** -(torch.arange(half, dtype=torch.float32, device="cpu") / half)
    if config.rope_bf16:
        frequency = frequency.bfloat16().float()   # [release]
    axis = torch.zeros(half, dtype=torch.long, device="cpu")
    for which, section in enumerate(config.mrope_sections):
        if which > 0:
            axis[which:3 * section:3] = which
    return frequency, axis


def rotary_tables(position, frequency, axis):
    """position (B, N, 3) -> cos, sin (B, 1, N, d) float32."""
    angle = position[..., axis].float() * frequency                                # (B, N, d/2)
    angle = torch.cat([angle, angle], -1)[:, None]
    return angle.cos(), angle.sin()


def rotate(x, rotary):
    """Rotary embedding of x (B, heads, N, d), halves paired; computed in float32, returned in x's dtype.

    rotary: cos and sin, or None where learned positions take their place: x itself.
    """
    if rotary is None:
        return x
    cos, sin = rotary
    one, two = x.chunk(2, -1)
    return (x * cos + torch.cat([-two, one], -1) * sin).to(x.dtype)


def part_of(rotary, part):
    """The rows `part` (a slice of the token axis) of rotary tables, or None."""
    return None if rotary is None else (rotary[0][:, :, part], rotary[1][:, :, part])


def attend(query, key, value, bias):
    """query (B, A, Nq, d), key and value (B, G, Nk, d), bias (B, 1, Nq, Nk) -> (B, Nq, A * d)."""
    grouped = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Projections of one expert's attention; the attention itself is joint (model.py)."""

    def __init__(self, width, config, kv_only):
        super().__init__()
        self.head_dim = config.head_dim
        q, kv, bias = config.heads * config.head_dim, config.kv_heads * config.head_dim, config.qkv_bias
        self.k_proj = nn.Linear(width, kv, bias=bias)
        self.v_proj = nn.Linear(width, kv, bias=bias)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        if not kv_only:
            self.q_proj = nn.Linear(width, q, bias=bias)
            self.o_proj = nn.Linear(q, width, bias=False)
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def heads(self, x):
        return x.unflatten(-1, (-1, self.head_dim))                                # (B, N, heads, d)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, width, hidden):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One decoder block of one expert, cut open at the attention so that experts can attend jointly.

    `kv_only` builds just what offers keys and values: the last understanding layer, whose output nothing reads.
    """

    def __init__(self, width, mlp_width, config, kv_only=False):
        super().__init__()
        self.kv_only = kv_only
        self.input_layernorm = RMSNorm(width, config.norm_eps)
        self.self_attn = Attention(width, config, kv_only)
        if not kv_only:
            self.post_attention_layernorm = RMSNorm(width, config.norm_eps)
            self.mlp = MLP(width, mlp_width)

    def keys_values(self, x, rotary):
        """x (B, N, D) -> key, value (B, G, N, d)."""
        attention, x = self.self_attn, self.input_layernorm(x)
        key = attention.k_norm(attention.heads(attention.k_proj(x))).transpose(1, 2)
        return rotate(key, rotary), attention.heads(attention.v_proj(x)).transpose(1, 2)

    def query(self, x, rotary):
        """x (B, N, D) -> query (B, A, N, d)."""
        attention = self.self_attn
        query = attention.q_norm(attention.heads(attention.q_proj(self.input_layernorm(x)))).transpose(1, 2)
        return rotate(query, rotary)

    def finish(self, x, attended):
        """The rest of the block, after attention: x (B, N, D), attended (B, N, A * d) -> (B, N, D)."""
        x = x + self.self_attn.o_proj(attended)
        return x + self.mlp(self.post_attention_layernorm(x))


def position_table(groups, width):
    """[ours] learned positions for training from scratch: sines and cosines of row and column, plus a random code
    per group. groups: list of (rows, columns), e.g. four by four tokens of one view. -> Parameter (N, width)."""
    period = 100.0 ** (torch.arange(width // 4) / (width // 4))
    tables = []
    for rows, columns in groups:
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        angle = torch.cat([axis.flatten()[:, None] * math.pi / 2 / period for axis in (row, column)], 1)
        code = torch.cat([angle.sin(), angle.cos()], 1)
        tables.append(code + torch.randn(width) * 0.5)
    return nn.Parameter(torch.cat(tables))


# ---- understanding: o_t and l -----------------------------------------------------------------------------------

def merge_2x2(x):
    """(B, H, W, C) -> (B, H/2 * W/2, 4C): four neighbouring patches become one token, channels (row, column, C)."""
    B, H, W, C = x.shape
    x = x.view(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(B, H * W // 4, 4 * C)


def vit_attention(qkv, heads, rotary=None):
    """qkv: three tensors (B, N, D) -> (B, N, D), all patches of one image seeing each other."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in qkv)
    if rotary is not None:
        query, key = rotate(query, rotary), rotate(key, rotary)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class ConvStem(nn.Module):
    """[ours] conveyor's vision: overlapping 3x3 stride-2 convolutions down to 4x4 tokens, with coordinate channels.

    Overlap and coordinates let it place an object to a fraction of a patch after minutes of training.
    """

    def __init__(self, config):
        super().__init__()
        channels = (5, 16, 32, config.und_width, config.und_width)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(channels, channels[1:]))

    def forward(self, pixels):
        """pixels (n, 3, 64, 64) in [0, 1] -> (n, 16, D)."""
        n, _, H, W = pixels.shape
        row = torch.linspace(-1, 1, H, device=pixels.device).view(1, 1, H, 1).expand(n, 1, H, W)
        column = torch.linspace(-1, 1, W, device=pixels.device).view(1, 1, 1, W).expand(n, 1, H, W)
        x = torch.cat([pixels * 2 - 1, row, column], 1).to(self.convs[0].weight.dtype)
        x = x.contiguous(memory_format=torch.channels_last)                        # twice as fast on a CPU
        for conv in self.convs[:-1]:
            x = F.gelu(conv(x))
        x = F.adaptive_avg_pool2d(self.convs[-1](x), 4)                            # 4x4 already at 64 px
        return x.flatten(2).transpose(1, 2)


class InternViTLayer(nn.Module):
    """Pre-norm layer with LayerScale."""

    def __init__(self, width, mlp_width, heads):
        super().__init__()
        self.heads = heads
        self.layernorm_before = nn.LayerNorm(width, eps=1e-6)
        self.layernorm_after = nn.LayerNorm(width, eps=1e-6)
        self.attention = nn.ModuleDict({name: nn.Linear(width, width)
                                        for name in ("q_proj", "k_proj", "v_proj", "projection_layer")})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, mlp_width), "fc2": nn.Linear(mlp_width, width)})
        self.lambda_1 = nn.Parameter(torch.full((width,), 0.1))
        self.lambda_2 = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x):
        y = self.layernorm_before(x)
        y = vit_attention([self.attention[name](y) for name in ("q_proj", "k_proj", "v_proj")], self.heads)
        x = x + self.lambda_1 * self.attention["projection_layer"](y)
        return x + self.lambda_2 * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.layernorm_after(x))))


class InternViT(nn.Module):
    """InternVL3's vision tower and projector: 448 px -> 1024 patches -> 256 tokens."""

    def __init__(self, config):
        super().__init__()
        width, self.patch = config.vit_width, config.vit_patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + config.vit_grid ** 2, width))
        self.patch_embed = nn.Conv2d(3, width, config.vit_patch, config.vit_patch)
        self.layers = nn.ModuleList(InternViTLayer(width, config.vit_mlp, config.vit_heads)
                                    for _ in range(config.vit_layers))
        self.projector = nn.ModuleDict({"layer_norm": nn.LayerNorm(4 * width),
                                        "linear_1": nn.Linear(4 * width, config.und_width),
                                        "linear_2": nn.Linear(config.und_width, config.und_width)})
        for name, value in ("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225)):   # ImageNet's
            self.register_buffer(name, torch.tensor(value, device="cpu").view(3, 1, 1), persistent=False)

    def forward(self, pixels):
        """pixels (n, 3, S, S) in [0, 1] -> (n, (S / 28)^2, D)."""
        x = self.patch_embed(((pixels - self.mean) / self.std).to(self.patch_embed.weight.dtype))
        side = x.shape[-1]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = x + self.position_embeddings
        for layer in self.layers:
            x = layer(x)
        x = merge_2x2(x[:, 1:].unflatten(1, (side, side)))
        x = self.projector["linear_1"](self.projector["layer_norm"](x))
        return self.projector["linear_2"](F.gelu(x))


class QwenViTLayer(nn.Module):
    """Pre-norm layer with fused q, k, v and 2-D rotary positions."""

    def __init__(self, width, mlp_width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"linear_fc1": nn.Linear(width, mlp_width), "linear_fc2": nn.Linear(mlp_width, width)})

    def forward(self, x, rotary):
        y = vit_attention(self.attn["qkv"](self.norm1(x)).chunk(3, -1), self.heads, rotary)
        x = x + self.attn["proj"](y)
        hidden = F.gelu(self.mlp["linear_fc1"](self.norm2(x)), approximate="tanh")
        return x + self.mlp["linear_fc2"](hidden)


class QwenViT(nn.Module):
    """Qwen3-VL's vision tower and merger: S px -> (S / 16)^2 patches -> (S / 32)^2 tokens. Without DeepStack."""

    def __init__(self, config):
        super().__init__()
        width, self.grid = config.vit_width, config.vit_grid
        self.half = config.vit_width // config.vit_heads // 4                       # frequencies per axis
        self.patch_embed = nn.Conv3d(3, width, (2, config.vit_patch, config.vit_patch),
                                     (2, config.vit_patch, config.vit_patch))
        self.pos_embed = nn.Embedding(config.vit_grid ** 2, width)
        self.blocks = nn.ModuleList(QwenViTLayer(width, config.vit_mlp, config.vit_heads)
                                    for _ in range(config.vit_layers))
        self.merger = nn.ModuleDict({"norm": nn.LayerNorm(width, eps=1e-6),
                                     "linear_fc1": nn.Linear(4 * width, 4 * width),
                                     "linear_fc2": nn.Linear(4 * width, config.und_width)})
        frequency = 1e4 ** -(torch.arange(self.half, dtype=torch.float32, device="cpu") / self.half)
        if config.rope_bf16:
            frequency = frequency.bfloat16().float()   # [release]
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, pixels):
        """pixels (n, 3, S, S) in [0, 1] -> (n, (S / 32)^2, D)."""
        x = (pixels * 2 - 1).to(self.patch_embed.weight.dtype)
        x = self.patch_embed(torch.stack([x, x], 2))[:, :, 0]                      # a still image fills both times
        side = x.shape[-1]
        table = self.pos_embed.weight.view(self.grid, self.grid, -1).permute(2, 0, 1)[None]
        if side != self.grid:
            table = F.interpolate(table.float(), (side, side), mode="bilinear", align_corners=True).to(x.dtype)
        x = (x + table).flatten(2).transpose(1, 2)                                 # (n, side^2, width)

        line = torch.arange(side, device=x.device)[:, None] * self.frequency
        angle = torch.cat([line.repeat_interleave(side, 0), line.repeat(side, 1)], -1)
        angle = torch.cat([angle, angle], -1)[None, None]                          # (1, 1, side^2, d)
        rotary = angle.cos(), angle.sin()
        for block in self.blocks:
            x = block(x, rotary)
        x = merge_2x2(self.merger["norm"](x).unflatten(1, (side, side)))
        return self.merger["linear_fc2"](F.gelu(self.merger["linear_fc1"](x)))


VISION = {"tiny": ConvStem, "internvl3": InternViT, "qwen3vl": QwenViT}


class UndExpert(nn.Module):
    """Sec. 3.2 Understanding Expert: three views at time t and the instruction become one token sequence."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.visual = VISION[config.backbone](config)
        self.embed_tokens = nn.Embedding(config.vocab, config.und_width)
        if config.learned_positions:
            self.position = position_table([(4, 4)] * 3 + [(1, config.text_tokens)], config.und_width)
        if config.und_tail:
            self.norm = RMSNorm(config.und_width, config.norm_eps)

    def embed(self, image, text_ids):
        """image (B, V, 3, s, s) uint8, text_ids (B, N_txt) -> (B, N_und, D)."""
        B, V = image.shape[:2]
        pixels = image.flatten(0, 1).float().div_(255)
        size = self.config.image_size
        if pixels.shape[-1] != size:   # [release] bicubic, not clamped: values overshoot [0, 1]
            pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True, align_corners=False)
        x = self.visual(pixels).unflatten(0, (B, V))                               # (B, V, side^2, D)
        if self.config.view_tokens:
            ids = torch.tensor(self.config.view_tokens, device=image.device)
            before, after = self.embed_tokens(ids).expand(B, V, 2, -1).split(1, 2)
            x = torch.cat([before, x, after], 2)
        x = torch.cat([x.flatten(1, 2), self.embed_tokens(text_ids)], 1)
        return x + self.position if self.config.learned_positions else x


# ---- generation: z_{t-m}, z_t -> z_hat_{t+m} --------------------------------------------------------------------

class GenExpert(nn.Module):
    """Sec. 3.2 Generation Expert: 6 latent grids -> 96 tokens, and 96 tokens -> 3 latent grids.

    [release] project to width D first, then convolve at width D (and deconvolve at width D, LayerNorm, project
    back): only this order gives Table 1's totals; the text has the two steps the other way round.
    """

    def __init__(self, config, channels=16):
        super().__init__()
        D, kernel = config.gen_width, config.compress_kernel
        self.config = config
        self.proj_in = nn.Conv2d(channels, D, 1)
        self.compress = nn.Conv2d(D, D, kernel, kernel)
        if config.learned_positions:
            self.position = position_table([(4, 4)] * 6, D)
        self.norm = RMSNorm(D, config.norm_eps)
        self.expand = nn.ConvTranspose2d(D, D, kernel, kernel)
        self.norm_out = nn.LayerNorm(D)
        self.proj_out = nn.Linear(D, channels)

    def embed(self, z):
        """Token Compression. z (B, V, T=2, 16, g, g) -> (B, 96, D), ordered view, time, row, column."""
        B, V, T = z.shape[:3]
        x = self.compress(self.proj_in(z.flatten(0, 2).to(self.proj_in.weight.dtype)))   # (B V T, D, 4, 4)
        x = x.flatten(2).transpose(1, 2).reshape(B, V * T * 16, -1)
        assert x.shape[1] == 96, f"3 views x 2 times x 16 tokens make 96, got {x.shape[1]}"
        return x + self.position if self.config.learned_positions else x

    def decode(self, h_gen):
        """Parallel Decoding. h_gen (B, 96, D), the last block's output -> z_hat (B, V, 16, g, g)."""
        x = self.pool(self.norm(h_gen).to(self.expand.weight.dtype))               # (B, 48, D)
        B, _, D = x.shape
        x = x.reshape(B * 3, 4, 4, D).permute(0, 3, 1, 2)
        x = self.expand(x).permute(0, 2, 3, 1)                                     # (B V, g, g, D)
        return self.proj_out(self.norm_out(x)).permute(0, 3, 1, 2).unflatten(0, (B, 3))

    @staticmethod
    def pool(x):
        """Temporal average pooling: (B, 96, D) -> (B, 48, D)."""
        return x.unflatten(1, (3, 2, 16)).mean(2).flatten(1, 2)


# ---- action: q_t, a_tau, tau -> velocity ------------------------------------------------------------------------

class ActExpert(nn.Module):
    """Sec. 3.2 Action Expert: one state token, k action tokens, each action token fused with tau. [release] MLP."""

    def __init__(self, config):
        super().__init__()
        D = config.act_width
        self.config = config
        self.state_proj = nn.Linear(config.state_dim, D)
        self.action_in_proj = nn.Linear(config.action_dim, D)
        self.action_time_mlp_in = nn.Linear(2 * D, D)
        self.action_time_mlp_out = nn.Linear(D, D)
        if config.learned_positions:
            # Smaller than elsewhere: eps is most of the velocity, and a_tau must not drown in a large position code.
            self.position = nn.Parameter(position_table([(1, 1), (1, config.chunk)], D).detach() * 0.3)
        self.norm = RMSNorm(D, config.norm_eps)
        self.action_out_proj = nn.Linear(D, config.action_dim)

    def embed(self, q_t, a_tau, tau):
        """q_t (B, d_q), a_tau (B, R, k, d_a), tau (B, R) -> (B, R * (1 + k), D) float32."""
        B, R, k, _ = a_tau.shape
        x = self.action_in_proj(a_tau)
        time = tau_embedding(tau, x.shape[-1])[:, :, None].expand(-1, -1, k, -1)
        x = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(torch.cat([x, time], -1))))
        state = self.state_proj(q_t)[:, None, None].expand(-1, R, -1, -1)
        x = torch.cat([state, x], 2)                                               # (B, R, 1 + k, D)
        if self.config.learned_positions:
            x = x + self.position
        return x.flatten(1, 2)

    def velocity(self, h_act, R):
        """h_act (B, R * (1 + k), D), the last block's output -> v_theta (B, R, k, d_a) float32."""
        x = self.norm(h_act).float().unflatten(1, (R, -1))[:, :, 1:]
        return self.action_out_proj(x)
