"""One layout of the engine: the buffers that a recorded graph reads and writes, and the tables that masks decide."""

from typing import NamedTuple

import torch

from attention_mask import MASKED, valid_tokens
from data import Batch
from support.rotary import positions, rotary_tables


class Shape(NamedTuple):
    """What a Program is built for; another shape is another Program."""

    samples: int
    views: tuple    # which of the three are computed
    text: int       # slots for words
    cached: bool    # latents of t-m are given
    imagine: bool   # z_hat is wanted
    handover: str = "cold"   # one of handover.HANDOVERS


class Program:
    """Buffers and tables of one Shape: inputs, caches, spans of the kept tokens u (und), g (gen), state, n (all)."""

    def __init__(self, model, shape):
        config, layout, self.shape = model.config, model.layout, shape
        B, V, device = shape.samples, len(shape.views), model.act.state_proj.weight.device
        self.u = V * layout.per_view + shape.text
        self.g = self.u + V * layout.gen
        self.n = self.g + 1 + config.chunk
        spans = [(v * layout.per_view, layout.per_view) for v in shape.views]
        spans += [(layout.views * layout.per_view, shape.text)]
        spans += [(layout.n_und + v * layout.gen, layout.gen) for v in shape.views]
        spans += [(layout.n_und + layout.n_gen, layout.n_act)]
        # Places in the joint sequence of the tokens that are computed, in its order.
        self.keep = torch.cat([torch.arange(start, start + length) for start, length in spans]).to(device)

        def buffer(*size, dtype=torch.float32):
            return torch.zeros(size, dtype=dtype, device=device)

        grid, d, size = config.latent_grid, config.head_dim, config.frame_size
        self.image = buffer(B, V, 3 * config.und_frames, config.view_size, config.view_size, dtype=torch.uint8)
        self.frames = buffer(B, V, 1 if shape.cached else 2, 3, size, size, dtype=torch.uint8)
        self.z_past = buffer(B, V, 16, grid, grid) if shape.cached else None
        self.text_ids = buffer(B, shape.text, dtype=torch.long)
        self.state, self.real = buffer(B, config.state_dim), buffer(B, 1, config.action_dim)
        self.eps = buffer(B, config.chunk, config.action_dim)
        if shape.handover != "cold":
            self.rest, self.weight = torch.zeros_like(self.eps), torch.zeros_like(self.eps[0])
        self.rotary = None if config.learned_positions else (buffer(B, self.n, 1, d), buffer(B, self.n, 1, d))
        # What the action expert's rows see: the state and k actions, once for each of the heads that share a key.
        self.bias = buffer(B, 1, config.heads // config.kv_heads * layout.n_act, self.n, dtype=model.dtype)
        self.keys, self.values = ([buffer(B, config.kv_heads, self.n, d, dtype=model.dtype)
                                   for _ in range(config.layers)] for _ in range(2))
        self.mask, self.replay = None, None   # the masks placed last; the graph that was recorded

    def load(self, batch, eps, z_past, guide):
        """Copy a batch in. With given latents the generation expert's frames at t-m are not read."""
        def there(x):   # the views computed; a list as an index would be sent to the GPU, and waited for
            return x if len(self.shape.views) == 3 else torch.stack([x[:, v] for v in self.shape.views], 1)

        inputs = {"image": there(batch.image), "frames": there(batch.frames[:, :, 1 if self.shape.cached else 0:2]),
                  "text_ids": batch.text_ids[:, :self.shape.text], "state": batch.state,
                  "real": batch.dim_mask[:, None], "eps": eps}
        if self.shape.cached:
            inputs["z_past"] = there(z_past)
        if guide is not None:
            inputs |= {"rest": guide.rest, "weight": guide.weight}
        for name, source in inputs.items():
            mine = getattr(self, name)
            if mine.is_cuda and not source.is_cuda:   # nobody waits for the copy; torch keeps its source until then
                source = source.to(mine.dtype).contiguous().pin_memory()
            mine.copy_(source, non_blocking=True)

    def place(self, model, batch):
        """Positions and padding of a batch's prompts, where they are not those of the last batch. Only here do values
        decide anything, and only here is a GPU waited for."""
        mask = torch.cat([batch.view_mask, batch.text_mask], 1).cpu()
        if self.mask is not None and torch.equal(mask, self.mask):
            return
        device = self.keep.device
        masks = batch.view_mask.to(device), batch.text_mask.to(device)
        if self.rotary is not None:
            position = positions(model.layout, *masks)[:, self.keep]
            for mine, new in zip(self.rotary, rotary_tables(position, model.rope_frequency, model.rope_axis)):
                mine.copy_(new.transpose(1, 2))                          # (B, n, 1, d)
            self.rotary[1][..., :model.config.head_dim // 2].neg_()      # as `block` reads it
        valid = valid_tokens(model.layout, *masks)[:, self.keep]
        self.bias.zero_().masked_fill_(~valid[:, None, None], MASKED)
        self.bias[:, :, ::model.layout.n_act, self.g + 1:] = MASKED      # the state token sees no action
        self.mask = mask


def random_batch(config, B=1, seed=0):
    """Noise of the right shapes for inference: three views, a prompt that fills the budget."""
    random, S, s = torch.Generator().manual_seed(seed), config.view_size, config.frame_size
    return Batch(image=torch.randint(256, (B, 3, 3 * config.und_frames, S, S), generator=random, dtype=torch.uint8),
                 frames=torch.randint(256, (B, 3, 2, 3, s, s), generator=random, dtype=torch.uint8),
                 text_ids=torch.randint(config.vocab, (B, config.text_tokens), generator=random),
                 state=torch.randn(B, config.state_dim, generator=random),
                 view_mask=torch.ones(B, 3, dtype=torch.bool),
                 text_mask=torch.ones(B, config.text_tokens, dtype=torch.bool),
                 dim_mask=torch.ones(B, config.action_dim, dtype=torch.bool))
