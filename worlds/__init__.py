"""Where a policy is evaluated: worlds behind one interface (world.py). Not here: the model and the policy that acts."""

import importlib

NAMES = ("conveyor",)   # each a module or package of this folder; importing one starts no simulator


def find(name):
    """The World of a checkpoint, by its robot. ValueError, one line, if it drives a robot that no world has."""
    if name not in NAMES:
        raise ValueError(f"--closed-loop needs a checkpoint of an embedded world ({', '.join(NAMES)}), "
                         f"this one drives '{name}'")
    return importlib.import_module(f"worlds.{name}")
