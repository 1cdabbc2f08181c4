"""Flow matching for action chunks: Eq. (2) and Eq. (3).

tau = 0 is noise and tau = 1 is data, as in the paper. The release runs time the other way round and predicts eps - a:
its output layer is negated on load (support/weights/key_maps.py)."""

import math

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
