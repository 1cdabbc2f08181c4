"""The embedded world: picking a still or a moving object, the paper's two suites (5.1, 5.3) in miniature.

Two arms with grippers stand at a table ("static") or at a conveyor belt ("dynamic"). An instruction such as "right pick
green cross" names the arm and the target; a distractor of another colour may lie beside it. A single frame cannot tell
how fast the belt runs, nor in which direction: only two frames can. A policy that does not know the velocity must
guess: in the 7 to 14 frames of a reach the target moves by up to 0.56, more than a quarter of the picture.

Units: lengths in world units (the head camera sees [-1, 1] x [-1, 1], y upwards), times in frames (FPS a second).
Frames 0 .. M are a lead-in in which the arms hold still; the decision is taken at frame M. Everything is vectorised
over N scenes and written in numpy; nothing here knows of the model. Nothing collides: drawn figures may overlap.
"""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

FPS = 30
M = 15  # frames between the past, the present and the foreseen picture
CHUNK = 16  # actions in a chunk
VIEWS = ("head", "left_wrist", "right_wrist")
SUITES = ("static", "dynamic")
ARMS = ("left", "right")
SHAPES = ("disc", "square", "cross")
COLOURS = {"red": (216, 48, 44), "green": (48, 184, 64), "blue": (52, 92, 236)}
# Positions in world units; openings from 0 (closed) to 1 (open). Actions have the same names: the commanded values.
STATE_NAMES = ("left_x", "left_y", "left_opening", "right_x", "right_y", "right_opening")

RADIUS = 0.30  # of an object: a disc's, half a cross's length; a square is as large to the eye
TOLERANCE = 0.12  # a closing takes an object whose centre is nearer than this
CHASE = 0.14  # fastest approach of the expert, relative to the belt, per frame
SPEED = (0.010, 0.040)  # range of the belt's |v| per frame
REACH = CHASE + SPEED[1] + 0.005  # farthest a gripper moves in one frame
PLACES = (0.4, 0.32)  # at frame M objects lie within these |x|, |y|: 15 frames later the head camera still sees centres
APART = 2 * RADIUS + 0.02  # least distance of two objects along x or y: no two shapes touch
DISTRACTOR = 0.8  # share of the scenes that have one
CLOSING = 3  # frames from open to closed
BELT = 0.52  # the belt covers |y| < BELT
# The belt is a little lighter and darker along its length and carries that pattern with it. A wave longer than twice
# the way of 15 frames (0.6) does not alias; where it starts is random, so one frame still tells nothing of the speed.
WAVE, SHADE = 1.6, 0.45
WRIST = 0.45  # half width of a wrist camera's window

TABLE, GROUND, BAND, RAIL = (148, 128, 104), (116, 132, 126), (72, 70, 76), (28, 28, 32)
GRIPPERS = ((190, 248, 255), (255, 240, 150))  # left bluish, right yellowish
SKIN = (226, 172, 138)

# Random streams never share their first number, so training episodes cannot meet evaluation scenes whatever the seeds.
# RandomState and not Generator: its streams are frozen by numpy, and the predefined settings must stay for ever.
SAMPLED, DATASET, PREDEFINED = 101, 202, 303


# --- Settings: what a scene is, before anything moves ---


@dataclass(frozen=True)
class Setting:
    """One scene in plain Python values. Positions of objects hold at frame M, when the decision is taken."""

    suite: str  # "static" or "dynamic"
    arm: str  # the arm that the instruction names
    colour: str  # of the target
    shape: str
    x: float  # of the target at frame M, within PLACES, independent of v
    y: float
    v: float  # belt velocity along x per frame; 0 in the static suite
    distractor: tuple | None  # (colour, shape, x, y) or None
    left: tuple  # (x, y) where the left gripper waits, open
    right: tuple
    appearance: str = "sim"  # "sim", "real" or "human"
    phase: float = 0.0  # of the belt's pattern at frame M, in [0, WAVE), independent of v
    look: int = 0  # seed of tints, brightness and sensor noise; no other field depends on it

    @property
    def instruction(self):
        """What the policy is told, e.g. "right pick green cross"."""
        return f"{self.arm} pick {self.colour} {self.shape}"


