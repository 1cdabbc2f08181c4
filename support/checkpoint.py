"""Checkpoints that survive a kill, a full disk and a flipped bit.

A checkpoint is one directory, `<run>/step_00001500/`, with exactly four files, or its tokenizer's beside them;
`manifest.json` gives size and SHA-256 of the others. It is written under a temporary name, flushed file by file, then
renamed: a directory called `step_*` is always whole. Every file is hashed before it is used, and a missing, damaged or
unlisted one is an error that names it. Tensors are safetensors: nothing here can run code. POSIX only."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from support.files import read_json
from support.owner import try_lock

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
MANIFEST = "manifest.json"
FILES = (MODEL, OPTIMIZER, STATE)
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt")   # those of a run whose tokens are not bytes
OWN_TOKENIZER = "the files of this checkpoint"               # what its config then names as its tokenizer
STEP_NAME = re.compile(r"step_(\d{8,})")
TEMPORARY = ".tmp_step_"
OLDER = "use an older checkpoint or copy this one again"
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
          torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}


class CheckpointError(ValueError):
    """A checkpoint could not be written, found or trusted. One line: what, where, what to do."""


def save(run, step, model, optimizer, state, keep=2, tokenizer=None):
    """Write `<run>/step_<step>` atomically, then delete all but the newest `keep` of it and the older ones -> its path.
    model, optimizer: name -> tensor, on any device, contiguous or not; the extra memory is at most one of them. state:
    finite JSON values. tokenizer: name in TOKENIZER -> bytes. A checkpoint of the same step is replaced; those of later
    steps are never touched. CheckpointError: it cannot be written; older ones are intact."""
    run = Path(run)
    final = run / f"step_{step:08d}"
    try:
        run.mkdir(parents=True, exist_ok=True)
        for path in run.glob(TEMPORARY + "*"):
            with _opened(path) as descriptor:
                if try_lock(descriptor):   # its writer is dead
                    shutil.rmtree(path, ignore_errors=True)
        _require_space(run, (model, optimizer))
        _write_and_rename(final, model, optimizer, state, tokenizer or {})
    except OSError as error:
        raise CheckpointError(f"step {step} was not saved in {run}: {error.strerror or error}; older checkpoints are "
                              "intact; free space or fix permissions there, or use another directory") from error
    _rotate(run, step, keep)
    return final


def _write_and_rename(final, model, optimizer, state, tokenizer):
    """Fill a temporary sibling of `final`, flush it to disk, rename it; leave no trace of a failure."""
    temporary = final.parent / f"{TEMPORARY}{final.name[5:]}_{os.getpid()}"
    os.mkdir(temporary)
    # The lock marks the directory as in use; the kernel drops it when this process dies, however it dies.
    with _opened(temporary) as lock, _opened(final.parent) as parent:
        try:
            try_lock(lock)
            files = {MODEL: safetensors_file(model), OPTIMIZER: safetensors_file(optimizer),
                     STATE: [_canonical(state)], **{name: [content] for name, content in tokenizer.items()}}
            entries = {name: _write(temporary / name, chunks) for name, chunks in files.items()}
            _write(temporary / MANIFEST, [_manifest(entries)])
            os.fsync(lock)
            if final.exists():        # a damaged one that --resume stepped over
                _delete(final)
            os.rename(temporary, final)
            os.fsync(parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)      # already renamed away if all went well


@contextlib.contextmanager
def _opened(directory):
    """A descriptor of a directory: what can be locked, and flushed so that its entries are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _delete(checkpoint):
    """Renamed first, so that a kill while deleting leaves no half checkpoint."""
    doomed = checkpoint.with_name(f"{TEMPORARY}{checkpoint.name[5:]}_{os.getpid()}_old")
    os.rename(checkpoint, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def safetensors_file(tensors, metadata=None):
    """The bytes of a safetensors file, tensor by tensor: the library's own writer wants all on the CPU at once.
    tensors: name -> tensor, on any device, contiguous or not. metadata: None, or text by text."""
    # Widest types first, so that every tensor starts aligned to its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for name in names:
        tensor, start = tensors[name], end
        end = start + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield memoryview(flat.view(torch.uint8).numpy())


def _write(path, chunks):
    """Write and fsync one file -> its manifest entry, hashed from the bytes as they went out."""
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        return {"sha256": digest.hexdigest(), "size": file.tell()}


def _canonical(value):
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def _manifest(entries):
    # The manifest hashes itself too, so that damage to it is not blamed on the files it lists.
    return _canonical({"files": entries, "sha256": hashlib.sha256(_canonical(entries)).hexdigest()})


def _require_space(run, groups):
    needed = sum(tensor.nbytes for tensors in groups for tensor in tensors.values())
    free = shutil.disk_usage(run).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"no space, needs {needed / 1e9:.3f} GB, {free / 1e9:.3f} GB are free")


