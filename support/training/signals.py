"""SIGTERM and SIGINT: the training process finishes its step first, loader processes leave them to it."""

import os
import signal


class Interruption:
    """Context in which the first SIGTERM or SIGINT sets `signal` (0 until then) and a second one ends the process."""

    signal = 0

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


def ignore_signals(_):
    """For a loader process: the process that it serves still wants its batches. Takes the worker's number."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
