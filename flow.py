"""Flow matching for action chunks: Eq. (2) and Eq. (3). Below them, how a chunk goes on from the last one.

tau = 0 is noise and tau = 1 is data, as in the paper. The release runs time the other way round and predicts eps - a:
its output layer is negated on load (support/weights/key_maps.py)."""

import math
from typing import NamedTuple

import torch


def sample_tau(rng, shape, density="paper"):
    """tau of the given shape, float64, from a numpy Generator.

    Beta(1.5, 1) has the distribution function x^1.5, so a uniform u gives u^(2/3).
    "paper": tau = u^(2/3), mean 0.6. "release": tau = 1 - (0.001 + 0.999 u^(2/3)), mean 0.4 [release]."""
    beta = rng.random(shape) ** (2 / 3)
    return beta if density == "paper" else 1 - (0.001 + 0.999 * beta)


def interpolate(a, eps, tau):
    """a_tau = (1 - tau) eps + tau a. a, eps (..., k, d_a); tau (...), or (..., k): one for each action."""
    tau = tau[(...,) + (None,) * (eps.ndim - tau.ndim)]
    return (1 - tau) * eps + tau * a


def velocity_target(a, eps):
    """The constant velocity of the straight path, a - eps: what v_theta regresses in Eq. (2)."""
    return a - eps


def euler(v_theta, eps, steps):
    """Eq. (3): from eps at tau = 0 to an action chunk at tau = 1 in `steps` Euler steps.

    v_theta: function of (a_tau (B, k, d_a), tau python float) -> velocity (B, k, d_a)."""
    a, dtau = eps, 1 / steps
    for step in range(steps):
        a = a + dtau * v_theta(a, step * dtau)
    return a


def tau_embedding(tau, width):
    """tau (...) in [0, 1] -> (..., width) float32: sines, then cosines, of the noise level 1 - tau.

    width / 2 periods, geometric from 0.004 to 4. [release] Its time is our 1 - tau, and is what it embeds."""
    noise = 1 - tau.double()
    fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=tau.device)
    period = 4e-3 * (4.0 / 4e-3) ** fraction
    angle = noise[..., None] * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], -1).float()


# ---- [ours] real-time chunking: none of it is in the paper -------------------------------------------------------

class Guide(NamedTuple):
    """What is left of the last chunk, which a new chunk goes on from."""

    handover: str           # "identity" or "vjp", for guided_euler; "trained", for held_euler
    rest: torch.Tensor      # Y (B, k, d_a), standardised; row i is due when row i of the new chunk is, 0 beyond its end
    weight: torch.Tensor    # W (k, d_a), rtc_weights on the dimensions that move; for "trained" 1 on given rows, else 0


def rtc_weights(k, left, d):
    """W (k,) of arXiv 2506.07339: 1 for the d actions that are executed before the new chunk comes, and falling to 0
    where the `left` actions of the rest end; d <= left <= k."""
    w = ((d - 1 - torch.arange(k)) / (left - d + 1) + 1).clamp(0, 1)
    return w * w.expm1() / math.expm1(1)


def guidance(tau, steps, beta=5.0):
    """What e is multiplied by at tau, at most beta, as in arXiv 2506.07339. [ours] At most `steps`: a larger factor
    would lead an Euler step beyond Y, as beta would where there is only one."""
    return min(beta, steps, (tau ** 2 + (1 - tau) ** 2) / (tau * (1 - tau)) if tau else beta)


def guided_euler(v_theta, eps, steps, guide):
    """Eq. (3), every step drawn towards the rest Y: real-time chunking, arXiv 2506.07339.

    v leads to a_1 = a_tau + (1 - tau) v, which misses Y by e = W (Y - a_1). "vjp", the article's: e times the
    derivative of a_1 by a_tau, one backward pass a step, is added to v. "identity", LeRobot's: e itself is."""
    a, dtau, vjp = eps, 1 / steps, guide.handover == "vjp"
    for step in range(steps):
        tau = step * dtau
        with torch.set_grad_enabled(vjp):
            a = a.detach().requires_grad_(vjp)
            v = v_theta(a, tau)
            a_1 = a + (1 - tau) * v
        e = guide.weight * (guide.rest - a_1.detach())
        pull = torch.autograd.grad(a_1, a, e)[0] if vjp else e
        a = a.detach() + dtau * (v.detach() + guidance(tau, steps) * pull)
    return a


def held_euler(v_theta, eps, steps, guide):
    """Eq. (3) with the first actions given: training-time real-time chunking, arXiv 2512.05964. A model trained with
    --rtc_delay reads them as they are, at tau = 1."""
    held, dtau = guide.weight > 0, 1 / steps
    a = torch.where(held, guide.rest, eps)
    for step in range(steps):
        tau = held[:, 0].double().clamp(min=step * dtau)   # (k,)
        a = torch.where(held, a, a + dtau * v_theta(a, tau))
    return a


def denoise(v_theta, eps, steps, guide=None):
    """Eq. (3): `euler`, or where the chunk goes on from the last one as the hand-over of its Guide has it."""
    if guide is None:
        return euler(v_theta, eps, steps)
    return (held_euler if guide.handover == "trained" else guided_euler)(v_theta, eps, steps, guide)
