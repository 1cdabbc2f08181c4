"""The short version of `python tests/chaos.py --kills 200`: the same runs and the same verdicts, fewer of them."""

import pytest

import chaos


@pytest.fixture(scope="module")
def found():
    return chaos.main("--kills 4 --terms 2 --damage 27 --disk 2 --ranks 1".split())


@pytest.mark.parametrize("part", chaos.PARTS)
def test_a_run_is_never_lost(found, part):
    """Design 6: killed, interrupted, damaged, starved of disk, robbed of a rank: all survived, not a line differs."""
    tally = found[part]
    assert tally.tried == tally.survived > 0 and tally.lost == tally.differing == 0, tally
