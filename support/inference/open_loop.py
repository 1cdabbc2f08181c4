"""Open loop: what a policy would have commanded on a recorded episode, beside what was commanded, no robot moving.

At t = 0, k, 2k, ... the policy plans a whole chunk, and the chunks are laid end to end. Three rivals do so without
looking, in the policy's own action mode: who does not beat them has learned nothing that the state did not tell."""

import sys

import numpy as np
import torch

from config import VIEWS
from data import chunk_at, example, open_corpus
from support.data.letterbox import letterbox
from support.files import must, save_json
from support.inference.report import action_names, deviations, foresight_picture, print_euler_error, shown_errors
from support.pictures import action_plot

RIDGE = 1e-2      # of each feature's variance, times the number of training frames
PICTURES = 64     # training frames that the mean picture is of


class Baselines:
    """Hold the state, the training mean, and a ridge regression from the states at t, t - 1 and t - 2 to the
    standardised chunk, fitted on a corpus's training episodes of the held-out robot. skip: those that can be read."""

    def __init__(self, corpus, stats, k, skip=False):
        self.stats, self.k, XX, XY, actions = stats, k, 0, 0, []
        for state, action in self._episodes(corpus, skip):   # sums, because a corpus's chunks fill the memory
            X, chunks = self._features(state), np.stack([chunk_at(action, t, k)[0] for t in range(len(action))])
            Y = stats.standardised(chunks, state).reshape(len(X), -1)
            XX, XY = XX + X.T @ X, XY + X.T @ Y.astype(np.float64)
            actions.append(action)
        actions = np.concatenate(actions)
        variance = XX.diagonal() / len(actions) - (XX[-1] / len(actions)) ** 2   # the last row sums the features
        penalty = RIDGE * len(actions) * np.where(variance > 1e-12, variance, 1)
        penalty[-1] = 0   # the intercept is free
        self.weights = np.linalg.solve(XX + np.diag(penalty), XY)
        std = actions.std(0, dtype=np.float64)   # of the training actions: what errors are measured in
        self.unit = np.where(stats.moving & (std > 0), std, stats.action_std)

    def _episodes(self, corpus, skip):
        for i, source in corpus.sources.items():
            fits = source.has_action and source.robot == corpus.held_out.robot
            for e in np.unique(corpus.windows[i][:, 0]) if fits else ():
                try:
                    yield source.numbers(int(e))
                except ValueError as error:
                    if not skip:
                        raise
                    print(f"bad data, left out of the baselines: {error}", file=sys.stderr)

    def _features(self, state):
        """(T, d_q) -> (T, features). A delta does not depend on the posture, which is left out there: a regression
        from it fails in every posture that was not trained on."""
        x, t = self.stats.normalise("state", state).astype(np.float64), np.arange(len(state))
        posture = [] if self.stats.action_mode == "delta" else [x]
        return np.concatenate([*posture, *(x - x[np.maximum(t - n, 0)] for n in (1, 2)), np.ones((len(x), 1))], 1)

    def chunks(self, state, t):
        """The states of an episode (T, d_q) and t -> name -> (k, d_a). Holding only where a state is known."""
        a, held = self._features(state[max(t - 2, 0):t + 1])[-1] @ self.weights, self.stats.holding(state[t])
        chunks = {name: self.stats.actions(x.reshape(self.k, -1), state[t])
                  for name, x in (("mean action", 0 * a), ("ridge regression", a))}
        return chunks if held is None else chunks | {"hold the state": np.tile(held, (self.k, 1))}


def observed(source, e, t, m):
    """What a robot would send at frame t of a recorded episode -> (view -> [o_{t-m}, o_t], state (d_q,), task)."""
    pictures = {view: [source.frame(view, e, max(t + d, 0)) for d in (-m, 0)] for view in source.views_of(e)}
    return pictures, source.numbers(e)[0][t], source.task(e, t)


