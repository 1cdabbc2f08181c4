"""A mistyped flag is refused with the flag that was meant."""

import pytest

import train


@pytest.mark.parametrize("typed, hint", [
    ("--batch_sizes", "did you mean --batch_size?"), ("--warmpu_steps", "did you mean --warmup_steps?"),
    ("--checkpoint_layer", "did you mean --checkpoint_layers?"), ("--dry_run", "did you mean --dry-run?"),
    ("--lamda_gen", "did you mean --lambda_gen?"), ("--xyzzy", "--help lists all flags")])
def test_a_typo_is_refused_with_the_flag_that_was_meant(capsys, typed, hint):
    with pytest.raises(SystemExit) as end:
        train.parse([typed, "1"])
    assert end.value.code == 2 and capsys.readouterr().err == f"train.py: unknown flag {typed}: {hint}\n"
