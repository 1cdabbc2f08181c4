"""The batches of a training run: loader processes around a data.Mixture, watched, and the count of bad samples."""

import shutil
import signal
import sys
import threading
import weakref
from functools import partial
from itertools import tee
from multiprocessing import active_children
from pathlib import Path

import torch

from support.files import must

BAD_SHARE, AT_LEAST = 1e-3, 1000   # --on_bad_sample skip: of this share of samples, or of so many, may be bad
SHM = Path("/dev/shm")             # where loader processes leave batches
MORE_SHM = f"make {SHM} larger (docker run --shm-size 8g), or give fewer --loaders, or 0"
ENDS = {signal.SIGKILL: "as the kernel does when memory is short: give fewer --loaders, or more memory",
        signal.SIGBUS: f"as the kernel does when a file in use was cut short, or memory cannot be had: {MORE_SHM}"}
ELSE = "by a library that it calls or by someone else: --loaders 0 shows what it says"
_waiting = set()                   # Watched that wait for a batch now


def micro_batches(mixture, collate, first_step, last_step, worker_init_fn=None):
    """As Mixture.loader. collate: a list of its items -> (Batch, eps, tau, what was wrong with replaced samples). These
    are named, and counted in mixture.bad_samples; ValueError when they are too many, or when a loader process ends."""
    train, loaders, model = mixture.config.train, mixture.config.data.loaders, mixture.config.model
    size, step = train.batch_size, train.batch_size * train.accumulate
    firsts = range(first_step * step, last_step * step, size)   # one by one: pre-training has 45 million micro-batches
    numbers, parts = tee(range(first, first + size) for first in firsts)
    # Two batches of each process are made ahead, those of a step are held. Of each view a picture or two, three frames.
    sample = 9 * model.und_frames * model.view_size ** 2 + 27 * model.frame_size ** 2
    sample += 4 * model.chunk * model.action_dim * model.action_draws
    batches = Watched(mixture, (2 * loaders * size + step) * sample, num_workers=loaders, batch_sampler=numbers,
                      collate_fn=partial(_in_shared_memory, collate), worker_init_fn=worker_init_fn)
    return _counted(mixture, parts, batches)   # the processes start here, not with the first batch


def _in_shared_memory(collate, items):
    """collate(items), in a loader process moved here to where the other process reads it. torch would do that in a
    thread beside, where an error loses the batch, and whoever waits for it waits for ever."""
    batch, *rest = collate(items)
    if torch.utils.data.get_worker_info() is not None:
        try:
            for x in (*vars(batch).values(), *rest):
                if isinstance(x, torch.Tensor):
                    x.share_memory_()
        except (RuntimeError, OSError) as error:
            raise ValueError(f"a loader process cannot hand over a batch ({str(error)[:200]}): {MORE_SHM}") from error
    return batch, *rest


def _counted(mixture, parts, batches):
    for part, (*batch, faults) in zip(parts, batches):
        for fault in faults:
            print(f"bad sample, another is drawn: {fault}", file=sys.stderr)
        mixture.bad_samples += len(faults)
        if faults and mixture.bad_samples > BAD_SHARE * max(part.stop, AT_LEAST):
            raise ValueError(f"--on_bad_sample skip: {mixture.bad_samples} of {part.stop} samples were bad, more than "
                             f"{BAD_SHARE:.1%}; repair the data; the last: {faults[-1]}")
        yield tuple(batch)


class Watched:
    """The items of a torch DataLoader, whose processes start at once.
    ValueError, one line, within seconds: one of them ended, whatever ended it. If all are alive and none delivers, that
    is said each minute, and is a ValueError after `patience` seconds. By itself torch raises in the middle of whatever
    runs when a process ends, and waits for ever for a stuck one. need: bytes of shared memory of items in flight."""

    def __init__(self, dataset, need=0, patience=600, num_workers=0, **options):
        need += 1 << 20   # and a page for each of a queue's locks
        free = shutil.disk_usage(SHM).free if num_workers and SHM.is_dir() else need
        must(free >= need, f"{SHM} has {free / 1e6:.1f} MB free, {num_workers} loader processes need {need / 1e6:.1f}: "
             f"{MORE_SHM}")
        known, self.patience, self.waited = active_children(), patience, 0
        self.items = iter(torch.utils.data.DataLoader(dataset, num_workers=num_workers, **options))
        self.processes = sorted(set(active_children()).difference(known), key=lambda process: process.pid)
        weakref.finalize(self, _end, self.processes)   # at the latest when Python ends, which would wait for them
        self.alarm = num_workers > 0 and threading.current_thread() is threading.main_thread()
        for number in (signal.SIGCHLD, signal.SIGALRM) if self.alarm else ():
            signal.signal(number, _look)   # of SIGCHLD in the place of torch's

    def __iter__(self):
        return self

    def __next__(self):
        self.waited = 0
        _waiting.add(self)
        if self.alarm:
            signal.setitimer(signal.ITIMER_REAL, 1, 1)
        try:
            self.check()
            return next(self.items)
        except (RuntimeError, OSError, EOFError):
            for process in self.processes:   # what broke here may have been the end of the process at the other end
                process.join(1 / len(self.processes))
            self.check()
            raise
        finally:
            if self.alarm:
                signal.setitimer(signal.ITIMER_REAL, 0)
            _waiting.discard(self)

    def check(self, seconds=0):
        """`seconds` more were waited: counted, because a clock would count the pause of a stopped job."""
        over = getattr(self.items, "_shutdown", False)   # behind the last item torch ends them itself
        for n, process in enumerate(() if over else self.processes, 1):
            if (code := process.exitcode) is not None:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                raise ValueError(f"loader process {n} of {len(self.processes)} (pid {process.pid}) {how}, "
                                 f"{ENDS.get(-code, ELSE)}")
        self.waited += seconds
        pids = ", ".join(str(process.pid) for process in self.processes)
        line = (f"nothing has come for {self.waited} s, though the loader processes {pids} are alive: storage "
                "that does not answer, or a file that a codec hangs on; --loaders 0 shows where")
        must(self.waited < self.patience, line)
        if seconds and self.waited % 60 == 0:
            print(line, file=sys.stderr, flush=True)


def _look(number, _):
    """A signal in the middle of what torch waits for, which may have no end: half a message, a process that stopped."""
    for items in tuple(_waiting):
        items.check(seconds=int(number == signal.SIGALRM))


def _end(processes):
    """They hold nothing that is to be saved, and may be stuck."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join(timeout=5)
