"""Are the files of a dataset still the same? By size and time of last change (quick), or by SHA-256 (exact)."""

import hashlib
import json
import os
import zipfile
from contextlib import suppress
from pathlib import Path

from support.files import damage, must, regular, save_json
from support.progress import each

FOLDER, RECORD = "statistics", "files.json"   # of a dataset; what else lies in FOLDER is no part of the record


def digest(value):
    """SHA-256 of a JSON-able value, hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def files_digest(paths):
    """Identity of files without reading them: names, sizes and times of last change -> hex."""
    return digest([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(set(paths))])


def contents_digest(root):
    """What a dataset says of itself, as its copies do -> hex: meta/ of LeRobot, but for statistics, or the checksums in
    episode.npz."""
    if (plain := root / "episode.npz").exists():
        with damage(str(plain), "it cannot be read"), zipfile.ZipFile(regular(plain)) as archive:
            return digest(sorted([item.filename, item.CRC, item.file_size] for item in archive.infolist()))
    paths = seen(root, "meta/**/*.json", "meta/**/*.jsonl", "meta/**/*.parquet")
    return digest([[path.relative_to(root).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()]
                   for path in paths if "stats" not in path.name])


def seen(root, *patterns):
    """The files of a folder that fit, but for what is hidden, sorted."""
    return sorted(path for pattern in patterns for path in root.glob(pattern)
                  if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts))


def write_json(path, body):
    """Write {**body, "sha256"} to `path` in one move, making its folder; OSError as it comes."""
    save_json(path, body | {"sha256": digest(body)})


def read_json(path):
    """What write_json wrote. ValueError: damaged or edited."""
    with suppress(OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        body = json.loads(regular(path).read_text())
        if body.pop("sha256") == digest(body):
            return body
    raise ValueError(f"{path} is damaged or was edited: delete it to have it made again")


def _hashes(root):
    """Relative path -> [size, SHA-256] of every file under `root`, but for FOLDER and what is hidden: a clone's .git, a
    hub's .cache. OSError as it comes."""
    paths = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file()]
    paths = [path for path in paths if path.parts[0] != FOLDER and not any(part.startswith(".") for part in path.parts)]
    found = {}
    for path in each(paths, "file"):
        with open(root / path, "rb") as file:
            found[path.as_posix()] = [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]
    return found


def record(root):
    """Record every file's SHA-256 in a dataset, unless that was done before -> a line that says where, or why not."""
    path = Path(root) / FOLDER / RECORD
    if path.exists():
        return (f"SHA-256 of {len(read_json(path)['files'])} files recorded before in {path}: --verify compares, "
                f"delete it to record anew")
    try:
        files = _hashes(Path(root))
        write_json(path, {"files": files})
    except OSError as error:
        return f"SHA-256 of the files not recorded: {error.filename or path} ({error.strerror})"
    return f"SHA-256 of {len(files)} files recorded in {path}"


def verify(root):
    """What is no longer as it was recorded -> lines, none if all is. ValueError: no record, or a damaged one."""
    path = Path(root) / FOLDER / RECORD
    must(path.exists(), f"dataset {root}: no record of its files in {path}; make one of data that you trust: "
         f"python -m support.data --inspect {root}")
    then, now = read_json(path)["files"], _hashes(Path(root))
    lines = [f"{Path(root) / name} is missing" for name in sorted(then.keys() - now)]
    lines += [f"{Path(root) / name} is new" for name in sorted(now.keys() - then)]
    return lines + [f"{Path(root) / name} has changed" for name in sorted(then.keys() & now) if then[name] != now[name]]
