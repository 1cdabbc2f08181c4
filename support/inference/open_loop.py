"""Open loop: what a policy would have commanded on a recorded episode, beside what was commanded, no robot moving.

At t = 0, k, 2k, ... the policy plans a whole chunk, and the chunks are laid end to end. Three baselines do the same
without looking: a policy that does not beat them has learned nothing that the state did not tell.
"""

import json
import sys

import numpy as np
import torch

from data import chunk_at, example, open_corpus
from support import plots
from support.files import written
from support.inference.report import action_names, foresight_picture, print_euler_error

RIDGE = 1e-2   # times the number of training frames, on standardised states


class Baselines:
    """Hold the state, the mean action, and a ridge regression from the state to the next k actions, fitted on a
    corpus's training episodes of stats' robot. skip: one that cannot be read is told instead of being an error."""

    def __init__(self, corpus, stats, k, skip=False):
        self.stats, self.k, XX, XY, actions = stats, k, 0, 0, []
        for state, action in self._episodes(corpus, skip):   # sums, because a corpus's chunks fill the memory
            X, Y = self._features(state), np.stack([chunk_at(action, t, k)[0] for t in range(len(action))])
            XX, XY = XX + X.T @ X, XY + X.T @ Y.reshape(len(X), -1).astype(np.float64)
            actions.append(action)
        actions = np.concatenate(actions)
        penalty = RIDGE * len(actions) * np.eye(len(XX))
        penalty[-1, -1] = 0   # the intercept is free
        self.weights = np.linalg.solve(XX + penalty, XY)
        self.mean, std = actions.mean(0, dtype=np.float64), actions.std(0, dtype=np.float64)
        self.unit = np.where(std < 1e-3, 1.0, std)   # of the training actions: what errors are measured in

    def _episodes(self, corpus, skip):
        for i, source in corpus.sources.items():
            fits = source.has_action and source.robot == self.stats.robot
            for e in np.unique(corpus.windows[i][:, 0]) if fits else ():
                try:
                    yield source.numbers(int(e))
                except ValueError as error:
                    if not skip:
                        raise
                    print(f"bad data, left out of the baselines: {error}", file=sys.stderr)

    def _features(self, state):
        x = self.stats.normalise("state", state).astype(np.float64)
        return np.concatenate([x, np.ones((len(x), 1))], 1)

    def chunks(self, state):
        """state (d_q,) -> name -> (k, d_a). Holding needs states and actions of the same dimensions."""
        chunks = {"mean action": np.tile(self.mean, (self.k, 1)),
                  "ridge regression": (self._features(state[None]) @ self.weights).reshape(self.k, -1)}
        if len(state) == len(self.mean):
            chunks["hold the state"] = np.tile(state, (self.k, 1))
        return chunks


def observed(source, e, t, m):
    """What a robot would send at frame t of a recorded episode -> (view -> [o_{t-m}, o_t], state (d_q,), task)."""
    pictures = {view: [source.frame(view, e, max(t + d, 0)) for d in (-m, 0)] for view in source.views}
    return pictures, source.numbers(e)[0][t], source.task(e, t)


def replay(policy, source, e, t):
    """A training tuple beside the same observation through Policy.batch -> error of its actions, there and back, in
    standard deviations. ValueError names the first input of the model that is not the same bit for bit."""
    stats, model, m = policy.stats, policy.config.model, policy.config.data.m
    trained, (pictures, state, task) = example(model, m, stats, source, e, t), observed(source, e, t, m)
    expected = trained | {"frames": trained["frames"][:, :2]}   # t + m is for training only
    for name, seen in vars(policy.batch([pictures], state[None], [task])).items():
        if seen is not None and not torch.equal(seen[0], expected[name]):
            raise ValueError(f"replay: '{name}' of dataset {source.name}, episode {e}, frame {t} is not the same in "
                             f"training and at inference: the policy would be run on inputs it was not trained on")
    back = stats.actions(trained["action"].numpy(), state)
    return float((np.abs(back - chunk_at(source.numbers(e)[1], t, model.chunk)[0]) / stats.action_std).max())


