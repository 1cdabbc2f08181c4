"""The arm of `bench claims arms` that imagines nothing, and must show where the named target is now.

L_gen may teach which object is meant, and not only how it moves. This arm's loss asks for the first, not the second.
The paper has no such loss: [ours], of the embedded world alone."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from model import InternVLA_A1, masked_sum
from worlds import conveyor
from worlds.conveyor.setting import COLOURS

CELL = 4   # pixels: a token of the head view covers 4 x 4 cells


def silhouettes(batch):
    """Which share of each cell of the head picture of frame t the named target covers -> (B, 16 tokens, 16 cells of it)
    float32; zeros where it is not seen."""
    texts = [bytes(ids[mask].tolist()).decode().split() for ids, mask in zip(batch.text_ids, batch.text_mask)]
    seen = np.array([conveyor.silhouette(picture, next(word for word in text if word in COLOURS))
                     for picture, text in zip(batch.frames[:, 0, 1].permute(0, 2, 3, 1).numpy(), texts)])
    seen = seen > seen.max((1, 2), keepdims=True) / 5   # a hand in warm light is a little red
    cells = F.avg_pool2d(torch.from_numpy(seen).float(), CELL)                                # (B, 16, 16)
    return F.unfold(cells[:, None], 4, stride=4).transpose(1, 2)


class NamesPlace(InternVLA_A1):
    """The model without generation expert, and a head that draws the target's silhouette from the understanding
    expert's tokens of the head view, before the last layer. Its cross entropy takes the seat of L_gen. For one forward
    pass at a time."""

    weight = 1.0   # of the cross entropy, in L_gen: lambda counts too

    def __init__(self, config):
        super().__init__(config)
        self.place = nn.Sequential(nn.LayerNorm(config.und_width), nn.Linear(config.und_width, 16))
        self.layers[-1].register_forward_pre_hook(self._keep)

    def _keep(self, layer, given):
        self.h_und = given[0]["und"]

    def forward(self, batch, eps, tau, latents=False):
        losses, true = super().forward(batch, eps, tau, latents), silhouettes(batch)
        said = self.place(self.h_und[:, :16]).float()
        error = self.weight * F.binary_cross_entropy_with_logits(said, true, reduction="none")
        losses.gen_sum, losses.gen_count = masked_sum(error, true.any(-1).any(-1)[:, None, None])
        return losses

    def counts(self, batch, tau):
        return super().counts(batch, tau)[0], 256 * int(silhouettes(batch).any(-1).any(-1).sum())
