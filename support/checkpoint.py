"""Checkpoints that survive a kill, a full disk and a flipped bit.

A checkpoint is one directory, `<run>/step_00001500/`, with exactly four files: `model.safetensors`,
`optimizer.safetensors`, `state.json` and `manifest.json`, the last giving size and SHA-256 of the others.
It is written under a temporary name beside its final one, flushed to the disk file by file, then renamed. A
rename is atomic, so a directory called `step_*` is always whole, whenever the process or the machine dies.

Reading trusts nothing. Every file is hashed before it is used, the manifest must be byte for byte what this
module would write, and a missing, damaged or unlisted file is an error that names it. `newest` steps over
damaged checkpoints to the last good one and says so. Tensors are stored as safetensors only: nothing here
can run code.

Paths are `str` or `Path`; every error is a one-line `CheckpointError`.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from support.durable import safetensors, sync_directory, try_lock, write

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
MANIFEST = "manifest.json"
FILES = (MODEL, OPTIMIZER, STATE)
STEP_NAME = re.compile(r"step_(\d{8,})")
TEMPORARY = ".tmp_step_"
TRAIN = "start one with `python train.py --config conveyor`"


class CheckpointError(ValueError):
    """A checkpoint could not be written, found or trusted. One line: what, where, what to do."""


# --------------------------------------------------------------------------------------------- writing

def save(run: str | Path, step: int, model: dict[str, Tensor], optimizer: dict[str, Tensor],
         state: dict, keep: int = 2) -> Path:
    """Write `<run>/step_<step>` atomically, then delete all but the newest `keep` of it and the older ones.

    Tensors may lie on any device and need not be contiguous; they are streamed one at a time, so the extra
    memory is at most one tensor. `state` holds JSON values under string keys, without NaN or infinity. A
    checkpoint of the same step is replaced; checkpoints of later steps are never touched.
    Returns the new directory. Raises CheckpointError, with older checkpoints intact, if it cannot be written.
    """
    if step < 0 or keep < 1:
        raise CheckpointError(f"cannot save step {step} with keep={keep}: step must be >= 0 and keep >= 1")
    run = Path(run)
    final = run / f"step_{step:08d}"
    try:
        state_bytes = _canonical(state)
        run.mkdir(parents=True, exist_ok=True)
        _remove_stale(run)
        _require_space(run, (model, optimizer))
        _write_and_rename(final, model, optimizer, state_bytes)
    except OSError as error:
        raise CheckpointError(f"step {step} was not saved in {run}: {error.strerror or error}; older checkpoints are "
                              "intact; free space or fix permissions there, or use another directory") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"step {step} was not saved in {run}: {error}; older checkpoints are intact; "
                              "pass supported tensors and a state of finite JSON values") from error
    _rotate(run, step, keep)
    return final


def _write_and_rename(final: Path, model: dict[str, Tensor], optimizer: dict[str, Tensor], state: bytes) -> None:
    """Fill a temporary sibling of `final`, flush it to disk, rename it; leave no trace of a failure."""
    temporary = final.parent / f"{TEMPORARY}{final.name[5:]}_{os.getpid()}"
    os.mkdir(temporary)
    # The lock marks the directory as in use; the kernel drops it when this process dies, however it dies.
    lock = os.open(temporary, os.O_RDONLY)
    try:
        try_lock(lock)
        entries = {MODEL: write(temporary / MODEL, safetensors(model)),
                   OPTIMIZER: write(temporary / OPTIMIZER, safetensors(optimizer)),
                   STATE: write(temporary / STATE, [state])}
        write(temporary / MANIFEST, [_manifest(entries)])
        os.fsync(lock)
        _put_in_place(temporary, final)
        sync_directory(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)      # already renamed away if all went well
        os.close(lock)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename `temporary` to `final`. An identical good checkpoint stays; any other one there gives way."""
    if not final.exists():
        os.rename(temporary, final)
        return
    try:
        verify(final)
        if (final / MANIFEST).read_bytes() == (temporary / MANIFEST).read_bytes():
            return
    except CheckpointError:
        pass                                              # damaged: replaced like any other
    aside = temporary.with_name(temporary.name + "_replaced")
    os.rename(final, aside)
    try:
        os.rename(temporary, final)
    except OSError:
        os.rename(aside, final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _canonical(value: dict) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def _manifest(entries: dict[str, dict]) -> bytes:
    # The manifest hashes itself too, so that damage to it is not blamed on the files it lists.
    return _canonical({"files": entries, "sha256": hashlib.sha256(_canonical(entries)).hexdigest()})


def _require_space(run: Path, groups: Iterable[dict[str, Tensor]]) -> None:
    needed = sum(t.numel() * t.element_size() for tensors in groups for t in tensors.values())
    free = shutil.disk_usage(run).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"no space, needs {needed / 1e9:.3f} GB, {free / 1e9:.3f} GB are free")


