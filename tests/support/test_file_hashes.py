"""SHA-256 of a dataset's files: what changed is named; without it, damage is one line or goes unseen, never worse."""

import faulthandler
import random
import signal

import pytest

import train
from data import open_corpus
from support.data import file_hashes
from support.data import lerobot
from support.data import video as video_files
from support.data.__main__ import main

from test_bad_data import dataset    # noqa: F401, a fixture
from test_bad_input import RUN, write_folder
from test_lerobot import HEAD, WRIST, edit_info, give_tasks, parquet, truncate, video, write_v30

SECONDS = 20   # for one damaged dataset: a hang


def flip(path, random):
    """One to three bytes of a file changed, or its end cut off."""
    raw = bytearray(path.read_bytes())
    if random.random() < 0.2:
        raw = raw[:random.randrange(len(raw))]
    else:
        for _ in range(random.randint(1, 3)):
            raw[random.randrange(len(raw))] ^= random.randint(1, 255)
    path.write_bytes(raw)


def read_everything(root):
    """Open, all numbers, and instruction and pictures at the start, middle and end of every episode and view."""
    for held in (lerobot._NUMBERS, lerobot._PICTURES, lerobot._ROW_GROUPS, video_files._OPEN):
        for key in list(held.items):
            held.drop(key)
    source = open_corpus(root, 3).sources[0]
    for e, T in enumerate(source.lengths):
        source.numbers(e)
        for t in {0, T // 2, T - 1}:
            source.task(e, t)
            for view in source.views:
                source.frame(view, e, t)


class Hang(BaseException):
    """Passes every `except Exception`."""


def too_slow(*_):
    raise Hang(f"a damaged dataset took more than {SECONDS} s")


@pytest.mark.parametrize("version", ["v2.1", "v3.0 with mp4", "v3.0 with PNG"])
def test_random_damage_is_named_by_the_record_and_without_it_never_hangs_or_crashes(tmp_path, request, version):
    """120 cases each over all files: any failure of the reader is one line with dataset and cause; all changed files
    are named. A hang inside a C library ends the process with its stack."""
    root = request.getfixturevalue("dataset") if version == "v2.1" else \
        write_v30(tmp_path / "toy", kind="video" if "mp4" in version else "image")
    give_tasks(root, version.split()[0], "task")
    read_everything(root)
    file_hashes.record(root)
    files = sorted(path for path in root.rglob("*") if path.is_file() and "statistics" not in path.parts)
    draw, seen = random.Random(7), 0
    signal.signal(signal.SIGALRM, too_slow)
    for case in range(120):
        path = files[case % len(files)]
        raw = path.read_bytes()
        flip(path, draw)
        signal.alarm(SECONDS)
        faulthandler.dump_traceback_later(3 * SECONDS, exit=True)
        try:
            read_everything(root)
        except ValueError as error:
            line, seen = str(error), seen + 1
            assert "\n" not in line and str(root) in line and len(line) < 1500, (path, line)
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
        if path.read_bytes() != raw:
            assert file_hashes.verify(root) == [f"{path} has changed"]
        path.write_bytes(raw)
    assert file_hashes.verify(root) == [] and 20 < seen < 120   # some of it is seen without the record, and some is not


def test_missing_and_new_files_are_named_too(dataset):    # noqa: F811
    assert "files recorded in" in file_hashes.record(dataset)
    video(dataset, 0, WRIST).unlink()
    (dataset / "meta" / "more.json").write_text("{}")
    assert file_hashes.verify(dataset) == [f"{video(dataset, 0, WRIST)} is missing", f"{dataset / 'meta/more.json'} is new"]
    assert "recorded before" in file_hashes.record(dataset)      # damage is never recorded over what was good


def test_what_is_hidden_is_no_part_of_a_dataset(dataset):    # noqa: F811
    """A clone's .git and a hub's .cache change by themselves."""
    (dataset / ".git").mkdir()
    (dataset / ".git" / "index").write_text("then")
    file_hashes.record(dataset)
    (dataset / ".git" / "index").write_text("now")
    (dataset / "data" / ".DS_Store").write_text("new")
    assert file_hashes.verify(dataset) == []


def test_no_record_or_a_damaged_one_is_refused(dataset):    # noqa: F811
    with pytest.raises(ValueError, match="no record of its files .* --inspect"):
        file_hashes.verify(dataset)
    file_hashes.record(dataset)
    path = dataset / "statistics" / "files.json"
    path.write_text(path.read_text().replace("a", "b", 1))
    with pytest.raises(ValueError, match="files.json is damaged or was edited"):
        file_hashes.verify(dataset)


def test_a_dataset_that_cannot_be_written_to_says_so(dataset):    # noqa: F811
    (dataset / "statistics").write_text("in the way")
    assert "not recorded" in file_hashes.record(dataset) and str(dataset / "statistics") in file_hashes.record(dataset)


def test_training_with_verify_names_what_changed(refuses, tmp_path, capfd):
    """train.py --verify: before any work; a record is made by python -m support.data --inspect."""
    root = write_folder(tmp_path / "arm")
    assert "no record of its files" in refuses("train.py", "--data", root, "--verify", *RUN)
    main(["--inspect", str(root)])
    assert "SHA-256 of 13 files recorded in" in capfd.readouterr().out
    train.run(["--data", str(root), "--verify", "--out", str(tmp_path / "run"), *RUN])
    path = root / "head" / "000003.png"
    path.write_bytes(path.read_bytes() + b"x")
    assert f"{path} has changed" in refuses("train.py", "--data", root, "--verify", *RUN)


# ---- --inspect --------------------------------------------------------------------------------------------

def test_inspect_prints_what_is_matched_and_records_the_files(dataset, capsys):    # noqa: F811
    main(["--inspect", str(dataset)])
    out = capsys.readouterr().out
    assert "LeRobot v2.1, robot 'toy_arm', 30 frames/s, 2 episodes of 23 to 40 frames, 63 in all" in out
    assert "m = 15 frames = 0.50 s, a chunk of 50 = 1.67 s" in out and f"{HEAD} (64 x 64)" in out
    assert "right_wrist  missing: masked" in out and "files recorded in" in out
    main(["--verify", str(dataset)])
    assert "every file is as it was recorded" in capsys.readouterr().out
    flip(parquet(dataset, 0), random.Random(0))
    with pytest.raises(ValueError, match=r"is not as it was recorded \(1 fault\)"):
        main(["--verify", str(dataset)])
    assert f"{parquet(dataset, 0)} has changed" in capsys.readouterr().out


def test_inspect_of_a_broken_dataset_prints_every_fault_and_records_nothing(dataset, capsys):    # noqa: F811
    """Missing files, torn video, broken rows: all in one run, and what can still be read."""
    edit_info(dataset, total_videos=4)   # it says that none was left out when recording
    video(dataset, 0, WRIST).unlink()
    edit_info(dataset, total_videos=4)   # it was recorded
    parquet(dataset, 1).unlink()
    truncate(video(dataset, 0, HEAD))
    with pytest.raises(ValueError, match=r"repair this before training on it.* \(3 faults\)"):
        main(["--inspect", str(dataset)])
    out = capsys.readouterr().out
    assert f"episode 0: {video(dataset, 0, WRIST)} is missing" in out
    assert f"episode 1: {parquet(dataset, 1)} is missing" in out
    assert f"episode 0, frame 39, '{HEAD}'" in out and "state  0  x" in out
    assert not (dataset / "statistics").exists()