def _draw_settings(rng, suites, appearance, distractor):
    """One Setting for each name in `suites`, all drawn from `rng`; `distractor` is the probability of having one."""
    n = len(suites)
    colour, shape, arm = rng.randint(3, size=n), rng.randint(3, size=(2, n)), rng.randint(2, size=n)
    # Both objects are drawn alike, so that a place does not tell which of the two the instruction means.
    target, beside = pair = rng.uniform(-1, 1, (2, n, 2)) * PLACES
    while (near := abs(target - beside).max(1) < APART).any():
        pair[:, near] = rng.uniform(-1, 1, (2, near.sum(), 2)) * PLACES
    velocity = rng.uniform(*SPEED, n) * rng.choice((-1, 1), n) * (np.array(suites) == "dynamic")
    homes = np.stack([rng.uniform(0.1, 0.5, (2, n)), rng.uniform(-0.75, -0.6, (2, n))], axis=-1)
    homes[0, :, 0] *= -1
    present, other = rng.uniform(size=n) < distractor, (colour + 1 + rng.randint(2, size=n)) % 3
    look, phase = rng.randint(2**31 - 1, size=n), rng.uniform(0, WAVE, n)

    names = tuple(COLOURS)
    target, beside, homes, velocity = ((np.round(a, 6) + 0.0).tolist() for a in (target, beside, homes, velocity))
    return [
        Setting(
            suites[i], ARMS[arm[i]], names[colour[i]], SHAPES[shape[0, i]], *target[i], velocity[i],
            (names[other[i]], SHAPES[shape[1, i]], *beside[i]) if present[i] else None,
            tuple(homes[0][i]), tuple(homes[1][i]), appearance, round(float(phase[i]), 6), int(look[i]),
        )
        for i in range(n)
    ]  # fmt: skip


def predefined_settings(suite):
    """The 30 settings of a suite on which policies are reported (paper, 5.1): for ever the same, 10 of each shape."""
    rng = np.random.RandomState([PREDEFINED, SUITES.index(suite)])
    drawn = _draw_settings(rng, [suite] * 30, "sim", DISTRACTOR)
    return [replace(s, shape=SHAPES[i % 3], arm=ARMS[i % 2]) for i, s in enumerate(drawn)]


def sample_settings(suite, n, seed, appearance="sim", distractor=DISTRACTOR):
    """Any number of seeded settings. Their random stream is disjoint from `write_dataset`'s for every pair of seeds."""
    rng = np.random.RandomState([SAMPLED, SUITES.index(suite), seed])
    return _draw_settings(rng, [suite] * n, appearance, distractor)


# --- The world ---


