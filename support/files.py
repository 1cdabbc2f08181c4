"""What strangers send: every file is bounded before it is read, and every path stays in the folder that names it.

A ValueError here is one line that names the file, what is wrong with it and what to do."""

import json
import os
import tempfile
import zipfile
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from support.bounds import must

LARGEST = 8 << 30   # bytes of one array, or of all arrays of an .npz: numbers, not pictures
LARGEST_TEXT = 1 << 30


def regular(path, largest=float("inf")):
    """path, if a file of at most `largest` bytes stands there, no pipe and no Git LFS pointer. ValueError: else."""
    if not os.path.isfile(path) or lfs_pointer(path) or os.path.getsize(path) > largest:
        raise unreadable(path, f"no file of at most {largest} bytes" if os.path.isfile(path) else "no file")
    return path


def lfs_pointer(path):
    """Whether a file is the text that Git leaves in the place of a large one that was not downloaded."""
    with suppress(OSError):
        if os.path.isfile(path):
            with open(path, "rb") as file:
                return file.read(40).startswith(b"version https://git-lfs")
    return False


def require_writable(path, flag, file=False):
    """ValueError, one line, unless a folder (or file) can be written or made; nothing stays. path None: no flag."""
    if path is None:
        return
    place = Path(path).absolute()
    there = next(at for at in (place.parent if file else place, *place.parents) if os.path.exists(at))
    try:
        if file and place.is_dir():
            raise IsADirectoryError(0, "Is a directory")
        with suppress(FileNotFoundError):
            place.stat()   # a name may be too long
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        line = f"{flag} {str(path)[:200]} cannot be made: {error.strerror}; give one that can be written"
        raise ValueError(line) from error


def unreadable(path, error, repair="write it again"):
    """The ValueError for a file that `error` says cannot be read; a missing file and a Git LFS pointer are named."""
    if not os.path.exists(path):
        return ValueError(f"{path} is missing")
    if lfs_pointer(path):
        return ValueError(f"{path} is a Git LFS pointer, not the file itself: run git lfs pull in its repository")
    said = str(error).strip().splitlines()
    return ValueError(f"{path} cannot be read ({said[0][:200] if said else type(error).__name__}): {repair}")


@contextmanager
def damage(where, what, path=None):
    """Whatever libraries make of bytes that no writer of the format wrote becomes one line; lines of ours pass.
    path: the file that holds them, which may be a Git LFS pointer."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(where):
            raise
        if path and lfs_pointer(path):
            raise ValueError(f"{where}: {unreadable(path, error)}") from error
        reason = " ".join((str(error) if isinstance(error, ValueError) else repr(error)).split())[:200]
        raise ValueError(f"{where}: {what} ({reason}); download it again") from error


def read_text(path, **repair):
    """A text file, UTF-8 with or without a byte order mark -> str."""
    try:
        return without_nul(Path(regular(path, LARGEST_TEXT)).read_bytes().decode("utf-8-sig"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error, **repair) from error


def without_nul(text, where):
    """text, as it is. ValueError: it holds NUL characters, which no person writes, and a policy would be told."""
    must("\0" not in text, f"{where} holds NUL characters, as UTF-16 that is read as UTF-8: give it in UTF-8")
    return text


def _object(pairs):
    """Keys and values of a JSON object -> dict. ValueError: a key stands twice; Python would keep the last one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"an object has two keys {Counter(key for key, _ in pairs).most_common(1)[0][0]!r}, keep one")
    return found


def parse_json(text, where):
    """JSON text, or its bytes -> what it holds. `where` names it in the ValueError. Nesting beyond Python's depth,
    halves of letters, which nothing can print, and an object with a key twice are refused."""
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        found = json.loads(text, object_pairs_hook=_object)
        if "\\ud" in text.lower():
            json.dumps(found, ensure_ascii=False).encode("utf-8")
        return found
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON ({str(error)[:120]}): write it again") from error


def read_json(path, kind=dict, **repair):
    """A JSON file -> what it holds, of type `kind`."""
    found = parse_json(read_text(path, **repair), path)
    must(isinstance(found, kind), f"{path} holds a {type(found).__name__}, expected a {kind.__name__}: write it again")
    return found


