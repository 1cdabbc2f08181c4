"""What scripted policies reach in the embedded world: the ceilings beside which the arms of `bench claims` stand. Each
is the expert with a belief about the belt or the target in place of the truth, executed blindly in the true scene."""

from dataclasses import replace

import numpy as np

from worlds import conveyor
from worlds.conveyor.setting import CHUNK, M, SPEED

GUESSES = np.linspace(-SPEED[1], SPEED[1], 33)   # velocities among which the best single one is found
APART = 500_000                                  # added to a seed: the scenes on which it is found


def success(settings, believed):
    """In per cent, of the expert's chunk for the Settings in which it believes, executed blindly in `settings`."""
    scenes, imagined = conveyor.Scenes(settings), conveyor.Scenes(believed)
    for t in range(M + CHUNK):
        action = imagined.state() if t < M else conveyor.scripted_action(imagined)
        imagined.step(action)
        scenes.step(action)
    return 100 * float(scenes.first_closing_success.mean())


def moving_at(settings, v):
    """The same scenes with a belt of velocity v where it moves, on whose frame M all lie as they do."""
    return [replace(s, v=float(one) if s.v else 0.0) for s, one in zip(settings, np.broadcast_to(v, len(settings)))]


def ceilings(eval_seed, seeds, episodes):
    """{policy: {suite: success in per cent}} over the scenes of all training seeds, 1 to `seeds`. The "best single
    velocity" is the one that succeeds most often on other scenes."""
    found, tried = {}, conveyor.settings("dynamic", 4 * episodes, eval_seed + APART)
    guess = max(GUESSES, key=lambda v: success(tried, moving_at(tried, v)))
    for suite in conveyor.SUITES:
        settings = [s for n in range(1, seeds + 1) for s in conveyor.settings(suite, episodes, eval_seed + n)]
        random, n = np.random.RandomState(eval_seed), len(settings)
        drawn = random.uniform(*SPEED, n) * random.choice((-1, 1), n)
        other = [replace(s, x=s.distractor[2], y=s.distractor[3]) if s.distractor and random.rand() < 0.5 else s
                 for s in settings]
        beliefs = {"perfect": settings, "present place": moving_at(settings, 0),
                   "velocity drawn from the prior": moving_at(settings, drawn),
                   "best single velocity": moving_at(settings, guess), "colour ignored": other}
        for name, believed in beliefs.items():
            found.setdefault(name, {})[suite] = round(success(settings, believed), 1)
    return found | {"best single velocity": found["best single velocity"] | {"velocity": round(float(guess), 4)}}