class World:
    """N scenes side by side, at `frame`.

    grippers (N, 2, 2): positions of the left and the right gripper.  thirds (N, 2): openings in units of 1 / CLOSING.
    objects (N, 2, 2): positions of target and distractor (nan if absent).  holder (N, 2): the gripper that holds each
    object, or -1. The first closing of a scene, by whichever gripper, is what counts, and is recorded in
    first_closing_frame (N,) int, -1 before; first_closing_arm (N,) int, 0 left, 1 right, -1 none;
    first_closing_distance (N,) float, centre to centre of the target; first_closing_success (N,) bool.
    """

    def __init__(self, settings, size=64):
        """Frame 0 of each Setting; pictures will be `size` x `size` pixels."""
        self.settings, self.size, self.frame = list(settings), size, 0
        n = len(self.settings)
        nothing = (next(iter(COLOURS)), SHAPES[0], np.nan, np.nan)
        other = [s.distractor or nothing for s in self.settings]
        self.instructions = [s.instruction for s in self.settings]
        self.named = np.array([ARMS.index(s.arm) for s in self.settings])
        self.velocity = np.array([(s.v, 0.0) for s in self.settings])
        self.at_decision = np.array([((s.x, s.y), d[2:]) for s, d in zip(self.settings, other)], dtype=float)
        self.shapes = np.array([(SHAPES.index(s.shape), SHAPES.index(d[1])) for s, d in zip(self.settings, other)])
        self.grippers = np.array([(s.left, s.right) for s in self.settings], dtype=float)
        self.thirds = np.full((n, 2), CLOSING)
        self.holder = np.full((n, 2), -1)
        self.offset = np.zeros((n, 2, 2))
        self.first_closing_frame, self.first_closing_arm = np.full(n, -1), np.full(n, -1)
        self.first_closing_distance, self.first_closing_success = np.full(n, np.nan), np.zeros(n, dtype=bool)
        self.phase = np.array([s.phase for s in self.settings])
        self.dynamic = np.array([s.suite == "dynamic" for s in self.settings])
        self.human = np.array([s.appearance == "human" for s in self.settings])
        self.looks = np.array([s.look for s in self.settings], dtype=np.int64)
        self.palette = _palette(self.settings, [(s.colour, d[0]) for s, d in zip(self.settings, other)])
        self._carry()

    @property
    def target(self):
        """(N, 2) float32: where the targets are now."""
        return self.objects[:, 0].astype(np.float32)

    @property
    def distractor(self):
        """(N, 2) float32: where the distractors are now, nan where there is none."""
        return self.objects[:, 1].astype(np.float32)

    def state(self):
        """(N, 6) float32 in the order of STATE_NAMES."""
        pose = np.concatenate([self.grippers, self.thirds[..., None] / CLOSING], axis=-1)
        return pose.reshape(-1, 6).astype(np.float32)

    def step(self, actions):
        """Advance one frame. actions (N, 6): waypoints for the next frame and openings, in the order of STATE_NAMES.

        A gripper moves at most REACH towards its waypoint. Fingers are driven, not positioned: an opening commanded
        below 0.5 closes them by one third, any other opens them by one third.
        """
        goal = np.asarray(actions, dtype=float).reshape(-1, 2, 3)
        move = goal[..., :2] - self.grippers
        distance = np.linalg.norm(move, axis=-1, keepdims=True)
        self.grippers += move * np.minimum(1, REACH / np.maximum(distance, 1e-9))
        before = self.thirds
        self.thirds = np.clip(before + np.where(goal[..., 2] < 0.5, -1, 1), 0, CLOSING)
        self.frame += 1
        self._carry()
        self._grasp((before > 0) & (self.thirds == 0))

    def _carry(self):
        """Place every object: on the belt, or in the gripper that holds it; a gripper that opens lets go."""
        shift = self.velocity[:, None] * (self.frame - M)  # not accumulated: at frame M exactly 0, whatever v is
        rows = np.arange(len(self.holder))[:, None]
        held = self.holder >= 0
        carried = self.grippers[rows, self.holder] + self.offset
        self.objects = np.where(held[..., None], carried, self.at_decision + shift)
        released = held & (self.thirds[rows, self.holder] > 0)
        self.at_decision = np.where(released[..., None], self.objects - shift, self.at_decision)
        self.holder = np.where(released, -1, self.holder)

    def _grasp(self, closed):
        """Attach what the grippers that have just closed (N, 2) bool can take, and judge each scene's first closing."""
        distance = np.linalg.norm(self.grippers[:, :, None] - self.objects[:, None], axis=-1)  # (N, gripper, object)
        for arm in range(2):
            taken = closed[:, arm, None] & (distance[:, arm] < TOLERANCE) & (self.holder < 0)
            self.holder[taken] = arm
            self.offset[taken] = (self.objects - self.grippers[:, arm, None])[taken]
        rows = np.flatnonzero(closed.any(1) & (self.first_closing_frame < 0))
        named = self.named[rows]
        arm = np.where(closed[rows, named], named, 1 - named)  # both in the same frame: the named one is judged
        self.first_closing_frame[rows], self.first_closing_arm[rows] = self.frame, arm
        self.first_closing_distance[rows] = distance[rows, arm, 0]
        self.first_closing_success[rows] = (arm == named) & (distance[rows, arm, 0] < TOLERANCE)

    def render(self, scenes=None, views=VIEWS):
        """Pictures (N, len(views), size, size, 3) uint8 of the present frame, of all scenes or of those indexed."""
        rows = np.arange(len(self.settings)) if scenes is None else np.asarray(scenes)
        pictures = np.empty((len(rows), len(views), self.size, self.size, 3), dtype=np.uint8)
        for start in range(0, len(rows), 64):  # blocks that stay in the processor's cache
            for i, view in enumerate(views):
                pictures[start : start + 64, i] = _draw(self, rows[start : start + 64], VIEWS.index(view))
        return pictures


