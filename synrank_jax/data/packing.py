"""Texts of different lengths into rows of few static shapes, with hardly any padding.

A row holds the texts of some lists, one after the other and shortest first; only its end is
padding. For attention the row is also cut into blocks of texts of similar length
(`synrank_jax.models.packing`). XLA compiles a step anew for every shape, so `RowShapes` chooses a
few that fit the steps of a run.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from synrank_jax.data.tokenize import padded_length
from synrank_jax.types import PackedTexts

Ints = NDArray[np.int64]

# More blocks waste less attention and compile longer; by measurement (benchmarks/packing.py).
BLOCKS = 5
# A row's tokens are rounded up to this; a block's width as padded rows are.
TOKEN_MULTIPLE = 64
# Row lengths offered: these quantiles of what steps need, if they differ by more than the share.
QUANTILES = (0.25, 0.5, 0.75, 1.0)
SHARE = 0.02


class RowShape(NamedTuple):
    """Static sizes: T tokens per row, and the width T_g of each block."""

    tokens: int
    widths: tuple[int, ...]


def block_borders(texts: int) -> list[int]:
    """Where the blocks of a row of S texts begin and end: equal numbers of texts."""
    borders: list[int] = np.linspace(0, texts, min(BLOCKS, texts) + 1).astype(int).tolist()
    return borders


def needs(lengths: NDArray[np.integer]) -> Ints:
    """What rows need, [..., 1 + G]: all tokens, then the longest text of each block.

    Args:
        lengths: [..., S] tokens of the texts, in any order.
    """
    ordered = np.sort(lengths, axis=-1)
    last = np.array(block_borders(lengths.shape[-1])[1:]) - 1
    total = ordered.sum(axis=-1, dtype=np.int64, keepdims=True)
    return np.concatenate([total, ordered[..., last]], axis=-1, dtype=np.int64)


class RowShapes:
    """The shapes that a run's steps are given."""

    def __init__(self, sample: Ints, limit: int) -> None:
        """Choose row lengths and block widths.

        Args:
            sample: [steps, 1 + G] what steps need, the longest of their rows.
            limit: Most tokens of a text.
        """
        self._limit = limit
        self._widths = self._rounded(sample[:, 1:].max(axis=0))
        self._tokens: list[int] = []
        for share in QUANTILES:
            tokens = _up(int(np.quantile(sample[:, 0], share, method="higher")), TOKEN_MULTIPLE)
            if self._tokens and tokens <= (1 + SHARE) * self._tokens[-1]:
                self._tokens.pop()  # too close to be worth a compilation
            self._tokens.append(tokens)

    def longest(self) -> RowShape:
        """The largest of the shapes chosen."""
        return RowShape(self._tokens[-1], tuple(self._widths))

    def of(self, need: Ints) -> RowShape:
        """The smallest shape for a step that needs [1 + G].

        A step that needs more than any of the sample gets a shape of its own, a few percent apart.
        """
        tokens = next((length for length in self._tokens if length >= need[0]), self._tokens[-1])
        while tokens < need[0]:
            tokens = _up(int((1 + SHARE) * tokens) + 1, TOKEN_MULTIPLE)
        widths = map(max, self._widths, self._rounded(need[1:]))
        return RowShape(tokens, tuple(widths))

    def _rounded(self, widths: Ints) -> list[int]:
        # A block of nothing but masked passages still has a width.
        return [padded_length(max(width, 1), self._limit) for width in widths.tolist()]


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def pack(
    tokens: NDArray[np.integer],
    starts: NDArray[np.integer],
    lengths: NDArray[np.integer],
    shape: RowShape,
) -> PackedTexts:
    """Pack texts into rows, without a Python loop over texts or tokens.

    Args:
        tokens: Token ids of all texts, in one array.
        starts: [R, S] where each text begins in `tokens`.
        lengths: [R, S] its tokens; 0 for a passage that is not there.
        shape: Of every row; at least as large as `needs(lengths)`.
    """
    rows, count = lengths.shape
    order = np.argsort(lengths, axis=1, kind="stable")
    # Narrow numbers: what this takes is the time that memory needs.
    ordered = np.take_along_axis(lengths, order, axis=1).astype(np.int32)
    begins = np.cumsum(ordered, axis=1, dtype=np.int32) - ordered
    starts = np.take_along_axis(starts, order, axis=1)
    input_ids, positions = (np.zeros((rows, shape.tokens), np.int32) for _ in range(2))
    segment_ids = np.full((rows, shape.tokens), -1, np.int32)
    for row, of_texts in enumerate(ordered):
        place = np.arange(of_texts.sum(), dtype=np.int32)
        source = place + np.repeat(starts[row] - begins[row], of_texts)
        input_ids[row, : len(place)] = tokens[source]
        positions[row, : len(place)] = place - np.repeat(begins[row], of_texts)
        segment_ids[row, : len(place)] = np.repeat(np.arange(count, dtype=np.int32), of_texts)
    return PackedTexts(
        input_ids=input_ids,
        positions=positions,
        segment_ids=segment_ids,
        blocks=tuple(_blocks(begins, ordered, shape.widths)),
        places=np.argsort(order, axis=1).astype(np.int32),
    )


def _blocks(
    begins: NDArray[np.int32], lengths: NDArray[np.int32], widths: Sequence[int]
) -> list[NDArray[np.int32]]:
    borders = block_borders(lengths.shape[1])
    blocks = []
    for first, last, width in zip(borders[:-1], borders[1:], widths, strict=True):
        places = np.arange(width, dtype=np.int32)
        inside = places < lengths[:, first:last, None]
        blocks.append(np.where(inside, begins[:, first:last, None] + places, np.int32(-1)))
    return blocks
