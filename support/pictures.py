"""Grids and films of camera pictures, drawn with Pillow: what was seen, what was imagined, how the world moved.

`foresight` is the paper's picture: one row per camera, with the frames the model saw, the one it imagined
and the one that came; `gif` writes a loop. Given a path, a figure is written there too, as the kind its ending
names; directories are made. Lines are in support/plots.py.

Pictures are uint8 arrays of shape (H, W, 3). Their pixels are never smoothed or recoloured: they are enlarged
by a whole factor, so a figure can be read back and compared. Colours are those of Okabe and Ito, which colour-blind
readers can tell apart. Bad input is a one-line ValueError that says which picture.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, MUTED, HAIR, PAPER = (38, 38, 38), (115, 115, 115), (222, 222, 222), (255, 255, 255)
BLUE = (0, 114, 178)                # what the model says
MARGIN = 20                         # pixels of white around a figure
GUTTER = 8                          # between the pictures of a grid
CELL = 192                          # small pictures are enlarged to about this many pixels
OVERSAMPLE = 3                      # lines are drawn this much larger, then averaged down


# ---------------------------------------------------------------------------------------------- shared

def font_of(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
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


def saved(image: Image.Image, path: str | Path | None) -> Image.Image:
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

    font = font_of(min(18, max(12, width // 12)))
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
                text, colour = fitted(caption, font, width), BLUE if imagined else INK
                draw.text((x + width / 2, top - 9), text, colour, font, anchor="ms")
            _cell(image, (x, top, width, height), cell, imagined)
    return saved(image, path)


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
    font = font_of(min(15, max(8, width // 9)))
    half = font.getlength("no picture") / 2 + 6
    draw = ImageDraw.Draw(tile)
    draw.rectangle((width / 2 - half, height / 2 - font.size, width / 2 + half, height / 2 + font.size),
                   (247, 247, 247))
    draw.text((width / 2, height / 2), "no picture", MUTED, font, anchor="mm")
    return tile


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
