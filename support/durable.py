"""Bytes that reach the disk: tensors streamed into a file that is hashed as it goes out and flushed, and locks.

POSIX only (directory fsync, flock).
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
          torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
          torch.bool: "BOOL"}


def safetensors(tensors: dict[str, Tensor]) -> Iterable[memoryview | bytes]:
    """Yield the bytes of a safetensors file: header length, JSON header, then the tensors one by one.

    The library's own writer wants all tensors on the CPU at once and hides the bytes from us; streaming them
    needs room for one tensor, and lets `write` hash what was meant rather than what the disk gives back.
    """
    # Widest types first, so that every tensor starts aligned to its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, offset = {}, 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.is_meta:
            raise TypeError(f"cannot store tensor {name} ({tensor.dtype}, {tensor.layout}, {tensor.device})")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield memoryview(flat.view(torch.uint8).numpy())


def write(path: Path, chunks: Iterable[memoryview | bytes]) -> dict:
    """Write and fsync one file; returns its manifest entry, hashed from the bytes as they went out."""
    digest, size = hashlib.sha256(), 0
    with open(path, "xb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "size": size}


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """True if we now hold the lock; False if another writer does, or the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