def replay(policy, source, e, t):
    """A training tuple beside the same observation through Policy.batch -> error of its actions, there and back, in
    standard deviations. ValueError names the first input of the model that is not the same bit for bit."""
    stats, model, m = policy.stats, policy.config.model, policy.config.data.m
    trained, (pictures, state, task) = example(model, m, stats, source, e, t), observed(source, e, t, m)
    expected = trained | {"frames": trained["frames"][:, :2]}   # t + m is for training only
    for name, seen in vars(policy.batch([pictures], state[None], [task])).items():
        if seen is not None and not torch.equal(seen[0], expected[name]):
            raise ValueError(f"replay: '{name}' of dataset {source.name}, episode {source.indices[e]}, frame {t} is "
                             "not the same in training and at inference: the policy would see what it never learned")
    back = stats.actions(trained["action"].numpy(), state)
    error = np.abs(back - chunk_at(source.numbers(e)[1], t, model.chunk)[0]) / stats.action_std
    return float(error[:, stats.moving].max(initial=0))   # what is idle comes back as its mean


def traces(policy, baselines, source, e):
    """One episode -> name -> (T, d_a) in raw units, with "policy" and "true" among the names, and chunk starts."""
    state, action = source.numbers(e)
    T, chunks, starts = len(action), [], list(range(0, len(action), policy.config.model.chunk))
    for t in starts:
        seen, q_t, task = observed(source, e, t, policy.config.data.m)
        chunks.append({"policy": policy.plan([seen], q_t[None], [task])[0][0]} | baselines.chunks(state, t))
    curves = {name: np.concatenate([chunk[name] for chunk in chunks])[:T] for name in chunks[0]}
    return curves | {"true": action}, starts


def errors(found, baselines, names):
    """name -> mse in training standard deviations, mean and median over the dimensions that moved in training; of each
    of those ("joints"), and of the others ("idle"), mse and mae in raw units."""
    report, moving = {}, baselines.stats.moving
    for name in (name for name in found if name != "true"):
        error = found[name] - found["true"]
        raw = [{"mse": float(np.mean(e ** 2)), "mae": float(np.mean(np.abs(e)))} for e in error.T]
        joints, idle = ({names[d]: raw[d] for d in np.flatnonzero(those)} for those in (moving, ~moving))
        report[name] = deviations(found[name], found["true"], baselines.unit, moving) | {"joints": joints, "idle": idle}
    return report


def open_loop(policy, corpus):
    """All held-out episodes of a corpus -> ({episode: errors}, {episode: (traces, starts)})."""
    skip, names = policy.config.data.on_bad_sample == "skip", action_names(policy.stats)
    baselines = Baselines(corpus, policy.stats, policy.config.model.chunk, skip)
    found = {e: traces(policy, baselines, corpus.held_out, e)
             for e in np.unique(corpus.held_out_windows[:, 0]).tolist()}
    return {e: errors(curves, baselines, names) for e, (curves, _) in found.items()}, found


def trained_errors(policy, corpus):
    """At the end of training: print the errors on held-out episodes -> their part of report.json, {} without any."""
    if not any(source.has_action and source.robot == policy.stats.robot for source in corpus.sources.values()):
        print(f"no open loop: the first rank was dealt no dataset of robot '{policy.stats.robot}'; "
              "infer.py --open-loop makes one")
        return {}
    if not corpus.holds_out:
        return {}
    if len(corpus.sources) < len(corpus.listed):
        print(f"rivals of the open loop are fitted on the first rank's {len(corpus.sources)} datasets alone")
    reports = list(open_loop(policy, corpus)[0].values())
    mean = {name: {key: float(np.mean([report[name][key] for report in reports])) for key in ("mse", "median")}
            for name in reports[0]}
    print(f"held-out actions, mean squared error in training standard deviations: {shown_errors(mean)}")
    return {"open_loop": {name: row["mse"] for name, row in mean.items()},
            "open_loop_median": {name: row["median"] for name, row in mean.items()}}


