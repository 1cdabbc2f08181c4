"""Will it fit? Memory of training, predicted before anything is allocated.

Weights, gradients and optimizer states are arithmetic. Activations come from fake tensors, which have shapes and no
memory: the network is run forward and backward at three micro-batches and the peak recorded, half a minute for the
largest. That follows the code as it is; tests/test_memory.py compares it with real tensors and with whole steps.

The prediction is of the memory that tensors take. A CUDA context and fragmentation come on top: MARGIN.
"""

import contextlib
import functools
import os
import resource
import weakref
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data import Batch
from model import InternVLA_A1
from support import table1
from support.precision import to_compute
from support.training import optimizers
from support.training.ranks import Ranks
from support.training.prepare import checkpoint_layers, freeze, prepare

MARGIN = 1.0                          # GiB of a card that are left alone: CUDA's own memory and fragmentation
MICRO = (16, 8, 4, 2, 1)              # micro-batches that the table shows and --fit tries
STATE = {"fp32": 8, "split": 6, "offload": 12}   # bytes of optimizer state a parameter, wherever it lies


# ---- accounting -------------------------------------------------------------------------------------------------

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


def fake_step(config, train, B):
    """Bytes that a micro-batch of B takes at its peak, above weights and gradients, which are there already."""
    model = skeleton(config, train.optimizer == "fp32", train.frozen)
    with FakeTensorMode(), Peak() as peak, card_attention():
        allocate(model)
        for p in model.parameters():
            p.grad = torch.empty_like(p) if p.requires_grad else None
        if train.checkpoint_layers:
            checkpoint_layers(model)
        before = peak.now
        model(*synthetic(config, B)).total(1.0, 1, 1).backward()
        return peak.peak - before


@dataclass(frozen=True)
class Activations:
    """What fake_step gives, as a function of the micro-batch: straight lines between measured sizes.

    The peak is the largest of several moments that each grow with the batch, so between two sizes the line is an upper
    bound. Beyond the last one it would be too low.
    """

    measured: tuple   # (micro-batch, bytes) pairs, ascending

    @classmethod
    def measure(cls, config, train):
        """config: ModelConfig; train: its checkpoint_layers, dtype and frozen parts count."""
        sizes = sorted({1, 8, max(*MICRO, train.batch_size)})
        return cls(tuple((B, fake_step(config, train, B)) for B in sizes))

    def __call__(self, B):
        """Bytes at a micro-batch of B, at most the largest that was measured."""
        assert B <= self.measured[-1][0], f"activations were not measured at a micro-batch of {B}"
        return float(np.interp(B, *zip(*self.measured)))


NO_ACTIVATIONS = Activations(((1 << 30, 0.0),))


# ---- prediction -------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Need:
    """Bytes of one setting. host: on top of the process itself; disk: one checkpoint."""

    weights: int
    gradients: int
    states: int
    activations: float
    host: int
    disk: int

    @property
    def device(self):
        return self.weights + self.gradients + self.states + self.activations


@functools.lru_cache
def sizes(config, fp32, frozen):
    """Of a network in its training dtypes: (bytes of all weights, of the trained ones and of the largest of those,
    number of trained ones, and of those among them that compute in float32 whatever the rest does)."""
    model = skeleton(config, fp32, frozen)
    trained = [p for p in model.parameters() if p.requires_grad]
    bytes_of = [p.numel() * p.element_size() for p in trained]
    return (sum(p.numel() * p.element_size() for p in model.parameters()), sum(bytes_of), max(bytes_of),
            sum(p.numel() for p in trained), sum(p.numel() for p in trained if p.dtype == torch.float32))


def predict(config, activations=None):
    """Config -> Need, for one card that holds everything. activations: an Activations, measured if not given."""
    train = config.train
    activations = activations or Activations.measure(config.model, train)
    weights, gradients, largest, n, exact = sizes(config.model, train.optimizer == "fp32", frozenset(train.frozen))
    state = STATE[train.optimizer] * n - (2 * exact if train.optimizer == "split" else 0)   # these need no low bits
    away = train.optimizer == "offload"
    return Need(weights=weights * (2 if train.ema else 1), gradients=gradients, states=0 if away else state,
                activations=activations(train.batch_size), host=state + 4 * largest if away else 0,   # four buffers
                disk=weights * (2 if train.ema else 1) + state)


