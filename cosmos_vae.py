"""The image tokenizer: a picture becomes a small grid of continuous latents, and back.

Sec. 3.2 Generation Expert, Input Tokenization: the generation expert sees no pixels. The frozen COSMOS CI8x8 tokenizer
encodes frames t - m and t (8x8 pixels a latent), and in training t + m as the target. The expert predicts the latents
of frame t + m, and the decoder shows them as pictures. "VAE" is the paper's word: the published model is a plain
autoencoder, which samples nothing. The embedded world has another tokenizer behind the same two functions:
support/tiny.py's DctVAE."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


def haar_patch(x, patch):
    """(N, C, H, W) -> (N, C * patch^2, H/patch, W/patch): log2(patch) levels of a 2-D Haar transform.

    One level replaces each 2x2 square by its mean and its three half differences, band-major: first C means, then C
    vertical, C horizontal and C diagonal differences; the next level transforms all bands again. This is Cosmos's
    wavelet with its rescaling by 1/2, exactly (the published files carry 1/sqrt(2) as a buffer)."""
    while patch > 1:
        a, b, c, d = F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).unbind(2)   # top left, top right, bottom left, right
        x = torch.cat([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], dim=1) / 4
        patch //= 2
    return x


def haar_unpatch(x, patch):
    """The inverse of haar_patch: (N, C * patch^2, h, w) -> (N, C, h * patch, w * patch)."""
    while patch > 1:
        mean, dv, dh, dd = x.chunk(4, dim=1)   # (N, C', h, w) each
        square = mean + dv + dh + dd, mean + dv - dh - dd, mean - dv + dh - dd, mean - dv - dh + dd
        x = F.pixel_shuffle(torch.stack(square, 2).flatten(1, 2), 2)   # (N, C', 2h, 2w)
        patch //= 2
    return x


def _norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and swish, plus a skip (1x1 where the width changes)."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.norm1, self.conv1 = _norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = _norm(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of the grid, with a skip."""

    def __init__(self, channels):
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).mT.unsqueeze(1) for f in (self.q, self.k, self.v))  # (N, 1, h*w, C)
        h = F.scaled_dot_product_attention(q, k, v)  # (N, 1, h*w, C)
        return x + self.proj_out(h.squeeze(1).mT.reshape(x.shape))


def named(**modules):
    """Modules that are applied in this order, under the published names."""
    return nn.Sequential(OrderedDict(modules))


def level(c_in, c_out, n, **resize):
    """`n` residual blocks from c_in to c_out channels; one level of each side then changes the resolution."""
    blocks = [ResnetBlock(c_in if i == 0 else c_out, c_out) for i in range(n)]
    return named(block=nn.Sequential(*blocks), **resize)


def middle(channels):
    """The bottom of encoder and decoder: residual, attention, residual, at constant width."""
    return named(block_1=ResnetBlock(channels, channels), attn_1=AttnBlock(channels),
                 block_2=ResnetBlock(channels, channels))


def halve(channels):
    """A stride-2 convolution; padded right and below only, as in Cosmos."""
    return named(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=nn.Conv2d(channels, channels, 3, stride=2))


def double(channels):
    """Each latent is repeated, then a convolution smooths."""
    return named(repeat=nn.Upsample(scale_factor=2.0), conv=nn.Conv2d(channels, channels, 3, padding=1))


def encoder(channels, channels_mult, num_res_blocks, latent_channels, patch):
    """(N, 3 patch^2, H / patch, W / patch) -> (N, latent_channels, H / (2 patch), W / (2 patch))."""
    widths = [channels] + [channels * m for m in channels_mult]
    first, *others = zip(widths, widths[1:])
    levels = [level(*first, num_res_blocks, downsample=halve(first[1])),
              *(level(*pair, num_res_blocks) for pair in others)]
    return named(conv_in=nn.Conv2d(3 * patch ** 2, channels, 3, padding=1), down=nn.Sequential(*levels),
                 mid=middle(widths[-1]), norm_out=_norm(widths[-1]), swish=nn.SiLU(),
                 conv_out=nn.Conv2d(widths[-1], latent_channels, 3, padding=1))


def decoder(channels, channels_mult, num_res_blocks, latent_channels, patch):
    """The mirror: one residual block more a level, and the deepest, which doubles the grid, runs first."""
    widths = [channels * m for m in channels_mult]
    n, last = num_res_blocks + 1, len(widths) - 1
    levels = {str(last): level(widths[last], widths[last], n, upsample=double(widths[last]))}
    levels |= {str(i): level(widths[i + 1], widths[i], n) for i in reversed(range(last))}
    return named(conv_in=nn.Conv2d(latent_channels, widths[-1], 3, padding=1), mid=middle(widths[-1]),
                 up=named(**levels), norm_out=_norm(widths[0]), swish=nn.SiLU(),
                 conv_out=nn.Conv2d(widths[0], 3 * patch ** 2, 3, padding=1))


class CosmosVAE(nn.Module):
    """Cosmos CI8x8: 3 x 256 x 256 pixels <-> 16 x 32 x 32 latents, 76,789,472 parameters by default.

    Parameter names are those of the published files. `channels` is the width before the multipliers. A side shrinks
    by `patch` in the Haar transform and by 2 in level 0. The latents are used as they come: no mean, no scale."""

    def __init__(self, channels=128, channels_mult=(2, 4, 4), num_res_blocks=2, latent_channels=16, patch=4):
        super().__init__()
        self.patch = patch
        self.encoder = encoder(channels, channels_mult, num_res_blocks, latent_channels, patch)
        self.quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.decoder = decoder(channels, channels_mult, num_res_blocks, latent_channels, patch)

    def encode(self, images):
        """images (N, 3, H, W) in [-1, 1], H and W multiples of 8 -> z (N, 16, H/8, W/8), dtype of the weights."""
        return self.quant_conv(self.encoder(haar_patch(images, self.patch)))

    def decode(self, z):
        """z (N, 16, h, w) -> images (N, 3, 8h, 8w), near [-1, 1] but not clamped; dtype of the weights."""
        return haar_unpatch(self.decoder(self.post_quant_conv(z)), self.patch)
