"""The one progress bar of the project: drawn on a terminal, silent elsewhere."""

from tqdm import tqdm


def bar(total, initial=0, unit="it", silent=False):
    """A tqdm over `total` (None: not known yet) of `unit`, from `initial` on. silent: in any case."""
    return tqdm(total=total, initial=initial, unit=unit, dynamic_ncols=True, disable=silent or None)


def each(items, unit):
    """The items of a sequence, and a bar that counts them."""
    return tqdm(items, unit=unit, dynamic_ncols=True, disable=None)
