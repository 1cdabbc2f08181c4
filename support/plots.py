"""Lines drawn with Pillow: an action chunk as small multiples, beside the truth and its rivals.

Given a path, a figure is written there too, as the kind its ending names; directories are made. Lines are anti-aliased,
by drawing them three times too large. Bad input is a one-line ValueError that says which value.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from support.pictures import BLUE, HAIR, INK, MARGIN, MUTED, OVERSAMPLE, PAPER, fitted, font_of, saved

GREY = (140, 140, 140)                                  # what really happened
BASELINE_COLOURS = ((230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233))
PANEL_WIDTH, PANEL_HEIGHT = 230, 104

Point = tuple[float, float]
Series = list[tuple[str, np.ndarray, tuple[int, int, int], bool]]        # name, (k, d) values, colour, dashed

def action_plot(predicted: np.ndarray, names: Sequence[str], true: np.ndarray | None = None,
                baselines: Mapping[str, np.ndarray] | None = None, fps: float | None = None,
                path: str | Path | None = None, marks: Sequence[int] = (),
                spans: Sequence[float] | None = None) -> Image.Image:
    """An action chunk as small multiples: one panel per dimension, each with its own vertical scale.

    predicted, true and every baseline: (k, d), k steps of d dimensions in the robot's own units; names: d
    titles. The ticks are the smallest and largest value shown. spans: for each dimension the least range of its axis,
    such as one standard deviation of the training data, so that a joint that does not move looks like one; the ticks of
    such a panel are the ends of that range. Time runs in frames, and in seconds too if fps is given. `marks`: steps
    that get a thin vertical line, such as the starts of chunks. Returns an RGB image. Raises ValueError for wrong
    shapes and for values that are not finite.
    """
    series = _series(predicted, names, true, baselines)
    if fps is not None and not fps > 0:
        raise ValueError(f"action_plot: fps must be positive, not {fps}")
    steps, count = series[-1][1].shape
    columns = min(count, 3 if count in (5, 6, 9) else 4)
    font, small = font_of(14), font_of(12)
    spans = [0.0] * count if spans is None else spans
    if len(spans) != count:
        raise ValueError(f"action_plot: {len(spans)} spans for {count} dimensions; they must agree")
    limits = [_limits([values[:, i] for _, values, _, _ in series], spans[i]) for i in range(count)]
    left = int(max(small.getlength(text) for limit in limits for _, text in limit[2])) + 10
    pitch_x, pitch_y = left + PANEL_WIDTH + 22, PANEL_HEIGHT + 46
    corners = [(MARGIN + left + i % columns * pitch_x, MARGIN + 54 + i // columns * pitch_y)
               for i in range(count)]
    legend = left + sum(int(font.getlength(name)) + 62 for name, *_ in series) - 28
    size = (2 * MARGIN + max(columns * pitch_x - 22, legend),
            corners[-1][1] + PANEL_HEIGHT + (36 if fps else 21) + MARGIN)
    large = Image.new("RGB", (size[0] * OVERSAMPLE, size[1] * OVERSAMPLE), PAPER)
    for i, corner in enumerate(corners):
        curves = [(values[:, i], colour, dashed) for _, values, colour, dashed in series]
        _marks(ImageDraw.Draw(large), corner, marks, steps)
        _curves(ImageDraw.Draw(large), corner, limits[i], curves)
    _legend_lines(ImageDraw.Draw(large), series, MARGIN + left, font)

    # Text goes on after the lines are averaged down, where the font's own smoothing is sharper.
    image = large.reduce(OVERSAMPLE)
    draw = ImageDraw.Draw(image)
    _legend_text(draw, series, MARGIN + left, font)
    for i, (x, y) in enumerate(corners):
        draw.text((x, y - 8), fitted(names[i], font, PANEL_WIDTH), INK, font, anchor="ls")
        for value, text in limits[i][2]:
            draw.text((x - 7, y + _height(value, limits[i])), text, MUTED, small, anchor="rm")
        if i + columns >= count:                        # the lowest panel of its column carries the time axis
            _time_axis(draw, (x, y + PANEL_HEIGHT + 6), steps, fps, small)
    return saved(image, path)


def _series(predicted: np.ndarray, names: Sequence[str], true: np.ndarray | None,
            baselines: Mapping[str, np.ndarray] | None) -> Series:
    """What to draw, in drawing order: baselines (dashed) below, then the truth, the prediction on top."""
    baselines = baselines or {}
    if len(baselines) > len(BASELINE_COLOURS):
        raise ValueError(f"action_plot: at most {len(BASELINE_COLOURS)} baselines, not {len(baselines)}")
    found = [(name, values, colour, True)
             for (name, values), colour in zip(baselines.items(), BASELINE_COLOURS)]
    if true is not None:
        found.append(("true", true, GREY, False))
    found.append(("predicted", predicted, BLUE, False))
    series = [(name, np.asarray(values, np.float64), *look) for name, values, *look in found]
    shape = series[-1][1].shape
    if len(shape) != 2 or 0 in shape or shape[1] != len(names):
        raise ValueError(f"action_plot: predicted must be (k, {len(names)}), one column a name, not {shape}")
    for name, values, _, _ in series:
        if values.shape != shape:
            raise ValueError(f"action_plot: {name} is {values.shape}, predicted is {shape}; they must agree")
        if not np.isfinite(values).all():
            step, i = np.argwhere(~np.isfinite(values))[0].tolist()
            raise ValueError(f"action_plot: {name} is {values[step, i]} at step {step} of {names[i]} "
                             f"(dimension {i}); only finite values can be drawn")
    return series


def _limits(curves: list[np.ndarray], span: float = 0.0) -> tuple[float, float, list[tuple[float, str]]]:
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


def _height(value: float, limits: tuple[float, float, list]) -> float:
    """Pixels from the top of a panel down to `value`."""
    bottom, top, _ = limits
    return PANEL_HEIGHT * (top - value) / (top - bottom)


def _marks(draw: ImageDraw.ImageDraw, corner: Point, marks: Sequence[int], steps: int) -> None:
    """Thin vertical lines at some steps of a panel."""
    x, y = corner
    for step in marks:
        across = (x + PANEL_WIDTH * step / max(steps - 1, 1)) * OVERSAMPLE
        draw.line((across, y * OVERSAMPLE, across, (y + PANEL_HEIGHT) * OVERSAMPLE), HAIR, OVERSAMPLE)


def _curves(draw: ImageDraw.ImageDraw, corner: Point, limits: tuple[float, float, list],
            curves: list[tuple[np.ndarray, tuple[int, int, int], bool]]) -> None:
    """One panel's grid lines and curves, on the oversampled canvas."""
    x, y = corner
    for value, _ in limits[2]:
        level = (y + _height(value, limits)) * OVERSAMPLE
        draw.line((x * OVERSAMPLE, level, (x + PANEL_WIDTH) * OVERSAMPLE, level), HAIR, OVERSAMPLE)
    axes = ((x, y), (x, y + PANEL_HEIGHT), (x + PANEL_WIDTH, y + PANEL_HEIGHT))
    draw.line([(a * OVERSAMPLE, b * OVERSAMPLE) for a, b in axes], (170, 170, 170), OVERSAMPLE)
    for values, colour, dashed in curves:
        across = np.linspace(0, PANEL_WIDTH, len(values)) if len(values) > 1 else [PANEL_WIDTH / 2]
        points = [((x + dx) * OVERSAMPLE, (y + _height(value, limits)) * OVERSAMPLE)
                  for dx, value in zip(across, values)]
        polyline(draw, points, colour, dashed)


