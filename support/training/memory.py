"""Will it fit? The memory that tensors of a training take, predicted before anything is allocated.

Weights, gradients and optimizer states are arithmetic. Activations are counted on fake tensors, of shapes alone."""

import functools
import os
import resource
import weakref
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import InternVLA_A1
from support import table1
from support.trace import sample
from support.training import optimizers
from support.training.prepare import checkpoint_layers, freeze, prepare
from support.training.ranks import Ranks
from support.weights.loading import to_compute

MARGIN = 1.0                     # GiB of a card that are left alone: CUDA's own memory and fragmentation
MICRO = (1, 2, 4, 8, 16)         # micro-batches that the table shows
CHOICES = ((False, 8), (False, 4), (True, 16), (True, 8), (True, 4), (False, 2), (True, 2), (True, 1))
STATE = {"fp32": 8, "split": 6, "offload": 12}   # bytes of optimizer state a parameter, wherever it lies


class Peak(TorchDispatchMode):
    """Context that follows the storages of all tensors made in it, real or fake. now, peak: bytes."""

    def __init__(self):
        super().__init__()
        self.live, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = (x for x in tree_leaves(out) if isinstance(x, torch.Tensor) and x.device.type != "meta")
        for storage in (x.untyped_storage() for x in tensors):
            if storage._cdata not in self.live:
                self.live[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._drop, storage._cdata)
        return out

    def _drop(self, key):
        self.now -= self.live.pop(key)


def card_attention():
    """Context with attention as a CUDA card does it: fused, and grouped heads repeated first (experts.attend)."""
    fused = F.scaled_dot_product_attention

    def attend(query, *pair, enable_gqa=False, **kwargs):
        if enable_gqa:
            pair = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in pair)
        return fused(query, *pair, **kwargs)
    # Replaced rather than intercepted by a torch mode: recomputation in the backward pass would escape a mode.
    return mock.patch.object(F, "scaled_dot_product_attention", attend)


def synthetic(config, B):
    """(Batch, eps, tau) of B samples with everything present. config: ModelConfig."""
    R = config.action_draws
    return sample(config, B), torch.randn(B, R, config.chunk, config.action_dim), torch.rand(B, R)


def skeleton(config, fp32, frozen):
    """The network of a ModelConfig on the meta device. fp32: or else mostly bfloat16; frozen: as for `freeze`."""
    model = freeze(table1.on_meta(config), frozen)
    return model if fp32 else to_compute(model, torch.bfloat16)


@functools.lru_cache
def fake_step(config, fp32, frozen, recompute, B):
    """Bytes that a micro-batch of B takes at its peak, above weights and gradients. recompute: as checkpoint_layers."""
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


