"""How every command begins and ends: an error, Ctrl-C and a lost terminal are one line each, never a traceback.

An entry point imports this first: Ctrl-C during the other imports, which take seconds, is one line then, too."""

import atexit
import errno
import io
import os
import re
import signal
import sys
import traceback
import warnings
from contextlib import suppress

program = {"name": "", "lost": "", "running": False, "interrupted": False}


def command(name, main, lost=""):
    """Run main(argv). Whatever ends it is one line, and the exit code: 2 for a ValueError, ImportError or OSError, 130
    for Ctrl-C, 1 for anything else. lost: what is said when standard output or error can no longer be written."""
    program.update(name=name, lost=lost, running=True)
    if SCRIPT:
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))   # the parent ends it
        _guard_streams()
        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"   # not the line of code that warns
    try:
        main(sys.argv[1:])
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(_code_of(error))
    finally:
        program["running"] = False
        print(end="", flush=True)


def said(error):
    """The text of an error in one line, with an indented list below it at most: a path may hold line breaks. Of one out
    of a loader process, which sends its traceback along, the last line."""
    text = str(error).strip() or type(error).__name__
    if text.startswith("Caught "):
        return text.splitlines()[-1].removeprefix("ValueError: ")
    return re.sub(r"[\r\n](?!  )", lambda found: repr(found[0])[1:-1], text)


def _code_of(error):
    """Say what ended the program -> its exit code."""
    if "--debug" in sys.argv[1:] or os.environ.get("DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    code, text = 2, said(error)
    if program["interrupted"] or isinstance(error, KeyboardInterrupt):   # a library may have made another error of it
        code, text = 130, f"interrupted; {error}" if type(error) is KeyboardInterrupt and str(error) else "interrupted"
        if SCRIPT and "multiprocessing" in sys.modules:   # torch would wait 5 s for each child, and complain of its end
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for child in sys.modules["multiprocessing"].active_children():
                child.kill()
    elif not isinstance(error, (ValueError, ImportError, OSError)):
        code = 1
        text = f"{type(error).__name__}: {' '.join(text.split())[:500]} (not expected: --debug shows where)"
    print(f"{program['name']}: {text}", file=sys.stderr, flush=True)
    return code


def _interrupt(*_):
    """Ctrl-C: the first one while `main` runs is an exception; any other ends the program here."""
    if program["running"] and not program["interrupted"]:
        program["interrupted"] = True
        raise KeyboardInterrupt
    _end()


def _end():
    with suppress(OSError):
        os.write(2, f"{program['name']}: interrupted\n".encode())
    os._exit(130)


class _Voice(io.FileIO):
    """Standard output or error. When it cannot be written (a full disk, a closed pipe, a terminal that is gone) it
    becomes /dev/null, for child processes too, and the other one is told."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if program["lost"] or error.errno != errno.EPIPE:   # `| head` has seen enough
                with suppress(OSError):
                    os.write(3 - self.fileno(), f"{program['name']}: {self.name} cannot be written ({error.strerror}): "
                             f"{program['lost'] or 'going on without it'}\n".encode())
            return len(data)


def _guard_streams():
    while os.open(os.devnull, os.O_RDWR) < 3:   # one that was closed from the start
        pass
    for number, name in enumerate(("stdout", "stderr"), 1):
        old = getattr(sys, name) or open(number, "w", closefd=False)
        old.flush()
        raw = _Voice(number, "w", closefd=False)
        raw.name = f"standard {('output', 'error')[number - 1]}"
        buffer = raw if isinstance(old.buffer, io.FileIO) else io.BufferedWriter(raw)   # a FileIO: python -u
        setattr(sys, name, io.TextIOWrapper(buffer, old.encoding, "backslashreplace",
                                            line_buffering=old.line_buffering, write_through=old.write_through))


frame = sys._getframe()
while frame.f_back and (frame.f_globals is globals() or "<frozen importlib" in frame.f_code.co_filename):
    frame = frame.f_back
importer = frame.f_globals   # the global names of the module that imports this one
SCRIPT = importer.get("__name__") == "__main__"
if SCRIPT:
    spec = importer.get("__spec__")   # of python -m
    program["name"] = spec.name.removesuffix(".__main__") if spec else os.path.basename(sys.argv[0])
    signal.signal(signal.SIGINT, _interrupt)
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)   # the last thing: modules are being taken down
    sys.excepthook = lambda kind, error, trace: sys.exit(_code_of(error))
    sys.unraisablehook = lambda found: (   # as in __del__: nobody could catch it
        _end() if found.exc_type is KeyboardInterrupt else sys.__unraisablehook__(found))
elif importer.get("__name__") == "__mp_main__":   # a process that multiprocessing spawned: its parent ends it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
