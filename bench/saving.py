"""Where results go, and that a finished one is not lost."""

import json
from pathlib import Path

RESULTS = Path("bench/results")


def place(name, force):
    """The path of a result. ValueError where a finished one is, unless `force`."""
    path = RESULTS / name
    if path.exists() and not force and json.loads(path.read_text()).get("finished", True):
        raise ValueError(f"{path} holds a finished result: add --force to write over it, or --json with another name")
    return path


def save(path, report):
    """Write JSON beside `path` and rename it, so that a reader finds all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(report, indent=1) + "\n")
    beside.replace(path)
