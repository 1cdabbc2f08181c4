"""A mistyped flag is refused with the flag that was meant."""

import re

import pytest

import train
from support.flags import Parser, add_config_flags


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


@pytest.mark.parametrize("meant, typed", [
    ("--batch_size", "--batch_sizes"), ("--warmup_steps", "--warmpu_steps"), ("--checkpoint_layers", "--checkpoint_layer"),
    ("--dry-run", "--dry_run"), ("--lambda_gen", "--lamda_gen"), ("--out", "--uot")])
def test_a_typo_is_refused_with_the_flag_that_was_meant(capsys, meant, typed):
    with pytest.raises(SystemExit) as end:
        train.parse([typed, "1"])
    line = capsys.readouterr().err
    assert end.value.code == 2 and line == f"train.py: unknown flag {typed}: did you mean {meant}?\n"


def test_a_flag_like_no_other_is_sent_to_the_help(capsys):
    with pytest.raises(SystemExit):
        train.parse(["--xyzzy"])
    assert "--help lists all flags" in capsys.readouterr().err
