"""From a camera's picture to a square of the model's size: scaled to fit, centred on black.

The one definition for training, inference and the frame cache: what they deliver is equal bit for bit."""

import threading

import numpy as np
import torch
import torch.nn.functional as F

from support.data.picture import check_size

_LAST = threading.local()   # a thread's last picture as float: memory fresh from the system costs a third of scaling


def box(H, W, size):
    """Where an H x W picture lies in its square: (top, left, h, w). ValueError: so thin that nothing is left of it."""
    check_size(H, W, "a picture")
    scale = min(size / H, size / W)
    h, w = round(H * scale), round(W * scale)
    return (size - h) // 2, (size - w) // 2, h, w


def fit(x, size, dtype=torch.float32):
    """(N, 3, H, W) float -> (N, 3, size, size) of `dtype`; torch.uint8 is rounded. [release] bilinear, no antialias."""
    top, left, h, w = box(*x.shape[-2:], size)
    x = x if x.shape[-2:] == (h, w) else F.interpolate(x, (h, w), mode="bilinear", align_corners=False)
    square = torch.zeros(len(x), 3, size, size, dtype=dtype)
    square[..., top:top + h, left:left + w] = x.round() if dtype == torch.uint8 else x
    return square


def letterbox(picture, size):
    """(H, W, 3) uint8 -> (3, size, size) uint8: `fit`, in whole grey levels [ours]; or what a picture holds ready."""
    if hasattr(picture, "letterboxed"):
        return picture.letterboxed(size)
    picture = np.asarray(picture)
    if picture.shape[:2] == (size, size):
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    if not hasattr(_LAST, "x") or _LAST.x.shape != picture.shape:
        _LAST.x = np.empty(picture.shape, np.float32)
    np.copyto(_LAST.x, picture)
    return fit(torch.from_numpy(_LAST.x).permute(2, 0, 1)[None], size, torch.uint8)[0]
