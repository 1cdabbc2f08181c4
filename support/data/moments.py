"""Sums over the windows of an episode, and how sums are merged: count, mean, squared deviations, lowest and highest.

Sec. 3.3's tuples overlap: a frame's action is in up to k chunks, and in delta mode in each relative to another state.
With c_j the number of windows whose chunk holds frame j, and n_t the steps of the chunk at t that lie inside the
episode, the sums over all windows and steps of x = a_j - r s_t are

    sum x   = sum_j c_j a_j   -  sum_t n_t r s_t
    sum x^2 = sum_j c_j a_j^2 - 2 sum_t r s_t (a_t + ... + a_{t+n_t-1}) + sum_t n_t (r s_t)^2

where c and the sums over a chunk are differences of cumulative sums, in float64 about the episode's own mean. Episodes,
and ranks, are merged by mean and squared deviation, so no digits cancel."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Moments:
    """Count, mean, sum of squared deviations, lowest and highest value, each per dimension; of nothing at first."""

    n: float = 0
    mean: np.ndarray = 0.0
    squares: np.ndarray = 0.0
    low: np.ndarray = np.inf
    high: np.ndarray = -np.inf

    def merge(self, other):
        """Add what other Moments hold."""
        if other.n:
            total, shift = self.n + other.n, other.mean - self.mean
            self.squares = self.squares + other.squares + shift ** 2 * (self.n * other.n / total)
            self.mean = self.mean + shift * (other.n / total)
            self.n, self.low, self.high = total, np.minimum(self.low, other.low), np.maximum(self.high, other.high)

    def std(self):
        return np.sqrt(self.squares / self.n)


def moments_of(x):
    """Values x (n, d) float64 -> Moments."""
    mean = x.mean(0)
    return Moments(len(x), mean, ((x - mean) ** 2).sum(0), x.min(0), x.max(0))


def action_moments(action, moved, ts, k):
    """Moments of a_j - moved_t over the windows at ts (n, sorted) and their steps inside the episode, and of a_j alone.
    action (L, d), moved (L, d or 1) float64. Lowest and highest are of a_j: only absolute dimensions use them."""
    L, shift = len(action), action.mean(0)
    base = np.where((moved == 0).all(0), 0.0, shift)      # what is relative is centred together with its reference
    a, s = action - shift, moved - base
    starts = np.zeros(L + 1)
    starts[ts + 1] = 1
    started = np.cumsum(starts)                            # windows that begin before frame j
    c = started[1:] - started[np.maximum(np.arange(L) - k + 1, 0)]
    end = np.minimum(ts + k, L)
    steps, sums = (end - ts)[:, None], np.concatenate([np.zeros((1, a.shape[1])), np.cumsum(a, 0)])
    inside, s = sums[end] - sums[ts], s[ts]
    n, once, twice = c.sum(), c @ a, c @ a ** 2
    mean = (once - (steps * s).sum(0)) / n
    squares = twice - 2 * (s * inside).sum(0) + (steps * s ** 2).sum(0) - n * mean ** 2
    used = action[c > 0]
    alone = Moments(n, once / n + shift, np.maximum(twice - n * (once / n) ** 2, 0), used.min(0), used.max(0))
    return Moments(n, mean + shift - base, np.maximum(squares, 0), alone.low, alone.high), alone
