"""The work of a run, and what this machine's own rates make of it.

`Ledger` notes the operations and bytes of every matrix product, convolution and attention of a run. `floor` is the time
that they take with each at this machine's best: its rate in a large product, or its rate of copying, whichever is
slower. Nothing else is counted, so no program is expected to be faster. Bytes are the operands that the run did not
compute, once per use, and the keys and values of attention; other activations stay in a cache.
"""

import time
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

NOT_LAUNCHED = {"view", "_unsafe_view", "reshape", "transpose", "permute", "t", "unsqueeze", "squeeze", "expand",
                "slice", "select", "split", "split_with_sizes", "unbind", "alias", "detach", "as_strided", "device",
                "unflatten", "chunk"}


class Ledger(TorchDispatchMode):
    """with Ledger() as seen: run() -> seen.work: Counter of (FLOP, bytes); seen.operations: Counter of names launched.

    A multiplication and its addition are two floating-point operations.
    """

    def __init__(self):
        super().__init__()
        self.work, self.operations, self.made = Counter(), Counter(), set()   # made: storages that the run computed

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.name().split("::")[1].split(".")[0], kwargs or {}
        given = [x for x in tensors(args) if storage(x) not in self.made]
        out = func(*args, **kwargs)
        if name.startswith("_scaled_dot_product") and "backward" not in name:
            query, key, value = args[:3]   # torch has no formula for the CPU's kernel
            self.work[4 * query.numel() * key.shape[-2], size([key, value])] += 1
        elif func.overloadpacket in flop_registry:
            read = args[1:2] if name == "bmm" else given   # attention, where torch spells it out
            self.work[flop_registry[func.overloadpacket](*args, **kwargs, out_val=out), size(read)] += 1
        if name not in NOT_LAUNCHED:
            self.operations[name] += 1
            self.made |= {storage(x) for x in tensors(out)}
        return out


def tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def storage(x):
    """What a tensor and its views have in common."""
    return x.untyped_storage()._cdata


def size(found):
    """Bytes of some tensors."""
    return sum(x.numel() * x.dtype.itemsize for x in found)


def total_flops(work):
    return sum(count * flops for (flops, _), count in work.items())


def total_bytes(work):
    return sum(count * read for (_, read), count in work.items())


def floor(work, peak, bandwidth):
    """Seconds with each operation at max(FLOP / peak, bytes / bandwidth); peak in FLOP/s, bandwidth in byte/s."""
    return sum(count * max(flops / peak, read / bandwidth) for (flops, read), count in work.items())


def seconds_of(call, device):
    """Wall clock of call(), with all that it started on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def rates(device, dtype):
    """What the machine can do, best of three: (FLOP/s of a large product, byte/s of a copy)."""
    side, count = (8192, 1 << 28) if device.type == "cuda" else (2048, 1 << 26)
    x, source = torch.ones(side, side, device=device, dtype=dtype), torch.ones(count, device=device)
    target = torch.empty_like(source)
    calls = (lambda: x @ x.T), (lambda: target.copy_(source))
    product, copy = (min(seconds_of(call, device) for _ in range(4)) for call in calls)   # the first one warms up
    return 2 * side ** 3 / product, 2 * size([source]) / copy
