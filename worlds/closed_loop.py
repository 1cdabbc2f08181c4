"""Success of a policy in closed loop, in any world: rates with their intervals, how episodes ended, rivals, a film."""

from pathlib import Path

import numpy as np
import torch

from support.files import must, save_json
from support.inference.report import film, print_euler_error
from worlds.world import actor

FILMED = 3   # episodes a suite in the GIF


def rate(success):
    """{"success": 0 .. 1, "episodes": n, "interval": [low, high]} of a bool array; the interval is Wilson's, 95 %."""
    n, p, z = len(success), float(np.mean(success)), 1.96
    centre, spread = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    interval = [float(np.clip((centre + s * spread) / (1 + z * z / n), 0, 1)) for s in (-1, 1)]
    return {"success": p, "episodes": n, "interval": interval}


def summarise(rollout, world):
    """A Rollout's rate, with "tasks": {task: rate}, "outcomes": {outcome: episodes}, what is `also` counted, median and
    quartiles of "lead" and "imagined" where anything moves, and "each": of every episode its outcome and those two."""
    tasks, outcomes = np.array(rollout.tasks), list(rollout.outcomes)
    found = rate(rollout.success) | {
        "tasks": {task: rate(rollout.success[tasks == task]) for task in world.TASKS if (tasks == task).any()},
        "outcomes": {outcome: outcomes.count(outcome) for outcome in world.OUTCOMES},
        **{name: rate(held) for name, held in rollout.also.items()}}
    each = {"outcome": outcomes}
    for name, values in (("lead", rollout.lead), ("imagined", rollout.imagined)):
        if values is not None and np.isfinite(values).any():
            low, median, high = np.nanquantile(values, (0.25, 0.5, 0.75)).tolist()
            found[name] = {"median": median, "quartiles": [low, high], "episodes": int(np.isfinite(values).sum())}
            each[name] = [round(x, 4) if np.isfinite(x) else None for x in values.tolist()]
    return found | {"each": each}


def closed_loop(policy, world, episodes, seed, suites=None, controls=None, gif=None):
    """Suites of a World, all or those given -> ({suite: summary}, {suite: Rollout}); a line is printed of each.

    policy: a Policy or a world.Actor. `episodes` None: the world's predefined settings; else that many seeded ones.
    controls: a word in the names of those to evaluate too, "" for all: "controls": {name: {suite: summary}}. They get
    the policy's noise. Nothing differs but what they are told and shown. gif: a film of the first episodes."""
    rows, rollouts, imagined = {}, {}, []
    act = actor(policy, world.VIEWS, imagined if world.foreseen else None)
    for suite in suites or world.SUITES:
        settings, noise = world.settings(suite, episodes, seed), getattr(policy, "calls", None)
        rivals = {} if controls is None else world.controls(act, settings)
        for name, rival in [("policy", act), *((name, rivals[name]) for name in rivals if controls in name)]:
            if noise is not None:
                policy.calls = noise
            imagined.clear()
            rollout = world.rollout(rival, settings, record=FILMED if gif and rival is act else 0)
            if imagined:
                rollout.imagined = world.foreseen(settings, np.concatenate(imagined))
            row = rows.setdefault(name, {})[suite] = summarise(rollout, world)
            print_row(name, suite, row, rollout.also)
            if rival is act:
                rollouts[suite] = rollout
    if gif:
        film(policy, rollouts, world.M, world.VIEWS, gif)
    return rows.pop("policy") | ({"controls": rows} if rows else {}), rollouts


def print_row(name, suite, row, also):
    """Success in all, by task and of what is `also` counted, and the medians of lead and imagined."""
    parts = row["tasks"] | {part: row[part] for part in also}
    shown = [f"{part} {found['success']:.0%}" for part, found in parts.items() if part != suite]
    shown += [f"{part} {row[part]['median']:+.2f}" for part in ("lead", "imagined") if part in row]
    print(f"{name:<16}{suite:<9}{row['success']:6.1%}  [{row['interval'][0]:.1%}, {row['interval'][1]:.1%}]  "
          f"{row['episodes']} episodes   {'  '.join(shown)}", flush=True)


def evaluate(policy, world, episodes, seed, controls, path, out, suites=None):
    """infer.py --closed-loop: print success by suite, with `controls` of the rivals too; a film into the folder `out`,
    the report as JSON to `path` if that is given. suites: which; None: all."""
    known = suites is None or len({*suites} & {*world.SUITES}) == len(suites)
    must(known, f"--suites {','.join(suites or ())}: those of {world.NAME} are {', '.join(world.SUITES)}")
    gif = Path(out) / "rollouts.gif"
    report, rollouts = closed_loop(policy, world, episodes, seed, suites, "" if controls else None, gif)
    if path:
        save_json(path, report | {"seed": seed, "torch": torch.__version__})
    first = next(iter(rollouts.values()))
    seen = {view: [first.frames[0, 0, v]] * 2 for v, view in enumerate(world.VIEWS)}
    print_euler_error(policy, seen, first.states[0], first.instructions[0])
    print(f"wrote {gif}" + (f" and {path}" if path else ""))
