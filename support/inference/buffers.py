"""One layout of the engine: all that is fixed for a number of samples, a set of views and a text budget.

A `Program` owns the buffers that a recorded graph reads and writes, and the tables that follow from the masks.
support/inference/engine.py computes on them.
"""

from dataclasses import dataclass

import torch

from attention_mask import MASKED, valid_tokens
from support.inference.fused import signed
from support.rotary import positions, rotary_tables


@dataclass(frozen=True)
class Shape:
    """What a Program is built for; another shape is another Program.

    samples B; views: which of the three are computed; text: slots for words; padded: some slots may be empty;
    cached: latents of t-m are given; imagine: z_hat is wanted.
    """

    samples: int
    views: tuple
    text: int
    padded: bool
    cached: bool
    imagine: bool


class Program:
    """Buffers and tables of one Shape: inputs, caches, spans of the kept tokens u (und), g (gen), state, n (all)."""

    def __init__(self, model, shape):
        config, layout, self.shape = model.config, model.layout, shape
        B, V, device = shape.samples, len(shape.views), model.act.state_proj.weight.device
        self.u = V * layout.per_view + shape.text
        self.g = self.u + V * layout.gen
        self.n = self.g + 1 + config.chunk
        self.keep = self._kept(layout).to(device)

        def buffer(*size, dtype=torch.float32):
            return torch.zeros(size, dtype=dtype, device=device)

        grid, d, size = config.latent_grid, config.head_dim, config.frame_size
        self.image = buffer(B, V, 3, config.view_size, config.view_size, dtype=torch.uint8)
        self.frames = buffer(B, V, 1 if shape.cached else 2, 3, size, size, dtype=torch.uint8)
        self.z_past = buffer(B, V, 16, grid, grid) if shape.cached else None
        self.text_ids = buffer(B, shape.text, dtype=torch.long)
        self.state, self.real = buffer(B, config.state_dim), buffer(B, 1, config.action_dim)
        self.eps = buffer(B, config.chunk, config.action_dim)
        self.rotary = None if config.learned_positions else (buffer(B, self.n, 1, d), buffer(B, self.n, 1, d))
        self.bias = buffer(B, 1, 1, self.n, dtype=model.dtype) if shape.padded else None
        self.keys, self.values = ([buffer(B, config.kv_heads, self.n, d, dtype=model.dtype)
                                   for _ in range(config.layers)] for _ in range(2))
        self.mask = None
        self.pinned, self.sent = {}, torch.cuda.Event() if device.type == "cuda" else None

    def _kept(self, layout):
        """Places in the joint sequence of the tokens that are computed, in its order."""
        views = [torch.arange(layout.per_view) + v * layout.per_view for v in self.shape.views]
        text = layout.views * layout.per_view + torch.arange(self.shape.text)
        gen = [torch.arange(layout.gen) + layout.n_und + v * layout.gen for v in self.shape.views]
        return torch.cat([*views, text, *gen, layout.n_und + layout.n_gen + torch.arange(layout.n_act)])

    def load(self, batch, eps, z_past):
        """Copy a batch in. With given latents the frames at t-m are not read."""
        cached = self.shape.cached
        inputs = {"image": self._there(batch.image), "frames": self._there(batch.frames[:, :, 1 if cached else 0:2]),
                  "text_ids": batch.text_ids[:, :self.shape.text], "state": batch.state, "real": batch.dim_mask[:, None],
                  "eps": eps} | ({"z_past": self._there(z_past)} if cached else {})
        if self.sent is not None:
            self.sent.synchronize()   # the last call's copies have left pinned memory
        for name, source in inputs.items():
            self._send(name, source)
        if self.sent is not None:
            self.sent.record()

    def _there(self, x):
        """(B, 3, ...) -> (B, V, ...), the views computed; a list as an index would be sent to the GPU, and waited for."""
        return x if len(self.shape.views) == 3 else torch.stack([x[:, v] for v in self.shape.views], 1)

    def _send(self, name, source):
        """Into a buffer. From the CPU to a GPU it goes through pinned memory, so that nobody waits for the copy."""
        mine = getattr(self, name)
        if mine.is_cuda and not source.is_cuda:
            if name not in self.pinned:
                self.pinned[name] = torch.empty_like(mine, device="cpu", pin_memory=True)
            source = self.pinned[name].copy_(source)
        mine.copy_(source, non_blocking=mine.is_cuda)

    def place(self, model, batch):
        """Positions and padding of a batch's prompts: the only place where values decide anything, and the only one that
        waits for a GPU. Nothing is done when the masks are those of the last batch."""
        mask = torch.cat([batch.view_mask, batch.text_mask], 1).cpu()
        if self.mask is not None and torch.equal(mask, self.mask):
            return
        device = self.keep.device
        masks = batch.view_mask.to(device), batch.text_mask.to(device)
        if self.rotary is not None:
            position = positions(model.layout, *masks)[:, self.keep]
            cos, sin = (table[:, 0, :, None] for table in
                        rotary_tables(position, model.rope_frequency, model.rope_axis))          # (B, n, 1, d)
            half = cos.shape[-1] // 2
            for mine, new in zip(self.rotary, signed(cos[..., :half], sin[..., :half])):
                mine.copy_(new)
        if self.bias is not None:
            valid = valid_tokens(model.layout, *masks)[:, self.keep]
            self.bias.copy_(torch.zeros_like(self.bias).masked_fill_(~valid[:, None, None], MASKED))
        self.mask = mask
