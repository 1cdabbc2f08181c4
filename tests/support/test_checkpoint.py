"""Checkpoints: bit-exact round trips, and the damage, failures and kills they promise to survive.

Damage is real damage to real files. Full disks are simulated by failing the calls that would meet them. Kills, full
disks and damage at random moments and places: tests/chaos.py.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from support import checkpoint
from support.checkpoint import CheckpointError, try_lock
from support.training.checkpointer import Log

ALL_FILES = (*checkpoint.FILES, checkpoint.MANIFEST)


def model_of(step: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    x = torch.randn(6, 8, generator=g)
    return {"layer.weight": x, "transposed": x.t(), "strided": x[::2, 1::3], "shares memory": x[1],
            "bf16": x.bfloat16(), "half": x.half(), "double": x.double(), "scalar": torch.tensor(float(step)),
            "empty": torch.zeros(0, 4), "mask": x > 0, "bytes": torch.arange(5, dtype=torch.uint8),
            "odd": torch.tensor([float("nan"), float("inf"), -0.0]), "long": torch.arange(3) - 2**62}


def save(run: Path, step: int, **options) -> Path:
    state = {"step": step, "lr": 1e-4 / 3, "config": {"name": "conveyor", "robots": ["a", "b"]}}
    moments = {"exp_avg.layer.weight": torch.full((6, 8), float(step))}
    return checkpoint.save(run, step, model_of(step), moments, state, **options)


def names(run: Path) -> list[str]:
    return sorted(os.listdir(run))


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (found[name], tensor)]
        assert torch.equal(*raw), name


def test_round_trip_is_bit_exact(tmp_path):
    path = save(tmp_path / "new" / "run", 1500)
    assert path.name == "step_00001500" and names(path) == sorted(ALL_FILES)
    model, state = checkpoint.load(path)
    assert_same(model, model_of(1500))
    assert state == {"step": 1500, "lr": 1e-4 / 3, "config": {"name": "conveyor", "robots": ["a", "b"]}}
    assert_same(checkpoint.load_optimizer(path), {"exp_avg.layer.weight": torch.full((6, 8), 1500.0)})


def test_the_same_state_gives_the_same_bytes(tmp_path):
    first = checkpoint.save(tmp_path / "a", 0, model_of(0), {}, {"b": 1, "a": 2})
    second = checkpoint.save(tmp_path / "b", 0, model_of(0), {}, {"a": 2, "b": 1})
    assert checkpoint.load_optimizer(first) == {}
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in ALL_FILES)


@pytest.mark.parametrize("name", ALL_FILES)
def test_truncated_grown_changed_missing_and_unlisted_files_are_named_before_they_are_read(tmp_path, name):
    path = save(tmp_path, 3)
    good = (path / name).read_bytes()
    for bad in (good[:-1], b"", good + b"\n", good[:-1] + bytes([good[-1] ^ 1])):
        (path / name).write_bytes(bad)
        for read in (checkpoint.verify, checkpoint.load_optimizer if name == checkpoint.OPTIMIZER else checkpoint.load):
            with pytest.raises(CheckpointError, match=name):
                read(path)
    (path / name).rename(path / "extra.bin")
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        checkpoint.verify(path)
    (path / name).write_bytes(good)
    with pytest.raises(CheckpointError, match="extra.bin is not listed"):
        checkpoint.verify(path)


@pytest.mark.parametrize("edit", [
    lambda text: json.dumps(json.loads(text)),
    lambda text: "[]",
    lambda text: "[" * 100_000,
    lambda text: text.replace('"state.json"', '"../../x"'),
])
def test_manifest_must_be_canonical(tmp_path, edit: Callable[[str], str]):
    path = save(tmp_path, 3)
    manifest = path / checkpoint.MANIFEST
    manifest.write_text(edit(manifest.read_text()))
    with pytest.raises(CheckpointError, match="manifest.json is damaged or was edited"):
        checkpoint.verify(path)


def test_rotation_keeps_two_whole_ones_and_never_deletes_later_ones(tmp_path):
    for step in (10, 20, 30, 40):
        save(tmp_path, step)
    assert names(tmp_path) == ["step_00000030", "step_00000040"]
    save(tmp_path, 35)                        # resumed from 30: the later checkpoint is not ours to delete
    assert names(tmp_path) == ["step_00000030", "step_00000035", "step_00000040"]
    save(tmp_path, 50, keep=1)
    (save(tmp_path, 60) / checkpoint.MODEL).write_bytes(b"")
    save(tmp_path, 70)                        # a truncated one does not count
    assert names(tmp_path) == ["step_00000050", "step_00000060", "step_00000070"]


def test_damaged_newest_is_named_and_the_previous_used(tmp_path, capsys):
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    assert checkpoint.newest(tmp_path) == path and capsys.readouterr().err == ""
    (path / checkpoint.OPTIMIZER).write_bytes(b"x")
    assert checkpoint.newest(tmp_path).name == "step_00000010"
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and str(path / checkpoint.OPTIMIZER) in message
    shutil.rmtree(tmp_path / "step_00000010")
    with pytest.raises(CheckpointError, match="no good checkpoint in .*train.py"):
        checkpoint.newest(tmp_path)


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    (path / checkpoint.STATE).write_bytes(b"{}")
    save(tmp_path, 20)
    checkpoint.verify(path)
    checkpoint.save(tmp_path, 20, {}, {}, {"step": "other"})
    assert checkpoint.load(path) == ({}, {"step": "other"})
    assert names(tmp_path) == ["step_00000010", "step_00000020"]


def test_resolve(tmp_path):
    path = save(tmp_path / "run", 10)
    assert checkpoint.resolve(tmp_path / "run") == path == checkpoint.resolve(str(path))
    copy = Path(shutil.copytree(path, tmp_path / "downloaded"))
    assert checkpoint.resolve(copy) == copy and checkpoint.step_of(copy) == checkpoint.step_of(path)
    (copy / checkpoint.MODEL).write_bytes(b"")
    for bad, words in ((tmp_path / "nowhere", "not a directory"), (tmp_path, "no good checkpoint"),
                       (copy, checkpoint.MODEL)):
        with pytest.raises(CheckpointError, match=words):
            checkpoint.resolve(bad)


def test_find_newest_run_goes_by_time(tmp_path, capsys):
    with pytest.raises(CheckpointError, match="train.py"):
        checkpoint.find_newest_run(tmp_path / "runs")
    first, second = save(tmp_path / "runs/a", 10), save(tmp_path / "runs/b", 5)
    os.utime(first, (100, 100))
    os.utime(second, (200, 200))
    (tmp_path / "runs/note.txt").write_text("")
    assert checkpoint.find_newest_run(tmp_path / "runs") == second
    (second / checkpoint.MODEL).write_bytes(b"")
    assert checkpoint.find_newest_run(tmp_path / "runs") == first
    assert checkpoint.MODEL in capsys.readouterr().err


@pytest.mark.parametrize("failing", ["fsync", "rename", "mkdir"])
def test_full_disk_leaves_older_checkpoints(tmp_path, monkeypatch, failing):
    old = save(tmp_path, 10)
    real, failures = getattr(os, failing), 0
    for successes in range(8):
        calls = iter(range(100))

        def full(*arguments, **options):
            if next(calls) == successes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        monkeypatch.setattr(os, failing, full)
        try:
            save(tmp_path, 20, keep=9)
            monkeypatch.setattr(os, failing, real)
        except CheckpointError as error:
            monkeypatch.setattr(os, failing, real)
            failures += 1
            assert "No space left" in str(error) and "older checkpoints are intact" in str(error)
            assert str(tmp_path) in str(error) and "\n" not in str(error)
        checkpoint.verify(old)
        assert not [name for name in names(tmp_path) if name.startswith(".")]
        shutil.rmtree(tmp_path / "step_00000020", ignore_errors=True)
    assert failures > 0


def test_too_little_space_and_a_run_that_is_a_file_are_refused_before_writing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="no space, needs .* GB"):
        save(tmp_path, 20)
    assert names(tmp_path) == []
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="was not saved in .*file: File exists"):
        save(tmp_path / "file", 1)


def test_temporaries_are_ignored_and_those_of_dead_writers_removed(tmp_path):
    path = save(tmp_path, 10)
    shutil.copytree(path, tmp_path / ".tmp_step_00000020_1")
    live = tmp_path / ".tmp_step_00000030_2"
    live.mkdir()
    lock = os.open(live, os.O_RDONLY)
    try_lock(lock)
    assert checkpoint.newest(tmp_path) == path
    save(tmp_path, 40)
    assert names(tmp_path) == [live.name, "step_00000010", "step_00000040"]
    os.close(lock)
    save(tmp_path, 50)
    assert names(tmp_path) == ["step_00000040", "step_00000050"]


def test_a_log_is_cut_back_to_its_checkpoint_and_refused_if_it_is_not_that_log(tmp_path):
    path = tmp_path / "log.jsonl"
    for content, length in ((None, 12), (b"", 12), (b'{"step": 1}\n{"step": 2}\n{"st', 40), (b'{"step": 1}\n{"st', 13)):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{path} .* {length}.*put the run's own log back"):
            Log(path, length)
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"st')
    Log(path, 24)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    Log(path, 0)
    assert path.read_bytes() == b""
