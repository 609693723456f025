"""One pass over all queries before anything is tokenised: which lists there are, and counts.

It assembles every list by number, without texts. So bad input is found at once, `--dry-run` knows
the counts, and workers need nothing from each other: they read which queries have a list, and the
numbers that documents have in the records, from the plan on disk.
"""

from array import array
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synrank_jax.config import SourceConfig
from synrank_jax.config_section import Section
from synrank_jax.data.contexts import Mixture, Query
from synrank_jax.data.mixture import Assembled, RefusedError, grade_of_score, limits
from synrank_jax.data.pairs import Missing
from synrank_jax.data.sources import Source
from synrank_jax.data.tables import CHUNK_ROWS, map_array, write_array
from synrank_jax.errors import UserError

TALLY_FILE = "tally.json"
SCORES_SHOWN = 12


class SourceTally(Section):
    """Counts of one source."""

    path: str
    format: str
    queries: int
    """With a document, and in the query subset."""
    documents: int
    pairs: int
    scores: dict[str, int]
    """Pairs per score as written; a single range where there are many scores."""
    graded: dict[int, int]
    """Pairs per grade after score limits and grade map, whatever their queries."""
    grades: dict[int, int]
    """Passages per grade in the lists of draw 0."""
    missing: dict[str, Missing]
    """Pairs left out for an unknown query or document."""


class Tally(Section):
    """Counts of the mixture; passages and sizes are those of draw 0."""

    sources: tuple[SourceTally, ...]
    queries: int
    """Of all sources."""
    lists: int
    documents: int
    """Distinct documents in the lists of all draws."""
    grades: dict[int, int]
    """Grade -> passages."""
    sizes: dict[int, int]
    """List size -> lists."""
    conflicts: int
    """Documents that a query had with several grades."""
    excluded_pairs: int
    """Pairs that exclude.tsv kept out of the lists."""


class Plan:
    """What `write_plan` wrote, mapped.

    entries: int32 [lists, sources], the queries that have a list (`Mixture.entries`).
    numbers: int32 [documents], number in the records of each document of `Documents`, dense, in
        order of appearance; -1 where no list holds it.
    """

    def __init__(self, folder: Path, mixture: Mixture) -> None:
        sources = len(mixture.sources)
        self.folder = folder
        self.entries = map_array(folder / "entries", np.int32).reshape(-1, sources)
        self.numbers = map_array(folder / "numbers", np.int32)
        self.tally = Tally.model_validate_json((folder / TALLY_FILE).read_bytes())


