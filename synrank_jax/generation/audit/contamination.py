"""Passages that retell an evaluation collection, and queries that are its queries.

A language model has read published abstracts and may write them down from memory: a model trained
on such a passage is then tested on what it was trained on. Compared are runs of RUN words, titles
and queries. The same index finds copies of a prompt's examples.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synrank_jax.generation.audit.findings import Finding, Kind, excerpt
from synrank_jax.generation.lists import RankingContext
from synrank_jax.generation.ngrams import Hashes, WordHashes, ngrams, words

RUN = 8
"""Words in a row that count as one shared run."""
FEWEST_RUNS = 2
"""Shared runs, with one text, from which a passage is reported: nine words in a row, or twice
eight."""
STOCK = 3
"""A run in so many texts of the collections is a stock phrase, and does not count."""
NEAR_EQUAL = 0.8
"""Share of common words (Jaccard) from which two titles or two queries are nearly equal."""
FEWEST_TITLE_WORDS = 4


class Target(NamedTuple):
    """A text that must not be retold."""

    where: str
    """Its collection or file."""
    text_id: str
    title: str
    text: str


class Shared(NamedTuple):
    """What a passage has in common with the text that it shares most with."""

    target: int
    """Place of that text in the index."""
    runs: int
    longest: int
    """Words in a row."""
    words: str
    """The longest run itself."""


class RunIndex:
    """Every run of RUN words of the texts, in 12 bytes each. Runs that are mostly numbers (1.2, 95
    % CI) are left out: a statistic has few forms.
    """

    def __init__(self, texts: Iterable[Sequence[str]], hasher: WordHashes) -> None:
        runs: list[Hashes] = []
        owners: list[NDArray[np.uint32]] = []
        for number, text in enumerate(texts):
            found = np.unique(ngrams(hasher.of(text), RUN)[_mostly_letters(text)])
            runs.append(found)
            owners.append(np.full(found.size, number, np.uint32))
        joined = np.concatenate(runs) if runs else np.empty(0, np.uint64)
        order = np.argsort(joined, kind="stable")
        self._runs = joined[order]
        self._owners = np.concatenate(owners)[order] if owners else np.empty(0, np.uint32)

    def shared(self, text: Sequence[str], hashes: Hashes) -> Shared | None:
        """What the text shares with the one it shares most runs with; None: not a single run."""
        owners = self._owners_of(ngrams(hashes, RUN))
        if owners:  # of hardly any text
            letters = _mostly_letters(text)
            owners = {at: found for at, found in owners.items() if letters[at]}
        totals = Counter(itertools.chain.from_iterable(owners.values()))
        if not totals:
            return None
        target = min(totals, key=lambda owner: (-totals[owner], owner))
        start, length = _longest([at for at, found in owners.items() if target in found])
        stretch = text[start : start + length + RUN - 1]
        return Shared(target, totals[target], len(stretch), " ".join(stretch))

    def _owners_of(self, runs: Hashes) -> dict[int, list[int]]:
        """{place: the texts that have the run which stands there}, without stock phrases."""
        if not self._runs.size:
            return {}
        left = np.searchsorted(self._runs, runs)
        known = self._runs[np.minimum(left, self._runs.size - 1)] == runs
        owners = {}
        for place in np.flatnonzero(known).tolist():
            # Equal runs stand together: STOCK places are enough to look at.
            block = slice(left[place], left[place] + STOCK)
            same = self._runs[block] == runs[place]
            if np.count_nonzero(same) < STOCK:
                owners[place] = self._owners[block][same].tolist()
        return owners


def _mostly_letters(text: Sequence[str]) -> NDArray[np.bool_]:
    """[max(T - RUN + 1, 0)]: whether at least half of the run's words have no digit."""
    plain = np.fromiter((word.isalpha() for word in text), np.int64, len(text))
    total = np.concatenate([[0], np.cumsum(plain)])
    return (total[RUN:] - total[:-RUN]) * 2 >= RUN if len(text) >= RUN else np.empty(0, np.bool_)


def _longest(places: Sequence[int]) -> tuple[int, int]:
    """Start and length of the longest stretch of consecutive numbers."""
    best = (places[0], 1)
    start, length = best
    for before, after in itertools.pairwise(places):
        start, length = (start, length + 1) if after == before + 1 else (after, 1)
        if length > best[1]:
            best = (start, length)
    return best