# --- Rendering ---


def _palette(settings, object_colours):
    """Colours of every scene as the camera sees them, float32 0 .. 255, and the strength of the sensor's noise.

    "sim": fixed colours under slightly varied light. "real" and "human": tinted surfaces, varied hues, light and
    contrast, and noise. All of it is affine in the colours, so it is applied to the palette and not to the pictures.
    Keys: surfaces (N, 4, 3) = table, ground, band, rail; objects (N, 2, 3); grippers (N, 2, 3); noise (N,).
    """
    sim = np.array([s.appearance == "sim" for s in settings])[:, None, None]
    human = np.array([s.appearance == "human" for s in settings])[:, None, None]
    chance = np.stack([np.random.RandomState(s.look).uniform(-1, 1, 24) for s in settings])
    light, contrast = chance[:, 0, None, None], chance[:, 1, None, None]
    tints, hues = chance[:, 2:14].reshape(-1, 4, 3), chance[:, 14:17, None].reshape(-1, 1, 3)

    def seen(colours):
        varied = (colours - 128) * (1 + 0.15 * contrast) + 128
        lit = np.where(sim, colours * (1 + 0.06 * light), varied * (1 + 0.2 * light))
        return np.clip(lit, 0, 255).astype(np.float32)

    surfaces = np.array([TABLE, GROUND, BAND, RAIL]) * (1 + 0.2 * tints * ~sim)
    objects = np.array([[COLOURS[c] for c in pair] for pair in object_colours]) + 22 * hues * ~sim
    grippers = np.where(human, np.array([SKIN, SKIN]) + 12 * hues, np.array(GRIPPERS))
    seen_by = {"surfaces": seen(surfaces), "objects": seen(objects), "grippers": seen(grippers)}
    return seen_by | {"noise": np.where(sim, 0, 5)[:, 0, 0]}


def _background(world, rows, centre, pixel):
    """(n, size, size, 3) uint8: table or belt. A column is drawn and repeated; the belt's pattern varies along x."""
    size = world.size
    y = centre[:, 1, None] + (size / 2 - 0.5 - np.arange(size)) * pixel
    table, ground, band, rail = np.moveaxis(world.palette["surfaces"][rows], 1, 0)[:, :, None]
    belt = np.clip((BELT - abs(y)) / pixel + 0.5, 0, 1)[..., None]  # share of the pixel that the belt covers
    edge = np.clip((0.03 - abs(abs(y) - BELT)) / pixel + 0.5, 0, 1)[..., None]
    dynamic = ground + (band - ground) * belt
    dynamic = dynamic + (rail - dynamic) * edge
    column = np.where(world.dynamic[rows, None, None], dynamic, table) + 0.5
    pictures = np.repeat(column.astype(np.uint8)[:, :, None], size, axis=2)

    moving = np.flatnonzero(world.dynamic[rows])
    start = world.phase[rows[moving]] + world.velocity[rows[moving], 0] * (world.frame - M)
    x = centre[moving, 0, None] + (np.arange(size) + 0.5 - size / 2) * pixel
    shade = 1 + SHADE * np.sin(2 * np.pi * (x - start[:, None]) / WAVE).astype(np.float32)
    covered = (abs(y[moving]) < BELT - 0.03).nonzero()                              # belt rows between the rails
    band_rows = column[moving][covered].astype(np.float32)                          # (r, 3)
    pictures[moving[covered[0]], covered[1]] = band_rows[:, None] * shade[covered[0], :, None]
    return pictures


