"""Where a token stands, on one axis (Qwen2.5) or three (Qwen3-VL), and rotary embedding of queries and keys."""

import torch


def positions(layout, view_mask, text_mask):
    """Rotary positions (B, N, 3) int64 on the axes time, row, column, the same in training and inference.

    Blocks stand in the order views, text, generation views, actions; one starts where the valid ones before it end. An
    image advances by its side under M-RoPE, else by its tokens. Every draw takes the same positions. What tokens that
    do not exist hold here is read by nobody."""
    device, B = view_mask.device, len(view_mask)
    grid = torch.arange(layout.side, device=device)
    if layout.mrope:
        row, column = grid.repeat_interleave(layout.side), grid.repeat(layout.side)
        image, span = torch.stack([torch.zeros_like(row), row, column], 1), layout.side
    else:
        image, span = _line(layout.side ** 2, device), layout.side ** 2
    view = torch.cat([_line(layout.marks, device), layout.marks + image,
                      layout.marks + span + _line(layout.marks, device)])         # (per_view, 3)
    text = (text_mask.cumsum(1) - 1).clamp(min=0)[..., None].expand(-1, -1, 3)     # (B, text, 3)

    exists = view_mask.long()
    lengths = torch.cat([exists * (span + 2 * layout.marks), text_mask.sum(1, keepdim=True),
                         exists * layout.gen], 1)                                  # (B, V + 1 + V)
    ends = lengths.cumsum(1)
    starts = (ends - lengths)[..., None, None]                                     # (B, V + 1 + V, 1, 1)
    V = layout.views
    parts = [starts[:, :V] + view, starts[:, V] + text, starts[:, V + 1:] + _line(layout.gen, device),
             (ends[:, -1, None, None] + _line(1 + layout.chunk, device)).repeat(1, layout.draws, 1)]
    return torch.cat([part.reshape(B, -1, 3) for part in parts], 1)


def _line(n, device):
    return torch.arange(n, device=device)[:, None].expand(n, 3)


def rotary_frequencies(config):
    """Inverse frequencies (d/2,) float32 and the axis (0 time, 1 row, 2 column) each is driven by (d/2,) int64.

    Interleaved M-RoPE: among the first 3 * s frequencies every third belongs to the row (column) axis, s being that
    axis's section; all others to time."""
    half = config.head_dim // 2
    frequency = inverse_frequencies(half, config.rope_theta, config.rope_bf16)
    axis = torch.zeros(half, dtype=torch.long, device="cpu")
    for which, section in enumerate(config.mrope_sections[1:], 1):
        axis[which:3 * section:3] = which
    return frequency, axis


def inverse_frequencies(n, theta, bf16):
    """n float32 values from 1 down to theta ** (1 / n - 1). bf16: rounded as the release's are."""
    # Explicitly on the CPU, like every constant: parameters may be built on the meta device, constants may not.
    frequency = theta ** -(torch.arange(n, dtype=torch.float32, device="cpu") / n)
    return frequency.bfloat16().float() if bf16 else frequency


def rotary_tables(position, frequency, axis):
    """position (B, N, 3) -> cos, sin (B, 1, N, d) float32."""
    angle = position[..., axis].float() * frequency                                # (B, N, d/2)
    angle = torch.cat([angle, angle], -1)[:, None]
    return angle.cos(), angle.sin()


def rotate(x, rotary):
    """Rotary embedding of x (B, heads, N, d), halves paired, computed in float32. rotary: tables, or None: x itself."""
    if rotary is None:
        return x
    cos, sin = rotary
    one, two = x.chunk(2, -1)
    return (x * cos + torch.cat([-two, one], -1) * sin).to(x.dtype)


def part_of(rotary, part):
    """The rows `part` (a slice of the token axis) of rotary tables, or None."""
    return None if rotary is None else (rotary[0][:, :, part], rotary[1][:, :, part])