def settings(config):
    """What --fit may choose from, best first: faster optimizers before leaner ones (float32 where the config has it
    alone), and with each the largest micro-batch without recomputation from 4 on, then with it. The effective batch
    stays, and so does --freeze."""
    total = config.train.batch_size * config.train.accumulate
    kinds = ["fp32"] * (config.train.optimizer == "fp32") + ["split", "offload"]
    order = [(False, config.train.batch_size), (False, 8), (False, 4), (True, 16), (True, 8), (True, 4), (False, 2),
             (True, 2), (True, 1)]
    for kind in kinds:
        for recompute, B in order:
            if total % B == 0 and not (kind != "fp32" and config.train.ema):
                train = replace(config.train, optimizer=kind, checkpoint_layers=recompute, batch_size=B,
                                accumulate=total // B)
                yield replace(config, train=train)


class Predictor:
    """predict for settings of one network, with activations measured once for each dtype and way of keeping them."""

    def __init__(self):
        self.known = {}

    def activations(self, config):
        key = config.train.optimizer == "fp32", config.train.checkpoint_layers
        if key not in self.known:
            self.known[key] = Activations.measure(config.model, config.train)
        return self.known[key]

    def __call__(self, config):
        return predict(config, self.activations(config))


def fit(config, memory_gb, predictor=None):
    """The first of `settings` that fits a card of memory_gb GiB. ValueError: none does."""
    predictor = predictor or Predictor()
    for setting in settings(config):
        if predictor(setting).device <= (memory_gb - MARGIN) * 2 ** 30:
            return setting
    raise ValueError(f"nothing fits {memory_gb:.0f} GiB, not even {describe(setting.train)}: "
                     f"--freeze und, or several cards with --shard, for which --fit does not count")


def describe(train):
    return (f"--optimizer {train.optimizer} --checkpoint_layers {str(train.checkpoint_layers).lower()} "
            f"--batch_size {train.batch_size} --accumulate {train.accumulate}")


def table(config, memory_gb, predictor):
    """The memory table of a config and what to choose, as printable lines."""
    need, gib = predictor(config), 2 ** 30
    lines = [f"memory of training {config.name}, predicted, in GiB: {describe(config.train)}"
             + (f" --freeze {config.train.freeze}" if config.train.freeze else "")]
    lines += [f"  {name:<22}{getattr(need, name) / gib:>8.2f}" for name in ("weights", "gradients", "states",
                                                                           "activations")]
    verdict = "fits" if need.device <= (memory_gb - MARGIN) * gib else "does not fit"
    lines += [f"  {'on the device':<22}{need.device / gib:>8.2f}   {verdict} {memory_gb:.0f} GiB, {MARGIN} left alone",
              f"  {'host, masters, moments':<22}{need.host / gib:>8.2f}",
              f"  {'disk, one checkpoint':<22}{need.disk / gib:>8.2f}   three at the peak"]
    lines.append(f"  {'activations by micro-batch':<28}" + "".join(f"{B:>8}" for B in reversed(MICRO)))
    for recompute in (False, True):
        at = predictor.activations(replace(config, train=replace(config.train, checkpoint_layers=recompute)))
        lines.append(f"  {'  --checkpoint_layers ' + str(recompute).lower():<28}"
                     + "".join(f"{at(B) / gib:>8.2f}" for B in reversed(MICRO)))
    try:
        lines.append(f"for {memory_gb:.0f} GiB, as --fit would choose: "
                     f"{describe(fit(config, memory_gb, predictor).train)}")
    except ValueError as error:
        lines.append(str(error))
    return lines


def parameter_table(config):
    """Table 1 for this preset, and the memory that training all parameters needs, as printable lines."""
    lines = table1.table(config)
    need, fp32 = predict(config, NO_ACTIVATIONS), config.train.optimizer == "fp32"
    trained = sizes(config.model, fp32, frozenset(config.train.frozen))[3]
    lines.append(f"  {'trained':<52}{trained / 1e6:>8.2f}   --optimizer {config.train.optimizer}: weights, gradients "
                 f"and states take {need.device / 2 ** 30:.1f} GiB; --dry-run counts activations too")
    return lines


def dry_run(config, device, memory_gb):
    """Print the table; then, where there is room for it, one real step on a synthetic batch, measured."""
    predictor = Predictor()
    print("\n".join(table(config, memory_gb, predictor)), flush=True)
    need = predictor(config)
    here = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else \
        os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    wanted = need.device + (0 if device.type == "cuda" else need.host)
    if wanted > 0.9 * here:
        print(f"no real step: it needs {wanted / 2 ** 30:.1f} GiB, free are {here / 2 ** 30:.1f} "
              f"({'on this card' if device.type == 'cuda' else 'in this machine; no CUDA device here'})")
        return
    if device.type == "cuda":   # a larger card plays one of memory_gb
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gb / card(device)), device)
    with explained(config.train, device):
        measured = real_step(config)
    print(f"real steps on {device.type}: predicted {need.device / 2 ** 30:.3f} GiB, measured "
          f"{measured / 2 ** 30:.3f} ({measured / need.device:.1%})")


