"""A policy in the embedded world: what became of every scene, and how those ended that failed."""

from dataclasses import dataclass

import numpy as np

from worlds import world
from worlds.actor import shuffled_images, wrong_text
from worlds.conveyor.scene import Scenes, hold_action, scripted_action
from worlds.conveyor.setting import CHUNK, M, TOLERANCE, predefined_settings, sample_settings

# Of the first closing. "near miss": the named arm closed on nothing. The wrong arm counts as such whatever it took.
OUTCOMES = ("took it", "near miss", "wrong object", "wrong arm", "never closed")
WRONG_ARM = {"left": "right", "right": "left"}
WRONG_COLOUR = {"red": "green", "green": "blue", "blue": "red"}


@dataclass
class Rollout(world.Rollout):
    """A world.Rollout with the distance to the target at the first closing (N,), in world units, nan if none closed."""

    closing_error: np.ndarray


def settings(suite, episodes=None, seed=0):
    """The paper's 30 predefined settings of a suite, or so many seeded ones."""
    return predefined_settings(suite) if episodes is None else sample_settings(suite, episodes, seed)


def controls(policy):
    """The policy with the wrong arm or colour in its instruction, the policy before other pictures, and one that does
    nothing."""
    return {"wrong arm": wrong_text(policy, WRONG_ARM), "wrong colour": wrong_text(policy, WRONG_COLOUR),
            "shuffled images": shuffled_images(policy), "hold still": hold_action}


def outcomes(scenes):
    """How each scene ended, one of OUTCOMES."""
    wrong_object = scenes.first_closing_distance[:, 1] < TOLERANCE
    kinds = [scenes.first_closing_success, scenes.first_closing_frame < 0, scenes.first_closing_arm != scenes.named,
             wrong_object]
    return np.select(kinds, ["took it", "never closed", "wrong arm", "wrong object"], "near miss").tolist()


def rollout(policy, settings, execute=CHUNK, max_steps=CHUNK, size=64, record=0):
    """Run a policy in all settings at once: observe, act `execute` frames, observe again, `max_steps` frames in all.

    By default one chunk decides: a second look would show the velocity to a policy that did not foresee it.

    policy: a world.Actor -> (N, k >= execute, 6). It is first called at frame M, and no more once every scene is
    decided; a film runs on. `scripted_action` and `hold_action` are also taken: they see the scenes themselves, at
    every frame.
    """
    scenes = Scenes(settings, size)
    privileged = policy in (scripted_action, hold_action)
    asked = range(M, M + max_steps, execute)
    needed = set(asked) | {t - M for t in asked}
    pictures, film, chunk, states = {}, [], None, None
    while True:
        t = scenes.frame
        states = scenes.state() if t == M else states
        if t in needed and not privileged:
            pictures[t] = scenes.render()
        if record:
            filmed = range(min(record, len(scenes.settings)))
            film.append(pictures[t][:record] if t in pictures else scenes.render(filmed))
        if t == M + max_steps or (not record and (scenes.first_closing_frame >= 0).all()):
            break
        if t in asked and not privileged:
            chunk = np.asarray(policy(pictures.pop(t - M), pictures[t], scenes.state(), scenes.instructions))
            if chunk[:, :execute].shape != (len(scenes.settings), execute, 6):
                wanted = f"({len(scenes.settings)}, {execute} or more, 6)"
                raise ValueError(f"rollout: the policy returned actions of shape {chunk.shape}; return {wanted}")
        if t < M or privileged:
            scenes.step(hold_action(scenes) if t < M else policy(scenes))
        else:
            scenes.step(chunk[:, (t - M) % execute])
    tasks = [s.shape for s in scenes.settings]
    return Rollout(scenes.first_closing_success, outcomes(scenes), tasks, scenes.instructions, states,
                   np.stack(film, axis=1) if record else None, scenes.first_closing_distance[:, 0])
