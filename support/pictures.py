"""Figures drawn with Pillow: what the model imagined, what it would do, and how the world moved.

`foresight` is the paper's picture: one row per camera, with the frames the model saw, the one it imagined
and the one that came. `action_plot` shows an action chunk as small multiples, `strip` a row of frames,
`gif` a loop. Given a path, a figure is written there too, as the kind its ending names; directories are made.

Pictures are uint8 arrays of shape (H, W, 3). Their pixels are never smoothed or recoloured: they are enlarged
by a whole factor, so a figure can be read back and compared. Only lines are anti-aliased, by drawing them
three times too large. Colours are those of Okabe and Ito, which colour-blind readers can tell apart.
Bad input is a one-line ValueError that says which picture or which value.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, MUTED, HAIR, PAPER = (38, 38, 38), (115, 115, 115), (222, 222, 222), (255, 255, 255)
BLUE, GREY = (0, 114, 178), (140, 140, 140)             # what the model says, what really happened
BASELINE_COLOURS = ((230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233))
MARGIN = 20                         # pixels of white around a figure
GUTTER = 8                          # between the pictures of a grid
CELL = 192                          # small pictures are enlarged to about this many pixels
OVERSAMPLE = 3                      # lines are drawn this much larger, then averaged down
PANEL_WIDTH, PANEL_HEIGHT = 230, 104

Point = tuple[float, float]
Series = list[tuple[str, np.ndarray, tuple[int, int, int], bool]]        # name, (k, d) values, colour, dashed


# ---------------------------------------------------------------------------------------------- shared

def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """`text`, cut with dots if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _picture(value: np.ndarray, where: str) -> np.ndarray:
    value = np.asarray(value)
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or 0 in value.shape:
        raise ValueError(f"{where}: a picture must be uint8 (H, W, 3), not {value.dtype} {value.shape}")
    return value


def _save(image: Image.Image, path: str | Path | None) -> Image.Image:
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return image


# ----------------------------------------------------------------------------------- grids of pictures

