"""How much memory does one forward and backward pass take? Counted on fake tensors, which have shapes and no memory."""

import contextlib
import functools
import weakref
from unittest import mock

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data import Batch
from support.precision import to_compute
from support.table1 import on_meta
from support.trace import sample
from support.training.prepare import checkpoint_layers, freeze


class Peak(TorchDispatchMode):
    """Context that follows the storages of all tensors made in it, real or fake. now, peak: bytes."""

    def __init__(self):
        super().__init__()
        self.live, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.prim.device.default:   # most of the calls of a fake step
            return out
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.device.type != "meta":
                self._follow(x.untyped_storage())
        return out

    def _follow(self, storage):
        key = storage._cdata
        if key not in self.live:
            self.live[key] = storage.nbytes()
            self.now += self.live[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key):
        self.now -= self.live.pop(key)


@contextlib.contextmanager
def card_attention():
    """Attention as a CUDA card does it. Grouped heads with a mask have no fused kernel there and go the plain way,
    which keeps the scores; all else is fused."""
    fused = F.scaled_dot_product_attention

    def attend(*args, enable_gqa=False, attn_mask=None, **kwargs):
        plain = sdpa_kernel(SDPBackend.MATH) if enable_gqa and attn_mask is not None else contextlib.nullcontext()
        with plain:
            return fused(*args, enable_gqa=enable_gqa, attn_mask=attn_mask, **kwargs)

    # Replaced rather than intercepted by a torch mode: recomputation in the backward pass would escape a mode.
    with mock.patch.object(F, "scaled_dot_product_attention", attend):
        yield


def synthetic(config, B):
    """(Batch, eps, tau) of B samples with everything present. config: ModelConfig."""
    batch = Batch(**{name: torch.cat(B * [x]) for name, x in vars(sample(config)).items()})
    R = config.action_draws
    return batch, torch.randn(B, R, *batch.action.shape[1:]), torch.rand(B, R)


def skeleton(config, fp32, frozen):
    """The network in its training dtypes, on the meta device. fp32: or else bfloat16; frozen: as for `freeze`."""
    model = on_meta(config)
    freeze(model, frozen)
    return model if fp32 else to_compute(model, torch.bfloat16)


@functools.lru_cache
def fake_step(config, fp32, frozen, recompute, B):
    """Bytes that a micro-batch of B takes at its peak, above weights and gradients, which are there already.

    config: ModelConfig; recompute: layers are computed again in the backward pass; fp32, frozen: as for `skeleton`.
    """
    model = skeleton(config, fp32, frozen)
    with FakeTensorMode(allow_non_fake_inputs=True), Peak() as peak, card_attention():
        model.to_empty(device="cpu")
        for p in model.parameters():
            p.grad = torch.empty_like(p) if p.requires_grad else None
        if recompute:
            checkpoint_layers(model)
        before = peak.now
        model(*synthetic(config, B)).total(1.0, 1, 1).backward()
        return peak.peak - before
