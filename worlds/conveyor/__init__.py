"""The embedded world: picking a still or a moving object, the paper's two suites (5.1, 5.3) in miniature.

Two arms stand at a table ("static") or at a conveyor belt ("dynamic"). "right pick green cross" names arm and target. A
single frame does not show the belt's velocity. Everything is numpy, N scenes at once. Not here: the model.
"""

import numpy as np

from config import VIEWS
from worlds.conveyor.causal import foreseen, reversed_past, silhouette
from worlds.conveyor.record import VALIDATION, marks, prepare, version, write_dataset
from worlds.conveyor.scene import Scenes, scripted_action
from worlds.conveyor.setting import CHUNK, FPS, M, RADIUS, SHAPES, STATE_NAMES, SUITES, TOLERANCE, settings
from worlds.world import Rollout

__all__ = ["FPS", "STATE_NAMES", "SUITES", "VALIDATION", "VIEWS", "foreseen", "marks", "prepare", "scripted_action",
           "settings", "silhouette", "version", "write_dataset"]   # handed on
NAME, PRESETS, TASKS = "conveyor", ("conveyor",), SHAPES
REPORTED = 200
HALF_WINDOW = RADIUS / 2   # the head camera sees 2 world units
# Of the first closing. "near miss": the named arm closed on nothing. The wrong arm counts as such whatever it took.
OUTCOMES = ("took it", "near miss", "wrong object", "wrong arm", "never closed")


def controls(policy, settings):
    """The policy told another arm or colour, shown another scene or another past, and one that holds still."""
    def told(**swap):
        def act(past, now, states, instructions):
            return policy(past, now, states, [" ".join(swap.get(w, w) for w in text.split()) for text in instructions])
        return act

    return {"wrong arm": told(left="right", right="left"), "wrong colour": told(red="green", green="blue", blue="red"),
            "shuffled images": lambda past, now, *rest: policy(np.roll(past, 1, 0), np.roll(now, 1, 0), *rest),
            "frozen past": lambda past, now, *rest: policy(now, now, *rest),
            "reversed past": lambda past, now, *rest: policy(reversed_past(settings), now, *rest),
            "hold still": lambda past, now, states, instructions: np.repeat(states[:, None], CHUNK, axis=1)}


def rollout(policy, settings, record=0):
    """Run a world.Actor in all settings at once: hold still until frame M, look, and act CHUNK frames.

    One chunk decides: a second look would show the velocity to a policy that did not foresee it.
    """
    scenes, film, filmed = Scenes(settings), [], range(min(record, len(settings)))
    past = scenes.render()
    for t in range(M + CHUNK):
        film.append(scenes.render(filmed))
        if t == M:
            states = scenes.state()
            chunk = np.asarray(policy(past, scenes.render(), states, scenes.instructions))
            if chunk[:, :CHUNK].shape != (len(settings), CHUNK, 6):
                raise ValueError(f"rollout: the policy returned actions of shape {chunk.shape}; return "
                                 f"({len(settings)}, {CHUNK} or more, 6)")
        scenes.step(scenes.state() if t < M else chunk[:, t - M])
    film.append(scenes.render(filmed))
    ended = {"took it": scenes.first_closing_success, "never closed": scenes.first_closing_arm < 0,
             "wrong arm": scenes.first_closing_arm != scenes.named,
             "wrong object": scenes.first_closing_distance[:, 1] < TOLERANCE}   # the first that is true
    outcomes = np.select(list(ended.values()), list(ended), "near miss").tolist()
    x, v = np.array([(s.x, s.v) for s in settings]).T
    shift = v * (scenes.first_closing_frame - M)
    lead = np.divide(scenes.first_closing_place[:, 0] - x, shift, out=np.full(len(v), np.nan), where=shift != 0)
    return Rollout(scenes.first_closing_success, outcomes, [s.shape for s in settings], scenes.instructions, states,
                   np.stack(film, axis=1) if record else None, lead=lead)