def polyline(draw: ImageDraw.ImageDraw, points: list[Point], colour: tuple[int, int, int],
              dashed: bool) -> None:
    """A line of round joints through oversampled points, or a dashed one; a single point is a dot."""
    width = OVERSAMPLE * 2
    if len(points) == 1:
        draw.circle(points[0], width * 1.5, colour)
    elif not dashed:
        draw.line(points, colour, width, joint="curve")
        for point in (points[0], points[-1]):
            draw.circle(point, width / 2, colour)
    else:
        corners = np.asarray(points)
        along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(corners, axis=0).T))])
        on, period = 6 * OVERSAMPLE, 10 * OVERSAMPLE
        for start in np.arange(0, along[-1], period):
            end = min(start + on, along[-1])
            stops = np.concatenate([[start], along[(along > start) & (along < end)], [end]])
            dash = np.stack([np.interp(stops, along, corners[:, axis]) for axis in (0, 1)], axis=1)
            draw.line([tuple(point) for point in dash.tolist()], colour, width, joint="curve")


def _legend_slots(series: Series, x: float, font: ImageFont.FreeTypeFont) -> list[tuple[float, str]]:
    """Left end and name of each legend entry, the prediction first."""
    slots = []
    for name, *_ in reversed(series):
        slots.append((x, name))
        x += int(font.getlength(name)) + 62
    return slots


def _legend_lines(draw: ImageDraw.ImageDraw, series: Series, x: float,
                  font: ImageFont.FreeTypeFont) -> None:
    y = (MARGIN + 8) * OVERSAMPLE
    for (left, _), (_, _, colour, dashed) in zip(_legend_slots(series, x, font), reversed(series)):
        polyline(draw, [(left * OVERSAMPLE, y), ((left + 26) * OVERSAMPLE, y)], colour, dashed)


def _legend_text(draw: ImageDraw.ImageDraw, series: Series, x: float, font: ImageFont.FreeTypeFont) -> None:
    for left, name in _legend_slots(series, x, font):
        draw.text((left + 34, MARGIN + 8), name, INK, font, anchor="lm")


def _time_axis(draw: ImageDraw.ImageDraw, corner: Point, steps: int, fps: float | None,
               font: ImageFont.FreeTypeFont) -> None:
    """First and last frame under a panel, and the same in seconds below if fps is given."""
    lines = [("frame", [f"{i}" for i in (0, steps - 1)])]
    if fps:
        lines.append(("time (s)", [f"{i / fps:.3g}" for i in (0, steps - 1)]))
    for row, (unit, (first, last)) in enumerate(lines):
        x, y = corner[0], corner[1] + 15 * row
        if steps == 1:
            draw.text((x + PANEL_WIDTH / 2, y), f"{unit} {first}", MUTED, font, anchor="ma")
            continue
        draw.text((x, y), first, MUTED, font, anchor="ma")
        draw.text((x + PANEL_WIDTH / 2, y), unit, MUTED, font, anchor="ma")
        draw.text((x + PANEL_WIDTH, y), last, MUTED, font, anchor="ra")
