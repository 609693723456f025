"""The mixture rules: what several sources have for a query becomes one graded list.

`assemble` is a pure function of its arguments, applied query by query wherever lists are made. In
this order: barred documents leave; each source keeps the scores in [min_score, max_score) and
grades them; a document met with several grades goes to one source (`duplicates`), one met again
with the same grade to the first; each source takes its share (`take`) of the documents that are
left to it; the list must not be longer than list_size. Only `take` depends on the draw, so whether
lists are ambiguous, empty or too long does not depend on luck, but for `random_k` having fewer.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from synrank_jax.config import DataConfig, SourceConfig, TakeConfig
from synrank_jax.data.draws import sample
from synrank_jax.errors import UserError


class Found(NamedTuple):
    """What a source has for a query, in file order.

    documents: Numbers that are equal exactly for equal document ids. scores: As written.
    """

    documents: Sequence[int]
    scores: Sequence[float]


class Member(NamedTuple):
    """A document of a list, and where it was found: `found[source]` at `place`."""

    document: int
    grade: int
    source: int
    place: int


class Assembled(NamedTuple):
    """A list, highest grade first, and what is known of the query besides.

    others: Judged or barred documents that are not in the list: no negatives either.
    conflicts: Documents that had several grades.
    """

    members: list[Member]
    others: frozenset[int]
    conflicts: int


class RefusedError(UserError):
    """A query's documents do not make a list: the source and the document that are to blame."""

    def __init__(self, reason: str, source: int, document: int | None) -> None:
        super().__init__(reason)
        self.source = source
        self.document = document


def assemble(
    query_id: str, found: Sequence[Found], barred: frozenset[int], data: DataConfig, draw: int
) -> Assembled | None:
    """The list of a query; None where the rules leave none.

    Args:
        query_id: Decides the random draws, with data.seed, `draw` and the source's index.
        found: What each of data.sources has for the query.
        barred: Documents that must not enter.
        data: The rules.
        draw: Number of the draw.

    Raises:
        RefusedError: a score that the source's `grade` does not cover; a grade outside data.grades;
            two grades for one document under `duplicates: error`; a list that is too long.
    """
    graded = [
        _graded(index, source, found[index], barred, data.grades)
        for index, source in enumerate(data.sources)
    ]
    owned, conflicts = _owned(graded, data.duplicates)
    if data.missing_queries == "intersection" and not all(owned):
        return None
    members = [
        member
        for index, source in enumerate(data.sources)
        for member in _taken(
            owned[index], found[index].scores, source.take, (data.seed, draw, index, query_id)
        )
    ]
    if not members:
        return None
    if len(members) > data.list_size:
        raise RefusedError(
            f"the list of query {query_id!r} has {len(members)} passages, data.list_size is "
            f"{data.list_size}; raise it or shorten the list, with take or score limits",
            members[0].source,
            None,
        )
    members.sort(key=lambda member: -member.grade)
    judged = barred.union(*(source.documents for source in found))
    return Assembled(members, judged - {member.document for member in members}, conflicts)


def _graded(
    index: int, source: SourceConfig, found: Found, barred: frozenset[int], grades: Sequence[int]
) -> list[Member]:
    """The documents within the limits, with their grades."""
    low = -math.inf if source.min_score is None else source.min_score
    high = math.inf if source.max_score is None else source.max_score
    kept = [
        (place, document, score)
        for place, (document, score) in enumerate(zip(*found, strict=True))
        if low <= score < high and document not in barred
    ]
    grade_of: dict[float, int] = {}
    for _, document, score in kept:
        if score not in grade_of:
            grade_of[score] = _grade(index, source, document, score, grades)
    return [Member(document, grade_of[score], index, place) for place, document, score in kept]


def _grade(
    index: int, source: SourceConfig, document: int, score: float, grades: Sequence[int]
) -> int:
    rule = source.grade
    if isinstance(rule, dict):
        if score not in rule:
            raise RefusedError(
                f"score {score:g} is not in the table data.sources.{index}.grade "
                f"{ {f'{key:g}': value for key, value in rule.items()} }; add it, or leave it out "
                "with min_score and max_score",
                index,
                document,
            )
        grade = rule[score]
    elif rule in ("floor", "ceil"):
        grade = math.floor(score) if rule == "floor" else math.ceil(score)
    elif isinstance(rule, int):
        grade = rule
    elif score == int(score):
        grade = int(score)
    else:
        raise RefusedError(
            f"score {score:g} is no grade, which must be whole; set data.sources.{index}.grade to "
            "floor, ceil, one grade for all, or a table",
            index,
            document,
        )
    if grade not in grades:
        raise RefusedError(
            f"grade {grade} is not one of data.grades {list(grades)}; correct the judgement or the "
            "config",
            index,
            document,
        )
    return grade


def _owned(graded: Sequence[list[Member]], rule: str) -> tuple[list[list[Member]], int]:
    """The members that each source is left with, and how many documents had several grades."""
    owners: dict[int, Member] = {}
    conflicts: set[int] = set()
    for member in _all(graded):
        owner = owners.setdefault(member.document, member)
        if owner is member or (owner.grade == member.grade):
            continue
        conflicts.add(member.document)
        if rule == "error":
            raise RefusedError(
                f"two grades for one document: {owner.grade} in data.sources.{owner.source} and "
                f"{member.grade} in data.sources.{member.source}; correct one of them, or set "
                "data.duplicates to max, first or last",
                member.source,
                member.document,
            )
        if rule == "last" or (rule == "max" and member.grade > owner.grade):
            owners[member.document] = member
    return [
        [member for member in members if owners[member.document] is member] for members in graded
    ], len(conflicts)


def _all(graded: Sequence[list[Member]]) -> Iterator[Member]:
    for members in graded:
        yield from members


def _taken(
    members: list[Member],
    scores: Sequence[float],
    take: TakeConfig | None,
    key: tuple[int, int, int, str],
) -> list[Member]:
    """The source's share of the list; equal scores in file order."""
    if take is None:
        return members
    if take.random_k is not None:
        return [members[i] for i in sample(len(members), take.random_k, *key)]
    if take.top_k is not None:
        return sorted(members, key=lambda member: -scores[member.place])[: take.top_k]
    if take.bottom_k is not None:
        return sorted(members, key=lambda member: scores[member.place])[: take.bottom_k]
    return members[: take.first_k]
