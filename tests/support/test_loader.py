"""Loader processes that die, hang or have no shared memory: one line within seconds, and nothing is left running."""

import gc
import multiprocessing
import os
import signal
import struct
import time
from dataclasses import replace
from functools import partial
from multiprocessing.queues import Queue
from types import SimpleNamespace

import pytest
import torch

from config import CONFIGS
from support.data import loader
from support.data.loader import Watched


def torn():
    """Die in the middle of a message: whoever reads it waits for the rest, and others still hold the pipe open."""
    for queue in (found for found in gc.get_objects() if isinstance(found, Queue)):
        os.write(queue._writer.fileno(), struct.pack("!i", 100_000))
    os.kill(os.getpid(), signal.SIGKILL)


class Items(torch.utils.data.Dataset):
    """0 .. 99; for item 5 something else happens."""

    def __init__(self, happens):
        self.happens = happens

    def __len__(self):
        return 100

    def __getitem__(self, n):
        if n == 5:
            self.happens()
        return n


def by(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("happens, line", [
    (by(signal.SIGKILL), "was killed by SIGKILL, as the kernel does when memory is short: give fewer --loaders"),
    (by(signal.SIGBUS), "was killed by SIGBUS, .* --shm-size"),
    (by(signal.SIGSEGV), "was killed by SIGSEGV, by a library that it calls or by someone else: --loaders 0 shows"),
    (partial(os._exit, 0), "ended with exit code 0"), (partial(os._exit, 7), "ended with exit code 7"),
    (torn, "was killed by SIGKILL")])
def test_a_process_that_ends_is_one_line_whatever_ended_it(happens, line):
    began = time.monotonic()
    with pytest.raises(ValueError, match=rf"^loader process [12] of 2 \(pid \d+\) {line}"):
        list(Watched(Items(happens), num_workers=2, batch_size=1))
    assert time.monotonic() - began < 60
    gc.collect()
    assert not multiprocessing.active_children()


def test_a_process_that_died_during_a_step_is_told_by_the_next_batch_and_the_step_is_not_torn():
    """torch by itself raises wherever the training process happens to be."""
    items = Watched(Items(int), num_workers=2, batch_size=1)
    next(items)
    os.kill(items.processes[1].pid, signal.SIGKILL)
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:   # a step
        pass
    with pytest.raises(ValueError, match="loader process 2 of 2 .* was killed by SIGKILL"):
        next(items)


def test_processes_that_are_alive_and_deliver_nothing_are_waited_for_so_long_and_no_longer(capsys):
    """Each minute it is said; both are ended in the end, though a stopped process hears nothing but SIGKILL."""
    items = Watched(Items(by(signal.SIGSTOP)), patience=3, num_workers=2, batch_size=1)
    with pytest.raises(ValueError, match=r"nothing has come for 3 s, though the loader processes \d+, \d+ are alive"):
        list(items)
    items.waited, items.patience = 59, 600
    items.check(seconds=1)
    assert "nothing has come for 60 s" in capsys.readouterr().err
    del items
    gc.collect()
    assert not multiprocessing.active_children()


def test_an_error_in_a_process_is_still_that_error():
    def fault():
        raise KeyError("a fault")
    with pytest.raises(KeyError, match="a fault"):
        list(Watched(Items(fault), num_workers=2, batch_size=1))
    assert [int(n) for n in Watched(Items(int), num_workers=2, batch_size=1)] == list(range(100))


@pytest.mark.parametrize("und_frames", [1, 2])
def test_what_is_counted_for_a_sample_holds_its_pictures_and_actions(monkeypatch, random_batch, noise, und_frames):
    """And not twice as much. Text, state and masks are small beside them."""
    config = replace(CONFIGS["conveyor"], data=replace(CONFIGS["conveyor"].data, loaders=2))
    config = replace(config, model=replace(config.model, und_frames=und_frames))
    counted = []
    monkeypatch.setattr(loader, "Watched", lambda _, need, **options: counted.append(need))
    loader.micro_batches(SimpleNamespace(config=config), None, 0, 1, None)
    batch, B = random_batch(config.model, 4), config.train.batch_size
    held = sum(x.nbytes for x in (batch.image, batch.frames, *noise(config.model, 4))) / 4
    assert 0.95 < counted[0] / ((2 * 2 * B + B * config.train.accumulate) * held) < 1.05


def test_shared_memory_that_is_too_small_is_told_at_the_start_or_when_it_is_full(monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"/dev/shm has 0.1 MB free, 2 .* need 6.0"):
        patch.setattr(loader.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 16))
        Watched(Items(int), need=5_000_000, num_workers=2)

    def full(_):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    batch = SimpleNamespace(image=torch.zeros(3), action=None)
    collate = partial(loader._in_shared_memory, lambda items: (batch, torch.zeros(1), []))
    assert collate([0])[0] is batch   # in the training process there is nothing to share
    with pytest.raises(ValueError, match=r"cannot hand over a batch \(.*No space left.*\): make /dev/shm larger"):
        list(Watched(Items(int), num_workers=1, batch_size=1, collate_fn=collate))
