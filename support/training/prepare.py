"""The model as it trains: what is frozen, recomputed, compiled, averaged, sharded; in which dtype, on which cores."""

import functools
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from support.weights.loading import to_compute


def freeze(model, names):
    """Switch off gradients -> model. names: out of "und" (the understanding expert), "vision", "embed" (its parts)."""
    parts = {"vision": [model.und.visual], "embed": [model.und.embed_tokens],
             "und": [model.und, *(layer.und for layer in model.layers)]}
    for name in names:
        for part in parts[name]:
            part.requires_grad_(False)
    return model


def checkpoint_layers(model):
    """Each joint layer and each vision layer keeps its input alone and is computed again in the backward pass."""
    for layer in (*model.layers, *model.und.visual.layers):
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def fold_compression(gen):
    """Token Compression's two convolutions become one, whose weight is their product: a ninth of the work is left
    where the preset `conveyor` trains. Nothing stands between the two, so it is the same function, and both learn."""
    inner, outer = gen.proj_in, gen.compress

    def forward(z):
        weight = torch.einsum("odhw,dc->ochw", outer.weight, inner.weight[:, :, 0, 0])
        return F.conv2d(z, weight, outer.bias + outer.weight.sum((2, 3)) @ inner.bias, outer.stride)
    inner.forward, outer.forward = lambda z: z, forward


def prepare(model, train, ranks, shard):
    """A fresh float32 model on the CPU -> (the module to call, float32 values of the trained parameters for the
    optimizer, average or None). The model itself is changed, in this order: masters are taken before the cast, the
    average before layers are wrapped, recomputation goes around compilation, and sharding is last."""
    freeze(model, train.frozen)
    masters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if train.optimizer != "fp32":
        to_compute(model, torch.bfloat16)   # gives what it casts new storage: the masters keep the float32 one
    model.to(ranks.device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(train.ema)) if train.ema else None
    if model.config.gen_expert and ranks.device.type == "cpu":   # on a GPU, with a large network, it saves nothing
        fold_compression(model.gen)
    if train.compile:
        for layer in model.layers:
            layer.forward = torch.compile(layer.forward, dynamic=False)
    if train.checkpoint_layers:
        checkpoint_layers(model)
    return ranks.wrap(model, shard), masters, average


class Cores:
    """How the micro-batches of one step run: one after the other, or a single one as two halves at once, each on half
    of the cores. A small network has small matrices: shared out among cores, each waits for the others at every one.

    Halves: with several threads on a CPU, without other ranks. A gradient is the sum of two terms then, whichever is
    ready first. They run on threads of their own: this one keeps its number of torch threads."""

    def __init__(self, train, ranks):
        threads = torch.get_num_threads()
        plain = not train.compile and train.optimizer != "offload"   # compiled layers, and its hooks, take one thread
        alone = ranks.device.type == "cpu" and ranks.dealt == train.accumulate == 1
        self.pool = None
        if alone and plain and threads > 1 and train.batch_size > 1:
            self.pool = ThreadPoolExecutor(2, "half", torch.set_num_threads, (threads // 2,))

    def parts(self, micro):
        """micro: list of (Batch, eps, tau) -> the same, or the two halves of its only one."""
        if not self.pool:
            return micro
        (batch, eps, tau), half = micro[0], -(-len(micro[0][1]) // 2)
        return [(batch.rows(rows), eps[rows], tau[rows]) for rows in (slice(half), slice(half, None))]

    def each(self, function, items):
        """map(function, items), an item for each of what `parts` gave."""
        return (self.pool.map if self.pool else map)(function, items)
