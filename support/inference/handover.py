"""From one chunk to the next (real-time chunking): which hand-overs a policy can make, and what the next chunk gets.

The formulas stand in flow.py, docs/serving.md says which is which."""

from typing import NamedTuple

import numpy as np
import torch

import flow
from support.data.statistics import pad
from support.files import must

HANDOVERS = ("cold", "identity", "vjp", "trained")


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
    """A Rest and the states (N, d_q) of the new plan -> flow.Guide, None where nothing is left of the last chunk.

    Delta actions are carried along: they are commanded relative to the new states. Idle dimensions are drawn nowhere.
    ValueError: the delay is longer than the rest."""
    if rest is None or not rest.actions.shape[1]:
        return None
    model, stats, left = policy.config.model, policy.stats, rest.actions.shape[1]
    must(0 <= rest.delay <= left <= model.chunk, f"delay {rest.delay}: only {left} actions are left of the last chunk "
         f"of {model.chunk} when the next is planned; plan earlier, or faster")
    Y = pad(stats.chunk(rest.actions, states), model.action_dim, "the rest of the last chunk")
    Y = np.pad(Y, ((0, 0), (0, model.chunk - left), (0, 0)))
    if rest.handover == "trained":   # all dimensions of a given action are, padding too
        given = torch.arange(model.chunk) < min(rest.delay, policy.config.train.rtc_delay)
        weight = given[:, None].expand(-1, model.action_dim)
    else:
        moving = torch.from_numpy(pad(stats.moving, model.action_dim, "the action"))
        weight = flow.rtc_weights(model.chunk, left, rest.delay)[:, None] * moving
    return flow.Guide(rest.handover, torch.from_numpy(Y).to(policy.device), weight.float().to(policy.device))
