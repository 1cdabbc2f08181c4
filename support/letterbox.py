"""From a camera's picture to a square of the model's size: scaled to fit, centred on black.

The one definition for training, inference and the frame cache: what they deliver is equal bit for bit.
"""

import numpy as np
import torch
import torch.nn.functional as F


def box(H, W, size):
    """Where an H x W picture lies in its square: (top, left, h, w)."""
    scale = min(size / H, size / W)
    h, w = round(H * scale), round(W * scale)
    return (size - h) // 2, (size - w) // 2, h, w


def fit(x, size):
    """(N, 3, H, W) float -> (N, 3, size, size): scaled to fit, centred on black. [release] bilinear, no antialias."""
    H, W = x.shape[-2:]
    if H == W == size:
        return x
    top, left, h, w = box(H, W, size)
    x = F.interpolate(x, (h, w), mode="bilinear", align_corners=False)
    return F.pad(x, (left, size - w - left, top, size - h - top))


def letterbox(picture, size):
    """(H, W, 3) uint8 -> (3, size, size) uint8: `fit`, rounded to whole grey levels [ours].

    A picture of a frame cache holds the result ready (support/frame_cache.py).
    """
    if hasattr(picture, "letterboxed"):
        return picture.letterboxed(size)
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return x if x.shape[1] == x.shape[2] == size else fit(x[None].float(), size)[0].round().byte()