def _rotate(run, step, keep):
    """Delete checkpoints older than `step`, but for the newest `keep` whole ones (`step` itself counts)."""
    kept = 1
    for path in (path for path in _checkpoints(run) if step_of(path) < step):
        try:
            if kept >= keep:
                _delete(path)
            else:
                verify(path, ())   # a truncated one does not count; hashing would cost as much as writing
                kept += 1
        except CheckpointError:
            pass
        except OSError as error:
            print(f"checkpoint: could not delete old {path}: {error.strerror or error}", file=sys.stderr)


def verify(path, hashed=(*FILES, *TOKENIZER)):
    """CheckpointError for the first file that is not as its manifest says: all names and sizes, SHA-256 of `hashed`."""
    path = Path(path)
    try:
        present = set(os.listdir(path))
        for name in sorted({MANIFEST, *FILES} - present):
            raise CheckpointError(f"{path / name} is missing: {OLDER}")
        entries = _read_manifest(path / MANIFEST)
        for name in sorted(present - {MANIFEST, *entries}):
            raise CheckpointError(f"{path / name} is not listed in {MANIFEST}: move it out of the checkpoint")
        for name, entry in entries.items():
            if (size := os.path.getsize(path / name)) != entry["size"]:
                raise CheckpointError(f"{path / name} has {size} bytes, {MANIFEST} says {entry['size']}: {OLDER}")
        for name in (name for name in hashed if name in entries):
            with open(path / name, "rb") as file:
                found, expected = hashlib.file_digest(file, "sha256").hexdigest(), entries[name]["sha256"]
            if found != expected:
                raise CheckpointError(f"{path / name} is damaged, its SHA-256 is {found[:12]}..., {MANIFEST} says "
                                      f"{str(expected)[:12]}...: {OLDER}")
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {error.filename or path}: {error.strerror or error}; "
                              "check the path and its permissions") from error


def _read_manifest(path):
    """The entries {name: {"sha256", "size"}} of a manifest that is exactly what `_manifest` would write."""
    if not path.is_file():   # a pipe would be waited for
        raise CheckpointError(f"{path} is no file: {OLDER}")
    with open(path, "rb") as file:
        raw = file.read(1 << 16)   # a whole one has about 1,000 bytes
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        entries = json.loads(raw)["files"]
        known = {*FILES} <= {*entries} <= {*FILES, *TOKENIZER}
        if known and raw == _manifest(entries) and all({*entry} == {"sha256", "size"} for entry in entries.values()):
            return entries
    raise CheckpointError(f"{path} is damaged or was edited: {OLDER}")


def step_of(path):
    """The step at which a checkpoint directory was written, also where it was renamed."""
    named = STEP_NAME.fullmatch(path.name)
    return int(named[1]) if named else read_json(path / STATE)["step"]


def _checkpoints(run):
    """Directories called step_* in `run`, newest step first. Temporaries have another name."""
    found = [path for path in run.glob("step_*") if STEP_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def _first_good(candidates, where):
    """The first that verifies; each damaged one before it is named on stderr. CheckpointError: there is none."""
    for path in candidates:
        try:
            verify(path)
            return path
        except CheckpointError as error:
            print(f"checkpoint: skipping {path.name}: {error}", file=sys.stderr)
    raise CheckpointError(f"no good checkpoint {where}: start one with `python train.py --config conveyor`, "
                          "or give another path")


def newest(run):
    """The good checkpoint of the highest step in `run`; damaged ones are named on stderr and skipped."""
    return _first_good(_checkpoints(Path(run)), f"in {run}")


def find_newest_run(root):
    """The same among all runs directly under `root`: the one that was written last."""
    found = [path for run in Path(root).glob("*/") for path in _checkpoints(run)]
    return _first_good(sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True), f"under {root}")


def resolve(path):
    """A run directory gives its newest good checkpoint; a checkpoint directory is verified and returned."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a directory: give a run, runs/NAME, or runs/NAME/step_00001500 in it")
    if STEP_NAME.fullmatch(path.name) or (path / MANIFEST).exists():
        verify(path)
        return path
    return newest(path)


def load(path):
    """Model tensors (on the CPU) and state of one checkpoint directory; both files are verified first."""
    verify(path, (MODEL, STATE))
    return _tensors(Path(path) / MODEL), read_json(Path(path) / STATE)


def load_optimizer(path):
    """Optimizer tensors (on the CPU) of one checkpoint directory; the file is verified first."""
    verify(path, (OPTIMIZER,))
    return _tensors(Path(path) / OPTIMIZER)


def load_tokenizer(path):
    """The tokenizer's files of one checkpoint directory; {} if it has none. They are verified first."""
    verify(path, TOKENIZER)
    return {name: (Path(path) / name).read_bytes() for name in TOKENIZER if (Path(path) / name).exists()}


def _tensors(path):
    try:
        return load_file(path)
    except Exception as error:   # its manifest agrees, so it was written so: whatever the library says of such a file
        raise CheckpointError(f"{path} is no safetensors file ({str(error)[:120]}): {OLDER}") from error
