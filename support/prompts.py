"""Instructions to token ids.

`bytes_of` is byte-level text, one token a byte: what the embedded world and `--init scratch` use, since it needs
no vocabulary file.
"""

import numpy as np


def bytes_of(text, budget):
    """text -> ids (budget,) int64, mask (budget,) bool; padded on the right, cut at the budget."""
    data = text.encode()[:budget]
    ids = np.zeros(budget, np.int64)
    ids[:len(data)] = list(data)
    return ids, np.arange(budget) < len(data)