def foresight(rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray | None]]]],
              path: str | Path | None = None, scale: int | None = None) -> Image.Image:
    """A labelled grid of pictures, one row per view.

    rows: [(label, [(caption, picture or None), ...]), ...]; pictures are uint8 (H, W, 3), None is drawn as
    a hatched "no picture". A caption that begins with "imagined" sets its picture off in blue. Captions that
    are the same in every row are written once, on top. scale: whole enlargement of the largest picture; by
    default small pictures are brought to about 192 pixels. Smaller ones are enlarged as far as they fit.
    Returns an RGB image. Raises ValueError for an empty grid or a malformed picture.
    """
    rows = [(label, [(caption, None if cell is None else _picture(cell, f"{label} {caption}".strip()))
                     for caption, cell in cells]) for label, cells in rows]
    shapes = [cell.shape[:2] for _, cells in rows for _, cell in cells if cell is not None]
    columns = max((len(cells) for _, cells in rows), default=0)
    if columns == 0:
        raise ValueError("foresight: no pictures to draw")
    height, width = np.max(shapes or [(CELL, CELL)], axis=0).tolist()
    if scale is None:
        scale = max(1, round(CELL / max(height, width)))
    if scale != int(scale) or scale < 1:
        raise ValueError(f"foresight: scale must be a whole number from 1, not {scale}")
    height, width = height * scale, width * scale

    font = _font(min(18, max(12, width // 12)))
    line = font.size + 9
    captions = [[caption for caption, _ in cells] for _, cells in rows]
    once = all(row == captions[0] for row in captions)
    written = line if any(any(row) for row in captions) else 0
    left = MARGIN + max(int(font.getlength(label)) + 18 if label else 0 for label, _ in rows)
    pitch = height + GUTTER + (0 if once else written)
    image = Image.new("RGB", (left + columns * (width + GUTTER) - GUTTER + MARGIN,
                              2 * MARGIN + len(rows) * pitch - GUTTER + (written if once else 0)), PAPER)
    draw = ImageDraw.Draw(image)
    for r, (label, cells) in enumerate(rows):
        top = MARGIN + written + r * pitch
        draw.text((left - 18, top + height / 2), label, INK, font, anchor="rm")
        for c, (caption, cell) in enumerate(cells):
            x = left + c * (width + GUTTER)
            imagined = caption.startswith("imagined")
            if r == 0 or not once:
                text, colour = _fit(caption, font, width), BLUE if imagined else INK
                draw.text((x + width / 2, top - 9), text, colour, font, anchor="ms")
            _cell(image, (x, top, width, height), cell, imagined)
    return _save(image, path)


def _cell(image: Image.Image, box: tuple[int, int, int, int], cell: np.ndarray | None,
          imagined: bool) -> None:
    """Draw one picture centred in `box` (x, y, width, height), or the hatching of a missing one."""
    x, y, width, height = box
    draw = ImageDraw.Draw(image)
    if cell is None:
        image.paste(_hatching(width, height), (x, y))
    else:
        scale = min(width // cell.shape[1], height // cell.shape[0])
        tile = Image.fromarray(np.kron(cell, np.ones((scale, scale, 1), np.uint8)))
        x, y = x + (width - tile.width) // 2, y + (height - tile.height) // 2
        width, height = tile.size
        image.paste(tile, (x, y))
    # The frame lies in the gutter, so that it hides no pixel of the picture.
    edge, colour = (2, BLUE) if imagined and cell is not None else (1, HAIR)
    corners = (x - edge, y - edge, x + width + edge - 1, y + height + edge - 1)
    draw.rectangle(corners, outline=colour, width=edge)


def _hatching(width: int, height: int) -> Image.Image:
    tile = Image.new("RGB", (width * OVERSAMPLE, height * OVERSAMPLE), (247, 247, 247))
    draw = ImageDraw.Draw(tile)
    for x in range(-tile.height, tile.width, 12 * OVERSAMPLE):
        draw.line((x, tile.height, x + tile.height, 0), (226, 226, 226), OVERSAMPLE)
    tile = tile.reduce(OVERSAMPLE)
    font = _font(min(15, max(8, width // 9)))
    half = font.getlength("no picture") / 2 + 6
    draw = ImageDraw.Draw(tile)
    draw.rectangle((width / 2 - half, height / 2 - font.size, width / 2 + half, height / 2 + font.size),
                   (247, 247, 247))
    draw.text((width / 2, height / 2), "no picture", MUTED, font, anchor="mm")
    return tile


def strip(frames: Sequence[np.ndarray | None], captions: Sequence[str] | None = None,
          path: str | Path | None = None) -> Image.Image:
    """One row of uint8 (H, W, 3) frames, each under its caption. Raises ValueError if the counts differ."""
    captions = [""] * len(frames) if captions is None else list(captions)
    if len(captions) != len(frames):
        raise ValueError(f"strip: {len(frames)} frames but {len(captions)} captions")
    return foresight([("", list(zip(captions, frames)))], path)


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Several figures in one, left to right on white, aligned at the top."""
    if not images:
        raise ValueError("side_by_side: no images")
    joined = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)), PAPER)
    x = 0
    for image in images:
        joined.paste(image.convert("RGB"), (x, 0))
        x += image.width
    return joined


# ------------------------------------------------------------------------------------------- animation

def gif(frames: Sequence[np.ndarray | Image.Image], path: str | Path, fps: float) -> None:
    """Write frames (uint8 (H, W, 3) arrays or PIL images of one size) as a GIF that loops for ever.

    All frames share one palette, so still parts do not flicker. Raises ValueError for no frames, unequal
    sizes or fps outside 0 < fps <= 50 (GIF times are whole hundredths of a second, and viewers want two).
    """
    images = [frame.convert("RGB") if isinstance(frame, Image.Image)
              else Image.fromarray(_picture(frame, f"gif frame {i}")) for i, frame in enumerate(frames)]
    if not images or not 0 < fps <= 50:
        raise ValueError(f"gif: needs at least one frame and 0 < fps <= 50, got {len(images)} and {fps}")
    for i, image in enumerate(images):
        if image.size != images[0].size:
            raise ValueError(f"gif: frame {i} is {image.size}, frame 0 is {images[0].size}; use one size")
    # All frames, stacked, or a sample of 16 million pixels. Maximum coverage, because a median
    # cut would spend the palette on the background and lose the colour of a small object.
    sample = images[::-(-len(images) * images[0].width * images[0].height // 16_000_000)]
    stack = Image.fromarray(np.concatenate([np.asarray(image) for image in sample]))
    palette = stack.quantize(256, Image.Quantize.MAXCOVERAGE)
    indexed = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    # Rounding the running time, not each duration, keeps the mean rate right (30 fps is 30, 40, 30 ms).
    ticks = [round(100 * i / fps) for i in range(len(images) + 1)]
    durations = [10 * (end - start) for start, end in zip(ticks, ticks[1:])]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=durations, loop=0)


# ---------------------------------------------------------------------------------------- action plots

def action_plot(predicted: np.ndarray, names: Sequence[str], true: np.ndarray | None = None,
                baselines: Mapping[str, np.ndarray] | None = None, fps: float | None = None,
                path: str | Path | None = None, marks: Sequence[int] = (),
                spans: Sequence[float] | None = None) -> Image.Image:
    """An action chunk as small multiples: one panel per dimension, each with its own vertical scale.

    predicted, true and every baseline: (k, d), k steps of d dimensions in the robot's own units; names: d
    titles. The ticks are the smallest and largest value shown. Time runs in frames, and in seconds too if fps
    is given. `marks`: steps that get a thin vertical line, such as the starts of chunks. `spans`: per dimension what its
    panel's axis spans at least, so that a joint that stays looks like one. Returns an RGB image.
    Raises ValueError for wrong shapes and for values that are not finite.
    """
    series = _series(predicted, names, true, baselines)
    if fps is not None and not fps > 0:
        raise ValueError(f"action_plot: fps must be positive, not {fps}")
    steps, count = series[-1][1].shape
    columns = min(count, 3 if count in (5, 6, 9) else 4)
    font, small = _font(14), _font(12)
    limits = [_limits([values[:, i] for _, values, _, _ in series], spans[i] if spans is not None else 0.0)
              for i in range(count)]
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
        draw.text((x, y - 8), _fit(names[i], font, PANEL_WIDTH), INK, font, anchor="ls")
        for value, text in limits[i][2]:
            draw.text((x - 7, y + _height(value, limits[i])), text, MUTED, small, anchor="rm")
        if i + columns >= count:                        # the lowest panel of its column carries the time axis
            _time_axis(draw, (x, y + PANEL_HEIGHT + 6), steps, fps, small)
    return _save(image, path)


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
    """Bottom and top of a panel and its ticks (value, text): minimum and maximum, or one for a constant."""
    low, high = float(np.min(curves)), float(np.max(curves))
    size = max(abs(low), abs(high))
    if high - low <= 1e-6 * size:                         # constant up to float32 rounding
        half = max(0.1 * size or 1.0, span / 2)
        return low - half, low + half, [(low, f"{low:.3g}")]
    digits = next((n for n in range(3, 9) if f"{low:.{n}g}" != f"{high:.{n}g}"), 9)
    pad = max(0.08 * (high - low), (span - (high - low)) / 2)
    ticks = [(low, f"{low:.{digits}g}"), (high, f"{high:.{digits}g}")]
    return low - pad, high + pad, ticks if high - low > 0.2 * span else ticks[:1]   # two would overlap


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
        _polyline(draw, points, colour, dashed)


def _polyline(draw: ImageDraw.ImageDraw, points: list[Point], colour: tuple[int, int, int],
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
        _polyline(draw, [(left * OVERSAMPLE, y), ((left + 26) * OVERSAMPLE, y)], colour, dashed)


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
