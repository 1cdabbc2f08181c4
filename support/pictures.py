"""Figures, drawn with Pillow: grids and films of camera pictures, an action chunk, how a run goes.

Pictures are uint8 arrays of shape (H, W, 3). They are enlarged by a whole factor, never smoothed or recoloured, so a
figure can be read back and compared. Colours are those of Okabe and Ito, which colour-blind readers can tell apart.
Given a path, a figure is written there too; directories are made."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from support.files import must, written

INK, MUTED, HAIR, PAPER = (38, 38, 38), (115, 115, 115), (222, 222, 222), (255, 255, 255)
BLUE, GREY = (0, 114, 178), (140, 140, 140)   # what the model says, what really happened
BASELINE_COLOURS = ((230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233))
PALE, ORANGE = (176, 208, 228), (213, 94, 0)
RUN_LINES = {"single steps": PALE, "running mean": BLUE, "held out": ORANGE}
MARGIN = 20                           # pixels of white around a figure
GUTTER = 8                            # between the pictures of a grid
CELL = 192                            # small pictures are enlarged to about this many pixels
PANEL_WIDTH, PANEL_HEIGHT = 230, 104  # of a dimension of an action chunk
WIDE, HIGH = 760, 170                 # of a panel of a run
OVERSAMPLE = 3                        # lines are drawn this much larger, then averaged down
font_of = ImageFont.load_default      # of a size in pixels


def fitted(text, font, width):
    """`text`, cut with dots if it is wider than `width` pixels."""
    kept = text
    while kept and font.getlength(text) > width:
        kept = kept[:-1]
        text = kept.rstrip() + "..."
    return text


def saved(image, path):
    if path is not None:
        with written(path) as file:
            image.save(file)
    return image


def foresight(rows, path=None, scale=None):
    """The paper's picture: a labelled grid, one row per view, under the captions of the first row -> RGB image. rows:
    [(label, [(caption, picture), ...]), ...]. None is drawn as a hatched "no picture". A caption that begins with
    "imagined" sets its column off in blue. scale: whole enlargement of the largest picture, by default to about CELL
    pixels; smaller ones are enlarged as far as they fit."""
    captions = [caption for caption, _ in rows[0][1]]
    shapes = [cell.shape[:2] for _, cells in rows for _, cell in cells if cell is not None]
    height, width = np.max(shapes or [(CELL, CELL)], axis=0).tolist()
    scale = scale or max(1, round(CELL / max(height, width)))
    height, width = height * scale, width * scale
    font = font_of(min(18, max(12, width // 12)))
    top = MARGIN + (font.size + 9 if any(captions) else 0)
    left = MARGIN + max(int(font.getlength(label)) + 18 if label else 0 for label, _ in rows)
    size = (left + len(captions) * (width + GUTTER) - GUTTER + MARGIN,
            top + len(rows) * (height + GUTTER) - GUTTER + MARGIN)
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    for c, caption in enumerate(captions):
        colour = BLUE if caption.startswith("imagined") else INK
        draw.text((left + c * (width + GUTTER) + width / 2, top - 9), fitted(caption, font, width), colour, font,
                  anchor="ms")
    for r, (label, cells) in enumerate(rows):
        y = top + r * (height + GUTTER)
        draw.text((left - 18, y + height / 2), label, INK, font, anchor="rm")
        for c, (caption, cell) in enumerate(cells):
            _cell(image, (left + c * (width + GUTTER), y, width, height), cell, caption.startswith("imagined"))
    return saved(image, path)


def _cell(image, box, cell, imagined):
    """Draw one picture centred in `box` (x, y, width, height), or the hatching of a missing one."""
    x, y, width, height = box
    if cell is None:
        stripe = np.add.outer(np.arange(height), np.arange(width)) % 12 == 0
        tile = Image.fromarray(np.where(stripe, 226, 247).astype(np.uint8)).convert("RGB")
        ImageDraw.Draw(tile).text((width / 2, height / 2), "no picture", MUTED, font_of(min(15, max(8, width // 9))),
                                  anchor="mm")
    else:
        scale = min(width // cell.shape[1], height // cell.shape[0])
        tile = Image.fromarray(np.kron(cell, np.ones((scale, scale, 1), np.uint8)))
    # The frame lies in the gutter, so that it hides no pixel of the picture.
    edge, colour = (2, BLUE) if imagined and cell is not None else (1, HAIR)
    tile = ImageOps.expand(tile, edge, colour)
    image.paste(tile, (x + (width - tile.width) // 2, y + (height - tile.height) // 2))


def gif(images, path, fps):
    """Write RGB images of one size as a GIF that loops for ever, at up to 50 frames a second, of one palette."""
    # One, so that still parts do not flicker; made from 16 million pixels at most. Maximum coverage, because a median
    # cut would spend the palette on the background and lose the colour of a small object.
    sample = images[::-(-len(images) * images[0].width * images[0].height // 16_000_000)]
    stack = Image.fromarray(np.concatenate([np.asarray(image) for image in sample]))
    palette = stack.quantize(256, Image.Quantize.MAXCOVERAGE)
    indexed = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    # Rounding the running time, not each duration, keeps the mean rate right (30 fps is 30, 40, 30 ms).
    ticks = [round(100 * i / fps) for i in range(len(images) + 1)]
    durations = [10 * (end - start) for start, end in zip(ticks, ticks[1:])]
    with written(path) as file:
        indexed[0].save(file, save_all=True, append_images=indexed[1:], duration=durations, loop=0)


# ---- panels of lines ---------------------------------------------------------------------------------------------

@dataclass
class Panel:
    """One pair of axes. Places are shares of its width and height, (0, 0) in the lower left corner."""

    title: str
    lines: list         # [((n, 2) places, colour)], the last one on top; of one point, a dot
    ticks: list         # [(share of the height, text)]
    below: list         # rows of [(share of the width, text)], under the lowest panel of a column
    marks: tuple = ()   # shares of the width that get a thin vertical line


def figure(panels, columns, size, legend, path):
    """Panels row by row, each of `size` (width, height) pixels, under a legend [(name, colour)] -> RGB image."""
    (width, height), font, small = size, font_of(14), font_of(12)
    left = int(max(small.getlength(text) for panel in panels for _, text in panel.ticks)) + 10
    pitch_x, pitch_y, across = left + width + 22, height + 46, MARGIN + left
    corners = [(across + i % columns * pitch_x, MARGIN + 54 + i // columns * pitch_y) for i in range(len(panels))]
    named = across + sum(int(font.getlength(name)) + 62 for name, _ in legend)   # where the legend ends
    full = (max(MARGIN + columns * pitch_x - 22, named - 28) + MARGIN,
            corners[-1][1] + height + 6 + 15 * len(panels[-1].below) + MARGIN)
    large, texts = Image.new("RGB", (full[0] * OVERSAMPLE, full[1] * OVERSAMPLE), PAPER), []
    pen = ImageDraw.Draw(large)

    def draw(points, colour, width=1):
        points = [(x * OVERSAMPLE, y * OVERSAMPLE) for x, y in points]
        pen.line(points, colour, width * OVERSAMPLE, "curve")
        for point in (points[0], points[-1]) if width > 1 else ():   # round ends
            pen.circle(point, OVERSAMPLE * (1 if len(points) > 1 else 3), colour)
    for i, (panel, (x, y)) in enumerate(zip(panels, corners)):
        def placed(shares):
            return [(x + width * right, y + height * (1 - up)) for right, up in shares]

        for share in panel.marks:
            draw(placed([(share, 0), (share, 1)]), HAIR)
        for share, text in panel.ticks:
            draw(placed([(0, share), (1, share)]), HAIR)
            texts.append(((x - 7, y + height * (1 - share)), text, MUTED, small, "rm"))
        draw(placed([(0, 1), (0, 0), (1, 0)]), (170, 170, 170))
        for points, colour in panel.lines:
            draw(placed(points), colour, 2)
        texts.append(((x, y - 8), fitted(panel.title, font, width), INK, font, "ls"))
        for row, labels in enumerate(panel.below if i + columns >= len(panels) else ()):
            texts += [((x + width * share, y + height + 6 + 15 * row), text, MUTED, small, "ma")
                      for share, text in labels]
    for name, colour in legend:
        draw([(across, MARGIN + 8), (across + 26, MARGIN + 8)], colour, 2)
        texts.append(((across + 34, MARGIN + 8), name, INK, font, "lm"))
        across += int(font.getlength(name)) + 62
    image = large.reduce(OVERSAMPLE)
    for text in texts:
        ImageDraw.Draw(image).text(*text)
    return saved(image, path)


# ---- an action chunk ---------------------------------------------------------------------------------------------

def action_plot(predicted, names, true=None, baselines=None, fps=None, path=None, marks=(), spans=None):
    """An action chunk as small multiples: one panel per dimension, each with its own vertical scale -> RGB image.

    predicted, true and at most five baselines {name: values}: (k, d), k steps of d dimensions in the robot's own units;
    names: d titles. spans: for each dimension the least range of its axis, such as one standard deviation of the
    training data, so that a joint that does not move looks like one. marks: steps that get a thin vertical line. Time
    runs in frames, and in seconds too if fps is given. ValueError: a value is not finite."""
    series = [(name, values, colour) for (name, values), colour in zip((baselines or {}).items(), BASELINE_COLOURS)]
    series += [("true", true, GREY)] if true is not None else []
    series.append(("predicted", predicted, BLUE))
    for name, values, _ in series:
        for step, i in np.argwhere(~np.isfinite(values)).tolist():
            raise ValueError(f"action_plot: {name} is {values[step, i]} at step {step} of {names[i]} (dimension {i}); "
                             "only finite values can be drawn")
    steps, count = predicted.shape
    across, last = np.linspace(0, 1, steps), steps - 1
    below = [[(0, "0"), (0.5, "frame"), (1, f"{last}")]]
    below += [[(0, "0"), (0.5, "time (s)"), (1, f"{last / fps:.3g}")]] if fps else []
    panels = []
    for i in range(count):
        bottom, top, ticks = _limits([values[:, i] for _, values, _ in series], spans[i] if spans is not None else 0.0)
        panels.append(Panel(
            names[i], [(np.stack([across, (values[:, i] - bottom) / (top - bottom)], 1), colour)
                       for _, values, colour in series],
            [((value - bottom) / (top - bottom), text) for value, text in ticks], below, tuple(across[list(marks)])))
    legend = [(name, colour) for name, _, colour in series[::-1]]
    return figure(panels, min(count, 3 if count in (5, 6, 9) else 4), (PANEL_WIDTH, PANEL_HEIGHT), legend, path)


def _limits(curves, span):
    """Bottom and top of a panel and its ticks (value, text): minimum and maximum, or one for a constant. What covers
    less than `span` lies in the middle of an axis of that length, and the ticks are its ends."""
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


# ---- how a run goes ----------------------------------------------------------------------------------------------

def curves(rows, path=None):
    """L_act, L_gen (logarithmic) and the learning rate over steps -> RGB image. rows: the lines of log.jsonl. A loss
    that is zero throughout has no panel. ValueError: no row has a loss."""
    trained = [row for row in rows if row.get("loss") is not None]
    must(trained, "curves: no row of the log has a loss")
    last, panels = max(row["step"] for row in rows), []
    for key, title in (("loss_act", "L_act, Eq. (2)"), ("loss_gen", "L_gen, Eq. (1)")):
        own = _positive((row["step"], row[key]) for row in trained)
        held_out = _positive((row["step"], row["held_out"].get(key)) for row in rows if "held_out" in row)
        if len(own):
            panels.append(_run_panel(title, last, own, held_out, *_log_axis(np.concatenate([own, held_out])[:, 1])))
    rate = np.array([(row["step"], row["lr"]) for row in trained], float)
    top = rate[:, 1].max()
    panels.append(_run_panel("learning rate, Table 2", last, rate, rate[:0], (0.0, top / 2, top),
                             lambda value: value / top / 1.08))
    drawn = {colour for panel in panels for _, colour in panel.lines}
    legend = [(name, colour) for name, colour in RUN_LINES.items() if colour in drawn]
    return figure(panels, 1, (WIDE, HIGH), legend, path)


def _run_panel(title, last, own, held_out, ticks, share):
    """A Panel of (n, 2) steps and values, up to step `last`. share: value -> how far up the axis it lies, 0 to 1."""
    lines, smooth = [], _smooth(own)
    for points, colour in zip((own, smooth, held_out), RUN_LINES.values()):
        if len(points):   # no more of them than pixels, the last one among them
            points = points[::-1][::-(-len(points) // WIDE)]
            lines.append(([(step / last, share(value)) for step, value in points], colour))
    title += f": {smooth[-1, 1]:.3g} now" + (f", {held_out[-1, 1]:.3g} held out" if len(held_out) else "")
    steps = sorted({round(last * i / 5) for i in range(6)})
    return Panel(title, lines, [(share(value), f"{value:.3g}") for value in ticks],
                 [[(step / last, f"{step:,}") for step in steps]])


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
    total = np.convolve(rows[:, 1], np.ones(width))[:len(rows)]
    return np.stack([rows[:, 0], total / np.minimum(np.arange(1, len(rows) + 1), width)], 1)
