"""How far a second opinion (a judge or an encoder) orders lists as their grades do."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from synrank_jax.config_section import Section
from synrank_jax.generation.audit.findings import Finding, Kind
from synrank_jax.generation.lists import RankingContext
from synrank_jax.plots import PERCENTILES

Regrader = Literal["judge", "encoder"]


@dataclass(frozen=True)
class Regraded:
    """A list of the sample with the grades of a second opinion."""

    number: int
    context: RankingContext
    grades: tuple[int | None, ...]
    """Of the passages; None where the judge gave no answer."""
    scores: tuple[float, ...] | None = None
    """The encoder's."""

    def records(self, by: Regrader) -> Iterator[dict[str, Any]]:
        """The lines of regrades.jsonl."""
        scores = self.scores or [None] * len(self.grades)
        for passage, grade, score in zip(self.context.passages, self.grades, scores, strict=True):
            yield {
                "by": by,
                "number": self.number,
                "query_id": self.context.query_id,
                "doc_id": passage.doc_id,
                "grade": passage.grade,
                "regrade": grade,
                **({} if score is None else {"score": round(score, 6)}),
            }

    def tau(self) -> float | None:
        """Kendall's tau-b of grades and second opinion; None if one of them has no order."""
        values: Sequence[float | None] = self.scores or self.grades
        known = [
            (passage.grade, value)
            for passage, value in zip(self.context.passages, values, strict=True)
            if value is not None
        ]
        return tau_b([grade for grade, _ in known], [value for _, value in known])


class Agreement(Section):
    """A second opinion on the sample, in figures."""

    by: Regrader
    name: str
    """The model."""
    lists: int
    passages: int
    tau: float | None
    """Mean over lists of Kendall's tau-b: 1 the same order, 0 chance, -1 the reverse."""
    tau_margin: float | None
    """Half width of its 95 % interval."""
    reversed_lists: int
    """Lists with tau below 0."""
    exact: float | None
    """Share of passages that get their own grade again."""
    exact_by_chance: float | None
    """The same if the second opinion's grades were dealt out at random."""
    confusion: dict[int, dict[int, int]]
    """grade -> {second opinion's grade: passages}."""
    score_percentiles: dict[int, tuple[float, ...]]
    """grade -> the encoder's scores at the PERCENTILES; empty for a judge."""
    failures: dict[str, int]
    """Why passages have no second opinion -> their number."""


def tau_b(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Kendall's tau-b (1945), with ties; None where one side is constant or has under two values.

    tau_b = (concordant - discordant) / sqrt(pairs untied left * pairs untied right)
    """
    rows, columns = np.triu_indices(len(left), 1)
    x, y = np.array(left, float), np.array(right, float)
    x, y = np.sign(x[rows] - x[columns]), np.sign(y[rows] - y[columns])
    untied = np.count_nonzero(x) * np.count_nonzero(y)
    return float(x @ y) / math.sqrt(untied) if untied else None


def ranks_as_grades(grades: Sequence[int], scores: Sequence[float]) -> tuple[int, ...]:
    """The list's grades dealt out again in the order of the scores, the highest to the best."""
    regraded = [0] * len(grades)
    order = sorted(range(len(grades)), key=lambda at: (-scores[at], at))
    for at, grade in zip(order, sorted(grades, reverse=True), strict=True):
        regraded[at] = grade
    return tuple(regraded)


def measure(
    by: Regrader, name: str, lists: Sequence[Regraded], failures: Mapping[str, int]
) -> Agreement:
    """All figures of one second opinion."""
    taus = [tau for regraded in lists if (tau := regraded.tau()) is not None]
    confusion: dict[int, Counter[int]] = {}
    scores: dict[int, list[float]] = {}
    for regraded in lists:
        for at, passage in enumerate(regraded.context.passages):
            if (grade := regraded.grades[at]) is not None:
                confusion.setdefault(passage.grade, Counter())[grade] += 1
            if regraded.scores is not None:
                scores.setdefault(passage.grade, []).append(regraded.scores[at])
    total = sum(row.total() for row in confusion.values())
    regrades = sum(confusion.values(), Counter())
    return Agreement(
        by=by,
        name=name,
        lists=len(lists),
        passages=total,
        tau=float(np.mean(taus)) if taus else None,
        tau_margin=1.96 * float(np.std(taus, ddof=1)) / len(taus) ** 0.5 if len(taus) > 1 else None,
        reversed_lists=sum(tau < 0 for tau in taus),
        exact=sum(row[grade] for grade, row in confusion.items()) / total if total else None,
        exact_by_chance=sum(row.total() * regrades[grade] for grade, row in confusion.items())
        / total**2
        if total
        else None,
        confusion={
            grade: {other: row[other] for other in sorted(row)}
            for grade, row in sorted(confusion.items())
        },
        score_percentiles={
            grade: tuple(round(float(value), 4) for value in np.percentile(found, PERCENTILES))
            for grade, found in sorted(scores.items())
        },
        failures=dict(sorted(failures.items())),
    )


def disagreements(by: Regrader, name: str, lists: Iterable[Regraded]) -> Iterator[Finding]:
    """Lists that the second opinion orders rather the other way round."""
    for regraded in lists:
        tau = regraded.tau()
        if tau is not None and tau < 0:
            context = regraded.context
            rows = [
                {"doc_id": record["doc_id"], "grade": record["grade"], by: value}
                for record in regraded.records(by)
                for value in [record.get("score", record["regrade"])]
            ]
            yield Finding(
                Kind(by),
                regraded.number,
                context.query_id,
                None,
                f"{name} orders the list with Kendall tau {tau:+.2f}",
                {"tau": round(tau, 4), "passages": rows, "text": context.query},
            )
