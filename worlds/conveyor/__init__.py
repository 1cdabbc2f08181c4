"""The embedded world: picking a still or a moving object, the paper's two suites (5.1, 5.3) in miniature.

Two arms stand at a table ("static") or at a conveyor belt ("dynamic"). An instruction such as "right pick
green cross" names the arm and the target. A single frame does not show the belt's velocity, and within a reach the
target moves by up to a quarter of the picture.

Not here: the model. Everything is numpy, N scenes at once.
"""

from config import VIEWS
from worlds.conveyor.record import (COLUMNS, LENGTH, STORED, VALIDATION, marks, prepare, suite, version,
                                    write_dataset)
from worlds.conveyor.evaluation import OUTCOMES, controls, rollout, settings
from worlds.conveyor.scene import Scenes, hold_action, scripted_action
from worlds.conveyor.setting import (CHUNK, FPS, M, RADIUS, SHAPES, STATE_NAMES, SUITES, predefined_settings,
                                      sample_settings)

NAME, PRESETS, TASKS = "conveyor", ("conveyor",), SHAPES
HALF_WINDOW = RADIUS / 2   # the head camera sees 2 world units
__all__ = [   # what world.World asks for, and what is conveyor's own
    "NAME", "PRESETS", "VIEWS", "FPS", "M", "CHUNK", "SUITES", "TASKS", "OUTCOMES", "HALF_WINDOW", "settings",
    "rollout", "controls", "suite", "marks", "prepare",
    "COLUMNS", "LENGTH", "STORED", "VALIDATION", "RADIUS", "SHAPES", "STATE_NAMES", "Scenes", "hold_action",
    "scripted_action", "predefined_settings", "sample_settings", "version", "write_dataset"]
