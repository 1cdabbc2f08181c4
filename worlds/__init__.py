"""Where a policy is evaluated: worlds behind one interface (world.py). Not here: the model and the policy that acts."""

import importlib
from pathlib import Path

# robot: module or package of this folder; importing one starts no simulator
NAMES = {"conveyor": "conveyor", "aloha_sim": "aloha"}


def find(name):
    """The World of a checkpoint, by its robot. ValueError, one line, if it drives a robot that no world has."""
    if name not in NAMES:
        raise ValueError(f"--closed-loop needs a checkpoint of a simulated world ({', '.join(NAMES)}), "
                         f"this one drives '{name}'")
    return importlib.import_module(f"worlds.{NAMES[name]}")


def of_data(data, preset):
    """--data, and without it the preset's name -> (World or None, path): the world that writes these data if they are
    absent. A world is named in place of a path; `data` None and a preset of no world is (None, None)."""
    for robot, module in NAMES.items():
        if module == data or data is None and preset in find(robot).PRESETS:
            return find(robot), Path("data") / module
    return None, data
