"""Are the files of a dataset still the same? By size and time of last change (quick), or by SHA-256 (exact).

`--inspect` records every file's SHA-256 in `statistics/files.json` of the dataset. `--verify` names each file that has
changed, is gone or is new since.
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from support.files import must
from support.progress import each

FOLDER, RECORD = "statistics", "files.json"   # of a dataset; what else lies in FOLDER is no part of the record


def digest(value):
    """SHA-256 of a JSON-able value, hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def files_digest(paths):
    """Identity of files without reading them: names, sizes and times of last change -> hex."""
    return digest([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(set(paths))])


def write_json(path, body):
    """Write {**body, "sha256"} to `path` in one move, making its folder; OSError as it comes."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(body | {"sha256": digest(body)}, indent=1) + "\n")
    os.replace(temporary, path)


def read_json(path):
    """What write_json wrote. ValueError: damaged or edited."""
    with suppress(OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        body = json.loads(path.read_text())
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
    """Record the files of a dataset, unless that was done before -> a line that says where, or why not."""
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
    try:
        then, now = read_json(path)["files"], _hashes(Path(root))
    except OSError as error:
        raise ValueError(f"dataset {root}: {error.filename} cannot be read ({error.strerror})") from error
    changed = [name for name in then.keys() & now if then[name] != now[name]]
    return [f"{Path(root) / name} {what}" for names, what in (
        (then.keys() - now, "is missing"), (now.keys() - then, "is new"), (changed, "has changed"))
        for name in sorted(names)]
