"""Lines drawn with Pillow: an action chunk as small multiples, beside the truth and its rivals."""

import numpy as np
from PIL import Image, ImageDraw

from support.pictures import BLUE, HAIR, INK, MARGIN, MUTED, PAPER, fitted, font_of, saved

GREY = (140, 140, 140)                                  # what really happened
BASELINE_COLOURS = ((230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233))
PANEL_WIDTH, PANEL_HEIGHT = 230, 104
OVERSAMPLE = 3                                          # lines are drawn this much larger, then averaged down


def action_plot(predicted, names, true=None, baselines=None, fps=None, path=None, marks=(), spans=None):
    """An action chunk as small multiples: one panel per dimension, each with its own vertical scale -> RGB image.

    predicted, true and at most five baselines {name: values}: (k, d), k steps of d dimensions in the robot's own units;
    names: d titles. spans: for each dimension the least range of its axis, such as one standard deviation of the
    training data, so that a joint that does not move looks like one. marks: steps that get a thin vertical line, such
    as the starts of chunks. Time runs in frames, and in seconds too if fps is given. ValueError: a value is not finite.
    """
    series = _series(predicted, names, true, baselines or {})
    steps, count = predicted.shape
    columns = min(count, 3 if count in (5, 6, 9) else 4)
    font, small = font_of(14), font_of(12)
    limits = [_limits([values[:, i] for _, values, _ in series], spans[i] if spans is not None else 0.0)
              for i in range(count)]
    left = int(max(small.getlength(text) for limit in limits for _, text in limit[2])) + 10
    pitch_x, pitch_y = left + PANEL_WIDTH + 22, PANEL_HEIGHT + 46
    corners = [(MARGIN + left + i % columns * pitch_x, MARGIN + 54 + i // columns * pitch_y) for i in range(count)]
    legend, x = [], MARGIN + left
    for name, _, colour in reversed(series):
        legend.append((x, name, colour))
        x += int(font.getlength(name)) + 62
    size = (MARGIN + max(MARGIN + columns * pitch_x - 22, x - 28),
            corners[-1][1] + PANEL_HEIGHT + (36 if fps else 21) + MARGIN)
    large = Image.new("RGB", (size[0] * OVERSAMPLE, size[1] * OVERSAMPLE), PAPER)
    lines = ImageDraw.Draw(large)
    for i, (x, y) in enumerate(corners):
        across = np.linspace(x, x + PANEL_WIDTH, steps)
        for step in marks:
            lines.line(scaled([(across[step], y), (across[step], y + PANEL_HEIGHT)]), HAIR, OVERSAMPLE)
        axes(lines, (x, y), (PANEL_WIDTH, PANEL_HEIGHT), [y + _height(value, limits[i]) for value, _ in limits[i][2]])
        for _, values, colour in series:
            polyline(lines, scaled(zip(across, [y + _height(value, limits[i]) for value in values[:, i]])), colour)
    for x, _, colour in legend:
        polyline(lines, scaled([(x, MARGIN + 8), (x + 26, MARGIN + 8)]), colour)

    image = large.reduce(OVERSAMPLE)
    draw = ImageDraw.Draw(image)
    for x, name, _ in legend:
        draw.text((x + 34, MARGIN + 8), name, INK, font, anchor="lm")
    for i, (x, y) in enumerate(corners):
        draw.text((x, y - 8), fitted(names[i], font, PANEL_WIDTH), INK, font, anchor="ls")
        for value, text in limits[i][2]:
            draw.text((x - 7, y + _height(value, limits[i])), text, MUTED, small, anchor="rm")
        if i + columns >= count:                        # the lowest panel of its column carries the time axis
            _time_axis(draw, (x, y + PANEL_HEIGHT + 6), steps, fps, small)
    return saved(image, path)


def _series(predicted, names, true, baselines):
    """What to draw, in this order: baselines, the truth, the prediction on top -> list of (name, values, colour)."""
    series = [(name, values, colour) for (name, values), colour in zip(baselines.items(), BASELINE_COLOURS)]
    if true is not None:
        series.append(("true", true, GREY))
    series.append(("predicted", predicted, BLUE))
    for name, values, _ in series:
        for step, i in np.argwhere(~np.isfinite(values)).tolist():
            raise ValueError(f"action_plot: {name} is {values[step, i]} at step {step} of {names[i]} (dimension {i}); "
                             "only finite values can be drawn")
    return series


def _limits(curves, span=0.0):
    """Bottom and top of a panel and its ticks (value, text): minimum and maximum, or one for a constant.

    What covers less than `span` lies in the middle of an axis of that length, and the ticks are its ends.
    """
    low, high = float(np.min(curves)), float(np.max(curves))
    if high - low < span:
        low, high = (low + high - span) / 2, (low + high + span) / 2
    size = max(abs(low), abs(high))
    if high - low <= 1e-6 * size:                         # constant up to float32 rounding
        half = 0.1 * size or 1.0
        return low - half, low + half, [(low, f"{low:.3g}")]
    digits = next((n for n in range(3, 9) if f"{low:.{n}g}" != f"{high:.{n}g}"), 9)
    pad = 0.08 * (high - low)
    return low - pad, high + pad, [(low, f"{low:.{digits}g}"), (high, f"{high:.{digits}g}")]


def _height(value, limits):
    """Pixels from the top of a panel down to `value`."""
    bottom, top, _ = limits
    return PANEL_HEIGHT * (top - value) / (top - bottom)


def scaled(points):
    """Points (x, y) of a figure on the oversampled canvas."""
    return [(x * OVERSAMPLE, y * OVERSAMPLE) for x, y in points]


def axes(draw, corner, size, levels):
    """The two axes of a panel and a thin line across it at each of `levels`."""
    (x, y), (width, height) = corner, size
    for level in levels:
        draw.line(scaled([(x, level), (x + width, level)]), HAIR, OVERSAMPLE)
    draw.line(scaled([(x, y), (x, y + height), (x + width, y + height)]), (170, 170, 170), OVERSAMPLE)


def polyline(draw, points, colour):
    """A line of round joints through oversampled points; a single point is a dot."""
    width = OVERSAMPLE * 2
    draw.line(points, colour, width, joint="curve")
    for point in (points[0], points[-1]):
        draw.circle(point, width / 2 if len(points) > 1 else width * 1.5, colour)


def _time_axis(draw, corner, steps, fps, font):
    """First and last frame under a panel, and the same in seconds below if fps is given."""
    x, y = corner
    ends = {"frame": f"{steps - 1}"} | ({"time (s)": f"{(steps - 1) / fps:.3g}"} if fps else {})
    for unit, end in ends.items():
        draw.text((x, y), "0", MUTED, font, anchor="ma")
        draw.text((x + PANEL_WIDTH / 2, y), unit, MUTED, font, anchor="ma")
        draw.text((x + PANEL_WIDTH, y), end, MUTED, font, anchor="ra")
        y += 15
