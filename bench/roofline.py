"""How fast could it be? The work of a run, phase by phase, and what this machine makes of such work.

`Ledger` records every matrix product, convolution and attention of a run with its shapes; operations and bytes follow
from the shapes. Two bounds from them:

    peak floor     each operation at the machine's best: max(operations / large-product rate, bytes / copy rate)
    shape floor    each operation as fast as this machine does it alone, at its own shape, a product's weights not in the cache

Nothing else is counted, so no program is expected to be faster than the first, and one as fast as the second spends no
time on anything but products. Bytes: weights once per use, keys and values of attention; other activations stay in a cache.
"""

import time
from collections import Counter

import torch
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from support.inference.fused import linear

NOT_LAUNCHED = {"view", "_unsafe_view", "reshape", "transpose", "permute", "t", "unsqueeze", "squeeze", "expand", "slice",
                "select", "split", "split_with_sizes", "unbind", "alias", "detach", "as_strided", "device", "unflatten",
                "chunk"}
COLD_BYTES = 256 << 20   # weights are cycled through this much memory, so that a repeat does not find them cached


class Ledger(TorchDispatchMode):
    """with Ledger() as seen: run() -> seen.work: Counter of (kind, shapes, dtype); seen.operations: all that is launched.

    kinds: product (M, K, N), whose weight is K x N; batched (B, M, K, N); convolution (n, C_in, H, W, C_out, k,
    stride); transposed (the same); attention (B, heads, rows, d, keys).
    """

    def __init__(self):
        super().__init__()
        self.work, self.operations, self.made = Counter(), Counter(), set()   # made: storages that the run computed

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        found = self._work(name, args)
        if found:
            self.work[found] += 1
        out = func(*args, **(kwargs or {}))
        if name not in NOT_LAUNCHED:
            self.operations[name] += 1
            self.made |= {storage(x) for x in tree_leaves(out) if isinstance(x, torch.Tensor)}
        return out

    def _work(self, name, args):
        if name in ("mm", "addmm"):
            one, other = args[-2:]
            (M, K), N = one.shape, other.shape[1]
            if storage(one) not in self.made and storage(other) in self.made:   # support/inference/fused.py, linear: the weight is on the left
                M, N = N, M
            return "product", (M, K, N), one.dtype
        if name == "bmm":
            return "batched", (*args[0].shape, args[1].shape[2]), args[0].dtype
        if name == "convolution":
            x, weight, stride, moved = args[0], args[1], args[3], args[6]
            channels = weight.shape[1] if moved else weight.shape[0]
            return "transposed" if moved else "convolution", (*x.shape, channels, weight.shape[-1], stride[0]), x.dtype
        if name.startswith("_scaled_dot_product") and "backward" not in name:
            B, heads, rows, d = args[0].shape
            return "attention", (B, heads, rows, d, args[1].shape[2]), args[0].dtype
        return None


def storage(x):
    """What a tensor and its views have in common."""
    return x.untyped_storage()._cdata