class NearEqual:
    """Finds the set of words most similar to a given one, exactly, where it is NEAR_EQUAL.

    Two such sets share one of their rarest words: among the first |x| - ceil(t |x|) + 1 of each, in
    one order of all words (prefix filtering; Chaudhuri, Ganti and Kaushik 2006).
    """

    def __init__(self, texts: Iterable[Sequence[str]], fewest: int = 1) -> None:
        self._sets = [frozenset(text) for text in texts]
        self._fewest = fewest
        self._count = Counter(itertools.chain.from_iterable(self._sets))
        self._having: dict[str, list[int]] = {}
        for number, text in enumerate(self._sets):
            for word in self._prefix(text):
                self._having.setdefault(word, []).append(number)

    def _prefix(self, text: frozenset[str]) -> list[str]:
        if len(text) < self._fewest:
            return []
        rarest = sorted(text, key=lambda word: (self._count[word], word))
        return rarest[: len(text) - math.ceil(NEAR_EQUAL * len(text)) + 1]

    def best(self, text: Sequence[str]) -> tuple[int, float] | None:
        """Number and Jaccard similarity of the most similar set, the first of equals."""
        mine = frozenset(text)
        numbers = {n for word in self._prefix(mine) for n in self._having.get(word, ())}
        shares = {n: len(mine & self._sets[n]) / len(mine | self._sets[n]) for n in numbers}
        near = [(n, share) for n, share in shares.items() if share >= NEAR_EQUAL]
        return max(near, key=lambda pair: (pair[1], -pair[0]), default=None)


class Evaluation:
    """Documents and queries of evaluation collections, or examples of a prompt, to compare with.

    Of the documents only hashes of runs and the words of titles are kept. `single_runs` counts the
    passages that share something, but too little to be reported.
    """

    def __init__(
        self, documents: Iterable[Target], queries: Iterable[Target], hasher: WordHashes, kind: Kind
    ) -> None:
        self._kind = kind
        self.single_runs = 0
        self._names: list[tuple[str, str, str]] = []
        titles: list[list[str]] = []
        asked: list[tuple[Target, list[str]]] = [(query, words(query.text)) for query in queries]

        def texts() -> Iterator[list[str]]:
            for document in documents:
                self._names.append(("document", document.where, document.text_id))
                titles.append(words(document.title))
                yield words(f"{document.title} {document.text}")
            for query, text in asked:
                self._names.append(("query", query.where, query.text_id))
                yield text

        self._runs = RunIndex(texts(), hasher)
        self._titles = NearEqual(titles, FEWEST_TITLE_WORDS)
        self._queries = NearEqual(text for _, text in asked)
        self._asked = [query for query, _ in asked]

    def passage_findings(
        self,
        number: int,
        context: RankingContext,
        passage_words: Sequence[Sequence[str]],
        hashes: Sequence[Hashes],
    ) -> Iterator[Finding]:
        """Each passage that shares runs of words or its title, once."""
        for passage, text, hashed in zip(context.passages, passage_words, hashes, strict=True):
            shared = self._runs.shared(text, hashed)
            title = self._titles.best(words(passage.title)) if passage.title else None
            reasons: list[str] = []
            evidence: dict[str, Any] = {"text": excerpt(passage.full_text())}
            if shared and shared.runs >= FEWEST_RUNS:
                what = self._name(shared.target)
                reasons.append(
                    f"{shared.runs} runs of {RUN} words, up to {shared.longest} words in a row, "
                    f"are those of {what}"
                )
                evidence |= self._source(shared.target) | {
                    "runs": shared.runs,
                    "longest": shared.longest,
                    "words": shared.words,
                }
            if title:
                reasons.append(f"the title is nearly that of {self._name(title[0])}")
                evidence |= self._source(title[0]) if len(reasons) == 1 else {}
                evidence["title_jaccard"] = round(title[1], 4)
            if reasons:
                why = "; ".join(reasons)
                yield Finding(self._kind, number, context.query_id, passage.doc_id, why, evidence)
            elif shared:
                self.single_runs += 1

    def query_findings(
        self, number: int, context: RankingContext, query_words: Sequence[str]
    ) -> Iterator[Finding]:
        """The list, if its query is nearly one of the collections'."""
        if found := self._queries.best(query_words):
            query = self._asked[found[0]]
            yield Finding(
                Kind.EVALUATION_QUERY,
                number,
                context.query_id,
                None,
                f"{found[1]:.0%} of the words are those of query {query.text_id} of {query.where}",
                {
                    "collection": query.where,
                    "other_id": query.text_id,
                    "jaccard": round(found[1], 4),
                    "text": excerpt(context.query),
                    "other_text": excerpt(query.text),
                },
            )

    def _name(self, target: int) -> str:
        what, where, text_id = self._names[target]
        return f"{what} {text_id} of {where}"

    def _source(self, target: int) -> dict[str, Any]:
        what, where, text_id = self._names[target]
        return {"collection": where, f"other_{what}_id": text_id}
