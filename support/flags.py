"""Command-line flags: one for each field of config.py, and a parser whose errors are one line."""

import argparse
import difflib
import math
import sys
from dataclasses import fields

from config import SECTIONS


def nearest(word, words):
    """The words most similar to one that is unknown: [] or [word]."""
    return difflib.get_close_matches(str(word), words, 1)


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are one line and name the nearest flag."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.add_argument("--debug", action="store_true", help="show the traceback of any error")   # support/entry.py

    def error(self, message):
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)

    def parse_args(self, args=None, namespace=None):
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].split("=")[0]
            near = nearest(name, [flag for action in self._actions for flag in action.option_strings])
            hint = f"did you mean {near[0]}?" if near else "--help lists all flags"
            self.error(f"unknown flag {name}: {hint}")
        return known


def _boolean(text):
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


def _number(kind):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a {'whole ' if kind is int else ''}number, got {text!r}")
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
        return value
    return parse


def _integers(text):
    return tuple(_number(int)(part) for part in text.split(",") if part)


_PARSERS = {bool: _boolean, int: _number(int), float: _number(float), str: str, tuple: _integers}


def add_config_flags(parser):
    """One flag per config field, default None: the preset's value stands unless a flag is given."""
    for title, section in SECTIONS.items():
        group = parser.add_argument_group(title)
        for item in fields(section):
            choices = item.metadata.get("choices")
            group.add_argument(f"--{item.name}", type=_PARSERS[item.type], help=item.metadata["help"], choices=choices,
                               metavar=None if choices else item.type.__name__.upper())
