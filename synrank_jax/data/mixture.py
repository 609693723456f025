"""The mixture rules: what several sources have for a query becomes one graded list.

`assemble` is a pure function of its arguments, applied query by query wherever lists are made. In
this order: barred documents leave; each source keeps the scores in [min_score, max_score) and
grades them; a document met with several grades goes to one source (`duplicates`), one met again
with the same grade to the first; each source takes its share (`take`) of the documents that are
left to it; the list must not be longer than list_size. Only `take` depends on the draw, so whether
lists are ambiguous, empty or too long does not depend on luck, but for `random_k` having fewer.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from synrank_jax.config import DataConfig, GradeRule, SourceConfig, TakeConfig
from synrank_jax.data.draws import sample
from synrank_jax.errors import UserError

GradeOf = Callable[[float], int]


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
    kept = [_kept(source, found[index], barred) for index, source in enumerate(data.sources)]
    grade_of = [
        _grades(index, source, found[index], kept[index], data.grades)
        for index, source in enumerate(data.sources)
    ]
    owned, conflicts = _owned(found, kept, grade_of, data.duplicates)
    if data.missing_queries == "intersection" and not all(owned):
        return None
    members = []
    for index, source in enumerate(data.sources):
        documents, scores = found[index]
        for place in _taken(owned[index], scores, source.take, (data.seed, draw, index, query_id)):
            grade = grade_of[index](scores[place])
            members.append(Member(documents[place], grade, index, place))
    if not members:
        return None
    if len(members) > data.list_size:
        raise RefusedError(
            f"the list of query {query_id!r} has {len(members)} passages, data.list_size is "
            f"{data.list_size}; raise it, or give a source less of it, with take or score limits",
            members[0].source,
            None,
        )
    members.sort(key=lambda member: -member.grade)
    judged = barred.union(*(source.documents for source in found))
    return Assembled(members, judged - {member.document for member in members}, conflicts)


def _kept(source: SourceConfig, found: Found, barred: frozenset[int]) -> Sequence[int]:
    """Places of the documents within the limits."""
    if source.min_score is None and source.max_score is None and not barred:
        return range(len(found.documents))
    low, high = limits(source)
    return [
        place
        for place, (document, score) in enumerate(zip(*found, strict=True))
        if low <= score < high and document not in barred
    ]


def _grades(
    index: int, source: SourceConfig, found: Found, kept: Sequence[int], grades: Sequence[int]
) -> GradeOf:
    """The grade of every score that is kept."""
    if kept and isinstance(source.grade, int):  # however many scores there are
        grade = _grade(index, source, found.documents[kept[0]], found.scores[kept[0]], grades)
        return lambda score: grade
    of: dict[float, int] = {}
    for place in kept:
        score = found.scores[place]
        if score not in of:
            of[score] = _grade(index, source, found.documents[place], score, grades)
    return of.__getitem__


def limits(source: SourceConfig) -> tuple[float, float]:
    """The lowest score that is kept, and the lowest above it that is not."""
    low = -math.inf if source.min_score is None else source.min_score
    return low, math.inf if source.max_score is None else source.max_score


def grade_of_score(rule: GradeRule, score: float) -> int | None:
    """The grade that a source's rule gives a score; None where it does not cover it."""
    if isinstance(rule, dict):
        return rule.get(score)
    if rule == "floor":
        return math.floor(score)
    if rule == "ceil":
        return math.ceil(score)
    if isinstance(rule, int):
        return rule
    return int(score) if score == int(score) else None


def _grade(
    index: int, source: SourceConfig, document: int, score: float, grades: Sequence[int]
) -> int:
    grade = grade_of_score(source.grade, score)
    if grade is not None and grade in grades:
        return grade
    field = f"data.sources.{index}.grade"
    if grade is not None:
        reason = (
            f"grade {grade} is not one of data.grades {list(grades)}; correct the judgement, or "
            f"set {field} or data.grades"
        )
    elif isinstance(source.grade, dict):
        table = {f"{key:g}": value for key, value in source.grade.items()}
        reason = (
            f"score {score:g} is not in the table {field} {table}; add it, or leave it out with "
            "min_score and max_score"
        )
    else:
        reason = (
            f"score {score:g} is no grade, which must be whole; set {field} to floor, ceil, one "
            "grade for all, or a table"
        )
    raise RefusedError(reason, index, document)


def _owned(
    found: Sequence[Found], kept: list[Sequence[int]], grade_of: list[GradeOf], rule: str
) -> tuple[list[Sequence[int]], int]:
    """The places that each source is left with, and how many documents had several grades."""
    contested = _contested(found, kept)
    if not contested:
        return kept, 0
    owners: dict[int, Member] = {}
    conflicts = set()
    for index, (documents, scores) in enumerate(found):
        for place in kept[index]:
            if documents[place] not in contested:
                continue
            member = Member(documents[place], grade_of[index](scores[place]), index, place)
            owner = owners.setdefault(member.document, member)
            if owner.grade == member.grade:
                continue
            conflicts.add(member.document)
            if rule == "error":
                raise _conflict(owner, member)
            if rule == "last" or (rule == "max" and member.grade > owner.grade):
                owners[member.document] = member
    won = {(owner.source, owner.place) for owner in owners.values()}
    return [
        [p for p in places if found[i].documents[p] not in contested or (i, p) in won]
        for i, places in enumerate(kept)
    ], len(conflicts)


def _contested(found: Sequence[Found], kept: list[Sequence[int]]) -> set[int]:
    """Documents that are kept more than once."""
    seen: set[int] = set()
    contested: set[int] = set()
    for (documents, _), places in zip(found, kept, strict=True):
        here = [documents[place] for place in places]
        distinct = set(here)
        contested |= seen & distinct
        if len(distinct) < len(here):
            contested |= {document for document, count in Counter(here).items() if count > 1}
        seen |= distinct
    return contested


def _conflict(owner: Member, member: Member) -> RefusedError:
    return RefusedError(
        f"two grades for one document: {owner.grade} in data.sources.{owner.source} and "
        f"{member.grade} in data.sources.{member.source}; correct one of them, or set "
        "data.duplicates to max, first or last",
        member.source,
        member.document,
    )


def _taken(
    places: Sequence[int],
    scores: Sequence[float],
    take: TakeConfig | None,
    key: tuple[int, int, int, str],
) -> Sequence[int]:
    """The source's share of the list; equal scores in file order."""
    if take is None:
        return places
    if take.random_k is not None:
        return [places[i] for i in sample(len(places), take.random_k, *key)]
    if take.top_k is not None:
        return sorted(places, key=lambda place: -scores[place])[: take.top_k]
    if take.bottom_k is not None:
        return sorted(places, key=lambda place: scores[place])[: take.bottom_k]
    return places[: take.first_k]