class Need(NamedTuple):
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
    number of trained ones, and of those among them in float32)."""
    model = skeleton(config, fp32, frozen)
    trained = [p for p in model.parameters() if p.requires_grad]
    return (sum(p.nbytes for p in model.parameters()), sum(p.nbytes for p in trained), max(p.nbytes for p in trained),
            sum(p.numel() for p in trained), sum(p.numel() for p in trained if p.dtype == torch.float32))


def predict(config, activations=None):
    """Config -> Need, for one card that holds everything. activations: their bytes; None: they are counted."""
    train = config.train
    fp32, frozen, away = train.optimizer == "fp32", frozenset(train.frozen), train.optimizer == "offload"
    if activations is None:
        activations = fake_step(config.model, fp32, frozen, train.checkpoint_layers, train.batch_size)
    weights, gradients, largest, n, exact = sizes(config.model, fp32, frozen)
    weights *= 2 if train.ema else 1
    state = STATE[train.optimizer] * n - (2 * exact if train.optimizer == "split" else 0)   # these need no low bits
    return Need(weights, gradients, 0 if away else state, activations,
                host=state + 4 * largest if away else 0, disk=weights + state)   # on the host four buffers


def settings(config):
    """What --fit may choose from, best first: faster optimizers before leaner ones, and with each the largest
    micro-batch without recomputation from 4 on, then with it. The effective batch stays, and so does --freeze."""
    train, total = config.train, config.train.batch_size * config.train.accumulate
    kinds = ["fp32"] if train.optimizer == "fp32" else []   # only where it is asked for
    kinds += [] if train.ema else ["split", "offload"]
    for kind in kinds:
        for recompute, B in ((False, train.batch_size), *CHOICES):
            if total % B == 0:
                yield replace(config, train=replace(train, optimizer=kind, checkpoint_layers=recompute, batch_size=B,
                                                    accumulate=total // B))


def fit(config, memory_gb):
    """The first of `settings` that fits a card of memory_gb GiB. ValueError: none does."""
    room = (memory_gb - MARGIN) * 2 ** 30
    for setting in settings(config):
        if predict(setting, activations=0).device <= room and predict(setting).device <= room:
            return setting
    raise ValueError(f"nothing fits {memory_gb:.0f} GiB, not even {describe(setting.train)}: "
                     f"--freeze und, or several cards with --shard, for which --fit does not count")


def describe(train):
    return (f"--batch_size {train.batch_size} --accumulate {train.accumulate} --optimizer {train.optimizer} "
            f"--checkpoint_layers {str(train.checkpoint_layers).lower()}")


def table(config, memory_gb):
    """The memory table of a config and what to choose, as printable lines."""
    need, gib, train = predict(config), 2 ** 30, config.train
    verdict = "fits" if need.device <= (memory_gb - MARGIN) * gib else "does not fit"
    lines = [f"memory of training {config.name}, predicted, in GiB: {describe(train)}"
             + (f" --freeze {train.freeze}" if train.freeze else "")]
    rows = {name: getattr(need, name) for name in ("weights", "gradients", "states", "activations")} | {
        "on the device": need.device, "host, masters, moments": need.host, "disk, one checkpoint": need.disk}
    notes = {"on the device": f"   {verdict} {memory_gb:.0f} GiB, {MARGIN} left alone",
             "disk, one checkpoint": "   three at the peak"}
    lines += [f"  {what:<22}{size / gib:>8.2f}{notes.get(what, '')}" for what, size in rows.items()]
    lines.append(f"  {'activations by micro-batch':<28}" + "".join(f"{B:>8}" for B in MICRO))
    for recompute in (False, True):
        trains = [replace(train, checkpoint_layers=recompute, batch_size=B) for B in MICRO]
        lines.append(f"  {'  --checkpoint_layers ' + str(recompute).lower():<28}"
                     + "".join(f"{predict(replace(config, train=x)).activations / gib:>8.2f}" for x in trains))
    try:
        lines.append(f"for {memory_gb:.0f} GiB, as --fit would choose: {describe(fit(config, memory_gb).train)}")
    except ValueError as error:
        lines.append(str(error))
    return lines


def parameter_table(config):
    """Table 1 for this preset, and the memory that training all parameters needs, as printable lines."""
    need, train = predict(config, activations=0), config.train
    trained = sizes(config.model, train.optimizer == "fp32", frozenset(train.frozen))[3]
    return [*table1.table(config),
            f"  {'trained':<52}{trained / 1e6:>8.2f}   --optimizer {train.optimizer}: weights, gradients "
            f"and states take {need.device / 2 ** 30:.1f} GiB; --dry-run counts activations too"]


def dry_run(config, device, memory_gb):
    """Print the table; then, where there is room for it, real steps on a synthetic batch, measured."""
    print("counting memory on fake tensors: a few seconds for each micro-batch of a large model", flush=True)
    print(*table(config, memory_gb), sep="\n", flush=True)
    need, cuda = predict(config), device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    wanted = need.device + (0 if cuda else need.host)
    if wanted > 0.9 * free:
        return print(f"no real step: it needs {wanted / 2 ** 30:.1f} GiB, free are {free / 2 ** 30:.1f} "
                     f"({'on this card' if cuda else 'in this machine; no CUDA device here'})")
    if cuda:   # a larger card plays one of memory_gb
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gb / card(device)), device)
    with explained(config.train, device):
        measured = real_step(config)
    print(f"real steps on {device.type}: predicted {need.device / 2 ** 30:.3f} GiB, measured "
          f"{measured / 2 ** 30:.3f} ({measured / need.device:.1%})")


def real_step(config):
    """Two optimizer steps, the second of two micro-batches -> bytes on the device at the peak: by then the optimizer's
    states exist, and gradients while activations are made."""
    ranks, train = Ranks(), config.train
    on_cpu = ranks.device.type == "cpu"
    with Peak() if on_cpu else nullcontext() as counted, card_attention() if on_cpu else nullcontext():
        model = InternVLA_A1(config.model)
        _, masters, _ = prepare(model, train, ranks, False)
        optimizer = optimizers.adamw(train.optimizer, model, masters)
        if on_cpu:
            counted.peak = counted.now
        for micro_batches in (1, 2):
            for _ in range(micro_batches):
                tensors = (x.to(ranks.device) for x in synthetic(config.model, train.batch_size))
                model(*tensors).total(1.0, 1, 1).backward()
            norm = optimizers.global_norm(optimizer.parameters.values())
            optimizer.step(train.lr, optimizers.clip_scale(norm, train.clip))
            optimizer.zero_grad()
    optimizer.finish()
    # On the CPU what is kept on the host lies beside what would lie on the device.
    return counted.peak - predict(config, activations=0).host if on_cpu else torch.cuda.max_memory_allocated()


def card(device):
    """Memory of this machine's card in GiB, 24 without one."""
    return torch.cuda.get_device_properties(device).total_memory / 2 ** 30 if device.type == "cuda" else 24.0


def peak(device):
    """Largest memory so far in GB: of the card, or of this process without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@contextmanager
def explained(train, device):
    """Out of memory becomes one line: the peak, the batch and the flags that help, those that are not set."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)):
            raise
        leaner = {"a smaller --batch_size and a larger --accumulate": train.batch_size > 1,
                  "--checkpoint_layers true": not train.checkpoint_layers,
                  "--optimizer split": train.optimizer == "fp32" and not train.ema,
                  "--optimizer offload": train.optimizer != "offload" and not train.ema,
                  "--freeze und": "und" not in train.frozen, "several cards with --shard": True}
        flags = ", ".join(flag for flag, helps in leaner.items() if helps)
        raise ValueError(f"out of memory at a peak of {peak(device):.1f} GB with {describe(train)}. "
                         f"What helps: {flags}; --dry-run prints what fits") from error
