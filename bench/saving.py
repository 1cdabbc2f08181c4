"""Where results go, what they begin with, and that a finished one is not lost."""

import json
import shlex
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy
import torch

from support.files import must, save_json

RESULTS = Path("bench/results")
VERSIONS = {"torch": torch.__version__, "numpy": numpy.__version__}   # both draw random numbers


def begin(parser, argv, default=None):
    """Parse a command's flags, --json (with a default) and --force among them -> (args, path of the result, None where
    nothing is to be written, beginning of the report)."""
    parser.add_argument("--json", default=default, help="file name under bench/results")
    parser.add_argument("--force", action="store_true", help="write over a finished result")
    args = parser.parse_args(argv)
    path = None if args.json is None else place(args.json, args.force)
    return args, path, {"command": f"{parser.prog} {shlex.join(argv)}", **VERSIONS}


def place(name, force):
    """The path of a result. ValueError: no file name, or without `force` a result that is finished or committed."""
    path, finished = RESULTS / name, True
    must(Path(name).name == name and not path.is_dir(),
         f"--json {name!r}: give the name of a file, it lies in {RESULTS}")
    if force or not path.exists():
        return path
    with suppress(ValueError, AttributeError):
        finished = json.loads(path.read_text()).get("finished", True)
    with suppress(OSError):   # no git here
        finished |= not subprocess.run(["git", "ls-files", "--error-unmatch", path.name], cwd=path.parent,
                                       capture_output=True).returncode
    must(not finished, f"{path} holds a finished result: add --force to write over it, or give another name")
    return path


def save(path, report):
    """Write JSON so that a reader finds all of it or none. path None: nothing is written."""
    if path:
        save_json(path, report)
