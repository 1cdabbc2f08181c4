"""x W^T + b, with the weight on the left where that is faster.

On a CPU oneDNN repacks its right operand at every call. With few rows of x the weight is by far the larger operand, so
W x^T, the same product, is faster. Nowhere else does the order matter.
"""

import torch.nn.functional as F

FEW_ROWS = 128


def linear(x, weight, bias=None):
    """x (..., K), weight (N, K), bias (N,) or None -> (..., N)."""
    if x.device.type == "cpu" and bias is None and x.numel() // x.shape[-1] <= FEW_ROWS:
        return (weight @ x.reshape(-1, x.shape[-1]).T).T.view(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)
