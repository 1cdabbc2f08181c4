"""The causal test: a past that says the opposite, and how far an imagined picture has moved the target."""

from dataclasses import replace

import numpy as np

from worlds.conveyor.scene import Scenes, scripted_action
from worlds.conveyor.setting import COLOURS, M, RADIUS

CLEAR = 60   # of 255: by so much a pixel of the target exceeds in its own colour; gripper, table and belt stay below
LEAST = 20   # such pixels make a target; a whole one has about 200


def reversed_past(settings):
    """(N, V, SIZE, SIZE, 3) uint8: o_{t-M} of the worlds in which the belt runs the other way and all else is the same.
    Their frame t is ours. Each object lies where in ours it would be at t + M."""
    return Scenes([replace(s, v=-s.v) for s in settings]).render()


def silhouette(picture, colour):
    """How much of an object of this colour each pixel of a head picture (H, W, 3) uint8 shows -> (H, W) int; 0
    elsewhere, and where no such object is."""
    channel, picture = list(COLOURS).index(colour), picture.astype(int)   # red, green, blue
    excess = picture[..., channel] - np.delete(picture, channel, axis=-1).max(-1) - CLEAR
    return excess.clip(0) * ((excess > 0).sum() >= LEAST)


def foreseen(settings, pictures):
    """Where head pictures (N, H, W, 3) uint8, imagined for t + M, have the target -> (N,), in units of its shift from t
    on in the expert's picture of t + M, in which the hand has taken it: +1 there, 0 where it is at t, -1 as if the belt
    ran the other way. nan: it stands still, is not found by its colour, or one of these places is not all in sight."""
    scenes = Scenes(settings)
    for t in range(2 * M):
        scenes.step(scenes.state() if t < M else scripted_action(scenes))
    across = (np.arange(pictures.shape[2]) + 0.5) * 2 / pictures.shape[2] - 1
    found = np.full(len(settings), np.nan)
    for i, (s, picture) in enumerate(zip(settings, pictures)):
        columns, shift = silhouette(picture, s.colour).sum(0), scenes.objects[i, 0, 0] - s.x
        if s.v and columns.any() and abs(s.x) + abs(shift) + RADIUS <= 1:
            found[i] = (columns @ across / columns.sum() - s.x) / shift
    return found
