"""All checks of an audit in two readings of the lists; what is kept between them is small."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from synrank_jax.generation.audit import duplicates, schema
from synrank_jax.generation.audit.contamination import Evaluation, Target
from synrank_jax.generation.audit.findings import Finding, Kind
from synrank_jax.generation.lists import RankingContext
from synrank_jax.generation.ngrams import WordHashes, words


class Checks:
    """Read all lists with `first`, then, if `again`, once more with `second`.

    Args:
        documents: texts of evaluation collections that passages must not retell.
        queries: queries of evaluation collections.
        examples: passages of the prompt's examples.

    Raises:
        UserError: rensa is not installed; whatever the iterables raise.
    """

    def __init__(
        self, documents: Iterable[Target], queries: Iterable[Target], examples: Iterable[Target]
    ) -> None:
        self._hasher = WordHashes()
        self._signatures = duplicates.Signatures()
        self._evaluation = Evaluation(documents, queries, self._hasher, Kind.CONTAMINATION)
        self._examples = Evaluation(examples, (), self._hasher, Kind.EXAMPLE_COPY)
        self._query_ids: set[bytes] = set()
        self._verifier = duplicates.Verifier({})
        self._common: schema.Pattern | None = None
        self.patterns: Counter[schema.Pattern] = Counter()
        self.passages = 0
        self._compared = 0

    @property
    def single_runs(self) -> int:
        """Passages with a shared run of words too few to be reported."""
        return self._evaluation.single_runs

    def first(self, number: int, context: RankingContext) -> Iterator[Finding]:
        """Everything that a list shows by itself."""
        self.patterns[schema.pattern(context)] += 1
        self.passages += len(context.passages)
        mark = _digest(context.query_id)
        if mark in self._query_ids:
            why = "an earlier list has the same query id"
            yield Finding(Kind.SCHEMA, number, context.query_id, None, why)
        self._query_ids.add(mark)
        texts = [words(passage.full_text()) for passage in context.passages]
        hashes = [self._hasher.of(text) for text in texts]
        query = words(context.query)
        self._signatures.add(number, hashes)
        yield from schema.schema_findings(number, context)
        yield from schema.text_findings(number, context, texts, query)
        yield from duplicates.within_list(number, context, hashes)
        yield from self._examples.passage_findings(number, context, texts, hashes)
        yield from self._evaluation.passage_findings(number, context, texts, hashes)
        yield from self._evaluation.query_findings(number, context, query)

    def again(self) -> bool:
        """Whether a second reading can find anything."""
        self._verifier = duplicates.Verifier(self._signatures.candidates())
        self._common = schema.common_pattern(self.patterns)
        exceptions = self._common is not None and len(self.patterns) > 1
        return exceptions or self._verifier.waiting()

    def second(self, number: int, context: RankingContext) -> Iterator[Finding]:
        """What a list shows beside all others."""
        own = schema.pattern(context)
        if self._common is not None and own != self._common:
            why = f"has {schema.shown(own)}; nearly all lists have {schema.shown(self._common)}"
            yield Finding(Kind.SCHEMA, number, context.query_id, None, why)
        for at, passage in enumerate(context.passages):
            if self._verifier.needs(self._compared):
                hashes = self._hasher.of(words(passage.full_text()))
                yield from self._verifier.check(self._compared, number, context, at, hashes)
            self._compared += 1


@dataclass
class Sample:
    """The lists whose query ids have the smallest hashes: the same ones in any order of reading."""

    size: int
    _heap: list[tuple[int, int, RankingContext]] = field(default_factory=list)

    def add(self, number: int, context: RankingContext) -> None:
        """Take a list, if it belongs to the sample of those seen so far."""
        entry = (-int.from_bytes(_digest(context.query_id), "big"), -number, context)
        push = heapq.heappush if len(self._heap) < self.size else heapq.heappushpop
        push(self._heap, entry)

    def lists(self) -> list[tuple[int, RankingContext]]:
        """Number and list, in the order of the file."""
        return sorted(((-number, context) for _, number, context in self._heap), key=lambda x: x[0])


def _digest(query_id: str) -> bytes:
    return hashlib.sha256(query_id.encode()).digest()[:8]