def write_plan(folder: Path, mixture: Mixture) -> None:
    """Assemble every list and write the plan into an empty folder.

    Raises:
        UserError: a list is refused (names the first and counts them); an empty query or passage;
            one query or document id with two texts; no list is left.
    """
    survey = _Survey(mixture)
    entries = mixture.entries()
    kept = np.zeros(len(entries), np.bool_)
    for start in range(0, len(entries), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        kept[part] = [survey.add(entry) for entry in entries[part].tolist()]
    if survey.refusal:
        more = survey.refused - 1
        raise UserError(
            f"{survey.refusal}" + (f"\n({more} more queries are refused)" if more else "")
        )
    if not kept.any():
        raise UserError(
            f"data.sources: no list is left of {', '.join(s.path for s in mixture.data.sources)}; "
            "check split, query subset, score limits, missing_queries, exclude.tsv and what "
            "allow_missing leaves out"
        )
    tally = survey.tally(len(entries), int(kept.sum()))
    for index, source in enumerate(tally.sources):
        if not source.grades:
            raise UserError(
                f"data.sources.{index} {source.path}: none of its {source.pairs} pairs is in a "
                "list, or other sources have them all; check its split, query subset and score "
                "limits, or remove it"
            )
    write_array(folder / "entries", entries[kept])
    write_array(folder / "numbers", np.frombuffer(survey.numbers, np.int32))
    (folder / TALLY_FILE).write_text(tally.model_dump_json(indent=2) + "\n", "utf-8")


class _Survey:
    """Counts lists and numbers their documents."""

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture
        redrawn = any(s.take and s.take.random_k for s in mixture.data.sources)
        self._draws = mixture.data.draws if redrawn else 1  # other draws hold the same documents
        self._empty = [table.empty() for table in mixture.documents.tables]
        self._tables = bytearray(len(mixture.documents))  # that a number's text came from
        self.numbers = array("i", [-1]) * len(mixture.documents)
        self.refusal: UserError | None = None  # the first
        self.refused = 0
        self._documents = 0
        self._grades: list[Counter[int]] = [Counter() for _ in mixture.sources]
        self._sizes: Counter[int] = Counter()
        self._conflicts = self._excluded_pairs = 0

    def add(self, entry: list[int]) -> bool:
        """Whether the query has a list."""
        query = self._mixture.query(entry)
        try:
            lists = [self._mixture.assemble(query, draw) for draw in range(self._draws)]
        except RefusedError as error:
            self.refused += 1
            self.refusal = self.refusal or self._mixture.located(error, query)
            return False
        judged = set[int]().union(*(found.documents for found in query.found))
        self._excluded_pairs += len(judged & query.barred)
        if lists[0] is None:
            return False
        self._mixture.text(query, 0)
        self._count(lists[0])
        for assembled in lists:
            self._number(query, assembled)
        return True

    def _count(self, assembled: Assembled) -> None:
        self._sizes[len(assembled.members)] += 1
        self._conflicts += assembled.conflicts
        for member in assembled.members:
            self._grades[member.source][member.grade] += 1

    def _number(self, query: Query, assembled: Assembled | None) -> None:
        for member in assembled.members if assembled else ():
            table = self._mixture.tables[member.source]
            row = self._mixture.row(query, member)
            if self.numbers[member.document] < 0:
                self.numbers[member.document] = self._documents
                self._tables[member.document] = table
                self._documents += 1
                if self._empty[table][row]:
                    raise self._empty_passage(member.source, row)
            elif self._tables[member.document] != table:
                self._require_same_text(member.document, table, row)

    def _require_same_text(self, number: int, table: int, row: int) -> None:
        mixture = self._mixture
        owners = [self._tables[number], table]
        first, second = (mixture.documents.tables[owner] for owner in owners)
        doc_id = second.id(row)
        if first.text(int(first.find([doc_id])[0])) != second.text(row):
            places = (
                mixture.sources[mixture.tables.index(owner)].locate_text("documents", doc_id)
                for owner in owners
            )
            raise UserError(
                f"{' and '.join(places)}: document {doc_id!r} has different texts; rename it in "
                "one of them"
            )

    def _empty_passage(self, source: int, row: int) -> UserError:
        opened = self._mixture.sources[source]
        doc_id = opened.documents.id(row)
        return UserError(
            f"{opened.locate_text('documents', doc_id)}: the passage {doc_id!r} of a training list "
            "is empty; give it a text, remove its judgements or name them in exclude.tsv"
        )

    def tally(self, queries: int, lists: int) -> Tally:
        """The counts so far."""
        sources = [
            _source_tally(source, grades)
            for source, grades in zip(self._mixture.sources, self._grades, strict=True)
        ]
        grades = sum(self._grades, Counter[int]())
        return Tally(
            sources=tuple(sources),
            queries=queries,
            lists=lists,
            documents=self._documents,
            grades=dict(sorted(grades.items())),
            sizes=dict(sorted(self._sizes.items())),
            conflicts=self._conflicts,
            excluded_pairs=self._excluded_pairs,
        )


def _source_tally(source: Source, grades: Counter[int]) -> SourceTally:
    scores = source.scores()
    return SourceTally(
        path=source.config.path,
        format=source.config.format,
        queries=len(source.rows()),
        documents=len(source.documents),
        pairs=len(scores),
        scores=_per_score(scores),
        graded=_per_grade(source.config, scores),
        grades=dict(sorted(grades.items())),
        missing=source.missing(),
    )


def _per_score(scores: NDArray[np.float64]) -> dict[str, int]:
    counts: Counter[float] = Counter()
    for start in range(0, len(scores), CHUNK_ROWS):
        values, sizes = np.unique(scores[start : start + CHUNK_ROWS], return_counts=True)
        counts.update(dict(zip(values.tolist(), sizes.tolist(), strict=True)))
        if len(counts) > SCORES_SHOWN:
            return {f"{scores.min():g} to {scores.max():g}": len(scores)}
    return {f"{value:g}": counts[value] for value in sorted(counts)}


def _per_grade(config: SourceConfig, scores: NDArray[np.float64]) -> dict[int, int]:
    low, high = limits(config)
    counts: Counter[int] = Counter()
    for start in range(0, len(scores), CHUNK_ROWS):
        part = scores[start : start + CHUNK_ROWS]
        kept = part[(part >= low) & (part < high)]
        if isinstance(config.grade, int):
            counts[config.grade] += len(kept)  # however many scores there are
            continue
        values, sizes = np.unique(kept, return_counts=True)
        for value, size in zip(values.tolist(), sizes.tolist(), strict=True):
            if (grade := grade_of_score(config.grade, value)) is not None:
                counts[grade] += size
    return dict(sorted(counts.items()))
