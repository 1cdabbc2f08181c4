"""How good is it? Losses and foresight on held-out windows, success in closed loop.

Foresight is scored against the obvious rival, "nothing changes": error of z_hat_{t+m} over error of copying z_t.
The crop score asks the same of pixels at the place where the object really is at t+m.
"""

import numpy as np
import torch

from worlds import conveyor
import flow
from data import VIEWS, collate, example, stream

HELD_OUT_SEED = 1_000_003   # noise of the validation losses, the same for every run


def held_out_batches(config, stats, source, rows, limit):
    """Yield (Batch, eps, tau, rows) over at most `limit` held-out windows, evenly spread, with fixed noise."""
    size = 2 * config.train.batch_size
    rows = rows[np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int)]
    model = config.model
    for first in range(0, len(rows), size):
        part = rows[first:first + size]
        batch = collate([example(model, config.data.m, stats, source, int(e), int(t)) for e, t in part])
        streams = [stream(HELD_OUT_SEED, first + i) for i in range(len(part))]
        eps = np.stack([rng.standard_normal((1, model.chunk, model.action_dim), np.float32) for rng in streams])
        tau = np.stack([flow.sample_tau(rng, 1, model.tau_density) for rng in streams]).astype(np.float32)
        yield batch, torch.from_numpy(eps), torch.from_numpy(tau), part


def shared(batches, ranks):
    """What the first rank reads, on every rank: of held-out data it alone has opened something. All ranks call it."""
    while (item := ranks.agree(next(batches, None) if ranks.first else None)) is not None:
        yield item


@torch.no_grad()
def validate(model, config, stats, source, rows, limit, ranks=None):
    """Held-out losses and foresight -> dict of floats: loss_act, loss_gen, and per view (and suite) the error of
    z_hat over that of copying z_t; in the embedded world also crop_target and crop_distractor, dynamic scenes.

    ranks: those of a sharded model, which all take part; source and rows may be None on all but the first, whose numbers
    count. None: this process alone."""
    training = model.training
    model.eval()
    sums, counts, ratios, crops = [0.0, 0.0], [0, 0], {}, {}
    device = next(model.parameters()).device
    first = ranks is None or ranks.first
    batches = held_out_batches(config, stats, source, rows, limit) if first else None
    for batch, eps, tau, part in batches if ranks is None else shared(batches, ranks):
        losses = model(batch.to(device), eps.to(device), tau.to(device), pictures=True)
        for i, (total, count) in enumerate(((losses.act_sum, losses.act_count), (losses.gen_sum, losses.gen_count))):
            sums[i] += float(total)
            counts[i] += int(count)
        if losses.z_hat is None or not first:
            continue
        imagined = (losses.z_hat - losses.z[:, :, 2]).square().mean((2, 3, 4)).cpu().numpy()     # (B, V)
        copied = (losses.z[:, :, 1] - losses.z[:, :, 2]).square().mean((2, 3, 4)).cpu().numpy()
        for b, (e, _) in enumerate(part):
            if not batch.future_mask[b]:
                continue
            labels = source.labels(int(e))
            suite = f"{labels['suite']}_" if "suite" in labels else ""
            for v in range(len(VIEWS)):
                if batch.view_mask[b, v]:
                    name = suite + ("head" if v == 0 else "wrist")
                    ratios.setdefault(name, []).append((imagined[b, v], copied[b, v]))
        if "target" in source.labels(0):
            _crops(crops, source, part, model.to_pictures(losses.z_hat[:, 0]).cpu(), batch, config.data.m)
    model.train(training)
    report = {"loss_act": sums[0] / max(counts[0], 1)}
    if config.model.gen_expert:
        report["loss_gen"] = sums[1] / max(counts[1], 1)
    for name, pairs in sorted({**ratios, **crops}.items()):
        imagined, copied = np.sum(pairs, 0)
        if copied > 0:   # where nothing changed at all the ratio says nothing
            report[f"foresight_{name}"] = float(imagined / copied)
    return report


def _crops(crops, source, part, imagined, batch, m):
    """Add squared pixel errors in a window of the head view around each object's true place at t+m."""
    size = imagined.shape[-1]
    half = round(conveyor.RADIUS * size / 2)
    for b, (e, t) in enumerate(part):
        labels = source.labels(int(e))
        if labels["suite"] != "dynamic":
            continue
        true, now = batch.frames[b, 0, 2].float(), batch.frames[b, 0, 1].float()
        for thing in ("target", "distractor"):
            x, y = labels[thing][t + m]
            if not np.isfinite(x) or abs(x) > 1 or abs(y) > 1:
                continue
            column, row = (x + 1) / 2 * size, (1 - y) / 2 * size
            window = (slice(None), slice(max(0, round(row) - half), round(row) + half),
                      slice(max(0, round(column) - half), round(column) + half))
            pair = [float((picture[window] - true[window]).square().mean()) for picture in (imagined[b].float(), now)]
            crops.setdefault(f"crop_{thing}", []).append(pair)
