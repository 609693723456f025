"""BM25 over a corpus in memory, by bm25s: Lucene's variant, English stop words and stemmer."""

import logging
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from synrank_jax.errors import UserError

K1, B = 0.9, 0.4
"""Term saturation and length normalisation, the values of Pyserini's BEIR baselines."""


def load_bm25s() -> tuple[Any, Any]:
    """The bm25s module and an English stemmer.

    Raises:
        UserError: one of the two packages is not installed.
    """
    # Where JAX is installed, bm25s runs a top-k with it on import: that would take memory of, or
    # wait for, an accelerator that a training may be using. Only bm25s's NumPy code is used here.
    hidden = "jax" not in sys.modules
    if hidden:
        sys.modules["jax"] = None  # type: ignore[assignment]
    try:
        import bm25s
        import Stemmer
    except ImportError as error:
        raise UserError(
            f"BM25 needs bm25s and PyStemmer ({error}); "
            "install the extra: pip install 'synrank-jax[mine]'"
        ) from error
    finally:
        if hidden:
            del sys.modules["jax"]
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
    return bm25s, Stemmer.Stemmer("english")


class Bm25:
    """An index of texts. score(q, d) = sum over the words w of q of

        ln(1 + (N - df + 1/2) / (df + 1/2)) * tf / (tf + k1 (1 - b + b |d| / mean |d|)),

    with tf the count of w in d, df the documents with w among N, and |d| the words of d. A word
    has two characters or more, is no stop word, and is stemmed.
    """

    def __init__(self, documents: Mapping[str, str]) -> None:
        """Index {doc_id: text}; the index takes a few times the memory of the texts.

        Raises:
            UserError: bm25s is missing, or no document has a word.
        """
        self._bm25s, self._stemmer = load_bm25s()
        self._doc_ids = list(documents)
        self._rows = {doc_id: row for row, doc_id in enumerate(self._doc_ids)}
        words = self._words(list(documents.values()), return_ids=True)
        if not words.vocab:
            raise UserError(f"BM25: none of the {len(documents)} documents has a word to index")
        self._index = self._bm25s.BM25(method="lucene", k1=K1, b=B, backend="numpy")
        self._index.index(words, show_progress=False)

    def search(self, query: str, depth: int, also: Iterable[str] = ()) -> dict[str, float]:
        """{doc_id: score} of the `depth` best documents and of `also`, as far as they match at all.

        Documents that score as the last of them are all there, so that the ranking above a cut at
        `depth` does not depend on the order of the corpus. A document without a word of the query
        is never there.
        """
        words = self._words([query], return_ids=False)[0]
        if not words:
            return {}
        scores = self._index.get_scores(words)
        cut = max(len(scores) - depth, 0)
        last = np.partition(scores, cut)[cut]
        asked = [self._rows[doc_id] for doc_id in also if doc_id in self._rows]
        rows = np.union1d(np.flatnonzero(scores >= last), np.array(asked, np.int64))
        rows = rows[scores[rows] > 0]
        return {self._doc_ids[row]: float(scores[row]) for row in rows}

    def _words(self, texts: list[str], return_ids: bool) -> Any:
        return self._bm25s.tokenize(
            texts,
            stopwords="en",
            stemmer=self._stemmer,
            return_ids=return_ids,
            show_progress=False,
        )
