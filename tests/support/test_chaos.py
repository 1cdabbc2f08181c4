"""The short version of `python tests/chaos.py --kills 200`: the same runs and the same verdicts, fewer of them."""

import signal

import pytest

import chaos
from support import checkpoint


@pytest.fixture(scope="module")
def found():
    chaos.LATE = 60   # a machine that runs tests may be starved
    return chaos.main(("--kills 2 --terms 1 --damage 27 --disk 2 --ranks 1 --hangups 1 --twins 2 --resumes 1 "
                       "--screens 1 --pipes 1 --loaders 1 --shm 2").split())


@pytest.mark.parametrize("part", chaos.PARTS)
def test_a_run_is_never_lost(found, part):
    """Killed, interrupted, damaged, starved of disk, robbed of a rank, met by a second one, unheard: all survived, not
    a line differs."""
    tally = found[part]
    assert tally["tried"] == tally["survived"] > 0 and tally["lost"] == tally["differing"] == 0, tally


@pytest.mark.parametrize("code, log, words", [
    (143, "{}\n", ""), (-15, "{}\n{}\n", "6 bytes, the checkpoint knows of 3"), (1, "{}\n", "it ended with 1")])
def test_a_run_that_does_not_save_on_sigterm_is_told(tmp_path, code, log, words):
    """Whatever its exit code: what was logged after the checkpoint is lost."""
    checkpoint.save(tmp_path, 4, {}, {}, {"log_length": 3})
    (tmp_path / "log.jsonl").write_text(log)
    said = chaos.verdict(tmp_path, code, signal.SIGTERM, 4, 4, "")
    assert words in said if words else not said
