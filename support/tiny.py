"""[ours] What the embedded world's network has in place of a backbone and of Cosmos: parts that train in minutes.

    ConvStem         the vision tower: four convolutions
    position_table   learned positions, in place of rotary ones
    DctVAE           a fixed block transform without weights, in place of Cosmos
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


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


# ---- DctVAE -----------------------------------------------------------------------------------------------------

# Grey has no chroma, and the three axes are orthonormal: luma, red against blue, green against the other two.
COLOUR_AXES = ((3 ** -0.5, 3 ** -0.5, 3 ** -0.5),
               (2 ** -0.5, 0.0, -2 ** -0.5),
               (-6 ** -0.5, 2 * 6 ** -0.5, -6 ** -0.5))
# The first entries (u, v) of JPEG's zig-zag, u vertical and v horizontal frequency: all with u + v <= 3.
ZIGZAG = ((0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0))


def dct_kernels():
    """The 16 kept basis pictures, (16, 3, 8, 8) float32, orthonormal as vectors of 192 pixels.

    Channels 0-9: luma, the ZIGZAG order; 10-12 and 13-15: the two chroma axes, the first three of that order.
    """
    position = torch.arange(8.0, device="cpu")  # also where parameters are built on the meta device
    frequency = position.unsqueeze(1)
    dct = torch.cos(math.pi / 8 * (position + 0.5) * frequency) / 2  # (8 frequencies, 8 pixels)
    dct[0] *= 0.5 ** 0.5  # every row has norm 1
    kernels = []
    for axis, kept in zip(COLOUR_AXES, (10, 3, 3)):
        for u, v in ZIGZAG[:kept]:
            kernels.append(torch.tensor(axis, device="cpu").view(3, 1, 1) * torch.outer(dct[u], dct[v]))
    return torch.stack(kernels)


class DctVAE(nn.Module):
    """Training-free stand-in for Cosmos: the same latent shape, 16 of 192 DCT coefficients a block.

    The kept coefficients are orthonormal: encode is a stride-8 convolution, decode its transpose, and
    encode(decode(z)) == z. Distances survive: for two pictures in the kept subspace
        mean((z - z')^2) = 192 / 16 * mean((x - x')^2),
    with pixels in [-1, 1]; what the subspace drops (fine detail) costs nothing in latent space.

    No parameters and an empty state dict: the kernels are a non-persistent buffer.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("kernels", dct_kernels(), persistent=False)

    def encode(self, images):
        """images (N, 3, H, W) in [-1, 1], H and W multiples of 8 -> z (N, 16, H/8, W/8), in the dtype of images."""
        return F.conv2d(images, self.kernels.to(images.dtype), stride=8)

    def decode(self, z):
        """z (N, 16, h, w) -> images (N, 3, 8h, 8w), near [-1, 1] but not clamped, in the dtype of z."""
        return F.conv_transpose2d(z, self.kernels.to(z.dtype), stride=8)
