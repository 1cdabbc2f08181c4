"""Instructions to token ids.

The instruction is given to the tokenizer raw: no chat template, no begin-of-sequence, no newline [release]. What
surrounds a view is in config.view_tokens. Without a tokenizer, a token is a byte."""

import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np

from support.checkpoint import TOKENIZER


def has_tokenizer(directory):
    """Whether a tokenizer's files stand in a directory."""
    return any(all((Path(directory) / name).is_file() for name in names) for names in (TOKENIZER[:1], TOKENIZER[1:]))


def tokenizer_files(directory):
    """The files of a tokenizer -> {name: bytes}: tokenizer.json, else vocab.json and merges.txt. ValueError: none."""
    names = TOKENIZER[:1] if (Path(directory) / TOKENIZER[0]).exists() else TOKENIZER[1:]
    try:
        return {name: (Path(directory) / name).read_bytes() for name in names}
    except OSError as error:
        raise ValueError(f"tokenizer {directory} cannot be loaded ({error.strerror}): give --tokenizer a directory "
                         "with tokenizer.json, or with vocab.json and merges.txt") from error


@lru_cache(maxsize=4)
def load_tokenizer(directory):
    """The tokenizer of a directory. Nothing is fetched, and no other file of it is read: none could run code."""
    names = list(tokenizer_files(directory))   # before the import, which takes seconds
    from transformers import PreTrainedTokenizerFast, Qwen2TokenizerFast
    paths = [str(Path(directory) / name) for name in names]
    try:
        if len(paths) == 2:
            return Qwen2TokenizerFast(vocab=paths[0], merges=paths[1])
        return PreTrainedTokenizerFast(tokenizer_file=paths[0])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:   # what is written in Rust raises Exception itself, and panics as a BaseException
        raise ValueError(f"tokenizer {directory}: {' and '.join(names)} cannot be read ({str(error)[:120]}): give "
                         "--tokenizer another directory") from error


def check_tokenizer(model):
    """ValueError unless every token that the text of a ModelConfig can have has an embedding."""
    largest = max(load_tokenizer(model.tokenizer).get_vocab().values(), default=0) if model.tokenizer else 255
    if largest >= model.vocab:
        named = f"--tokenizer {model.tokenizer}" if model.tokenizer else "text without --tokenizer"
        raise ValueError(f"{named} has token ids up to {largest}, the network has {model.vocab} text embeddings: give "
                         "the tokenizer it was trained with, or --vocab with --init scratch")


def token_ids(text, budget, tokenizer=""):
    """text -> ids (budget,) int64, mask (budget,) bool; padded on the right with 0, masked.
    tokenizer: a directory, empty for bytes. Longer text is cut at the budget, with one warning."""
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
