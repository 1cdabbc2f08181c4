"""The one progress bar of the project: drawn on a terminal, silent elsewhere."""

import sys

from tqdm import tqdm


def bar(total, initial=0, unit="", what="", silent=False):
    """A tqdm over `total` (None: not known yet) of `unit`, from `initial` on. Silent where stderr is no terminal.

    silent: in any case, as on a rank other than the first.
    """
    return tqdm(total=total, initial=initial, unit=unit or "it", desc=what or None, dynamic_ncols=True,
                disable=silent or not sys.stderr.isatty())


def drawn(what):
    """A callback (done, total) that draws a bar."""
    shown = bar(None, what=what)

    def draw(done, total):
        shown.total = total
        shown.update(done - shown.n)
    return draw