def _outside(shape, x, y, half):
    """Signed distance from an outline, negative inside. x, y: world offsets; half: half sizes of box and ellipse."""
    x, y = abs(x), abs(y)
    if shape == "disc":
        return np.sqrt(x * x + y * y) - RADIUS
    if shape == "square":
        return np.maximum(x, y) - 0.86 * RADIUS
    if shape == "cross":
        return np.minimum(np.maximum(x - RADIUS, y - 0.42 * RADIUS), np.maximum(x - 0.42 * RADIUS, y - RADIUS))
    if shape == "box":
        return np.maximum(x - half[0], y - half[1])
    return (np.sqrt((x / half[0]) ** 2 + (y / half[1]) ** 2) - 1) * min(half)


def _paint(canvas, size, pixel, picture, centre, colour, shape, half=(RADIUS, RADIUS)):
    """Blend P antialiased figures of one shape into the pictures, each only within its own patch.

    canvas (pictures * size * size + 1, 3) uint8: all pixels in a row, and one more that takes what falls outside.
    picture (P,): which picture. centre (P, 2): world position relative to that picture's centre. colour (P, 3).
    """
    seen = (abs(centre) < size / 2 * pixel + np.asarray(half)).all(axis=1)  # False for an absent (nan) object
    if not seen.any():
        return
    picture, centre, colour = picture[seen], centre[seen].astype(np.float32), colour[seen]
    grids, offsets = [], []
    for axis, sign in ((0, 1), (1, -1)):  # columns run with x, rows against y
        place = size / 2 + sign * centre[:, axis] / np.float32(pixel) - 0.5  # in pixels, from the first one's centre
        margin = int(half[axis] / pixel) + 2
        grid = np.rint(place).astype(np.int32)[:, None] + np.arange(-margin, margin + 1, dtype=np.int32)
        grids.append(grid)
        offsets.append((grid - place[:, None]) * np.float32(pixel))
    outside = _outside(shape, offsets[0][:, None, :], offsets[1][:, :, None], half)
    cover = np.clip(0.5 - outside / np.float32(pixel), 0, 1)

    column, row = grids[0][:, None, :], grids[1][:, :, None]
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    where = np.where(inside, (picture[:, None, None] * size + row) * size + column, len(canvas) - 1)
    hit = np.flatnonzero(cover > 0)
    figure = hit // cover[0].size
    where, cover = where.ravel()[hit], cover.ravel()[hit, None]
    below = canvas[where].astype(np.float32)
    canvas[where] = below + (colour[figure] - below) * cover + 0.5


def _draw(world, rows, view):
    """(n, size, size, 3) uint8: one view of the scenes in `rows`."""
    n, size = len(rows), world.size
    camera = np.zeros((n, 2)) if view == 0 else world.grippers[rows, view - 1]
    pixel = 2 * (1.0 if view == 0 else WRIST) / size
    canvas = np.empty((n * size * size + 1, 3), dtype=np.uint8)
    canvas[:-1] = _background(world, rows, camera, pixel).reshape(-1, 3)

    picture = np.tile(np.arange(n)[:, None], (1, 2))  # two objects, and two grippers, a picture
    objects, shapes = world.objects[rows] - camera[:, None], world.shapes[rows]
    for kind, shape in enumerate(SHAPES):
        some = shapes == kind
        _paint(canvas, size, pixel, picture[some], objects[some], world.palette["objects"][rows][some], shape)

    # A gripper is a palm and two fingers that frame what it grips; their gap is the opening.
    grippers = world.grippers[rows] - camera[:, None]
    colour = world.palette["grippers"][rows]
    gap = RADIUS + 0.04 * world.thirds[rows] / CLOSING
    human = world.human[rows]
    robot = (~human, "box", (0.05, 0.14), (RADIUS + 0.05, 0.06))  # half sizes of a finger and of the palm
    hand = (human, "ellipse", (0.08, 0.14), (RADIUS + 0.06, 0.12))
    for some, shape, finger, palm in (robot, hand):
        at, tint, where = grippers[some], colour[some].reshape(-1, 3), picture[some].ravel()
        for side in (-1, 1):
            place = at + np.stack([side * gap[some], np.full_like(gap[some], -0.08)], axis=-1)
            _paint(canvas, size, pixel, where, place.reshape(-1, 2), tint, shape, finger)
        _paint(canvas, size, pixel, where, (at - (0, 0.28)).reshape(-1, 2), tint, shape, palm)
    return _add_noise(world, rows, view, canvas[:-1].reshape(n, size, size, 3))


