"""Instructions to token ids.

`bytes_of` is byte-level text, one token a byte: what the embedded world and `--init scratch` use, since it needs
no vocabulary file.
"""

import warnings

import numpy as np


def bytes_of(text, budget):
    """text -> ids (budget,) int64, mask (budget,) bool; padded on the right, cut at the budget with one warning."""
    data = text.encode()
    if len(data) > budget:
        warnings.warn(f"an instruction is longer than the budget of {budget} bytes and is cut after "
                      f"{data[:budget].decode(errors='replace')!r}; train with --text_tokens {len(data)} to keep it")
        data = data[:budget]
    ids = np.zeros(budget, np.int64)
    ids[:len(data)] = list(data)
    return ids, np.arange(budget) < len(data)
