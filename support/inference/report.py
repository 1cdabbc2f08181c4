"""What is drawn and printed of plans: actions by name, the imagined future, what fewer Euler steps change, a film."""

import numpy as np

from config import VIEWS
from support import pictures
from support.data.letterbox import letterbox


def action_names(stats):
    """Names of the action dimensions, numbers where the dataset gave none."""
    return list(stats.action_names) or [f"action {d}" for d in range(len(stats.action_mean))]


def deviations(predicted, true, unit, moving):
    """Squared error in units of `unit` (d_a,), averaged over steps -> {"mse", "median"} of the dimensions `moving`
    (d_a,) bool, 0 where none moves. predicted, true (k, d_a)."""
    squares = (((predicted - true) / unit) ** 2).mean(0)[moving] if moving.any() else np.zeros(1)
    return {"mse": float(squares.mean()), "median": float(np.median(squares))}


def shown_errors(errors, comma="  "):
    """name -> {"mse", "median"} as text."""
    return "; median of dimensions: ".join(comma.join(f"{name} {row[key]:.4f}" for name, row in errors.items())
                                           for key in ("mse", "median"))


def foresight_picture(policy, seen, future, z_hat, path):
    """Per view, as the generation expert sees it: t-m, t, imagined t+m, and where it is given the true t+m and what the
    VAE makes of that. seen: view -> [o_{t-m}, o_t]; future: view -> o_{t+m}, uint8 (H, W, 3); z_hat (V, 16, g, g)."""
    def shown(picture):
        return picture.permute(1, 2, 0).numpy()

    m, size, rows, imagined = policy.config.data.m, policy.config.model.frame_size, [], policy.to_pictures(z_hat)
    for v, view in enumerate(VIEWS):
        if view in seen:
            past, now = (shown(letterbox(picture, size)) for picture in seen[view])
            cells = [(f"t - {m}", past), ("t", now), (f"imagined t + {m}", shown(imagined[v]))]
            if future:
                true = ceiling = None
                if view in future:
                    true = letterbox(future[view], size)
                    z = policy.model.phi_cosmos(true[None, None, None].to(policy.device))
                    ceiling, true = shown(policy.to_pictures(z[0, 0])[0]), shown(true)
                cells += [(f"true t + {m}", true), (f"t + {m} through the VAE", ceiling)]
            rows.append((view.replace("_", " "), cells))
    pictures.foresight(rows, path=path)


def print_euler_error(policy, seen, state, task):
    """With --euler_steps: what fewer steps than the config's change at one observation, with the same noise."""
    if not policy.euler_steps:
        return
    batch, eps = policy.batch([seen], state[None], [task]).to(policy.device), policy.noise(1).to(policy.device)
    prefix = policy.model.prefill(batch)
    few, all_of_them = (policy.model.sample_actions(batch, eps, n, prefix) for n in (policy.euler_steps, None))
    error = (few - all_of_them)[batch.dim_mask[:, None].expand_as(few)].square().mean().sqrt().item()
    print(f"{policy.euler_steps} instead of {policy.config.model.euler_steps} Euler steps move the actions by "
          f"{error:.1e} training standard deviations (rms, one observation)")


def film(policy, rollouts, m, views, path):
    """A GIF of recorded episodes, {suite: worlds.Rollout}: the first of `views` as it runs, what was imagined at every
    m-th frame, and what came."""
    rows = []
    for suite, rollout in rollouts.items():
        for i, frames in enumerate(rollout.frames):
            last, imagined, row = len(frames) - 1, {}, []
            for t in range(m, last - m + 1, m):
                seen = {view: [frames[t - m, v], frames[t, v]] for v, view in enumerate(views)}
                _, z_hat = policy.plan([seen], rollout.states[i, None], [rollout.instructions[i]])
                if z_hat is not None:
                    picture = policy.to_pictures(z_hat[0, :1])[0].permute(1, 2, 0).numpy()
                    imagined[t] = letterbox(picture, frames.shape[3]).permute(1, 2, 0).numpy()   # the camera's size
            for t in range(0, max(2 * m, last - last % m) + 1, max(1, last // 40)):
                at = min(t // m * m, last // m * m - m)   # where it looked last; 0: not yet
                ahead = max(at, m) + m
                row.append((f"{suite}: {rollout.instructions[i]}",
                            [("now", frames[t, 0]), (f"imagined frame {ahead}", imagined.get(at)),
                             (f"frame {ahead}", frames[ahead, 0] if at else None)]))
            rows.append(row)
    pictures.gif([pictures.foresight(row, scale=2) for row in zip(*rows)], path, fps=8)
