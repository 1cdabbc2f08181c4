"""How a run goes, in one figure: L_act, L_gen and the learning rate over steps, drawn from the lines of log.jsonl."""

import math

import numpy as np
from PIL import Image, ImageDraw

from support.pictures import BLUE, INK, MARGIN, MUTED, PAPER, font_of, saved
from support.plots import OVERSAMPLE, axes, polyline, scaled

PALE, ORANGE = (176, 208, 228), (213, 94, 0)   # single steps, what is held out
WIDE, HIGH, LOW = 760, 210, 90                 # width of a panel, height of a loss and of the learning rate


def curves(rows, path=None):
    """How a run goes: L_act, L_gen (logarithmic) and the learning rate over steps. rows: the lines of log.jsonl.

    Single steps are pale, their running mean is blue, held-out losses are orange; a loss that is zero throughout has no
    panel. Returns an RGB image. Raises ValueError if no row has a loss.
    """
    trained = [row for row in rows if row.get("loss") is not None]
    if not trained:
        raise ValueError("curves: no row of the log has a loss")
    steps, last = [row["step"] for row in trained], max(row["step"] for row in rows)
    panels = []
    for key, name, source in (("loss_act", "act", "Eq. (2)"), ("loss_gen", "gen", "Eq. (1)")):
        own = _positive(steps, [row[key] for row in trained])
        held_out = [row for row in rows if "held_out" in row]
        held_out = _positive([row["step"] for row in held_out], [row["held_out"].get(key) for row in held_out])
        if len(own):
            panels.append((("L", name, source), HIGH, own, held_out, _log_axis(np.concatenate([own, held_out])[:, 1])))
    rate = np.array([steps, [row["lr"] for row in trained]], float).T
    panels.append((("learning rate", "", "Table 2"), LOW, rate, rate[:0], _linear_axis(float(rate[:, 1].max()))))

    small = font_of(12)
    left = MARGIN + 12 + int(max(small.getlength(text) for *_, axis in panels for _, text in axis[2]))
    tops = [MARGIN + 30 + sum(panel[1] + 56 for panel in panels[:i]) for i in range(len(panels))]
    size = (left + WIDE + MARGIN + 16, tops[-1] + LOW + 28 + MARGIN)
    large = Image.new("RGB", (size[0] * OVERSAMPLE, size[1] * OVERSAMPLE), PAPER)
    for (_, height, own, held_out, axis), top in zip(panels, tops):
        _panel(ImageDraw.Draw(large), (left, top), height, own, held_out, axis, last)
    image = large.reduce(OVERSAMPLE)
    draw = ImageDraw.Draw(image)
    for (title, height, own, held_out, axis), top in zip(panels, tops):
        _title(draw, (left, top - 12), title, own, held_out)
        for value, text in axis[2]:
            draw.text((left - 8, top + height * (1 - _share(value, axis))), text, MUTED, small, anchor="rm")
    for step in _nice(last, 7):
        draw.text((left + WIDE * step / last, tops[-1] + LOW + 8), f"{step:,.0f}", MUTED, small, anchor="ma")
    return saved(image, path)


def _positive(steps, values):
    """(n, 2) steps and values, without those that a logarithm does not take."""
    kept = [(step, value) for step, value in zip(steps, values) if value is not None and value > 0]
    return np.array(kept, float).reshape(-1, 2)


def _nice(top, most):
    """Multiples of 1, 2 or 5 times a power of ten from 0 up to `top`, at most `most` of them beside 0."""
    unit = 10.0 ** math.floor(math.log10(top / most))
    unit *= next(n for n in (1, 2, 5, 10) if top / (unit * n) <= most)
    return [n * unit for n in range(int(top / unit + 1e-9) + 1)]


def _linear_axis(top):
    """(bottom, top, ticks, how a value is placed) of an axis from 0."""
    return 0.0, 1.08 * top, [(value, f"{value:.3g}") for value in _nice(top, 4)], float


def _log_axis(values):
    """The same for a logarithmic one: ticks at 1, 2 and 5 times powers of ten, or at both ends of a narrow range."""
    bottom, top = math.log10(values.min()), math.log10(values.max())
    pad = max(0.05 * (top - bottom), 0.01)
    round_ones = [n * 10.0 ** e for e in range(math.floor(bottom), math.ceil(top) + 1) for n in (1, 2, 5)]
    ticks = [(value, f"{value:g}") for value in round_ones if bottom - pad <= math.log10(value) <= top + pad]
    if len(ticks) < 2:
        ticks = [(10 ** end, f"{10 ** end:.3g}") for end in (bottom, top)]
    if len(ticks) > 7:
        ticks = [(value, text) for value, text in ticks if text.strip("0.")[0] == "1"]
    return bottom - pad, top + pad, ticks, math.log10


def _share(value, axis):
    """How far up an axis a value lies, 0 to 1."""
    bottom, top, _, place = axis
    return (place(value) - bottom) / (top - bottom)


def _panel(draw, corner, height, own, held_out, axis, last):
    """Axes and curves of one panel, on the oversampled canvas."""
    x, y = corner

    def placed(rows):
        return scaled([(x + WIDE * step / last, y + height * (1 - _share(value, axis))) for step, value in rows])
    axes(draw, corner, (WIDE, height), [y + height * (1 - _share(value, axis)) for value, _ in axis[2]])
    noisy = axis[-1] is not float   # a learning rate is not
    polyline(draw, placed(_thinned(own)), PALE if noisy else BLUE)
    if noisy:
        polyline(draw, placed(_thinned(_smooth(own))), BLUE)
    points = placed(held_out)
    if len(points) > 1:
        polyline(draw, points, ORANGE)
    for point in points if len(points) <= 60 else points[-1:]:
        draw.circle(point, 4 * OVERSAMPLE, ORANGE, PAPER, OVERSAMPLE)


def _smooth(rows):
    """The running mean over the last fortieth of what is there, at each step over as much as came before it."""
    width = max(1, len(rows) // 40)
    total = np.concatenate([[0.0], np.cumsum(rows[:, 1])])
    n = np.arange(1, len(rows) + 1)
    first = np.maximum(n - width, 0)
    return np.stack([rows[:, 0], (total[n] - total[first]) / (n - first)], 1)


def _thinned(rows):
    """At most about as many rows as the panel has pixels; the last one is kept."""
    every = -(-len(rows) // WIDE)
    return rows[::-1][::every][::-1]


def _title(draw, where, title, own, held_out):
    """Name and source of a panel on the left, what its colours mean and their latest values on the right."""
    (x, y), (name, index, source), font, small = where, title, font_of(15), font_of(12)
    draw.text((x, y), name, INK, font, anchor="ls")
    x += font.getlength(name)
    draw.text((x + 1, y + 4), index, INK, small, anchor="ls")
    draw.text((x + small.getlength(index) + 10, y), source, MUTED, small, anchor="ls")
    right = where[0] + WIDE
    entries = [(f"training, running mean {_smooth(own)[-1, 1]:.3g}" if index else f"{own[-1, 1]:.3g}", BLUE)]
    if len(held_out):
        entries.insert(0, (f"held out {held_out[-1, 1]:.3g}", ORANGE))
    for text, colour in entries:
        draw.text((right, y), text, colour, font_of(13), anchor="rs")
        right -= font_of(13).getlength(text) + 24
