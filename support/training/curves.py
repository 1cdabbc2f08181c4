"""How a run goes, in one figure: L_act, L_gen and the learning rate over steps, drawn from the lines of log.jsonl."""

import math

import numpy as np

from support.pictures import BLUE, INK, MARGIN, MUTED, PAPER, font_of
from support.plots import OVERSAMPLE, Canvas

PALE, ORANGE = (176, 208, 228), (213, 94, 0)   # single steps, what is held out
WIDE, HIGH, LOW = 760, 210, 90                 # width of a panel, height of a loss and of the learning rate


def curves(rows, path=None):
    """L_act, L_gen (logarithmic) and the learning rate over steps -> RGB image. rows: the lines of log.jsonl.

    Single steps are pale, their running mean is blue, held-out losses are orange; a loss that is zero throughout has no
    panel. ValueError: no row has a loss.
    """
    trained = [row for row in rows if row.get("loss") is not None]
    if not trained:
        raise ValueError("curves: no row of the log has a loss")
    last, panels = max(row["step"] for row in rows), []   # of a panel: title, height, curve, held out, axis, value now
    for key, title in (("loss_act", "L_act, Eq. (2)"), ("loss_gen", "L_gen, Eq. (1)")):
        own = _positive((row["step"], row[key]) for row in trained)
        held_out = _positive((row["step"], row["held_out"].get(key)) for row in rows if "held_out" in row)
        if len(own):
            axis = _log_axis(np.concatenate([own, held_out])[:, 1])
            panels.append((title, HIGH, own, held_out, axis, _smooth(own)[-1, 1]))
    rate = np.array([(row["step"], row["lr"]) for row in trained], float)
    top = rate[:, 1].max()
    axis = (0.0, top / 2, top), lambda y: y / top / 1.08
    panels.append(("learning rate, Table 2", LOW, rate, rate[:0], axis, rate[-1, 1]))

    small, font = font_of(12), font_of(13)
    left = MARGIN + 12 + int(max(small.getlength(f"{value:.3g}") for panel in panels for value in panel[4][0]))
    y = MARGIN + 30
    canvas = Canvas(left + WIDE + MARGIN + 16, y + sum(panel[1] + 56 for panel in panels) - 28 + MARGIN)
    for title, height, own, held_out, (ticks, share), now in panels:
        def placed(points):
            points = points[::-1][::-(-len(points) // WIDE)]   # no more of them than pixels, the last one among them
            return [(left + WIDE * step / last, y + height * (1 - share(value))) for step, value in points]

        canvas.axes((left, y), (WIDE, height), [(y + height * (1 - share(value)), f"{value:.3g}") for value in ticks],
                    small, gap=8)
        canvas.curve(placed(own), PALE)
        canvas.curve(placed(_smooth(own)), BLUE)
        canvas.text((left, y - 12), title, INK, font_of(15), "ls")
        canvas.text((left + WIDE, y - 12), f"now {now:.3g}", BLUE, font, "rs")
        if len(held_out):
            newest = canvas.curve(placed(held_out), ORANGE)[0]
            canvas.pen.circle(newest, 4 * OVERSAMPLE, ORANGE, PAPER, OVERSAMPLE)
            canvas.text((left + WIDE - 160, y - 12), f"held out {held_out[-1, 1]:.3g}", ORANGE, font, "rs")
        y += height + 56
    for step in sorted({round(last * i / 5) for i in range(6)}):
        canvas.text((left + WIDE * step / last, y - 48), f"{step:,}", MUTED, small, "ma")
    return canvas.finished(path)


def _positive(pairs):
    """(n, 2) steps and values, without those that a logarithm does not take."""
    return np.array([(step, value) for step, value in pairs if value is not None and value > 0], float).reshape(-1, 2)


def _log_axis(values):
    """(ticks, value -> how far up the axis it lies, 0 to 1). Ticks are 1, 2 and 5 times powers of ten, the powers alone
    in a wide range, and both ends of a narrow one."""
    bottom, top = math.log10(values.min()), math.log10(values.max())
    pad = max(0.05 * (top - bottom), 0.01)
    round_ones = [n * 10.0 ** e for e in range(math.floor(bottom), math.ceil(top) + 1)
                  for n in ((1, 2, 5) if top - bottom < 2 else (1,))]
    ticks = [value for value in round_ones if bottom - pad <= math.log10(value) <= top + pad]
    ticks = ticks if len(ticks) > 1 else [10 ** bottom, 10 ** top]
    return ticks, lambda value: (math.log10(value) - bottom + pad) / (top - bottom + 2 * pad)


def _smooth(rows):
    """The running mean over the last fortieth of what is there, at each step over as much as came before it."""
    width = max(1, len(rows) // 40)
    total = np.cumsum(rows[:, 1])
    total[width:] = total[width:] - total[:-width]
    return np.stack([rows[:, 0], total / np.minimum(np.arange(1, len(rows) + 1), width)], 1)
