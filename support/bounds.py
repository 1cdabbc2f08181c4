"""What a value of a setting may be: one check for presets, flags, mixtures and the configs that checkpoints hold."""

import re
from operator import ge, gt, le, lt

BOUNDS = {"above": gt, "at_least": ge, "at_most": le, "below": lt, "a_multiple_of": lambda x, n: x % n == 0}
KINDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", tuple: "whole numbers"}
EPISODES = r"none|((-[1-9]\d{0,8}|\d{1,9}(-\d{1,9})?)(,(?!$)|$))+"   # 0-19,25: support/data/episodes.py


def must(holds, line):
    """ValueError of this line unless it holds. The line is made either way."""
    if not holds:
        raise ValueError(line)


def check(name, value, kind, known):
    """ValueError, one line, unless a value is of its kind and within what is `known` of it: BOUNDS, choices, form (a
    regular expression, which help explains). Numbers without bounds are from 0 to 10^9."""
    def require(holds, line):
        must(holds, f"{name} must be {line}, got {value!r:.60}")
    parts, choices = value if kind is tuple is type(value) else (value,), known.get("choices", (value,))
    whole = kind is not tuple or len(parts) < 9 and {*map(type, parts)} <= {int}
    require(whole and (type(value) is kind or (kind, type(value)) == (float, int)), KINDS[kind])
    limits = {"at_least": 0, "at_most": 10**9, **known} if kind in (int, float, tuple) else {}
    for bound in sorted(BOUNDS.keys() & limits):
        require(all(BOUNDS[bound](part, limits[bound]) for part in parts), f"{bound.replace('_', ' ')} {limits[bound]}")
    require(value in choices, f"one of {', '.join(map(repr, choices))}")
    require(re.fullmatch(known.get("form", "(?s).*"), str(value)), known.get("help"))
