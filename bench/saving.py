"""Where results go, and that a finished one is not lost."""

import json
from pathlib import Path

from support.files import keep_finished, written

RESULTS = Path("bench/results")


def place(name, force):
    """The path of a result. ValueError: no file name, or a finished result is there and `force` is not given."""
    if Path(name).name != name or (RESULTS / name).is_dir():
        raise ValueError(f"--json {name!r}: give the name of a file, it lies in {RESULTS}")
    keep_finished(RESULTS / name, force)
    return RESULTS / name


def save(path, report):
    """Write JSON so that a reader finds all of it or none."""
    with written(path) as file:
        file.write_text(json.dumps(report, indent=1) + "\n")
