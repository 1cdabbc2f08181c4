"""gym-aloha: two ViperX arms in MuJoCo, the field's public bimanual benchmark, at 25 Hz with three cameras.

Two tasks, which the instruction names: a cube is handed over, a peg is put into a socket. Physics, reward and seeds are
the package's. A third suite is ours: the cube moves. Not here: the model. Importing this imports no simulator."""

from functools import cache, partial

import numpy as np

from config import VIEWS
from support.files import must
from worlds.aloha.record import prepare
from worlds.aloha.sim import HOLD, LIMIT, REGISTERED, SUCCESS, TASKS, Sim
from worlds.world import Rollout

__all__ = ["VIEWS", "prepare"]   # handed on
NAME, PRESETS, M = "aloha_sim", ("aloha",), 15
CHUNK = 8                   # actions of a plan that are executed before the next look
SUITES = tuple(TASKS)
REPORTED = 50               # episodes a suite that a training run ends with: two seconds each
HALF_WINDOW = 4 / 64        # of the square around an object: the cube is 3 pixels wide
# By the highest reward of an episode; one that reaches 4 succeeds.
OUTCOMES = ("success", *(f"reward {reward} at best" for reward in range(SUCCESS - 1, -1, -1)))
PREDEFINED, SAMPLED = 100_000, 1_000_000   # first seeds; training and held-out data are of smaller ones

foreseen = None             # what is imagined is not measured here
simulator = cache(Sim)      # one a task: it takes a second to make


def settings(suite, episodes=None, seed=0):
    """(task, seed of the package's reset): the first 100 from PREDEFINED on, or so many drawn ones."""
    if episodes is None:
        return [(suite, PREDEFINED + i) for i in range(100)]
    drawn = np.random.RandomState([SUITES.index(suite), seed]).randint(SAMPLED, 2**31, episodes)
    return [(suite, int(one)) for one in drawn]


def controls(policy, settings):
    """The policy told the other task, the policy whose past is the present or reversed, and one that holds still."""
    cube, peg = dict.fromkeys(TASKS.values())
    other = {cube: peg, peg: cube}
    return {"other words": lambda past, now, states, texts: policy(past, now, states, [other[text] for text in texts]),
            "frozen past": lambda past, now, *rest: policy(now, now, *rest),
            "reversed past": Reversed(policy),
            "hold still": lambda past, now, states, texts: np.repeat(states[:, None], CHUNK, axis=1)}


class Reversed(partial):
    """Reversed(policy): the policy, which `rollout` shows a past in which the belt runs the other way."""


def reversed_pictures(sim, then):
    """(V, SIZE, SIZE, 3) uint8 of the frame in which positions were `then`, but of another cube's: until a finger
    touches it, it comes to where it is now from the other side. All else is as it was."""
    now, sim.data = sim.data, sim.mujoco.MjData(sim.model)
    sim.data.qpos[:] = then
    sim.data.qpos[16:18] += 2 * (now.qpos[16:18] - then[16:18]) * (sim.best == 0)
    sim.mujoco.mj_forward(sim.model, sim.data)
    seen, sim.data = sim.pictures(), now
    return seen


def rollout(policy, settings, record=0):
    """One episode after the other: look, act CHUNK actions, look again, until success or the limit of 400 steps.

    What `Policy.reset` and `step` do with execute_steps = CHUNK, but pictures that no plan reads are not rendered."""
    ended, states, films, filmed = [], [], [], range(min(record, len(settings)))
    for n, (task, seed) in enumerate(settings):
        sim, seen, places, t, chunk = simulator(task), {}, {}, 0, None
        states.append(state := sim.reset(seed))
        while not sim.done:
            if n in filmed or t % CHUNK == 0 or (t + M) % CHUNK == 0:
                seen[t], places[t] = sim.pictures(), sim.data.qpos.copy()
            if t % CHUNK == 0:
                then = max(t - M, 0)
                past = reversed_pictures(sim, places[then]) if isinstance(policy, Reversed) else seen[then]
                chunk = np.asarray(policy(past[None], seen[t][None], state[None], [TASKS[task]]))[0]
                must(chunk[:CHUNK].shape == (CHUNK, 14), f"rollout: the policy returned actions of shape "
                     f"{chunk.shape}; return ({CHUNK} or more, 14)")
            sim.step(chunk[t % CHUNK])
            state, t = sim.state(), t + 1
        ended.append((sim.best, sim.when or np.inf))
        if n in filmed:
            films.append([seen[i] for i in range(t)] + [sim.pictures()] * (LIMIT // HOLD + 1 - t))
    best, when = np.array(ended).T
    return Rollout(best == SUCCESS, [OUTCOMES[SUCCESS - int(one)] for one in best], [task for task, _ in settings],
                   [TASKS[task] for task, _ in settings], np.array(states), np.array(films) if films else None,
                   {f"within {REGISTERED} steps": when <= REGISTERED})


def marks(source, e, t):
    """World.marks: the task's objects, where the head camera has them."""
    labels = source.labels(e)
    found = [(name, *labels[key][t]) for name, key in (("first", "target"), ("second", "distractor"))
             if key in labels and t < len(labels[key])]
    return [(name, x, y) for name, x, y in found if 0 <= x <= 1 and 0 <= y <= 1]