# Enough for pictures of up to 590 x 590 pixels.
_NOISE = np.random.RandomState(0).normal(0, 32, (1 << 20,)).clip(-127, 127).astype(np.int8)


def _add_noise(world, rows, view, pictures):
    """Sensor noise from a fixed bank; where it is read follows from the scene's look, the frame and the view."""
    noise = world.palette["noise"][rows]
    noisy = np.flatnonzero(noise)
    if len(noisy):
        count = pictures[0].size
        start = (world.looks[rows[noisy]] * 7919 + world.frame * 104729 + view * 1299709) % (len(_NOISE) - count)
        grain = np.stack([_NOISE[s : s + count] for s in start]).reshape(-1, *pictures.shape[1:])
        grain = grain.astype(np.int16) * noise[noisy].astype(np.int16)[:, None, None, None] // 32
        pictures[noisy] = np.clip(pictures[noisy] + grain, 0, 255)
    return pictures


# --- Policies and rollouts ---


def scripted_action(world):
    """The expert (N, 6) float32, from privileged state: chase the target with the named arm, close on it, then stay.

    It moves with the belt and closes half of the remaining distance a frame, at most CHASE. Within 0.03 of the target
    it begins to close, still following; once closed it stays where it is. The other arm holds.
    """
    rows, arm = np.arange(len(world.named)), world.named
    here, opening = world.grippers[rows, arm], world.thirds[rows, arm]
    gap = world.objects[:, 0] - here
    distance = np.linalg.norm(gap, axis=1, keepdims=True)
    chase = here + world.velocity + gap / np.maximum(distance, 1e-9) * np.minimum(0.5 * distance, CHASE)
    closing = (distance[:, 0] < 0.03) | (opening < CLOSING)
    action = hold_action(world).reshape(-1, 2, 3)
    action[rows, arm, :2] = np.where((opening == 0)[:, None], here, chase)
    action[rows, arm, 2] = ~closing
    return action.reshape(-1, 6)


def hold_action(world):
    """The policy that does nothing (N, 6) float32: each gripper is told to stay as it is."""
    return world.state()


@dataclass
class Rollout:
    """What became of N scenes; distances in world units."""

    success: np.ndarray  # (N,) bool: the first closing took the target, with the named arm
    closing_error: np.ndarray  # (N,) float: distance to the target at the first closing, nan if there was none
    closed: np.ndarray  # (N,) bool: some gripper closed
    settings: list
    frames: np.ndarray | None = None  # (record, M + 1 + max_steps, 3, size, size, 3) uint8; frames[:, M] = decision


