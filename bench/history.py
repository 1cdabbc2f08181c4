"""python -m bench history: what the right o_{t-m} is worth to a served policy, in the embedded world.

One chunk, asked for at frame M, decides a scene; until then the arms hold still. Each row is a session with a server
process of its own. Rows have the same scenes and noise, and differ in what stands for o_{t-m} alone. "N frames old": a
client takes the pictures of its last request for it, and asks every N frames."""

import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from bench.saving import begin, save
from config import VIEWS
from support import checkpoint
from support.files import must
from support.flags import COUNT, SEED, Parser, value
from support.inference.policy import Policy
from support.inference.protocol import packages
from worlds import conveyor
from worlds.closed_loop import rate
from worlds.world import actor

# The server's --history, and how old the `past` is that the client sends, in frames; None: it sends none.
ROWS = {rule: (rule, None) for rule in ("exact", "present")} | {f"{n} frames old": ("present", n) for n in (8, 16, 32)}


@contextmanager
def serving(path, rule):
    """A session with a process of infer.py --serve, which has one thread and is ended."""
    command = [sys.executable, *"infer.py --serve --port 0 --threads 1 --seed 0 --history".split(), rule]
    with subprocess.Popen([*command, "--checkpoint", path], stdout=subprocess.PIPE, text=True) as process:
        try:
            line = next((line for line in process.stdout if line.startswith("serving on")), None)
            must(line, f"the server of {path} has not begun")   # it has said why
            from support.inference.client import Client   # of packages that --serve alone needs
            yield Client(port=int(line.split()[-1]))
        finally:
            process.terminate()
            process.communicate()


def earlier(settings, age):
    """(N, V, H, W, 3): what the cameras saw `age` frames before the decision, perhaps before frame 0."""
    scenes = conveyor.Scenes(settings)
    scenes.frame = conveyor.M - age - 1
    scenes.step(scenes.state())   # the arms hold still
    return scenes.render()


def asked(client, age, said, past, now, state, prompt):
    """One scene's chunk from the server. said: gets the answer's (history, its age in frames)."""
    past, now = ({"images": dict(zip(VIEWS, pictures))} for pictures in (past, now))
    now |= {"past": past, "reset": True} if age is not None else {"frame": conveyor.M}
    if age is None:   # frame 0 begins an episode, and is kept where the rule is exact
        client.ask(past | {"frame": 0, "reset": True, "plan": False})
    answer = client.ask(now | {"state": state, "prompt": prompt})
    said.add((answer["history"], answer["history_age"]))
    return answer["actions"]


def measure(path, episodes, seed):
    """{suite: {row: a rate, with scenes lost and won against "exact", and chunks that are equal to the last bit}}."""
    found, exact, alone = {suite: {} for suite in conveyor.SUITES}, {}, actor(Policy.load(path, seed=0), VIEWS)
    scenes = {suite: conveyor.settings(suite, episodes, seed) for suite in found}

    def play(name, suite, plan, before=None):
        """A row. plan(o_{t-m}, o_t, state, prompt) of a scene -> its chunk; before: pictures in place of o_{t-m}."""
        chunks = []

        def act(past, *now):
            chunks.extend(plan(*scene) for scene in zip(past if before is None else before, *now))
            return np.stack(chunks)
        success = conveyor.rollout(act, scenes[suite]).success
        taken, theirs = exact.setdefault(suite, (success, chunks))   # the first row
        found[suite][name] = row = rate(success) | {
            "lost": int((taken & ~success).sum()), "won": int((success & ~taken).sum()),
            "equal_chunks": sum(map(np.array_equal, chunks, theirs))}
        print(f"{suite:<9}{name:<16}{row['success']:6.1%}", "[{:.1%}, {:.1%}]".format(*row["interval"]), episodes,
              f"scenes; against exact: {row['lost']} lost, {row['won']} won, {row['equal_chunks']} equal", flush=True)

    for name, (rule, age) in ROWS.items():
        with serving(path, rule) as client:
            for suite in found:
                said = set()
                play(name, suite, partial(asked, client, age, said), age and earlier(scenes[suite], age))
                found[suite][name]["history"] = sorted(said)
    for suite in found:
        play("in this process", suite, lambda *scene: alone(*(np.array([each]) for each in scene))[0])
    return found


def run(argv):
    parser = Parser(prog="python -m bench history", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="a run of train.py --config conveyor, or one checkpoint")
    parser.add_argument("--episodes", type=value(int, COUNT), default=200, help="scenes a suite (default: 200)")
    parser.add_argument("--seed", type=value(int, SEED), default=84000, help="of the scenes (default: 84000)")
    args, path, report = begin(parser, argv)
    packages()
    torch.set_num_threads(1)
    state = checkpoint.load(run := checkpoint.resolve(args.checkpoint))[1]
    report |= {"conditions": "a server process a row, one thread", "m": conveyor.M, "chunk": conveyor.CHUNK,
               "trained": {"steps": state["step"], "seed": state["config"]["train"]["seed"]}, "scene_seed": args.seed,
               "suites": measure(run, args.episodes, args.seed), "finished": True}
    save(path, report)
