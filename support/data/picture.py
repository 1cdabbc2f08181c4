"""One picture of a file or of bytes, by one rule, whatever program wrote it: docs/data.md#pictures lists the forms.

The contents decide the format, the file's name does not. What Pillow does: alpha is dropped, of 16-bit colours the
upper byte counts, of an animation the first frame."""

import io
import os
import struct
import warnings
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps

from support.files import lfs_pointer, must

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
PIXELS = 1 << 26   # 8192 x 8192
ASPECT = 32        # in a square of 64 px the shorter side keeps 2
warnings.filterwarnings("ignore", module="PIL")   # what it would only warn of is read or refused here


def check_size(height, width, what="it"):
    """ValueError unless a picture of that size can be held and letterboxed. what: which one, for the message."""
    short, long = sorted((height, width))
    must(short > 0 and long <= ASPECT * short and short * long <= PIXELS, f"{what} is {height} x {width} (height, "
         f"width): a picture has 1 to {PIXELS:,} pixels, and its longer side is at most {ASPECT} times its shorter one")


def decode(data, where=None):
    """A path, or the bytes of a file -> (H, W, 3) uint8 RGB, read-only.
    where names the picture in the ValueError: dataset, episode, frame, column; by default the path."""
    stored = isinstance(data, (bytes, bytearray, memoryview))
    where = where or f"picture {data}"
    if not stored and not os.path.isfile(data):   # a named pipe would be waited for
        raise ValueError(f"{where} is missing" + (": it is no file" if os.path.exists(data) else ""))
    try:
        with Image.open(io.BytesIO(data) if stored else data, formats=FORMATS) as picture:
            check_size(picture.height, picture.width)
            picture.load()
            with suppress(SyntaxError, struct.error):   # of EXIF that is none: as an unknown orientation, it is upright
                ImageOps.exif_transpose(picture, in_place=True)
            return np.asarray(_rgb(picture))
    except Exception as error:   # of Pillow, whatever a torn file makes it raise
        if bytes(data[:23]) == b"version https://git-lfs" if stored else lfs_pointer(data):
            raise ValueError(f"{where} is a Git LFS pointer, not the picture: run git lfs pull in its repository")
        said = "no PNG, JPEG, WebP, BMP, TIFF or GIF" if isinstance(error, Image.UnidentifiedImageError) else error
        said = str(said).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{where} cannot be read ({said[0][:200]}): replace the file") from error


def _rgb(picture):
    """A loaded picture of any mode -> one of mode RGB. ValueError: what its numbers mean cannot be known."""
    if picture.mode.startswith("I") or picture.mode == "F":
        grey, top = np.asarray(picture), 1 if picture.mode == "F" else 65535
        if picture.mode == "I" and picture.format != "PNG" or picture.format == "TIFF" and picture.tag_v2.get(262) == 0:
            raise ValueError("grey of signed or 32-bit integers, or of inverted values: save it with 8 or 16 bit")
        if not (0 <= grey.min() and grey.max() <= top):
            raise ValueError(f"grey of {grey.min():g} to {grey.max():g}: float pictures go from 0 to 1")
        picture = Image.fromarray(np.round(grey * np.float32(255 / top)).astype(np.uint8))
    picture.info.pop("transparency", None)   # of a palette: Pillow would warn that it is dropped
    return picture if picture.mode == "RGB" else picture.convert("RGB")
