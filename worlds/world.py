"""What a world must offer (conveyor does, and so can a simulator), and policies as a world takes them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

# (past, now, states, instructions) -> actions (N, k, d_a). past, now: (N, V, H, W, 3) uint8, frames t - M and t of the
# world's VIEWS; states (N, d_q) and actions in the robot's units; instructions: N strings. k is at least CHUNK.
Actor = Callable[[np.ndarray, np.ndarray, np.ndarray, Sequence[str]], np.ndarray]


@dataclass
class Rollout:
    """What became of N episodes."""
    success: np.ndarray         # (N,) bool
    outcomes: Sequence[str]     # of each episode one of the world's OUTCOMES
    tasks: Sequence[str]        # of each episode one of the world's TASKS
    instructions: Sequence[str]
    states: np.ndarray          # (N, d_q) float32 at the first decision, frame M
    frames: np.ndarray | None   # (recorded, T, V, H, W, 3) uint8 of the first episodes; frames[:, M]: where it decides
    also: Mapping = field(default_factory=dict)   # name -> (N,) bool: what else is counted as success is
    # (N,): where the hand closed, along the target's motion, in units of the target's shift from the decision to then:
    # +1 foresaw it, 0 went to the place of the decision, -1 believed the opposite. nan: no motion, or never closed.
    lead: np.ndarray | None = None
    imagined: np.ndarray | None = None   # (N,): the same of the target in the picture imagined for t + M


class World(Protocol):
    """A module with these names. Importing it starts no simulator; what it needs is imported when it runs."""
    NAME: str                   # the robot's: a checkpoint is evaluated in the world whose robot it drives
    PRESETS: Sequence[str]      # rows of config.CONFIGS that are made for it
    VIEWS: Sequence[str]        # its cameras, some of the model's
    M: int                      # frames between the past, the present and the foreseen picture
    CHUNK: int                  # actions that a policy must plan at least
    REPORTED: int               # episodes a suite that a training run ends with
    SUITES: Sequence[str]       # reported apart: what differs between them is the question that the world asks
    TASKS: Sequence[str]        # success is reported by task too
    OUTCOMES: Sequence[str]     # the first is success; the others say what went wrong
    HALF_WINDOW: float          # of the square around a mark, as a fraction of the picture
    foreseen: Callable | None   # (settings, pictures of the first view imagined for t + M) -> Rollout.imagined

    def settings(self, suite: str, episodes: int | None, seed: int) -> Sequence[Any]:
        """One an episode, a pure function of the arguments, disjoint from the training data's. `episodes` None: the
        predefined ones, for ever the same."""

    def rollout(self, policy: Actor, settings: Sequence[Any], record: int = 0) -> Rollout:
        """Run a policy in all settings, and film the first `record`. The world decides how often the policy looks."""

    def controls(self, policy: Actor, settings: Sequence[Any]) -> Mapping[str, Actor]:
        """Rivals in these settings by name: the policy told or shown something wrong, and policies that do not look.
        The causal test: "frozen past" is shown the present as its past, "reversed past" the mirror of the future."""

    def marks(self, source, e: int, t: int) -> Sequence[tuple[str, float, float]]:
        """(name, across, down) of what matters in the head picture of frame t, as fractions of it from the top left."""

    def prepare(self, root) -> Any:
        """The training data at `root`, written first if absent. ValueError: another version wrote what is there."""


def actor(policy, views, imagined=None):
    """A support.inference Policy as an Actor. views: of the world's cameras. What is an Actor already stays.
    imagined: a list that gets the pictures of the first view (n, H, W, 3) uint8 that it imagines for t + M."""
    if callable(policy):
        return policy

    def act(past, now, states, instructions):
        actions = []
        for part in np.array_split(np.arange(len(instructions)), max(1, len(instructions) // 50)):   # about 50 at once
            pictures = [{view: [past[i, v], now[i, v]] for v, view in enumerate(views)} for i in part]
            chunks, z_hat = policy.plan(pictures, states[part], [instructions[i] for i in part],
                                        imagine=imagined is not None)
            actions.append(chunks)
            if z_hat is not None:
                imagined.append(policy.to_pictures(z_hat[:, 0]).movedim(1, -1).numpy())
        return np.concatenate(actions)
    return act
