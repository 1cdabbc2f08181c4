"""Will it fit? Memory of training, predicted before anything is allocated, and the knobs that change it."""

import functools
import resource
from contextlib import contextmanager

import torch
from torch.utils.checkpoint import checkpoint


def vision_layers(model):
    """The vision tower's layers, each a unit of recomputation; none in the embedded world's conv stem."""
    return getattr(model.und.visual, "layers", None) or getattr(model.und.visual, "blocks", None) or []


def freeze(model, names):
    """Switch off gradients. names: a set out of "und" (the whole understanding expert), "vision", "embed" (its parts)."""
    parts = {"vision": [model.und.visual], "embed": [model.und.embed_tokens],
             "und": [model.und, *(layer.und for layer in model.layers)]}
    for name in names:
        for part in parts[name]:
            part.requires_grad_(False)


def checkpoint_layers(model):
    """Each joint layer and each vision layer keeps its input alone and is computed again in the backward pass."""
    for layer in (*model.layers, *vision_layers(model)):
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


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


@contextmanager
def explained(train, device):
    """Out of memory becomes one line: the peak, the batch and the flags that help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        full = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
        if not full:
            raise
        half = max(train.batch_size // 2, 1)
        raise ValueError(
            f"out of memory at a peak of {peak(device):.1f} GB with --batch_size {train.batch_size}, --optimizer "
            f"{train.optimizer}, --checkpoint_layers {str(train.checkpoint_layers).lower()}. What helps: --batch_size "
            f"{half} --accumulate {train.accumulate * train.batch_size // half} (the same batch), --checkpoint_layers "
            "true, --optimizer split or offload; --dry-run prints what fits") from error


def checkpoint_bytes(model, train):
    """Size of one checkpoint: weights and optimizer state as full tensors."""
    size = sum(x.numel() * x.element_size() for x in model.state_dict().values())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state = {"fp32": 8, "split": 6, "offload": 12}[train.optimizer]
    return size * (2 if train.ema else 1) + state * trained
