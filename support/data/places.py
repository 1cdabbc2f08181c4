"""Which picture of a film belongs to which row: what the film's own time stamps and the number of rows decide.

    as declared    each row has a picture of its own within half a frame of its declared time, at even steps; no two
                   episodes share one. A film of twice the rate has every second picture taken.
    by counting    otherwise, where the film has just as many pictures as its episodes have rows: one each, in the order
                   of the episodes. Whatever the film's first stamp, its rate and its gaps, and whatever from_timestamp.

Where neither holds, nothing is guessed: ValueError."""

import numpy as np


def places(shown, fps, begins, lengths):
    """-> (first, step) of each of E episodes in a film: its row t has picture first + step * t.
    shown: seconds of the film's pictures, ascending. begins: (E,) seconds that the dataset declares, NaN where it does
    not. lengths: (E,) rows. ValueError: of which episode, what is wrong."""
    n, total, ends = len(shown), int(lengths.sum()), np.cumsum(lengths)
    wanted = np.repeat(begins - (ends - lengths) / fps, lengths) + np.arange(total) / fps
    nearest = np.searchsorted((shown[1:] + shown[:-1]) / 2, wanted)
    fits = np.abs(shown[nearest] - wanted) < 0.5 / fps   # False for NaN
    found, doubtful, taken = [], [], np.bincount(nearest, minlength=n)
    for e, (first, end) in enumerate(zip(ends - lengths, ends)):
        mine = nearest[first:end]
        steps = np.diff(mine) if len(mine) > 1 else np.ones(1, int)
        found.append((int(mine[0]), int(steps[0])))
        if not (fits[first:end].all() and (steps == steps[0]).all() and taken[mine].max() == 1):
            doubtful.append(e)
    if not doubtful:
        return found
    if n == total:
        order, listed = np.argsort(begins, kind="stable"), ends - lengths
        by_begin = (np.cumsum(lengths[order]) - lengths[order])[np.argsort(order)]
        # A merge may let from_timestamp start again at 0: then it grows as listed from there on.
        again = np.maximum.accumulate(np.where(np.diff(begins, prepend=np.inf) < 0, listed, 0))
        off, merged = np.abs(begins * fps - by_begin), np.abs(begins * fps - (listed - again))
        own = (off < lengths / 2).all() and off.max() < merged.max()   # declared in an order of their own
        return [(int(first), 1) for first in (by_begin if own else listed)]
    e = doubtful[0]
    raise ValueError(e, f"{n} pictures from {shown[0]:.3f} to {shown[-1]:.3f} s for {total} rows; the {lengths[e]} of "
                        f"this episode, declared from {begins[e]:.3f} s at {fps:g} frames/s, do not have one each")
