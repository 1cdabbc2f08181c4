"""python -m bench handover: the step from one chunk to the next, and success, with latency injected.

A chunk is planned from the frame of now and comes some frames later. Until then the last one is followed, and the world
moves on. Without --data this is closed loop in the embedded world. With --data a dataset's held-out episode passes by
in open loop, and beside the step stands the error of what is commanded."""

from functools import cache

import numpy as np
import torch

from bench.saving import begin, save
from data import open_corpus
from support.files import must
from support.flags import COUNT, SEED, Parser, value
from support.inference.handover import Rest
from support.inference.open_loop import observed
from support.inference.policy import Policy
from worlds import conveyor
from worlds.closed_loop import rate

LATENCIES = (0, 2, 4, 6)   # frames
LATE = 8                   # frames after the world's chunk, for a policy that is late


def deviations(stats, apart):
    """Raw differences (..., d_a) -> their rms over the dimensions that move, in training standard deviations."""
    return np.sqrt(np.mean(np.square(apart / np.array(stats.action_std))[..., stats.moving], -1))


class Belt:
    """Scenes of the embedded world side by side, from frame M on. Steps count until a gripper has closed."""

    frames = conveyor.CHUNK + LATE

    def __init__(self, settings):
        self.scenes = conveyor.Scenes(settings)
        self.film = [self.scenes.render()]
        while self.scenes.frame < conveyor.M:
            self.act(self.scenes.state())

    def observe(self, t):
        """Frame M + t -> pictures, states and tasks, as Policy.plan takes them."""
        pairs = zip(self.film[t], self.film[t + conveyor.M])
        seen = [{view: [past[v], now[v]] for v, view in enumerate(conveyor.VIEWS)} for past, now in pairs]
        return seen, self.scenes.state(), self.scenes.instructions

    def act(self, actions):
        self.scenes.step(actions)
        self.film.append(self.scenes.render())

    def counted(self):
        return self.scenes.first_closing_arm < 0


class Recording:
    """The held-out episode of a dataset, followed `every` times side by side, each time from a frame later."""

    def __init__(self, args, policy):
        own = policy.config.data
        corpus = open_corpus(args.data, own.m, False, args.robot, own.hold_out, own.only_episodes, own.timestamps)
        policy.stats.check_inputs(corpus.held_out)
        source, e = corpus.held_out, int(corpus.held_out_windows[0, 0])
        self.observed, self.action = cache(lambda t: observed(source, e, t, own.m)), source.numbers(e)[1]
        self.frames, self.starts = len(self.action) - args.every, np.arange(args.every)

    def observe(self, t):
        return zip(*(self.observed(row) for row in (self.starts + t).tolist()))

    def act(self, actions):
        """It was recorded: nothing that is commanded changes it."""

    def counted(self):
        return self.starts >= 0


def drive(policy, handover, latency, every, scene):
    """Follow chunks in N scenes at once, a Belt or a Recording -> (steps at hand-overs, all in one row, the actions
    (frames, N, d_a)). A step: how far the new chunk's action is from the last chunk's for the same frame."""
    policy.calls = 0   # the same noise every time
    chunk, begun, coming = policy.plan(*scene.observe(0), imagine=False)[0], 0, None
    steps, actions = [np.zeros(0)], []
    for t in range(scene.frames):
        if coming is None and t - begun >= every:
            rest = None if handover == "cold" else Rest(chunk[:, t - begun:], latency, handover)
            coming, asked = policy.plan(*scene.observe(t), imagine=False, rest=rest)[0], t
        if coming is not None and t - asked >= latency:
            apart = coming[:, t - asked] - chunk[:, t - begun]
            steps.append(deviations(policy.stats, apart)[scene.counted()])
            chunk, begun, coming = coming, asked, None
        actions.append(chunk[:, t - begun])
        scene.act(actions[-1])
    return np.concatenate(steps), np.stack(actions)


def measure(policy, handover, latency, args, recording):
    """Median and p90 of the step, and success by suite or the error on a recording."""
    if recording:
        steps, actions = drive(policy, handover, latency, args.every, recording)
        true = np.stack([recording.action[recording.starts + t] for t in range(len(actions))])
        beside = {"error_p50": float(np.median(deviations(policy.stats, actions - true)))}
    else:
        belts = {suite: Belt(conveyor.settings(suite, args.episodes, args.seed)) for suite in conveyor.SUITES}
        steps = np.concatenate([drive(policy, handover, latency, args.every, belt)[0] for belt in belts.values()])
        beside = {suite: rate(belt.scenes.first_closing_success) for suite, belt in belts.items()}
    p50, p90 = np.percentile(steps, (50, 90)).tolist()
    return {"step_p50": p50, "step_p90": p90, "steps": len(steps)} | beside


def run(argv):
    parser = Parser(prog="python -m bench handover", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="a run, trained as ever")
    parser.add_argument("--trained", help="a run with --rtc_delay, for the hand-over of that name")
    parser.add_argument("--data", help="a dataset, of which the held-out episode passes by")
    parser.add_argument("--robot", help="with --data: as in training")
    parser.add_argument("--every", type=value(int, COUNT), default=4, help="frames from one plan to the next")
    parser.add_argument("--episodes", type=value(int, COUNT), default=50, help="without --data: a suite")
    parser.add_argument("--seed", type=value(int, SEED), default=4242, help="without --data: of the scenes")
    args, path, report = begin(parser, argv)
    eager, plain = (Policy.load(args.checkpoint, engine=engine) for engine in ("eager", "plain"))
    chunk = eager.config.model.chunk
    must(args.every + max(LATENCIES) < chunk, f"--every {args.every}: with a latency of {max(LATENCIES)} frames a plan "
         f"comes after the chunk's {chunk} actions")
    arms = {"cold": eager, "identity": eager, "vjp": plain}   # a name begins with its hand-over
    if args.trained:   # cold tells its training from the hand-over
        trained = Policy.load(args.trained, engine="eager")
        arms |= {"cold, --rtc_delay": trained, "trained": trained}
    recording = Recording(args, eager) if args.data else None
    report |= {"conditions": {"every": args.every, "threads": torch.get_num_threads(), "chunk": chunk,
                              "unit": "training standard deviations"}, "rows": []}
    for latency in LATENCIES:
        for name, policy in arms.items():
            found = measure(policy, name.split(",")[0], latency, args, recording)
            cell = {"latency": latency, "handover": name} | found
            print(*(f"{key} {x['success'] if isinstance(x, dict) else x}" for key, x in cell.items()), flush=True)
            report["rows"].append(cell)
    save(path, report)
