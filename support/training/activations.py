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
from model import InternVLA_A1
from support.precision import to_compute
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
    """(Batch, eps, tau) of B samples of noise with everything present. config: ModelConfig."""
    def pixels(*shape):
        return torch.randint(0, 256, shape, dtype=torch.uint8)

    def true(*shape):
        return torch.ones(shape, dtype=torch.bool)

    view, frame, k, d = config.view_size, config.frame_size, config.chunk, config.action_dim
    batch = Batch(image=pixels(B, 3, 3, view, view), frames=pixels(B, 3, 3, 3, frame, frame), view_mask=true(B, 3),
                  text_ids=torch.zeros(B, config.text_tokens, dtype=torch.int64), text_mask=true(B, config.text_tokens),
                  state=torch.randn(B, config.state_dim), dim_mask=true(B, d), action=torch.randn(B, k, d),
                  action_mask=true(B, k, d), future_mask=true(B))
    return batch, torch.randn(B, config.action_draws, k, d), torch.rand(B, config.action_draws)


def skeleton(config, fp32, frozen):
    """The network in its training dtypes, on the meta device. fp32: or else bfloat16; frozen: as for `freeze`."""
    with torch.device("meta"):
        model = InternVLA_A1(config)
    freeze(model, frozen)
    return model if fp32 else to_compute(model, torch.bfloat16)


def allocate(model):
    """Give a skeleton memory, without values; inside a FakeTensorMode that memory is fake."""
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(torch.empty(p.shape, dtype=p.dtype), p.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


@functools.lru_cache
def fake_step(config, fp32, frozen, recompute, B):
    """Bytes that a micro-batch of B takes at its peak, above weights and gradients, which are there already.

    config: ModelConfig; recompute: layers are computed again in the backward pass; fp32, frozen: as for `skeleton`.
    """
    model = skeleton(config, fp32, frozen)
    with FakeTensorMode(), Peak() as peak, card_attention():
        allocate(model)
        for p in model.parameters():
            p.grad = torch.empty_like(p) if p.requires_grad else None
        if recompute:
            checkpoint_layers(model)
        before = peak.now
        model(*synthetic(config, B)).total(1.0, 1, 1).backward()
        return peak.peak - before