def rollout(policy, settings, execute=CHUNK, max_steps=CHUNK, size=64, record=0):
    """Run a policy in all settings at once: observe, act `execute` frames, observe again, `max_steps` frames in all.

    By default one chunk decides: a second look would show the velocity to a policy that did not foresee it.

    policy(past, now, state, instructions) -> (N, k >= execute, 6): pictures (N, 3, size, size, 3) uint8 of frames
    t - M and t, state (N, 6) and the list of instructions. It is first called at frame M, and no more once every
    scene is decided. `scripted_action` and `hold_action` are also taken: they see the world itself, at every frame.
    """
    world = World(settings, size)
    privileged = policy in (scripted_action, hold_action)
    asked = range(M, M + max_steps, execute)
    needed = set(asked) | {t - M for t in asked}
    pictures, film, chunk = {}, [], None
    while True:
        t = world.frame
        if t in needed and not privileged:
            pictures[t] = world.render()
        if record:
            filmed = range(min(record, len(world.settings)))
            film.append(pictures[t][:record] if t in pictures else world.render(filmed))
        if t == M + max_steps or (not record and (world.first_closing_frame >= 0).all()):
            break
        if t in asked and not privileged:
            chunk = np.asarray(policy(pictures.pop(t - M), pictures[t], world.state(), world.instructions))
            if chunk[:, :execute].shape != (len(world.settings), execute, 6):
                wanted = f"({len(world.settings)}, {execute} or more, 6)"
                raise ValueError(f"rollout: the policy returned actions of shape {chunk.shape}; return {wanted}")
        if t < M or privileged:
            world.step(hold_action(world) if t < M else policy(world))
        else:
            world.step(chunk[:, (t - M) % execute])
    return Rollout(
        world.first_closing_success, world.first_closing_distance, world.first_closing_frame >= 0, world.settings,
        np.stack(film, axis=1) if record else None,
    )  # fmt: skip


def _rate(success):
    """Success rate of a bool array with its Wilson 95 % interval."""
    n, p, z = len(success), float(np.mean(success)), 1.96
    centre, spread = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    interval = [float(np.clip((centre + s * spread) / (1 + z * z / n), 0, 1)) for s in (-1, 1)]
    return {"success": p, "episodes": n, "interval": interval}


def summarise(result):
    """{"success": 0 .. 1, "episodes": n, "interval": [lo, hi], "tasks": {shape: the same three}} of a Rollout."""
    shapes = np.array([s.shape for s in result.settings])
    tasks = {shape: _rate(result.success[shapes == shape]) for shape in SHAPES if (shapes == shape).any()}
    return _rate(result.success) | {"tasks": tasks}


# --- Training data ----------------------------------------------------------------------------------------------------

# The paper's Table 3: name, kind, sampling weight, millions of frames (the episodes are divided in that proportion).
MIXTURE = (
    ("interndata_a1", "sim", 0.64, 396),
    ("robotwin", "sim", 0.08, 17),
    ("agibot_world", "real", 0.18, 206),
    ("robomind", "real", 0.02, 5),
    ("egodex", "human", 0.08, 68),
)
VALIDATION = 256  # held-out episodes, looking like "sim"
STORED = (0, M, 2 * M)  # frames of an episode whose pictures are kept
LENGTH = 2 * M + 1
COLUMNS = ("state", "action", "target", "distractor")
BLOCK = 128  # episodes recorded together; each block has its own random stream


def _record_block(stream, first, n, appearance, size, views):
    """Record n expert episodes: every third one is static, the others dynamic. A quarter of the reaches begins early.

    Returns arrays (n * LENGTH, ...) in the order of COLUMNS, pictures (n * len(STORED), views, size, size, 3) uint8
    and the settings.
    """
    rng = np.random.RandomState([DATASET, *stream, first])
    settings = _draw_settings(rng, [SUITES[i % 3 > 0] for i in range(first, first + n)], appearance, DISTRACTOR)
    start = np.where(rng.uniform(size=n) < 0.25, M - rng.randint(1, 9, size=n), M)  # 1 .. 8 frames early
    world, rows, pictures = World(settings, size), [], []
    for t in range(LENGTH):
        action = np.where((t >= start)[:, None], scripted_action(world), hold_action(world))
        rows.append((world.state(), action, world.target, world.distractor))
        if t in STORED:
            pictures.append(world.render(views=views))
        world.step(action)
    columns = [np.stack(c, axis=1).reshape(n * LENGTH, -1) for c in zip(*rows)]
    return columns, np.stack(pictures, axis=1).reshape(-1, len(views), size, size, 3), settings


