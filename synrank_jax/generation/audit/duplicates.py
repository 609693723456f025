"""Exact and near duplicates: all pairs within a list, MinHash with banding across lists.

Near means that the sets of word triples have a Jaccard similarity of at least NEAR. Candidates
come from MinHash signatures (by rensa) cut into BANDS bands of ROWS values: a pair of similarity s
meets in some band with probability 1 - (1 - s^ROWS)^BANDS, which is 0.9986 at s = 0.7. Every
candidate is then measured exactly, so that none is reported wrongly.
"""

import importlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synrank_jax.config_generation import RulesConfig
from synrank_jax.errors import UserError
from synrank_jax.generation.audit.findings import Finding, Kind, excerpt
from synrank_jax.generation.lists import RankingContext
from synrank_jax.generation.ngrams import Hashes, jaccard, shingles, whole

NEAR = RulesConfig().near_duplicate
BANDS, ROWS = 24, 4
_SEED = 1
# Signatures made at once.
_BATCH = 4096
# Larger groups of equal bands are compared with their first member and with the one before only:
# all pairs of 10,000 copies of one template would never end.
_ALL_PAIRS = 50


def load_rensa() -> Any:
    """The MinHash library.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("rensa")  # it has no types
    except ImportError as error:
        raise UserError(
            f"finding near-duplicates needs rensa ({error}); "
            "install the extra: pip install 'synrank-jax[generate]'"
        ) from error


def within_list(
    number: int, context: RankingContext, hashes: Sequence[Hashes]
) -> Iterator[Finding]:
    """Each passage that is a duplicate of an earlier one of its list, once."""
    sets = [shingles(text) for text in hashes]
    for later in range(1, len(sets)):
        shares = [jaccard(sets[earlier], sets[later]) for earlier in range(later)]
        earlier = int(np.argmax(shares))
        if shares[earlier] >= NEAR:
            left, right = context.passages[earlier], context.passages[later]
            yield Finding(
                Kind.DUPLICATE,
                number,
                context.query_id,
                right.doc_id,
                f"{shares[earlier]:.0%} of the word triples are those of {left.doc_id}",
                {
                    "jaccard": round(shares[earlier], 4),
                    "other_doc_id": left.doc_id,
                    "text": excerpt(right.full_text()),
                    "other_text": excerpt(left.full_text()),
                },
            )


class Signatures:
    """MinHash bands of a stream of passages: 96 bytes each, and 12 for the exact text.

    Raises:
        UserError: rensa is not installed.
    """

    def __init__(self) -> None:
        self._make = load_rensa().RMinHash.digest_matrix_from_flat_token_hashes
        self._waiting: list[Hashes] = []
        self._bands: list[NDArray[np.uint32]] = []
        self._texts, self._lists = array("Q"), array("i")

    def add(self, number: int, hashes: Sequence[Hashes]) -> None:
        """Take the passages of list `number`; [T] word hashes each."""
        self._texts.extend(map(whole, hashes))
        self._lists.extend([number] * len(hashes))
        self._waiting += [shingles(text) for text in hashes]
        if len(self._waiting) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        offsets = np.cumsum([0, *map(len, self._waiting)]).astype(np.uint64)
        rows = self._make(np.concatenate(self._waiting), offsets, BANDS * ROWS, _SEED).to_rows()
        values = np.array(rows, np.uint64).reshape(len(rows), BANDS, ROWS)
        keys = np.zeros(values.shape[:2], np.uint64)
        for row in range(ROWS):
            keys = (keys ^ values[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        self._bands.append((keys >> np.uint64(32)).astype(np.uint32))
        self._waiting = []

    def candidates(self) -> dict[int, list[int]]:
        """{passage: earlier passages, of other lists, that it may be a duplicate of}.

        Passages are counted through all lists. Of exact copies only the first is compared further;
        the others name it.
        """
        self._flush()
        if not self._bands:
            return {}
        texts, lists = np.array(self._texts), np.array(self._lists)
        _, firsts, inverse = np.unique(texts, return_index=True, return_inverse=True)
        first = firsts[inverse]
        every = np.arange(len(texts))
        written = texts != 0  # an empty passage is no copy
        pairs = {(int(first[i]), int(i)) for i in np.flatnonzero((first != every) & written)}
        originals = np.flatnonzero((first == every) & written)
        for band in range(BANDS):
            keys = np.concatenate([block[:, band] for block in self._bands])[originals]
            for group in _groups(keys):
                pairs.update(_pairs(originals[group]))
        found: dict[int, list[int]] = {}
        for earlier, later in sorted(pairs):
            if lists[earlier] != lists[later]:
                found.setdefault(later, []).append(earlier)
        return found


def _groups(keys: NDArray[np.uint32]) -> Iterator[NDArray[np.int64]]:
    """Positions of equal keys, ascending, wherever there are two or more."""
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(np.diff(keys[order])) + 1
    starts, ends = np.r_[0, cuts], np.r_[cuts, len(keys)]
    for at in np.flatnonzero(ends - starts > 1):
        yield order[starts[at] : ends[at]]


def _pairs(group: NDArray[np.int64]) -> set[tuple[int, int]]:
    if len(group) <= _ALL_PAIRS:
        left, right = np.triu_indices(len(group), 1)
    else:
        right = np.r_[1 : len(group), 1 : len(group)]
        left = np.r_[np.zeros(len(group) - 1, np.int64), 0 : len(group) - 1]
    return set(zip(group[left].tolist(), group[right].tolist(), strict=True))


class Verifier:
    """Measures the candidates of `Signatures`, while the lists are read once more, in order."""

    def __init__(self, candidates: dict[int, list[int]]) -> None:
        self._candidates = candidates
        self._wanted = {passage for others in candidates.values() for passage in others}
        self._seen: dict[int, tuple[Hashes, str, str, str]] = {}

    def waiting(self) -> bool:
        """Whether there are candidates at all."""
        return bool(self._candidates)

    def needs(self, passage: int) -> bool:
        """Whether the passage of this number is part of a candidate."""
        return passage in self._wanted or passage in self._candidates

    def check(
        self, passage: int, number: int, context: RankingContext, at: int, hashes: Hashes
    ) -> Iterator[Finding]:
        """The finding of passage `at` of the list, which is number `passage` of all, if any."""
        mine, text = shingles(hashes), context.passages[at]
        if passage in self._wanted:
            quoted = excerpt(text.full_text())
            self._seen[passage] = (mine, context.query_id, text.doc_id, quoted)
        others = [self._seen[other] for other in self._candidates.get(passage, ())]
        if not others:
            return
        share, (_, query_id, doc_id, quoted) = max(
            ((jaccard(mine, other[0]), other) for other in others), key=lambda pair: pair[0]
        )
        if share >= NEAR and doc_id != text.doc_id:  # a document may be judged for two queries
            yield Finding(
                Kind.CROSS_DUPLICATE,
                number,
                context.query_id,
                text.doc_id,
                f"{share:.0%} of the word triples are those of {doc_id} (query {query_id})",
                {
                    "jaccard": round(share, 4),
                    "other_query_id": query_id,
                    "other_doc_id": doc_id,
                    "text": excerpt(text.full_text()),
                    "other_text": quoted,
                },
            )
