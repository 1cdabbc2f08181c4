"""A folder has one writer: a lock on a file in it, which ends with its process, however that dies."""

import atexit
import fcntl
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

MARK = ".owner"   # the locked file: who writes there, for people
_held = {}        # real path of a folder -> descriptor of its MARK


def try_lock(descriptor):
    """True: we hold the lock now. False: another process does. None: the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return False if isinstance(error, (BlockingIOError, PermissionError)) else None


def own(folder, ranks=None, make=True):
    """Let this process alone write into a folder until it ends. All ranks call it, the first one owns. ValueError names
    the owner, or says why it cannot be written. make=False: only a folder that is there and can be written is owned."""
    problem = ""
    if (ranks is None or ranks.first) and (make or os.path.isdir(folder)):
        try:
            problem = _own(Path(folder))
        except OSError as error:
            if make:
                problem = f"{folder} cannot be made or written: {error.strerror}; give a folder that can be written"
    problem = ranks.agree(problem) if ranks else problem
    if problem:
        raise ValueError(problem)


def contents(folder):
    """What lies in a folder, but for the mark of its owner -> list of Paths, [] where there is no folder."""
    return [path for path in Path(folder).iterdir() if path.name != MARK] if Path(folder).exists() else []


def _own(folder):
    """Lock a folder -> what is wrong, "" if nothing is."""
    folder.mkdir(parents=True, exist_ok=True)
    key = os.path.realpath(folder)
    while not _stands(key):
        descriptor = os.open(folder / MARK, os.O_RDWR | os.O_CREAT, 0o644)
        free = try_lock(descriptor)
        if free is False:
            who = os.read(descriptor, 300).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            return f"{folder} is in use by {who}: wait until it ends, stop it, or give another folder"
        if free is None:
            print(f"{folder} is on a file system without locks: nothing keeps a second run from writing there",
                  file=sys.stderr, flush=True)
        with suppress(OSError):   # a full disk
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since "
                                 f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        _held[key] = descriptor
        atexit.register(_leave, key)
    return ""


def _stands(key):
    """Whether we hold the lock of a folder: of the file that is there now, not of one that was removed."""
    with suppress(KeyError, OSError):
        return os.path.samestat(os.fstat(_held[key]), os.stat(os.path.join(key, MARK)))
    return False


def _leave(key):
    """At the end of the process: no mark stays behind, nor a folder with nothing else in it."""
    with suppress(OSError):
        if _stands(key):
            os.unlink(os.path.join(key, MARK))
            os.rmdir(key)


def _forget():
    """A forked process is not the owner, and must not keep the lock when the owner has died."""
    while _held:
        os.close(_held.popitem()[1])


os.register_at_fork(after_in_child=_forget)
