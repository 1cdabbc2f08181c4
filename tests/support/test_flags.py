"""A mistyped flag is refused with the flag that was meant."""

import random
import re
import string

import pytest

import train
from support.flags import Parser, add_config_flags, edits


def typos(words, count, seed):
    """`count` different (what was meant, what was typed), one edit apart, none of them a flag itself."""
    chance, found = random.Random(seed), {}
    while len(found) < count:
        meant = chance.choice(words)
        at, letter = chance.randrange(2, len(meant)), chance.choice(string.ascii_lowercase + string.digits + "_-")
        kind = chance.randrange(4)
        typed = [meant[:at] + meant[at + 1:], meant[:at] + letter + meant[at:], meant[:at] + letter + meant[at + 1:],
                 meant[:at] + meant[at + 1:at + 2] + meant[at] + meant[at + 2:]][kind]
        if typed not in words and len(typed) > 4:
            found[typed] = meant
    return [(meant, typed) for typed, meant in found.items()]


@pytest.fixture(scope="module")
def flags():
    parser = Parser(prog="x")
    add_config_flags(parser)
    own = ("--config --data --robot --init --from --weights --mixture --verify --init_und --init_vae --init_experts "
           "--out --resume --shard --dry-run --memory_gb --fit --episodes --eval_seed").split()
    return own + [flag for action in parser._actions for flag in action.option_strings if flag not in ("-h", "--help")]


def test_the_flags_of_this_test_are_the_scripts(flags, capsys):
    with pytest.raises(SystemExit):
        train.parse(["--help"])
    rows = [line.strip().split("  ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  -")]
    shown = {flag for row in rows for flag in re.findall(r"--[\w-]+", row)} - {"--help"}
    assert shown == set(flags) and len(flags) == len(set(flags))


def test_a_hundred_typos_are_refused_with_the_flag_that_was_meant(flags, capsys):
    """One edit each: a letter lost, added, changed, or two exchanged. Where two flags are as near, both are named."""
    right = 0
    for meant, typed in typos(flags, 100, seed=0):
        with pytest.raises(SystemExit) as end:
            train.parse([typed, "1"])
        line = capsys.readouterr().err
        assert end.value.code == 2 and line.count("\n") == 1 and f"unknown flag {typed}: did you mean " in line
        suggested = line.strip().split("did you mean ")[1].rstrip("?").split(" or ")
        assert meant in suggested and len(suggested) <= 3, line
        right += 1
    assert right == 100


@pytest.mark.parametrize("a, b, n", [("steps", "steps", 0), ("stpes", "steps", 1), ("step", "steps", 1),
                                     ("stepss", "steps", 1), ("stops", "steps", 1), ("", "ab", 2), ("lr", "clip", 3)])
def test_edits_counts_single_edits(a, b, n):
    assert edits(a, b) == edits(b, a) == n
