"""How good is it? Losses and foresight on held-out windows.

Foresight is scored against the obvious rival, "nothing changes": error of z_hat_{t+m} over error of copying z_t."""

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

import flow
from data import collate, example, generator

HELD_OUT_SEED = 1_000_003   # noise of the validation losses, the same for every run


class Marked(NamedTuple):
    """What a world wants to see foreseen on its held-out episodes e, beyond the whole picture."""

    group: Callable   # e -> what its scores are called by, such as "static"
    marks: Callable   # (e, t) -> (name, x, y) of objects in the head view at frame t, fractions of it from the top left
    half: float       # half the side of the square that is cut around a mark, as a fraction of the picture


class Foresight(NamedTuple):
    """One held-out window in pictures, each (V, 3, H, W) uint8 and through the tokenizer."""

    past: torch.Tensor        # z_{t-m}
    present: torch.Tensor     # z_t
    imagined: torch.Tensor    # z_hat_{t+m}
    true: torch.Tensor        # z_{t+m}
    view_mask: torch.Tensor   # (V,) bool


def held_out_batches(config, stats, source, rows, limit):
    """Yield (Batch, eps, tau, rows) over at most `limit` held-out windows, evenly spread, with fixed noise."""
    size = 2 * config.train.batch_size
    rows, model = rows[np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int)], config.model
    for first in range(0, len(rows), size):
        part = rows[first:first + size]
        batch = collate([example(model, config.data.m, stats, source, int(e), int(t)) for e, t in part])
        generators = [generator(HELD_OUT_SEED, first + i) for i in range(len(part))]
        eps = np.stack([rng.standard_normal((1, model.chunk, model.action_dim), np.float32) for rng in generators])
        tau = np.stack([flow.sample_tau(rng, 1, model.tau_density) for rng in generators]).astype(np.float32)
        yield batch, torch.from_numpy(eps), torch.from_numpy(tau), part


@torch.no_grad()
def validate(model, config, batches, marked=None):
    """Held-out losses and foresight -> (dict of floats, Foresight or None). batches: as held_out_batches yields them,
    the same on every rank. The dict has loss_act, loss_gen, per kind of view (and group of `marked`) the error of
    z_hat over that of copying z_t, and the same in pixels around each mark. Foresight is of the first batch."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    act, gen, pairs, shown = np.zeros(2), np.zeros(2), defaultdict(list), None   # sums and counts
    for batch, eps, tau, rows in batches:
        losses = model(batch.to(device), eps.to(device), tau.to(device), latents=True)
        act += float(losses.act_sum), float(losses.act_count)
        gen += float(losses.gen_sum), float(losses.gen_count)
        if losses.z_hat is None:
            continue
        _add_latent_errors(pairs, losses, batch, rows, marked)
        if marked:
            imagined = model.to_pictures(losses.z_hat[:, 0]).cpu()
            _add_pixel_errors(pairs, imagined, batch, rows, marked, config.data.m)
        shown = shown or _foresight(model, losses, batch)
    model.train(training)
    report = {"loss_act": float(act[0] / max(act[1], 1))}
    if config.model.gen_expert:
        report["loss_gen"] = float(gen[0] / max(gen[1], 1))
    for name, errors in sorted(pairs.items()):
        imagined, copied = np.sum(errors, 0)
        if copied > 0:   # where nothing changed at all the ratio says nothing
            report[f"foresight_{name}"] = float(imagined / copied)
    return report, shown


def _add_latent_errors(pairs, losses, batch, rows, marked):
    """Add (error of z_hat, error of copying z_t) of every view with a true future to pairs[kind of view]."""
    imagined, copied = ((x - losses.z[:, :, 2]).square().mean((2, 3, 4)).cpu().numpy()     # (B, V)
                        for x in (losses.z_hat, losses.z[:, :, 1]))
    for b, v in (batch.future_mask[:, None] & batch.view_mask).nonzero().tolist():
        group = f"{marked.group(rows[b][0])}_" if marked else ""
        pairs[group + ("wrist" if v else "head")].append((imagined[b, v], copied[b, v]))


def _add_pixel_errors(pairs, imagined, batch, rows, marked, m):
    """The same of pixels in a window of the head view around each mark's true place at t+m. imagined (B, 3, H, W)."""
    size = imagined.shape[-1]
    half = round(marked.half * size)
    for picture, (_, now, true), (e, t) in zip(imagined.float(), batch.frames[:, 0].float(), rows):
        for name, x, y in marked.marks(e, t + m):
            column, row = round(x * size), round(y * size)
            window = (slice(None), slice(max(0, row - half), row + half), slice(max(0, column - half), column + half))
            pairs[f"crop_{name}"].append([float((x[window] - true[window]).square().mean()) for x in (picture, now)])


def _foresight(model, losses, batch):
    """The window of a batch in which most changes until t+m -> Foresight; None where no window has a future."""
    if not batch.future_mask.any():
        return None
    change = (losses.z[:, :, 2] - losses.z[:, :, 1]).square().mean((1, 2, 3, 4)).cpu()
    b = int(change.masked_fill(~batch.future_mask, -1).argmax())
    latents = torch.stack([*losses.z[b, :, :2].unbind(1), losses.z_hat[b], losses.z[b, :, 2]])   # (4, V, 16, g, g)
    return Foresight(*model.to_pictures(latents).cpu(), batch.view_mask[b])


def held_out_losses(checkpointer, corpus, marked=None):
    """What `validate` gives of a run. All ranks call it, but the first alone has opened what is held out. Sharded, the
    others take part in its forward passes, on what it sends them; else, or where nothing is held out, ({}, None)."""
    config, ranks, stats = checkpointer.config, checkpointer.ranks, checkpointer.by_robot[corpus.held_out_robot]
    model, sharded = checkpointer.average.module if checkpointer.average else checkpointer.model, checkpointer.sharded
    if not (ranks.first or sharded) or not corpus.holds_out:
        return {}, None
    own = held_out_batches(config, stats, corpus.held_out, corpus.held_out_windows,
                           config.train.eval_windows) if ranks.first else iter(())
    return validate(model, config, iter(lambda: ranks.agree(next(own, None)), None) if sharded else own, marked)