def real_step(config):
    """Two optimizer steps on noise, the second of two micro-batches -> bytes on the device at the peak: by then the
    optimizer's states exist, and gradients while activations are made."""
    ranks = Ranks()
    peak = Peak() if ranks.device.type == "cpu" else contextlib.nullcontext()
    with peak, card_attention() if ranks.device.type == "cpu" else contextlib.nullcontext():
        model = InternVLA_A1(config.model)
        _, optimizer, _ = prepare(model, config.train, ranks, False)
        if ranks.device.type == "cpu":
            peak.peak = peak.now
        for micro_batches in (1, 2):
            for _ in range(micro_batches):
                tensors = (x.to(ranks.device) for x in synthetic(config.model, config.train.batch_size))
                model(*tensors).total(1.0, 1, 1).backward()
                del tensors
            norm = optimizers.global_norm(optimizer.parameters.values())
            optimizer.step(config.train.lr, optimizers.clip_scale(norm, config.train.clip))
            for p in optimizer.parameters.values():
                p.grad = None
    optimizer.finish()
    if ranks.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak.peak - (optimizer.host_bytes() if isinstance(optimizer, optimizers.Offload) else 0)


# ---- while it runs ----------------------------------------------------------------------------------------------

def card(device):
    """Memory of this machine's card in GiB, 24 without one."""
    return torch.cuda.get_device_properties(device).total_memory / 2 ** 30 if device.type == "cuda" else 24.0


def peak(device):
    """Largest memory so far in GB: of the card, or of this process without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def now(device):
    """What timing.jsonl says of memory."""
    return {"peak_gb": round(peak(device), 3)}


@contextlib.contextmanager
def explained(train, device):
    """Out of memory becomes one line: the peak, the batch and the flags that help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        full = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
        if not full:
            raise
        raise ValueError(
            f"out of memory at a peak of {peak(device):.1f} GB with --batch_size {train.batch_size}, --optimizer "
            f"{train.optimizer}, --checkpoint_layers {str(train.checkpoint_layers).lower()}. What helps: "
            f"{', '.join(leaner(train))}; --dry-run prints what fits") from error


def leaner(train):
    """Flags that need less memory than a TrainConfig has, the cheapest first."""
    B = next((B for B in range(train.batch_size // 2, 0, -1) if train.batch_size % B == 0), None)
    if B:
        yield f"--batch_size {B} --accumulate {train.accumulate * train.batch_size // B} (the same batch)"
    if not train.checkpoint_layers:
        yield "--checkpoint_layers true"
    if train.optimizer != "offload" and not train.ema:
        yield "--optimizer offload" if train.optimizer == "split" else "--optimizer split or offload"
    if "und" not in train.frozen:
        yield "--freeze und"
    yield "several cards with --shard"
