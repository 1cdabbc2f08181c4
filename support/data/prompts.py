"""Instructions to token ids.

The instruction is given to the tokenizer raw: no chat template, no begin-of-sequence, no newline [release]. What
surrounds a view is in config.view_tokens. Without a tokenizer, a token is a byte.
"""

import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np


@lru_cache(maxsize=4)
def load_tokenizer(path_or_id):
    """A Hugging Face tokenizer from a directory or hub id. ValueError says what to fetch."""
    from transformers import AutoTokenizer, Qwen2TokenizerFast
    path = Path(path_or_id)
    try:
        if path.is_dir() and not (path / "tokenizer.json").exists() and (path / "vocab.json").exists():
            return Qwen2TokenizerFast(vocab=str(path / "vocab.json"), merges=str(path / "merges.txt"))
        return AutoTokenizer.from_pretrained(str(path_or_id))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"tokenizer {path_or_id} cannot be loaded ({type(error).__name__}): give --tokenizer a "
                         f"directory with tokenizer.json, or with vocab.json and merges.txt") from error


def token_ids(text, budget, tokenizer=""):
    """text -> ids (budget,) int64, mask (budget,) bool; padded on the right with 0, masked.

    tokenizer: a directory or hub id, empty for bytes. Longer text is cut at the budget, with one warning.
    """
    words = load_tokenizer(tokenizer) if tokenizer else None
    tokens = words(text, add_special_tokens=False)["input_ids"] if words else list(text.encode())
    if len(tokens) > budget:
        cut = words.decode(tokens[budget:]) if words else bytes(tokens[budget:]).decode(errors="replace")
        warnings.warn(f"an instruction has {len(tokens)} tokens, the budget is {budget}: {cut!r} is cut off; "
                      f"train with --text_tokens {len(tokens)} to keep it")
        tokens = tokens[:budget]
    ids = np.zeros(budget, np.int64)
    ids[:len(tokens)] = tokens
    return ids, np.arange(budget) < len(tokens)
