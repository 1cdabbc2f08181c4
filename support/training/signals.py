"""SIGTERM and SIGINT: the training process finishes its step first, loader processes leave them to it."""

import contextlib
import os
import signal


class Interruption:
    """Context in which the first SIGTERM or SIGINT sets `signal` (0 until then) and a second one ends the process."""

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
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        if self.signal:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number
        if self.waiting:
            raise SystemExit(128 + number)


def ignore_signals(_):
    """For a loader process: the process that it serves still wants its batches. Takes the worker's number."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