def read_jsonl(path):
    """A file of JSON objects, one a line -> list of (text that names the line, dict). Empty lines are left out."""
    lines = enumerate(Path(regular(path, LARGEST_TEXT)).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
    rows = [(f"{path}, line {n}", parse_json(line, f"{path}, line {n}")) for n, line in lines if line.strip()]
    for where, row in rows:
        must(isinstance(row, dict), f"{where} holds a {type(row).__name__}, expected an object: write it again")
    return rows


def whole(value, where, low=0, high=10 ** 9):
    """A whole number from a file -> int; 12.0 is 12. ValueError: of another kind, or not from low to high."""
    if type(value) in (int, float) and low <= value <= high and value == int(value):
        return int(value)
    raise ValueError(f"{where} is {value!r:.60}, expected a whole number from {low} to {high}: correct it")


def numbers(values, where, ndim=None, repair="write it again"):
    """Numbers from a file, of any form -> float32 array. `where` names them: file, key. ValueError: text, complex,
    ragged, empty, another number of axes than ndim, or a row that is not finite as float32; the first is named."""
    try:
        given = np.asarray(values)
        if given.dtype.kind not in "biuf":
            raise TypeError(f"{given.dtype} of shape {given.shape}")
        with np.errstate(over="ignore"):
            found = given.astype(np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        line = f"{where} holds no rows of equal length of real numbers ({str(error)[:100]}): {repair}"
        raise ValueError(line) from error
    if ndim is not None and (found.ndim != ndim or 0 in found.shape[1:]):
        raise ValueError(f"{where} has shape {found.shape}, expected {ndim} axes, none of them empty: {repair}")
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        row = f", row {bad[0][0]}" if found.ndim else ""
        raise ValueError(f"{where}{row}: {given[tuple(bad[0])]} is not finite as float32: {repair}")
    if found.ndim == 2:
        check_rounding(given, found, where)
    return found


def check_rounding(given, found, where):
    """Rows of numbers (n, d) as they are stored and as float32. ValueError: of a dimension that moves, rounding takes
    over a tenth; counts about 2^30 would all be one. Below 1024 it is under a tenth of 1e-3, which is no movement."""
    if np.can_cast(given.dtype, np.float32) or not np.abs(found).max(initial=0) > 1024:
        return
    with np.errstate(invalid="ignore"):
        given = given.reshape(found.shape).astype(np.longdouble)   # int64 is exact
        spread, lost = np.ptp(given, 0), np.abs(given - found).max(0)
    for d in np.flatnonzero((spread > 1e-3) & (lost > spread / 10) & (lost < np.inf)):
        raise ValueError(f"{where}, dimension {d}: it moves by {spread[d]:.4g} in all, of which float32 rounds away "
                         f"{lost[d]:.4g} at {given[0, d]:.10g}; subtract an offset, or store it in another unit")


def read_npy(path, mmap=False):
    """An .npy file of plain numbers or text -> array; mmap: a memory map. Mapping compares its header with its size."""
    regular(path)
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        must(mapped.nbytes <= LARGEST or mmap, f"more than {LARGEST >> 30} GiB of numbers")
        return mapped if mmap else np.array(mapped)
    except Exception as error:   # of numpy, whatever a torn header makes it raise: tokenize.TokenError, for one
        raise unreadable(path, error, "write it again, as an .npy file of one plain array") from error


def read_npz(path, names=None):
    """An .npz file of plain arrays -> {name: array}. What it unpacks to is bounded first; numpy reads no array that is
    longer than its member. names: which arrays are read; the others are None."""
    regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        must(size <= LARGEST, f"it unpacks to {size:,} bytes, the limit is {LARGEST:,}")
        with np.load(path, allow_pickle=False) as npz:
            must(len({*npz.files}) == len(npz.files), "two of its arrays have one name")
            found = {key: npz[key] if names is None or key in names else None for key in npz.files}
        must(bytes not in map(type, found.values()), "it holds more than arrays")   # of a member that is no .npy file
        return found
    except Exception as error:
        raise unreadable(path, error, "write it again, as an .npz file of plain arrays") from error


def inside(root, named, where):
    """A path that a file of the folder `root` names -> Path in `root`. `where` names that file, for messages.
    What a recorder wrote as an absolute path is looked for by its last parts in `root`. Links that lie in the folder
    are the user's own and are followed. ValueError: it leads outside."""
    root, named = Path(root), str(named)
    parts = Path(named.replace("\\", "/")).parts
    absolute = named[:1] in ("/", "\\") or named[1:2] == ":"   # as C:\data
    if not named.isprintable() or any(len(os.fsencode(part)) > 255 for part in parts):   # of what no file can be called
        parts = ()
    if parts and ".." not in parts and not absolute:
        return root.joinpath(*parts)
    for n in range(1, len(parts) if absolute and ".." not in parts else 0):
        if os.path.exists(root.joinpath(*parts[n:])):
            return root.joinpath(*parts[n:])
    raise ValueError(f"{where} names {named[:200]!r}, which is not a path inside {root}: correct it")


@contextmanager
def written(path):
    """Context in which a file is written under another name beside `path`, with its ending -> that Path. In the end it
    is renamed: an interrupted program leaves no half file, and what stood there before. The folder is made."""
    path = Path(path)
    beside = path.with_name(f".{os.getpid()}_{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def save_json(path, content):
    """JSON that a reader finds whole or not at all. OSError as it comes."""
    with written(path) as file:
        file.write_text(json.dumps(content, indent=1) + "\n")