def flops(kind, shape):
    """Floating-point operations; a multiplication and its addition are two."""
    if kind == "product":
        M, K, N = shape
        return 2 * M * K * N
    if kind == "batched":
        B, M, K, N = shape
        return 2 * B * M * K * N
    if kind == "attention":
        B, heads, rows, d, keys = shape
        return 4 * B * heads * rows * d * keys
    n, C_in, H, W, C_out, k, stride = shape
    if kind == "transposed":
        return 2 * n * C_in * C_out * k * k * H * W
    # Padding is not recorded. 3x3 kernels keep the grid or, padded below and right, halve it; patches tile it.
    places = (H * W if k == 3 and stride == 1 else (H // stride) * (W // stride))
    return 2 * n * C_in * C_out * k * k * places


def weight_bytes(kind, shape, dtype):
    """Bytes of the weight, of a batched product's right operand, or of attention's keys and values."""
    if kind == "product":
        return shape[1] * shape[2] * dtype.itemsize
    if kind == "batched":
        return shape[0] * shape[2] * shape[3] * dtype.itemsize
    if kind == "attention":
        B, heads, rows, d, keys = shape
        return 2 * B * heads * keys * d * dtype.itemsize
    return shape[1] * shape[4] * shape[5] ** 2 * dtype.itemsize


# ---- this machine -----------------------------------------------------------------------------------------------

def seconds_of(call, device, calls, repeats=3):
    """Best mean time of `calls` successive call(i); best, because a floor asks what is possible."""
    found = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for i in range(calls):
            call(i)
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append((time.perf_counter() - began) / calls)
    return min(found[1:])


def time_alone(kind, shape, dtype, device):
    """Seconds of one operation of a ledger, alone, a product's weights cycled through cold memory."""
    def operand(*size):   # written once, so that it has memory of its own; what it holds does not change the time
        return torch.ones(size, device=device, dtype=dtype)

    copies = min(max(2, COLD_BYTES // max(weight_bytes(kind, shape, dtype), 1)), 1024)   # below 256 kB they stay warm
    calls = int(min(max(copies, 4), max(2, 2e11 // flops(kind, shape))))
    if kind == "product":
        M, K, N = shape
        x, weights = operand(M, K), [operand(N, K) for _ in range(copies)]
        forms = [lambda i: F.linear(x, weights[i % copies]), lambda i: linear(x, weights[i % copies])]
        return min(seconds_of(form, device, calls) for form in forms)
    if kind == "batched":
        B, M, K, N = shape
        one, other = operand(B, M, K), operand(B, K, N)
        return seconds_of(lambda i: torch.bmm(one, other), device, calls)
    if kind == "attention":
        B, heads, rows, d, keys = shape
        query, key, value = operand(B, heads, rows, d), operand(B, heads, keys, d), operand(B, heads, keys, d)
        return seconds_of(lambda i: F.scaled_dot_product_attention(query, key, value), device, calls)
    n, C_in, H, W, C_out, k, stride = shape
    x = operand(n, C_in, H, W).contiguous(memory_format=torch.channels_last)
    size = (C_out, C_in, k, k) if kind == "convolution" else (C_in, C_out, k, k)
    weights = [operand(*size).contiguous(memory_format=torch.channels_last) for _ in range(min(copies, 2))]
    function = F.conv2d if kind == "convolution" else F.conv_transpose2d
    padding = 1 if kind == "convolution" and k == 3 and stride == 1 else 0
    return seconds_of(lambda i: function(x, weights[i % 2], stride=stride, padding=padding), device, min(calls, 3))


def probes(device, dtype):
    """What the machine can do: dict of copy_gb_s, large_gemm_tflop_s and gemm_m51_tflop_s (51 x 1024 x 4096)."""
    count = (1 << 30 if device.type == "cuda" else 1 << 28) // 4
    source, target = torch.ones(count, device=device), torch.empty(count, device=device)
    copy = 8 * count / seconds_of(lambda i: target.copy_(source), device, 4)
    side = 8192 if device.type == "cuda" else 2048
    found = {"copy_gb_s": copy / 1e9}
    for name, shape in (("large_gemm_tflop_s", (side, side, side)), ("gemm_m51_tflop_s", (51, 1024, 4096))):
        found[name] = flops("product", shape) / time_alone("product", shape, dtype, device) / 1e12
    return found


def shape_times(ledgers, device):
    """Seconds alone of every distinct operation of some ledgers -> {(kind, shape, dtype): seconds}."""
    return {key: time_alone(*key, device) for key in set().union(*ledgers)}


def shape_floor(work, times):
    """Seconds of a ledger's operations one after the other, each as fast as it is alone."""
    return sum(count * times[key] for key, count in work.items())


def peak_floor(work, peak, bandwidth):
    """Seconds with each operation at max(operations / peak, bytes / bandwidth); peak in FLOP/s, bandwidth in byte/s."""
    return sum(count * max(flops(kind, shape) / peak, weight_bytes(kind, shape, dtype) / bandwidth)
               for (kind, shape, dtype), count in work.items())


def total_flops(work):
    return sum(count * flops(kind, shape) for (kind, shape, _), count in work.items())


def kernels(run):
    """Kernels, copies and fills that run() makes the GPU execute, those inside a CUDA graph one by one: torch.profiler's."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA and not event.name.endswith(" Sync") for event in seen.events())


def predict_4090(work, kernels):
    """Seconds of a bfloat16 run on an RTX 4090, were it one CUDA graph of so many kernels. A prediction, not a measurement.

    Each operation at 75 % of the card's 165 TFLOP/s or 85 % of its 1008 GB/s, whichever takes longer, and 1.2 us a
    kernel for its start and its end.
    """
    return peak_floor(work, .75 * 165e12, .85 * 1008e9) + 1.2e-6 * kernels
