"""All figures of the report: the content of report.json."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synrank_jax.config_section import Section
from synrank_jax.retrieval.baselines import Baseline
from synrank_jax.retrieval.files import Qrels, Run
from synrank_jax.retrieval.metrics import means, per_query
from synrank_jax.retrieval.report import collection_heading
from synrank_jax.retrieval.report_page.cases import LengthBin, Outcomes, by_length, outcomes
from synrank_jax.retrieval.report_page.scores import ScoreFacts, score_facts
from synrank_jax.retrieval.result import EvaluationResult
from synrank_jax.retrieval.summary import MeasureSummary

JUDGED = "Judged@10"
CURVE_POINTS = 300
"""Points of a training curve; of more steps the means of blocks."""
CURVES = ("loss", "learning_rate", "grad_norm")


@dataclass(frozen=True)
class ReportInput:
    """What a report is made from."""

    result: EvaluationResult
    run: Run
    qrels: Qrels
    queries: Mapping[str, str]
    text_of: Callable[[str], str]
    """Text of a document; asked for the few that are shown."""
    baselines: Sequence[Baseline] = ()
    summaries: Sequence[MeasureSummary] = ()
    """Of `summarise(result.per_query, baselines)`."""
    history: Sequence[Mapping[str, Any]] = ()
    """The records of a run folder's metrics.jsonl."""


class Curve(Section):
    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


class Facts(Section):
    """The content of report.json."""

    label: str
    model: str
    collection: str
    """Collection, split, queries and documents in one line."""
    collection_sha256: str
    measure: str
    """The first measure: the one that queries are compared by."""
    summaries: tuple[MeasureSummary, ...]
    baselines: dict[str, str]
    """label -> what it is."""
    judged_at_10: dict[str, float]
    """label -> share of the first 10 documents that are judged, mean over the queries; of the
    model and of the baselines whose rankings are at hand."""
    outcomes: Outcomes
    scores: ScoreFacts
    lengths: tuple[LengthBin, ...]
    training: tuple[Curve, ...]
    cost: dict[str, float]
    """Times in seconds, and what follows from them."""


def facts_of(given: ReportInput) -> Facts:
    """Compute everything that the page shows."""
    result, baselines = given.result, given.baselines
    measure = result.evaluation.metrics[0]
    values = result.per_query[measure]
    first = (baselines[0].per_query[measure], baselines[0].run) if baselines else None
    runs = {result.label: given.run} | {b.label: b.run for b in baselines if b.run is not None}
    judged = {
        label: means(per_query(run, given.qrels, [JUDGED]))[JUDGED] for label, run in runs.items()
    }
    return Facts(
        label=result.label,
        model=result.model,
        collection=collection_heading(result),
        collection_sha256=result.collection_sha256,
        measure=measure,
        summaries=tuple(given.summaries),
        baselines={baseline.label: baseline.origin for baseline in baselines},
        judged_at_10=judged,
        outcomes=outcomes(values, given.run, first, given.qrels, given.queries, given.text_of),
        scores=score_facts(given.run, given.qrels),
        lengths=by_length(values, baselines, measure, given.queries),
        training=tuple(curves(given.history)),
        cost=cost(result.timings, result.queries),
    )


def curves(history: Sequence[Mapping[str, Any]]) -> Iterator[Curve]:
    """Loss, learning rate, gradient norm and whatever was measured on validation queries."""
    names = {name: None for record in history for name in record}
    for name in (*CURVES, *(n for n in names if n.startswith("validation") or "@" in n)):
        points = [
            (float(record["step"]), float(record[name]))
            for record in history
            if isinstance(record.get(name), (int, float)) and math.isfinite(record[name])
        ]
        if points:
            block = math.ceil(len(points) / CURVE_POINTS)
            blocks = [points[start : start + block] for start in range(0, len(points), block)]
            steps, values = zip(
                *(tuple(sum(column) / len(b) for column in zip(*b, strict=True)) for b in blocks),
                strict=True,
            )
            yield Curve(name=name, steps=steps, values=values)


def cost(timings: Mapping[str, float], queries: int) -> dict[str, float]:
    """The measured times, and the rates that follow from them."""
    found = dict(timings)
    if encode_s := timings.get("encode_s"):
        found["documents_per_s"] = timings.get("documents_encoded", 0.0) / encode_s
    if slots := timings.get("slots"):
        found["padding_share"] = 1 - timings["tokens"] / slots
        if seconds := timings.get("encode_s", 0.0) + timings.get("query_s", 0.0):
            found["tokens_per_s"] = timings["tokens"] / seconds
    if "search_s" in timings:
        found["search_ms_per_query"] = 1_000 * timings["search_s"] / queries
    return found
