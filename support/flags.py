"""Command-line flags: one for each field of config.py, and a parser whose errors are one line."""

import argparse
import difflib
import math
import os
import re
import sys
from dataclasses import fields

from config import SECTIONS
from support.bounds import EPISODES, KINDS, check
from support.files import must, read_text

# Bounds of flags, as metadata of a field of config.py.
COUNT, PLACE, SEED = {"at_least": 1, "at_most": 10**6}, {"at_least": -10**9}, {"at_most": 2**32 - 1}
BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
ACTING, RUN = ("--image-dir", "--closed-loop", "--open-loop"), ("a training run",)
# Which jobs of a program read a flag; what is not listed is read by all of them. Flags as in args, jobs as `jobs` of
# refuse_ignored and its message call them.
READ_BY = {
    "train.py": {
        "data robot verify init origin weights init_und init_vae init_experts out resume": RUN,
        "timestamps": ("LeRobot data",),
        "shard": ("a run under torchrun",),
        "memory_gb": ("--dry-run", "--fit"),
        "episodes eval_seed": ("a robot that a world simulates",),
        "hold_out": ("data that hold out nothing themselves",),
        "eval_every eval_windows": ("a run that holds out data",),
        "only_episodes m action_mode full_windows stretch lpt_workers balance loaders std_floor on_bad_sample": RUN,
        "steps warmup_steps decay_steps beta1 beta2 adam_eps weight_decay seed threads log_every save_every": RUN,
        "vit_layers vit_width vit_mlp vit_heads vit_patch vit_grid und_tail view_tokens": ("a published backbone",),
        "gen_target lambda_gen": ("--gen_expert true",),
        "min_lr": ("--decay_steps above 0",),
        "rope_theta rope_bf16 mrope_sections": ("--learned_positions false",),
    },
    "infer.py": {
        "image_dir": ("--image-dir", "--cut"),
        "task": ("--image-dir", "--serve"),
        "state": ("--image-dir",),
        "out": ACTING,
        "host port no_auth keys mask_missing history max_sessions batch_sessions idle_timeout protocol": ("--serve",),
        "api_key fps": ("--protocol openpi",),
        "execute_steps gripper_threshold": ("--protocol xpolicylab",),
        "episodes json controls suites": ("--closed-loop",),
        "data": ("--open-loop",),
        "episode frame timestamps": ("--cut",),
        "weights tokenizer seed engine euler_steps device threads": (*ACTING, "--serve"),
        "checkpoint": ("--cut", "a policy without --weights"),
        "config action_mode vae dtype revision": ("--weights",),
    },
    "model.py": {"only_episodes hold_out action_mode full_windows stretch lpt_workers balance loaders std_floor "
                 "on_bad_sample timestamps": ("train.py",)},
    "python -m worlds.robotwin": {"out save_freq": ("convert",), "trials": ("report",)},
    "python -m bench reading": {"datasets json force": ("--against",)},
    "python -m support.data": {"robot timestamps": ("--inspect of LeRobot", "--cache"), "config loaders": ("--cache",)},
}


def refuse_ignored(program, args, *jobs):
    """ValueError, one line, for a flag that is given and that none of these jobs of the program reads."""
    for names, readers in READ_BY[program].items():
        ignored = [name for name in names.split() if name in args.given and not {*readers} & {*jobs}]
        if ignored:
            raise ValueError(f"{args.given[ignored[0]]} would be ignored: it is for {' or '.join(readers)}; drop it")


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are one line and name the nearest flag. What it parses has `given`:
    {name in args: the flag as it is written} of the flags that are not left to their default."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.register("type", None, _text)   # of flags without a type
        self.add_argument("--debug", action="store_true", help="show the traceback of any error")   # support/entry.py

    def error(self, message):
        message = " ".join(message.removeprefix("argument ").replace(": it must be", " must be", 1).split())
        print(f"{self.prog}: {message[:600]}", file=sys.stderr)
        sys.exit(2)

    def parse_args(self, args=None, namespace=None):
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].split("=")[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(name, flags, 1)
            hint = f"did you mean {near[0]}?" if near else "--help lists all flags"
            self.error(f"unknown flag {name[:80]}: {hint}")
        written = {word.split("=")[0] for word in (sys.argv[1:] if args is None else args)}
        spelled = {action.dest: sorted(written.intersection(action.option_strings)) for action in self._actions}
        if twice := next((names for names in spelled.values() if len(names) > 1), None):
            self.error(f"{' and '.join(twice)} are one flag: give it once")
        for action in self._actions:   # what argparse makes of --flag=--
            if action.nargs is None and getattr(known, action.dest, None) == [] != action.default:
                self.error(f"{action.option_strings[0]} has no value")
        known.given = {dest: names[0] for dest, names in spelled.items() if names}
        return known


def _text(text):
    if not text.strip():
        raise argparse.ArgumentTypeError("it must be more than an empty text: leave the flag out, or name something")
    return text


def _parsed(text, kind):
    """The text of a flag -> its value of a kind."""
    try:
        if kind is bool:
            return BOOLEANS[text.lower()]
        if kind is tuple:
            return tuple(int(part) for part in text.split(",") if part)
        found = kind(text)
        if kind is float and not math.isfinite(found):
            raise ValueError
        return found
    except (KeyError, ValueError):
        raise ValueError(f"expected {KINDS[kind]}, got {text!r:.60}") from None


def episodes(text, folder="."):
    """A choice of episodes (support/data/episodes.py), or the file in `folder` that holds one -> the choice."""
    path = os.path.join(folder, text)
    if re.fullmatch(EPISODES, text) or not os.path.isfile(path):   # config.py refuses what is neither
        return text
    must(os.path.getsize(path) <= 1 << 24, f"{path} has more than 16 MiB: it is no list of episodes")
    found = ",".join(filter(None, re.split(r"[\s,\[\]]+", read_text(path))))
    if not found or not re.fullmatch(EPISODES, found):
        raise ValueError(f"{path} holds no list of episodes, such as 0-19,25: write numbers between commas or lines")
    return found


def value(kind, known=None, parser=None):
    """What argparse calls for a flag of a kind (or with a parser). known: bounds that config.py does not check."""
    def parse(text):
        try:
            found = parser(text) if parser else _parsed(text, kind)
            if known is not None:
                check("it", found, kind, known)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return found
    return parse


def add_config_flags(parser, sections=tuple(SECTIONS)):
    """One flag per field of these sections, default None: the preset's value stands unless a flag is given."""
    for title in sections:
        group = parser.add_argument_group(title)
        for item in fields(SECTIONS[title]):
            choices, form = item.metadata.get("choices"), item.metadata.get("form")
            group.add_argument(f"--{item.name}", type=value(item.type, parser=form and episodes), choices=choices,
                               help=item.metadata["help"], metavar=None if choices else item.type.__name__.upper())
