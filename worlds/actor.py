"""Policies as a world takes them: a Policy, and the same one told or shown something wrong."""

import numpy as np

AT_ONCE = 50   # scenes in one batch


def actor(policy, views):
    """A support.inference Policy as a world.Actor. views: of the world's cameras. What is an Actor already stays."""
    if callable(policy):
        return policy

    def act(past, now, states, instructions):
        actions = []
        for part in np.array_split(np.arange(len(instructions)), max(1, len(instructions) // AT_ONCE)):
            pictures = [{view: [past[i, v], now[i, v]] for v, view in enumerate(views)} for i in part]
            actions.append(policy.plan(pictures, states[part], [instructions[i] for i in part], imagine=False)[0])
        return np.concatenate(actions)
    return act


def wrong_text(policy, swap):
    """The policy, told something else. swap: word -> word."""
    return lambda past, now, states, instructions: policy(
        past, now, states, [" ".join(swap.get(word, word) for word in text.split()) for text in instructions])


def shuffled_images(policy):
    """The policy, shown another scene's pictures."""
    return lambda past, now, states, instructions: policy(
        np.roll(past, 1, 0), np.roll(now, 1, 0), states, instructions)
