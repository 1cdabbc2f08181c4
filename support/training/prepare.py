"""The model as it trains: what is frozen, recomputed, compiled, averaged and sharded, and in which dtype."""

import functools

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from support.precision import to_compute


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
    optimizer, average or None). The model itself is changed.

    Order matters: masters are taken before the cast, the average before layers are wrapped, recomputation goes around
    compilation, and sharding is last."""
    freeze(model, train.frozen)
    masters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if train.optimizer != "fp32":
        to_compute(model, torch.bfloat16)   # gives parameters new storage: the masters keep the float32 one
    model.to(ranks.device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(train.ema)) if train.ema else None
    if model.config.gen_expert and ranks.device.type == "cpu":   # beside a large network it weighs nothing
        fold_compression(model.gen)
    if train.compile:
        for layer in model.layers:
            layer.forward = torch.compile(layer.forward, dynamic=False)
    if train.checkpoint_layers:
        checkpoint_layers(model)
    return ranks.wrap(model, shard), masters, average
