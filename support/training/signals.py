"""SIGTERM, SIGINT and SIGHUP: the training process finishes its step first, loader processes leave them to it."""

import contextlib
import os
import signal

NOTED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)   # SIGHUP: the terminal is gone


class Interruption:
    """Context in which one of these signals sets `signal` (0 until then), and the same one once more ends the process.
    But SIGHUP never does: a lost terminal may send two. Where it is ignored, as under nohup, it stays so."""

    signal, waiting = 0, False

    @contextlib.contextmanager
    def at_once(self, alone):
        """A wait for data, in which nothing of a step is done yet: a signal raises SystemExit, also if the data never
        come. Ranks that are not `alone` finish the step together."""
        self.waiting = alone
        try:
            if alone and self.signal:
                raise SystemExit(128 + self.signal)
            yield
        finally:
            self.waiting = False

    def __enter__(self):
        self.before = {number: signal.signal(number, self._note) for number in NOTED
                       if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        if number == self.signal != signal.SIGHUP:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number if number != signal.SIGHUP else self.signal or number
        if self.waiting:
            raise SystemExit(128 + self.signal)


def ignore_signals(_):
    """For a loader process: the process that it serves still wants its batches. Takes the worker's number."""
    for number in NOTED:
        signal.signal(number, signal.SIG_IGN)
