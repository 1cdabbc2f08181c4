"""[ours] What the embedded world's network has in place of a backbone and of Cosmos: parts that train in minutes."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class ConvStem(nn.Module):
    """[ours] conveyor's vision: four 3x3 stride-2 convolutions down to 4x4 tokens, with coordinate channels. Overlap
    and coordinates let it place an object to a fraction of a patch after minutes of training."""

    layers = ()   # as the towers of support/vision.py have them

    def __init__(self, config):
        super().__init__()
        channels = (3 * config.und_frames + 2, 16, 32, config.und_width, config.und_width)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(channels, channels[1:]))

    def forward(self, pixels, block=None):
        """pixels (n, 3 or 6, 64, 64) in [0, 1] -> (n, 16, D). block: of towers with layers."""
        line = torch.linspace(-1, 1, pixels.shape[-1], device=pixels.device)
        place = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(len(pixels), -1, -1, -1)
        x = torch.cat([pixels * 2 - 1, place], 1).to(self.convs[0].weight.dtype)
        x = x.contiguous(memory_format=torch.channels_last)                        # twice as fast on a CPU
        for conv in self.convs[:-1]:
            x = F.gelu(conv(x))
        x = F.adaptive_avg_pool2d(self.convs[-1](x), 4)                            # 4x4 already at 64 px
        return x.flatten(2).transpose(1, 2)


def position_table(groups, width):
    """[ours] learned positions in place of rotary ones: sines and cosines of row and column, a random code a group.
    groups: list of (rows, columns), such as the four by four tokens of one view. -> Parameter (N, width)."""
    period = 100.0 ** (torch.arange(width // 4) / (width // 4))
    tables = []
    for rows, columns in groups:
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        angle = torch.cat([axis.flatten()[:, None] * math.pi / 2 / period for axis in (row, column)], 1)
        code = torch.cat([angle.sin(), angle.cos()], 1)
        tables.append(code + torch.randn(width) * 0.5)
    return nn.Parameter(torch.cat(tables))


class DctVAE(nn.Module):
    """[ours] Training-free stand-in for Cosmos: the same latent shape, 16 of 192 DCT coefficients a block.

    Latents 0-9 are luma, in the order of ZIGZAG; 10-12 and 13-15 the two chroma axes, in the first three of that order.
    The kept basis pictures (16, 3, 8, 8) are orthonormal, so encode is a stride-8 convolution, decode its transpose and
    encode(decode(z)) == z. Distances survive: for two pictures in the kept subspace
        mean((z - z')^2) = 192 / 16 * mean((x - x')^2),
    with pixels in [-1, 1]; what the subspace drops (fine detail) costs nothing there. The state dict is empty."""

    # Grey has no chroma, and the three axes are orthonormal: luma, red against blue, green against the other two.
    COLOUR_AXES = ((3 ** -0.5, 3 ** -0.5, 3 ** -0.5), (2 ** -0.5, 0.0, -2 ** -0.5),
                   (-6 ** -0.5, 2 * 6 ** -0.5, -6 ** -0.5))
    # The first entries (u, v) of JPEG's zig-zag, u vertical and v horizontal frequency: all with u + v <= 3.
    ZIGZAG = ((0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0))

    def __init__(self):
        super().__init__()
        position = torch.arange(8.0, device="cpu")                       # also where parameters are on the meta device
        dct = torch.cos(math.pi / 8 * (position + 0.5) * position[:, None]) / 2    # (8 frequencies, 8 pixels)
        dct[0] *= 0.5 ** 0.5                                                       # every row has norm 1
        kernels = [torch.tensor(axis, device="cpu").view(3, 1, 1) * torch.outer(dct[u], dct[v])
                   for axis, kept in zip(self.COLOUR_AXES, (10, 3, 3)) for u, v in self.ZIGZAG[:kept]]
        self.register_buffer("kernels", torch.stack(kernels), persistent=False)

    def encode(self, images):
        """images (N, 3, H, W) in [-1, 1], H and W multiples of 8 -> z (N, 16, H/8, W/8), in the dtype of images."""
        return F.conv2d(images, self.kernels.to(images.dtype), stride=8)

    def decode(self, z):
        """z (N, 16, h, w) -> images (N, 3, 8h, 8w), near [-1, 1] but not clamped, in the dtype of z."""
        return F.conv_transpose2d(z, self.kernels.to(z.dtype), stride=8)
