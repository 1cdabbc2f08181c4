"""From one chunk to the next (real-time chunking): which hand-overs a policy can make, and what the next chunk gets.

[ours] None of it is in the paper. docs/serving.md says which hand-over is which."""

import math
from typing import NamedTuple

import numpy as np
import torch

from support.data.statistics import pad
from support.files import must

HANDOVERS = ("cold", "identity", "vjp", "trained")


# ---- the formulas, in place of flow.euler ------------------------------------------------------------------------

class Guide(NamedTuple):
    """What is left of the last chunk, as the steps to a new chunk see it."""

    handover: str           # one of HANDOVERS but the first
    rest: torch.Tensor      # Y (B, k, d_a), standardised; row i is due when row i of the new chunk is, 0 beyond its end
    weight: torch.Tensor    # W (k, d_a), rtc_weights on the dimensions that move; for "trained" 1 on given rows, else 0

    def __call__(self, v_theta, eps, steps):
        """Eq. (3), going on from the last chunk: flow.euler's arguments and result."""
        return (held_euler if self.handover == "trained" else guided_euler)(v_theta, eps, steps, self)


def rtc_weights(k, left, d):
    """W (k,) of arXiv 2506.07339: 1 for the d actions that are executed before the new chunk comes, and falling to 0
    where the `left` actions of the rest end; d <= left <= k."""
    w = ((left - torch.arange(k)) / (left - d + 1)).clamp(0, 1)
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


# ---- what a policy does with them --------------------------------------------------------------------------------

class Rest(NamedTuple):
    """What is left of the last chunk when the next one is planned."""

    actions: np.ndarray   # (N, left, d_a) as they are commanded, raw units; the first one is due now
    delay: int            # d: so many of them are executed before the next chunk comes
    handover: str         # one of HANDOVERS but the first


def possible(policy):
    """The hand-overs that a Policy can make. A cold one knows nothing of the last chunk."""
    return tuple(name for name in HANDOVERS if not (name == "vjp" and policy.engine or
                                                    name == "trained" and not policy.config.train.rtc_delay))


def prepare(policy, handover):
    """Record what an engine needs for it. ValueError, one line, before anything starts: this policy cannot."""
    must(handover in HANDOVERS, f"handover {handover!r:.60}: choose from {', '.join(HANDOVERS)}")
    must(handover in possible(policy), f"handover {handover}: " + (
        "it takes a backward pass, which no engine makes: use --engine plain, or identity" if handover == "vjp" else
        "the checkpoint was not trained for it: train with --rtc_delay, or use identity"))
    if policy.engine:
        policy.engine.prepare(handover)


def guide_of(policy, rest, states):
    """A Rest and the states (N, d_q) of the new plan -> Guide, None where nothing is left of the last chunk.

    Delta actions are carried along: they are commanded relative to the new states. Idle dimensions are drawn nowhere.
    ValueError: the delay is longer than the rest."""
    if rest is None or not rest.actions.shape[1]:
        return None
    model, stats, left = policy.config.model, policy.stats, rest.actions.shape[1]
    must(0 <= rest.delay <= left <= model.chunk, f"delay {rest.delay}: only {left} actions are left of the last chunk "
         f"of {model.chunk} when the next is planned; plan earlier, or faster")
    Y = pad(stats.standardised(rest.actions, states), model.action_dim, "the rest of the last chunk")
    Y = np.pad(Y, ((0, 0), (0, model.chunk - left), (0, 0)))
    if rest.handover == "trained":   # all dimensions of a given action are, padding too
        given = torch.arange(model.chunk) < min(rest.delay, policy.config.train.rtc_delay)
        weight = given[:, None].expand(-1, model.action_dim)
    else:
        moving = torch.from_numpy(pad(stats.moving, model.action_dim, "the action"))
        weight = rtc_weights(model.chunk, left, rest.delay)[:, None] * moving
    return Guide(rest.handover, torch.from_numpy(Y).to(policy.device), weight.float().to(policy.device))
