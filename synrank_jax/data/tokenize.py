"""Texts to token ids, exactly as the model's own tokenizer cuts them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer


def tokenize_texts(
    tokenizer: Tokenizer, texts: list[str], prompt: str, length: int
) -> list[NDArray[np.int32]]:
    """Token ids of `prompt` + text for every text, without padding.

    Args:
        tokenizer: Without truncation and padding of its own (`contract.load_tokenizer`), and so
            left behind. Not to be used by another thread meanwhile.
        texts: May be empty; an empty text gives the special tokens alone.
        prompt: Put before every text as it is.
        length: Most tokens of a row, special tokens included; the text's end is cut, the special
            tokens stay.

    Returns:
        One int32 array [<= length] per text.
    """
    rows = tokenize_counting(tokenizer, texts, prompt, length)[0]
    return [np.array(row, np.int32) for row in rows]


def tokenize_counting(
    tokenizer: Tokenizer, texts: list[str], prompt: str, length: int
) -> tuple[list[list[int]], int]:
    """As `tokenize_texts`, but lists, and how many of the texts were cut."""
    tokenizer.enable_truncation(length)
    try:
        encodings = tokenizer.encode_batch_fast([prompt + text for text in texts])
    finally:
        tokenizer.no_truncation()
    truncated = sum(1 for encoding in encodings if encoding.overflowing)
    return [encoding.ids for encoding in encodings], truncated


# Token rows are padded to a multiple of this, so that XLA compiles a handful of shapes.
LENGTH_MULTIPLE = 32


def padded_length(longest: int, limit: int, multiple: int = LENGTH_MULTIPLE) -> int:
    """T for rows of at most `longest` tokens: a multiple of `multiple`, at most `limit`.

    `limit` is the contract's length, so T never exceeds the encoder's positions.
    """
    return min(-(-longest // multiple) * multiple, limit)


def pad(
    rows: Sequence[NDArray[np.int32]], length: int, pad_id: int = 0
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Rows of token ids as one array, padded on the right.

    Returns:
        input_ids [B, T] int32 and attention_mask [B, T] bool, False at padding; T = `length`.

    Raises:
        ValueError: a row is longer than `length`.
    """
    lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    if len(lengths) and lengths.max() > length:
        raise ValueError(f"a row of {lengths.max()} tokens does not fit into {length}")
    attention_mask = np.arange(length) < lengths[:, None]
    input_ids = np.full((len(lengths), length), pad_id, np.int32)
    if rows:
        input_ids[attention_mask] = np.concatenate(rows)
    return input_ids, attention_mask
