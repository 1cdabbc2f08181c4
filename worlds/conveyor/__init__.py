"""The embedded world: picking a still or a moving object, the paper's two suites (5.1, 5.3) in miniature.

Two arms stand at a table ("static") or at a conveyor belt ("dynamic"). An instruction such as "right pick
green cross" names the arm and the target. A single frame does not show the belt's velocity, and within a reach the
target moves by up to a quarter of the picture.

Not here: the model. Everything is numpy, N scenes at once.
"""

import numpy as np

from config import VIEWS
from worlds.conveyor.record import VALIDATION, marks, prepare, suite, version, write_dataset
from worlds.conveyor.scene import Scenes, hold_action, scripted_action
from worlds.conveyor.setting import (CHUNK, FPS, M, RADIUS, SHAPES, STATE_NAMES, SUITES, TOLERANCE,
                                     predefined_settings, sample_settings)
from worlds.world import Rollout, shuffled_images, wrong_text

__all__ = ["FPS", "STATE_NAMES", "SUITES", "VALIDATION", "VIEWS", "marks", "prepare", "suite", "version",
           "write_dataset"]   # handed on
NAME, PRESETS, TASKS = "conveyor", ("conveyor",), SHAPES
HALF_WINDOW = RADIUS / 2   # the head camera sees 2 world units
# Of the first closing. "near miss": the named arm closed on nothing. The wrong arm counts as such whatever it took.
OUTCOMES = ("took it", "near miss", "wrong object", "wrong arm", "never closed")
WRONG_ARM = {"left": "right", "right": "left"}
WRONG_COLOUR = {"red": "green", "green": "blue", "blue": "red"}


def settings(suite, episodes=None, seed=0):
    """The paper's 30 predefined settings of a suite, or so many seeded ones."""
    return predefined_settings(suite) if episodes is None else sample_settings(suite, episodes, seed)


def controls(policy):
    """The policy told another arm or colour, the policy before other pictures, and one that does nothing."""
    return {"wrong arm": wrong_text(policy, WRONG_ARM), "wrong colour": wrong_text(policy, WRONG_COLOUR),
            "shuffled images": shuffled_images(policy), "hold still": hold_action}


def outcomes(scenes):
    """How each scene ended, one of OUTCOMES."""
    kinds = [scenes.first_closing_success, scenes.first_closing_frame < 0, scenes.first_closing_arm != scenes.named,
             scenes.first_closing_distance[:, 1] < TOLERANCE]
    return np.select(kinds, ["took it", "never closed", "wrong arm", "wrong object"], "near miss").tolist()


def rollout(policy, settings, record=0):
    """Run a policy in all settings at once: observe at frame M, act CHUNK frames.

    One chunk decides: a second look would show the velocity to a policy that did not foresee it.

    policy: a world.Actor -> (N, k >= CHUNK, 6). `scripted_action` and `hold_action` are also taken: they see the scenes
    themselves, at every frame. Without a film it ends when every scene is decided.
    """
    scenes, film = Scenes(settings), []
    privileged = policy in (scripted_action, hold_action)
    for t in range(M + CHUNK + 1):
        look = scenes.render() if t in (0, M) and not privileged else None
        if record:
            filmed = range(min(record, len(settings)))
            film.append(scenes.render(filmed) if look is None else look[:record])
        if t == 0:
            past = look
        if t == M:
            states = scenes.state()
        if t == M and not privileged:
            chunk = np.asarray(policy(past, look, states, scenes.instructions))
            if chunk[:, :CHUNK].shape != (len(settings), CHUNK, 6):
                wanted = f"({len(settings)}, {CHUNK} or more, 6)"
                raise ValueError(f"rollout: the policy returned actions of shape {chunk.shape}; return {wanted}")
        if t == M + CHUNK or (not record and (scenes.first_closing_frame >= 0).all()):
            break
        if t < M:
            scenes.step(hold_action(scenes))
        else:
            scenes.step(policy(scenes) if privileged else chunk[:, t - M])
    tasks = [s.shape for s in settings]
    return Rollout(scenes.first_closing_success, outcomes(scenes), tasks, scenes.instructions, states,
                   np.stack(film, axis=1) if record else None)