def _write_one(folder, stream, episodes, kind, size):
    """Write one dataset folder, `episode.npz` and `<view>.npy`; yields how many episodes each block has added."""
    folder.mkdir(parents=True, exist_ok=True)
    views = VIEWS[:1] if kind == "human" else VIEWS  # people wear one camera, and none on the wrists
    shape = (episodes * len(STORED), size, size, 3)
    files = [np.lib.format.open_memmap(folder / f"{v}.npy", "w+", np.uint8, shape) for v in views]
    blocks, settings = [], []
    for first in range(0, episodes, BLOCK):
        n = min(BLOCK, episodes - first)
        columns, pictures, drawn = _record_block(stream, first, n, kind, size, views)
        blocks.append(columns)
        settings += drawn
        for i, file in enumerate(files):
            file[first * len(STORED) : (first + n) * len(STORED)] = pictures[:, i]
        yield n
    for file in files:
        file.flush()
    arrays = dict(zip(COLUMNS, map(np.concatenate, zip(*blocks))))
    if kind == "human":  # no labels and no proprioception, as in the paper
        del arrays["action"]
        arrays["state"] = np.zeros_like(arrays["state"])
    begins = np.arange(episodes, dtype=np.int64) * LENGTH
    arrays |= {"ends": begins + LENGTH, "stored": (begins[:, None] + np.array(STORED)).ravel(), "fps": np.array(FPS)}
    arrays["action_names"] = np.array(STATE_NAMES)
    arrays |= {"task": np.array([s.instruction for s in settings]), "suite": np.array([s.suite for s in settings])}
    np.savez(folder / "episode.npz", **arrays, speed=np.array([s.v for s in settings], dtype=np.float32))


def version():
    """A hash of this file: a dataset that another version wrote shows another world than `rollout` does."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def write_dataset(root, episodes=9000, seed=0, size=64, progress=None):
    """Write the five training datasets of Table 3 and a validation dataset below `root`; the same for a seed.

    `<root>/<name>/episode.npz` holds, for E episodes of 31 frames (30 a second): state and action (31 E, 6) float32 in
    STATE_NAMES' order and raw units, action[t] being what is commanded at frame t; target and distractor (31 E, 2);
    ends (E,) int64, one past the last row of each episode; stored (3 E,) int64, the rows that have pictures; task and
    suite (E,) str; speed (E,), the belt's signed velocity per frame; fps. `<view>.npy`: (3 E, size, size, 3) uint8.
    egodex, the human video, has no action, zeros for state, and the head view only. `world` holds version().
    `mixture.json` is written last: where it exists, the data are complete. progress(done, total) counts episodes.
    """
    root = Path(root)
    (root / "mixture.json").unlink(missing_ok=True)
    frames = sum(row[3] for row in MIXTURE)
    counts = [max(round(episodes * row[3] / frames), min(40, episodes // 10), 1) for row in MIXTURE]
    counts[0] = max(episodes - sum(counts[1:]), 1)  # the largest takes up what rounding and the floor leave
    parts = [(name, kind, count) for (name, kind, _, _), count in zip(MIXTURE, counts)]
    done, total = 0, sum(counts) + VALIDATION
    for index, (name, kind, count) in enumerate([*parts, ("validation", "sim", VALIDATION)]):
        for n in _write_one(root / name, (seed, index), count, kind, size):
            done += n
            if progress:
                progress(done, total)
    datasets = [{"path": name, "weight": weight, "kind": kind} for name, kind, weight, _ in MIXTURE]
    text = json.dumps({"robot": "conveyor", "datasets": datasets, "validation": "validation"}, indent=2)
    (root / "world").write_text(version() + "\n")
    (root / "mixture.json.partial").write_text(text + "\n")
    os.replace(root / "mixture.json.partial", root / "mixture.json")
