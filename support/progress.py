"""A progress bar of what is counted by hand: drawn on a terminal, silent elsewhere."""

from tqdm import tqdm


def bar(total, initial=0, unit="it"):
    """A tqdm over `total` of `unit`, from `initial` on."""
    return tqdm(total=total, initial=initial, unit=unit, dynamic_ncols=True, disable=None)