def foresight(policy, corpus, rows):
    """Of held-out windows (episode, t) that have a future: mean squared error of the latents of the imagined t + m, and
    of pictures that need no imagination -> view -> name -> float."""
    m, size, source, found = policy.config.data.m, policy.config.model.frame_size, corpus.held_out, {}

    def latents(picture):
        return policy.model.phi_cosmos(picture.to(policy.device)[None, None, None])[0, 0, 0].cpu()
    trained = [(of, corpus.windows[i]) for i, of in corpus.sources.items() if of.robot == source.robot]
    frames = [(of, *row) for of, those in trained for row in spread(those, max(1, PICTURES // len(trained)))]
    means = {view: latents(torch.stack([letterbox(of.frame(view, e, t), size).float() for of, e, t in frames
                                        if view in of.views]).mean(0).round().byte()) for view in source.views}
    for e, t in (row for row in rows if row[1] + m < source.lengths[row[0]]):
        seen, state, task = observed(source, e, t, m)
        z_hat = policy.plan([seen], state[None], [task])[1][0]
        for view, (_, now) in seen.items():
            true = latents(letterbox(source.frame(view, e, t + m), size))
            for name, z in (("policy", z_hat[VIEWS.index(view)]), ("copy of t", latents(letterbox(now, size))),
                            ("training-mean picture", means[view])):
                found.setdefault(view, {}).setdefault(name, []).append(float((z - true).square().mean()))
    return {view: {name: float(np.mean(errors)) for name, errors in row.items()} for view, row in found.items()}


def spread(rows, n):
    """At most n of windows (N, 2), evenly -> list of [episode, t]."""
    return rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int)].tolist()


# ---- infer.py --open-loop ---------------------------------------------------------------------------------------

def write_report(policy, data, out, robot=None):
    """Every held-out episode of `data`: its plot, a foresight picture and all errors as JSON, into the folder `out`.
    ValueError, one line, for data of another robot than the policy drives."""
    must(data, "--open-loop needs --data, the dataset or mixture that the policy was trained on")
    own, m = policy.config.data, policy.config.data.m
    corpus = open_corpus(data, m, False, robot, own.hold_out, own.only_episodes, own.timestamps)
    must(corpus.holds_out, f"--data {data}: nothing was held out (--hold_out none), so nothing shows what the policy "
         "has learned; give a mixture.json with other data as its validation")
    source = corpus.held_out
    policy.stats.check_inputs(source)
    rows = spread(corpus.held_out_windows, 8)
    worst = max(replay(policy, source, e, t) for e, t in rows)
    print(f"replay: {len(rows)} recorded windows give the model the same inputs in training and at inference, bit for "
          f"bit; their actions come back to {worst:.0e} standard deviations")
    reports, found = open_loop(policy, corpus)
    out.mkdir(parents=True, exist_ok=True)
    by_number = {int(source.indices[e]): row for e, row in reports.items()}   # the dataset's own numbers
    save_json(out / "open_loop.json", by_number)
    for e, (curves, starts) in found.items():
        draw_episode(policy, source, e, curves, starts, out)
        print(f"episode {source.indices[e]}: mean squared error in training standard deviations: "
              + shown_errors(reports[e]))
        for joint in reports[e]["policy"]["idle"]:
            print(f"  idle in training, mean error in raw units: {joint}: "
                  + "  ".join(f"{name} {row['idle'][joint]['mae']:.2g}" for name, row in reports[e].items()))
    e, t = rows[0]
    print_euler_error(policy, *observed(source, e, t, m))
    if policy.config.model.gen_expert:
        imagined = foresight(policy, corpus, rows)
        save_json(out / "foresight.json", imagined)
        for view, row in imagined.items():
            print(f"foresight, {view}: mean squared error of latents: "
                  + "  ".join(f"{name} {error:.4f}" for name, error in row.items()))
    print(f"wrote {', '.join(sorted(path.name for path in out.iterdir()))} to {out}")


def draw_episode(policy, source, e, curves, starts, out):
    """episode_<e>.png, and foresight_<e>.png where the episode is long enough for it. curves, starts: as `traces`."""
    m, T = policy.config.data.m, len(curves["true"])
    baselines = {name: values for name, values in curves.items() if name not in ("policy", "true")}
    action_plot(curves["policy"], action_names(policy.stats), true=curves["true"], baselines=baselines,
                fps=policy.stats.fps, marks=starts, path=out / f"episode_{source.indices[e]}.png",
                spans=policy.stats.action_std)
    t = min(max(T // 2, m), T - 1 - m)
    if policy.config.model.gen_expert and t >= m:
        seen, state, task = observed(source, e, t, m)
        future = {view: source.frame(view, e, t + m) for view in source.views_of(e)}
        _, z_hat = policy.plan([seen], state[None], [task])
        foresight_picture(policy, seen, future, z_hat[0], out / f"foresight_{source.indices[e]}.png")