def _remove_stale(run: Path) -> None:
    """Delete temporaries whose writer is dead: those whose lock we can take."""
    for path in run.glob(TEMPORARY + "*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if try_lock(descriptor):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)


def _rotate(run: Path, step: int, keep: int) -> None:
    """Delete checkpoints older than `step`, but for the newest `keep` whole ones (`step` itself counts)."""
    kept = 1
    for path in _checkpoints(run):
        if step_of(path) >= step:
            continue
        if kept < keep:
            # A truncated one does not count. Hashing gigabytes at every save would cost as much as writing them.
            kept += _whole(path)
            continue
        try:
            doomed = path.with_name(f"{TEMPORARY}{path.name[5:]}_{os.getpid()}_old")
            os.rename(path, doomed)               # so that a kill while deleting leaves no half checkpoint
            shutil.rmtree(doomed)
        except OSError as error:
            print(f"checkpoint: could not delete old {path}: {error.strerror or error}", file=sys.stderr)


# --------------------------------------------------------------------------------------------- reading

def verify(path: str | Path) -> None:
    """Hash every file of one checkpoint directory. Raises CheckpointError naming the first bad file."""
    _check(Path(path), FILES)


def _check(path: Path, hashed: Iterable[str]) -> None:
    """Compare names and sizes of all files, and SHA-256 of those in `hashed`, with the manifest."""
    advice = "use an older checkpoint or copy this one again"
    try:
        present = set(os.listdir(path))
        for name in (MANIFEST, *FILES):
            if name not in present:
                raise CheckpointError(f"{path / name} is missing: {advice}")
        entries = _read_manifest(path / MANIFEST, advice)
        for name in sorted(present - {MANIFEST, *FILES}):
            raise CheckpointError(f"{path / name} is not listed in {MANIFEST}: move it out of the checkpoint")
        for name in FILES:
            size, expected = os.path.getsize(path / name), entries[name]["size"]
            if size != expected:
                raise CheckpointError(f"{path / name} has {size} bytes, {MANIFEST} says {expected}: {advice}")
        for name in hashed:
            with open(path / name, "rb") as file:
                found, expected = hashlib.file_digest(file, "sha256").hexdigest(), entries[name]["sha256"]
            if found != expected:
                raise CheckpointError(f"{path / name} is damaged, its SHA-256 is {found[:12]}..., {MANIFEST} says "
                                      f"{expected[:12]}...: {advice}")
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {error.filename or path}: {error.strerror or error}; "
                              "check the path and its permissions") from error


def _read_manifest(path: Path, advice: str) -> dict[str, dict]:
    """The entries {name: {"sha256", "size"}} of a manifest that is exactly what `_manifest` would write."""
    raw = path.read_bytes()
    try:
        entries = json.loads(raw)["files"]
        good = raw == _manifest(entries) and set(entries) == set(FILES)
        good = good and all(set(entry) == {"sha256", "size"} for entry in entries.values())
    except (ValueError, TypeError, KeyError, RecursionError):
        good = False
    if not good:
        raise CheckpointError(f"{path} is damaged or was edited: {advice}")
    return entries


def _whole(path: Path) -> bool:
    try:
        _check(path, ())
        return True
    except CheckpointError:
        return False


def step_of(path: Path) -> int:
    """The step at which a checkpoint directory was written."""
    return int(STEP_NAME.fullmatch(path.name)[1])


def _checkpoints(run: Path) -> list[Path]:
    """Directories called step_* in `run`, newest step first. Temporaries have another name."""
    if not run.is_dir():
        return []
    found = [path for path in run.iterdir() if STEP_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def _first_good(candidates: Iterable[Path]) -> Path | None:
    """The first that verifies; each damaged one before it is named on stderr."""
    for path in candidates:
        try:
            verify(path)
            return path
        except CheckpointError as error:
            print(f"checkpoint: skipping {path.name}: {error}", file=sys.stderr)
    return None


def newest(run: str | Path) -> Path:
    """The good checkpoint of the highest step in `run`; damaged ones are named on stderr and skipped.

    Raises CheckpointError if there is none.
    """
    good = _first_good(_checkpoints(Path(run)))
    if good is None:
        raise CheckpointError(f"no good checkpoint in {run}: {TRAIN}, or give another directory")
    return good


def resolve(path: str | Path) -> Path:
    """A run directory gives its newest good checkpoint; a checkpoint directory is verified and returned."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a directory: give a run (runs/NAME) or a checkpoint in it "
                              "(runs/NAME/step_00001500)")
    if STEP_NAME.fullmatch(path.name) or (path / MANIFEST).exists():
        verify(path)
        return path
    return newest(path)


def find_newest_run(root: str | Path = "runs") -> Path:
    """The good checkpoint, among all runs directly under `root`, whose state.json was written last.

    Damaged ones are named on stderr and skipped. Raises CheckpointError if there is none.
    """
    def written(path: Path) -> tuple[int, int]:
        state = path / STATE
        return (state if state.exists() else path).stat().st_mtime_ns, step_of(path)

    root = Path(root)
    runs = [run for run in root.iterdir() if run.is_dir()] if root.is_dir() else []
    found = [path for run in runs for path in _checkpoints(run)]
    good = _first_good(sorted(found, key=written, reverse=True))
    if good is None:
        raise CheckpointError(f"no good checkpoint under {root}: {TRAIN}, or give a checkpoint's path")
    return good


def load(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Model tensors (on the CPU) and state of one checkpoint directory; both files are verified first."""
    path = Path(path)
    _check(path, (MODEL, STATE))
    return _read_tensors(path / MODEL), json.loads((path / STATE).read_bytes())


def load_optimizer(path: str | Path) -> dict[str, Tensor]:
    """Optimizer tensors (on the CPU) of one checkpoint directory; the file is verified first."""
    path = Path(path)
    _check(path, (OPTIMIZER,))
    return _read_tensors(path / OPTIMIZER)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {error}; use an older one") from error
