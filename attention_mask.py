"""Who sees whom: the cumulative segment mask of Sec. 3.2 Attention Mechanism.

One sequence holds the tokens of all three experts. Each token belongs to a segment, and a token sees every
segment up to its own:

                       key
                       und und und | gen gen gen | state | a  a  a
    query  und  (0)     1   1   1  |  .   .   .  |   .   | .  .  .
           gen  (1)     1   1   1  |  1   1   1  |   .   | .  .  .
           state (2)    1   1   1  |  1   1   1  |   1   | .  .  .
           action (3)   1   1   1  |  1   1   1  |   1   | 1  1  1

That is one comparison: segment(query) >= segment(key). Two refinements follow.
    - Padded text and missing views are never keys.
    - In training, R action draws [ours] may share the und and gen tokens. Each draw sees those and itself.

Order of the sequence: views (head, left wrist, right wrist), text, generation tokens (by view, time, row, column),
then for each draw the state token and k action tokens. Order and counts never change. A missing token stays in the
sequence: it is masked, and takes no rotary position (support/rotary.py)."""

from dataclasses import dataclass

import torch

UND, GEN, STATE, ACTION = range(4)
MASKED = -2.3819763e38   # finite, so that a row with no visible key stays finite forward and backward


@dataclass(frozen=True)
class Layout:
    """Token counts of one sequence."""

    side: int               # a view is side x side tokens
    text: int
    gen: int                # generation tokens of a view; 0: no generation expert
    chunk: int              # k action tokens stand behind one state token
    views: int = 3
    marks: int = 0          # understanding tokens before a view, such as <img>, and as many behind it
    draws: int = 1          # R
    mrope: bool = False     # a view's tokens have a row and a column as positions (Qwen3-VL)

    @property
    def per_view(self):
        return self.side ** 2 + 2 * self.marks

    @property
    def n_und(self):
        return self.views * self.per_view + self.text

    @property
    def n_gen(self):
        return self.views * self.gen

    @property
    def n_act(self):
        return self.draws * (1 + self.chunk)


def segments(layout):
    """Segment of each token, (N,) int64."""
    act = [STATE] + [ACTION] * layout.chunk
    return torch.tensor([UND] * layout.n_und + [GEN] * layout.n_gen + act * layout.draws)


def draw_of_token(layout):
    """Action draw of each token, (N,) int64; -1 for the prefix, which all draws share."""
    act = [r for r in range(layout.draws) for _ in range(1 + layout.chunk)]
    return torch.tensor([-1] * (layout.n_und + layout.n_gen) + act)


def valid_tokens(layout, view_mask, text_mask):
    """view_mask (B, V) bool, text_mask (B, text) bool -> which tokens exist, (B, N) bool."""
    und = view_mask.repeat_interleave(layout.per_view, 1)                          # (B, V * per_view)
    gen = view_mask.repeat_interleave(layout.gen, 1)                               # (B, N_gen)
    act = view_mask.new_ones(len(view_mask), layout.n_act)
    return torch.cat([und, text_mask, gen, act], 1)


def segment_mask(segment, draw, valid):
    """segment (N,), draw (N,), valid (B, N) -> allowed (B, N, N) bool, [b, query, key]."""
    cumulative = segment[:, None] >= segment[None, :]                              # Sec. 3.2 Attention Mechanism
    same_draw = (draw[:, None] == draw[None, :]) | (draw[None, :] < 0)
    return (cumulative & same_draw)[None] & valid[:, None, :]


def attention_bias(allowed, dtype=torch.float32):
    """allowed (B, N, N) bool -> what is added to the scores, (B, 1, N, N): 0 where allowed, else MASKED."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, MASKED)[:, None]