def traces(policy, baselines, source, e):
    """One episode -> name -> (T, d_a) in raw units, with "policy" and "true" among the names, and chunk starts."""
    _, action = source.numbers(e)
    T, chunks, starts = len(action), [], list(range(0, len(action), policy.config.model.chunk))
    for t in starts:
        seen, q_t, task = observed(source, e, t, policy.config.data.m)
        chunks.append({"policy": policy.plan([seen], q_t[None], [task])[0][0]} | baselines.chunks(q_t))
    curves = {name: np.concatenate([chunk[name] for chunk in chunks])[:T] for name in chunks[0]}
    return curves | {"true": action}, starts


def errors(found, baselines, names):
    """name -> mse in training standard deviations, and by joint: mse and mae in raw units."""
    report = {}
    for name in (name for name in found if name != "true"):
        error = found[name] - found["true"]
        joints = zip(names, (error ** 2).mean(0).tolist(), np.abs(error).mean(0).tolist())
        report[name] = {"mse": float(np.mean((error / baselines.unit) ** 2)),
                        "joints": {joint: {"mse": mse, "mae": mae} for joint, mse, mae in joints}}
    return report


def open_loop(policy, corpus):
    """All held-out episodes of a corpus -> ({episode: errors}, {episode: (traces, starts)})."""
    skip, names = policy.config.data.on_bad_sample == "skip", action_names(policy.stats)
    baselines = Baselines(corpus, policy.stats, policy.config.model.chunk, skip)
    found = {e: traces(policy, baselines, corpus.held_out, e)
             for e in np.unique(corpus.held_out_windows[:, 0]).tolist()}
    return {e: errors(curves, baselines, names) for e, (curves, _) in found.items()}, found


def mean_errors(reports):
    """Mean over episodes of each one's mse -> name -> float."""
    names = next(iter(reports.values()))
    return {name: float(np.mean([report[name]["mse"] for report in reports.values()])) for name in names}


# ---- infer.py --open-loop ---------------------------------------------------------------------------------------

def write_report(policy, data, out, robot=None):
    """Every held-out episode of `data`: its plot, a foresight picture and all errors as JSON in the folder `out`.
    ValueError, one line, for data of another robot than the policy drives."""
    if not data:
        raise ValueError("--open-loop needs --data, the dataset or mixture that the policy was trained on")
    m = policy.config.data.m
    corpus = open_corpus(data, m, robot=robot, hold_out=policy.config.data.hold_out)
    source = corpus.held_out
    if source.robot != policy.stats.robot:
        raise ValueError(f"--data {data} is of robot '{source.robot}', the checkpoint drives '{policy.stats.robot}': "
                         "give the same --robot as in training")
    policy.stats.check_inputs(source)
    rows = corpus.held_out_windows[np.linspace(0, len(corpus.held_out_windows) - 1, 8).astype(int)].tolist()
    worst = max(replay(policy, source, e, t) for e, t in rows)
    print(f"replay: {len(rows)} recorded windows give the model the same inputs in training and at inference, bit for "
          f"bit; their actions come back to {worst:.0e} standard deviations")
    reports, found = open_loop(policy, corpus)
    out.mkdir(parents=True, exist_ok=True)
    with written(out / "open_loop.json") as file:
        file.write_text(json.dumps(reports, indent=1) + "\n")
    for e, (curves, starts) in found.items():
        draw_episode(policy, source, e, curves, starts, out)
        print(f"episode {e}: mean squared error in training standard deviations: "
              + "  ".join(f"{name} {row['mse']:.4f}" for name, row in reports[e].items()))
    e, t = rows[0]
    print_euler_error(policy, *observed(source, e, t, m))
    print(f"wrote {', '.join(sorted(path.name for path in out.iterdir()))} to {out}")


def draw_episode(policy, source, e, curves, starts, out):
    """episode_<e>.png, and foresight_<e>.png where the episode is long enough for it. curves, starts: as `traces`."""
    m, T = policy.config.data.m, len(curves["true"])
    baselines = {name: values for name, values in curves.items() if name not in ("policy", "true")}
    plots.action_plot(curves["policy"], action_names(policy.stats), true=curves["true"], baselines=baselines,
                      fps=policy.stats.fps, marks=starts, path=out / f"episode_{e}.png", spans=policy.stats.action_std)
    t = min(max(T // 2, m), T - 1 - m)
    if policy.config.model.gen_expert and t >= m:
        seen, state, task = observed(source, e, t, m)
        future = {view: source.frame(view, e, t + m) for view in source.views}
        _, z_hat = policy.plan([seen], state[None], [task])
        foresight_picture(policy, seen, future, z_hat[0], out / f"foresight_{e}.png")
