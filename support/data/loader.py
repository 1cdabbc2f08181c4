"""The batches of a training run: loader processes around a data.Mixture, watched, and the count of bad samples."""

import shutil
import signal
import sys
import threading
import weakref
from functools import partial
from multiprocessing import active_children, connection
from pathlib import Path

import torch

BAD_SHARE, AT_LEAST = 1e-3, 1000   # --on_bad_sample skip: of this share of samples, or of so many, may be bad
SHM = Path("/dev/shm")             # where loader processes leave batches
MORE_SHM = f"make {SHM} larger (docker run --shm-size 8g), or give fewer --loaders, or 0"
ENDS = {signal.SIGKILL: "as the kernel does when memory is short: give fewer --loaders, or more memory",
        signal.SIGBUS: f"as the kernel does when memory cannot be had: {MORE_SHM}"}
_waiting = set()                   # Watched that wait for a batch now


def micro_batches(mixture, collate, first_step, last_step, worker_init_fn=None):
    """As Mixture.loader. collate: a list of its items -> (Batch, eps, tau, what was wrong with replaced samples). These
    are named, and counted in mixture.bad_samples; ValueError when they are too many, or when a loader process ends."""
    config = mixture.config
    size, accumulate, loaders, model = config.train.batch_size, config.train.accumulate, config.data.loaders, config.model

    def numbers():   # one by one: pre-training has 45 million micro-batches
        micros = range(first_step * accumulate, last_step * accumulate)
        return (range(micro * size, (micro + 1) * size) for micro in micros)
    # Two batches of each process are made ahead; those of a step are held. Per view: a picture, three frames.
    sample = 9 * model.view_size ** 2 + 27 * model.frame_size ** 2 + 4 * model.chunk * model.action_dim * model.action_draws
    batches = Watched(mixture, need=(2 * loaders + accumulate) * size * sample, batch_sampler=numbers(),
                      collate_fn=partial(_in_shared_memory, collate), num_workers=loaders, worker_init_fn=worker_init_fn)
    return _counted(mixture, numbers(), batches)   # the processes start here, not with the first batch


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
    """The items of a torch DataLoader, made at once. ValueError, one line, within seconds: a process of it ended, however
    that came, or all are alive and none has delivered anything for `patience` seconds, of which each minute is said.

    need: bytes of shared memory that items in flight take; less is refused here. With this its processes end.
    torch by itself raises in the middle of whatever runs when a process ends, and waits for ever for one that is stuck.
    """

    def __init__(self, dataset, need=0, patience=600, num_workers=0, **options):
        free = shutil.disk_usage(SHM).free if num_workers and SHM.is_dir() else None
        if free is not None and free < need + (1 << 20):   # and a page for each of a queue's locks
            raise ValueError(f"{SHM} has {free / 1e6:.1f} MB free, {num_workers} loader processes need "
                             f"{need / 1e6 + 1:.1f}: {MORE_SHM}")
        known = active_children()
        self.patience, self.items = patience, iter(torch.utils.data.DataLoader(
            dataset, num_workers=num_workers, timeout=1 if num_workers else 0, **options))
        self.processes = sorted(set(active_children()).difference(known), key=lambda process: process.pid)
        weakref.finalize(self, _end, self.processes)   # at the latest when Python ends, which would wait for them
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, _child_ended)   # in the place of torch's

    def __iter__(self):
        return self

    def __next__(self):
        for waited in range(1, self.patience + 1):   # slices of a second: a clock would count a stopped job's pause
            _waiting.add(self)
            try:
                self.check()
                return next(self.items)
            except (RuntimeError, OSError, EOFError) as error:
                if not str(error).startswith("DataLoader timed out"):
                    connection.wait([process.sentinel for process in self.processes], timeout=1)
                    self.check()   # what broke in our hands may have been the end of the process at the other end
                    raise
            finally:
                _waiting.discard(self)
            alive = f"loader processes {', '.join(str(process.pid) for process in self.processes)} are alive"
            if waited % 60 == 0:
                print(f"nothing has come for {waited} s, and {alive}: slow storage, or a file that a codec hangs on",
                      file=sys.stderr, flush=True)
        raise ValueError(f"nothing has come for {self.patience} s, though {alive}: storage that does not answer, or a file "
                         "that a codec hangs on; --loaders 0 shows where")

    def check(self):
        """ValueError: a process has ended."""
        for n, process in enumerate(self.processes, 1):
            code = process.exitcode
            if code is not None:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                advice = ENDS.get(-code, "by a library that it calls or by someone else: --loaders 0 shows what it says")
                raise ValueError(f"loader process {n} of {len(self.processes)} (pid {process.pid}) {how}, {advice}")


def _child_ended(*_):
    """SIGCHLD: who waits for a batch looks at once whether it can still come."""
    for items in tuple(_waiting):
        items.check()


def _end(processes):
    """They hold nothing that is to be saved, and may be stuck."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join(timeout=5)
