"""How every command begins and ends: an error, Ctrl-C and a lost terminal are one line each, never a traceback.

An entry point imports this module first, so that Ctrl-C while the others are imported, which takes seconds, is one line
too. What is below `command` acts in a program that began so, not in one that imports an entry point.
"""

import errno
import io
import os
import signal
import sys
import traceback
from contextlib import suppress

program = {"name": "", "lost": "", "running": False, "interrupted": False}


def command(name, main, lost=""):
    """Run main(argv). Whatever ends it is one line, and the exit code: 2 for a ValueError, ImportError or OSError, 130
    for Ctrl-C, 1 for anything else. lost: what is said when standard output or error can no longer be written."""
    program.update(name=name, lost=lost, running=True)
    if SCRIPT:
        signal.signal(signal.SIGINT, _interrupt)
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))   # the parent ends it
        _guard_streams()
    try:
        main(sys.argv[1:])
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(_code_of(error))
    finally:
        program["running"] = False
        print(end="", flush=True)


def said(error):
    """The text of an error; of one out of a loader process, which sends its traceback along, the last line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[-1].removeprefix("ValueError: ") if text.startswith("Caught ") else text


def debugging():
    return "--debug" in sys.argv[1:] or os.environ.get("DEBUG", "0") not in ("", "0")


def _code_of(error):
    """Say what ended the program -> its exit code."""
    if debugging():
        traceback.print_exception(error)
    if program["interrupted"] or isinstance(error, KeyboardInterrupt):   # a library may have made another error of it
        _end_children()
        text = f"interrupted; {error}" if isinstance(error, KeyboardInterrupt) and str(error) else "interrupted"
        code = 128 + signal.SIGINT
    elif isinstance(error, (ValueError, ImportError, OSError)):
        text, code = said(error), 2
    else:
        short = " ".join(said(error).split())[:500]
        text, code = f"{type(error).__name__}: {short} (not expected: --debug shows where)", 1
    print(f"{program['name']}: {text}", file=sys.stderr, flush=True)
    return code


def _end_children():
    """End the processes that multiprocessing started here: torch would wait 5 s for each, and complain of its end."""
    if SCRIPT and "multiprocessing" in sys.modules:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in sys.modules["multiprocessing"].active_children():
            child.kill()


def _interrupt(*_):
    """Ctrl-C: while `main` runs, the first one is an exception; at any other time it ends the program here."""
    if program["running"] and not program["interrupted"]:
        program["interrupted"] = True
        raise KeyboardInterrupt
    with suppress(OSError):
        os.write(2, b"" if program["interrupted"] else f"{program['name']}: interrupted\n".encode())
    os._exit(128 + signal.SIGINT)


def _unraisable(found):
    """What is raised where nobody can catch it is ignored and told, but for Ctrl-C."""
    if isinstance(found.exc_value, KeyboardInterrupt):
        program.update(running=False, interrupted=False)
        _interrupt()
    sys.__unraisablehook__(found)


class _Voice(io.FileIO):
    """Standard output or error. When it cannot be written (a full disk, a closed pipe, a terminal that is gone) it
    becomes /dev/null, for child processes too, and the other one is told."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if program["lost"] or error.errno != errno.EPIPE:   # `| head` has seen enough
                which = "output" if self.fileno() == 1 else "error"
                with suppress(OSError):
                    os.write(3 - self.fileno(), f"{program['name']}: standard {which} cannot be written "
                             f"({error.strerror}): {program['lost'] or 'going on without it'}\n".encode())
            return len(data)


def _guard_streams():
    while (null := os.open(os.devnull, os.O_RDWR)) < 3:   # one that was closed from the start
        pass
    os.close(null)
    for number, name in enumerate(("stdout", "stderr"), 1):
        old = getattr(sys, name) or open(number, "w", closefd=False)
        old.flush()
        raw = _Voice(number, "w", closefd=False)
        buffer = raw if isinstance(old.buffer, io.FileIO) else io.BufferedWriter(raw)   # a FileIO: python -u
        setattr(sys, name, io.TextIOWrapper(buffer, old.encoding, "backslashreplace",
                                            line_buffering=old.line_buffering, write_through=old.write_through))


def _importer():
    """The global names of the module that imports this one."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_globals is globals() or "<frozen importlib" in frame.f_code.co_filename):
        frame = frame.f_back
    return frame.f_globals


SCRIPT = _importer().get("__name__") == "__main__"
if SCRIPT:
    spec = _importer().get("__spec__")   # of python -m
    program["name"] = spec.name.removesuffix(".__main__") if spec else os.path.basename(sys.argv[0])
    signal.signal(signal.SIGINT, _interrupt)
    sys.excepthook = lambda kind, error, trace: sys.exit(_code_of(error))
    sys.unraisablehook = _unraisable
elif _importer().get("__name__") == "__mp_main__":   # a process that multiprocessing spawned: its parent ends it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
