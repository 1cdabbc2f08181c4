"""The three experts of Sec. 3.2 and the transformer block they share.

One `Block` serves Qwen2.5 (bias in q, k, v) and Qwen3 (RMSNorm on q and k). Beside its blocks an expert has:

    UndExpert   o_t and l -> tokens: a vision tower (support/vision.py, adopted as it is) and text embeddings
    GenExpert   z_{t-m}, z_t -> 96 tokens (Token Compression), and back to z_hat_{t+m} (Parallel Decoding)
    ActExpert   q_t, a_tau, tau -> state and action tokens, and back to the velocity

The blocks stand in model.py's `JointLayer`, because attention is joint. Parameter names follow Hugging Face's where a
counterpart exists. lm_head is not built: nothing reads it. [release] DeepStack is dropped."""

import torch
import torch.nn.functional as F
from torch import nn

from flow import tau_embedding
from support.rotary import rotate
from support.tiny import ConvStem, position_table
from support.vision import InternViT, QwenViT


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32, returned in x's dtype."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(x.dtype)


def attend(query, key, value, bias):
    """query (B, A, Nq, d), key and value (B, G, Nk, d), bias (B, 1, Nq, Nk) -> (B, Nq, A * d)."""
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda:   # without cuDNN no fused kernel takes groups and a bias; docs/realtime.md
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        grouped = False
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

    kv_only: build only keys and values, as in the last understanding layer, whose output nothing reads."""

    def __init__(self, width, mlp_width, config, kv_only=False):
        super().__init__()
        self.kv_only = kv_only
        self.input_layernorm = RMSNorm(width, config.norm_eps)
        self.self_attn = Attention(width, config, kv_only)
        if not kv_only:
            self.post_attention_layernorm = RMSNorm(width, config.norm_eps)
            self.mlp = MLP(width, mlp_width)

    def project(self, x, rotary):
        """x (B, N, D) -> query (B, A, N, d), None if kv_only, and key, value (B, G, N, d)."""
        attention, x = self.self_attn, self.input_layernorm(x)
        key = rotate(attention.k_norm(attention.heads(attention.k_proj(x))).transpose(1, 2), rotary)
        value = attention.heads(attention.v_proj(x)).transpose(1, 2)
        if self.kv_only:
            return None, key, value
        query = attention.q_norm(attention.heads(attention.q_proj(x))).transpose(1, 2)
        return rotate(query, rotary), key, value

    def finish(self, x, attended):
        """The rest of the block, after attention: x (B, N, D), attended (B, N, A * d) -> (B, N, D)."""
        x = x + self.self_attn.o_proj(attended)
        return x + self.mlp(self.post_attention_layernorm(x))


# ---- understanding: o_t and l -----------------------------------------------------------------------------------

class UndExpert(nn.Module):
    """Sec. 3.2 Understanding Expert: three views at time t and the instruction become one token sequence."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.visual = {"tiny": ConvStem, "internvl3": InternViT, "qwen3vl": QwenViT}[config.backbone](config)
        self.embed_tokens = nn.Embedding(config.vocab, config.und_width)
        if config.learned_positions:
            self.position = position_table([(4, 4)] * 3 + [(1, config.text_tokens)], config.und_width)
        if config.und_tail:
            self.norm = RMSNorm(config.und_width, config.norm_eps)

    def embed(self, image, text_ids):
        """image (B, V, 3 und_frames, S, S) uint8, text_ids (B, N_txt) -> (B, N_und, D)."""
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

    [release] In: project to width D, then convolve. Out: deconvolve, LayerNorm, project to 16 channels. The text has
    convolution and projector the other way round, which does not give Table 1's totals."""

    def __init__(self, config):
        super().__init__()
        D, kernel = config.gen_width, config.compress_kernel
        self.config = config
        self.proj_in = nn.Conv2d(16, D, 1)
        self.compress = nn.Conv2d(D, D, kernel, kernel)
        if config.learned_positions:
            self.position = position_table([(4, 4)] * 6, D)
        self.norm = RMSNorm(D, config.norm_eps)
        self.expand = nn.ConvTranspose2d(D, D, kernel, kernel)
        self.norm_out = nn.LayerNorm(D)
        self.proj_out = nn.Linear(D, 16)

    def embed(self, z):
        """Token Compression. z (B, V, T=2, 16, g, g) -> (B, 96, D), ordered view, time, row, column."""
        B, V, T = z.shape[:3]
        x = self.compress(self.proj_in(z.flatten(0, 2).to(self.proj_in.weight.dtype)))   # (B V T, D, 4, 4)
        x = x.flatten(2).transpose(1, 2).reshape(B, V * T * 16, -1)
        assert x.shape[1] == 96, f"3 views x 2 times x 16 tokens make 96, got {x.shape[1]}"
        return x + self.position if self.config.learned_positions else x

    def decode(self, x):
        """Parallel Decoding. x (B, 96, D), the last block's output -> z_hat (B, V, 16, g, g)."""
        x = self.pool(self.norm(x).to(self.expand.weight.dtype))                   # (B, 48, D)
        B, _, D = x.shape
        x = x.reshape(-1, 4, 4, D).permute(0, 3, 1, 2)
        x = self.expand(x).permute(0, 2, 3, 1)                                     # (B V, g, g, D)
        return self.proj_out(self.norm_out(x)).permute(0, 3, 1, 2).unflatten(0, (B, -1))

    @staticmethod
    def pool(x):
        """Temporal average pooling: (B, 96, D) -> (B, 48, D)."""
        return x.unflatten(1, (-1, 2, 16)).mean(2).flatten(1, 2)


# ---- action: q_t, a_tau, tau -> velocity ------------------------------------------------------------------------

class ActExpert(nn.Module):
    """Sec. 3.2 Action Expert: one state token and k action tokens, each fused with tau by an MLP [release]."""

    def __init__(self, config):
        super().__init__()
        D = config.act_width
        self.config = config
        self.state_proj = nn.Linear(config.state_dim, D)
        self.action_in_proj = nn.Linear(config.action_dim, D)
        self.action_time_mlp_in = nn.Linear(2 * D, D)
        self.action_time_mlp_out = nn.Linear(D, D)
        if config.learned_positions:
            # 0.3: the velocity follows from a_tau, and positions must not dominate it.
            self.position = nn.Parameter(position_table([(1, 1), (1, config.chunk)], D).detach() * 0.3)
        self.norm = RMSNorm(D, config.norm_eps)
        self.action_out_proj = nn.Linear(D, config.action_dim)

    def embed(self, q_t, a_tau, tau):
        """q_t (B, d_q), a_tau (B, R, k, d_a), tau (B, R) or (B, R, k) -> (B, R * (1 + k), D) float32."""
        B, R, k, _ = a_tau.shape
        x = self.action_in_proj(a_tau)
        time = tau_embedding(tau.reshape(B, R, -1), x.shape[-1]).expand(-1, -1, k, -1)
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
