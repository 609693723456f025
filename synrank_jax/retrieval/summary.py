"""Means with intervals, and tested differences to all baselines: as figures and as a table."""

from collections.abc import Mapping, Sequence

import numpy as np

from synrank_jax.config_section import Section
from synrank_jax.retrieval.baselines import Baseline
from synrank_jax.retrieval.metrics import PerQuery
from synrank_jax.retrieval.report import collection_heading
from synrank_jax.retrieval.result import EvaluationResult
from synrank_jax.retrieval.significance import (
    Interval,
    bootstrap_interval,
    holm,
    minimum_detectable_difference,
    paired_differences,
    randomization_test,
)


class Comparison(Section):
    """The model against one baseline in one measure."""

    baseline: str
    mean: float
    """The baseline's."""
    difference: float
    """Model minus baseline."""
    interval: Interval
    """Of the difference, 95 %."""
    p: float
    p_holm: float
    """Corrected for the number of baselines."""
    detectable: float
    """Minimum detectable difference at power .8 and alpha .05."""


class MeasureSummary(Section):
    measure: str
    mean: float
    interval: Interval
    comparisons: tuple[Comparison, ...]


def summarise(values: PerQuery, baselines: Sequence[Baseline]) -> tuple[MeasureSummary, ...]:
    """Every measure of a model, and against every baseline.

    Args:
        values: {measure: {query_id: value}} of the model.
        baselines: scored on the same queries.

    Raises:
        UserError: a baseline was scored on other queries.
    """
    return tuple(_measure(name, values[name], baselines) for name in values)


def _measure(
    name: str, values: Mapping[str, float], baselines: Sequence[Baseline]
) -> MeasureSummary:
    column = np.array([values[query_id] for query_id in sorted(values)])
    differences = {b.label: paired_differences(values, b.per_query[name]) for b in baselines}
    p_values = {label: randomization_test(found) for label, found in differences.items()}
    corrected = holm(p_values)
    mean = float(column.mean())
    return MeasureSummary(
        measure=name,
        mean=mean,
        interval=bootstrap_interval(column),
        comparisons=tuple(
            Comparison(
                baseline=label,
                mean=mean - float(found.mean()),
                difference=float(found.mean()),
                interval=bootstrap_interval(found),
                p=p_values[label],
                p_holm=corrected[label],
                detectable=minimum_detectable_difference(found),
            )
            for label, found in differences.items()
        ),
    )


def summary_cells(
    label: str, summaries: Sequence[MeasureSummary]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: per measure the model, then each baseline with the difference to it."""
    header: tuple[str, ...] = ("measure", "system", "mean", "95 % interval")
    compared = any(summary.comparisons for summary in summaries)
    if compared:
        header += ("difference", "95 % interval", "p", "p Holm", "detectable")
    rows: list[tuple[str, ...]] = []
    for summary in summaries:
        low, high = summary.interval
        own = (summary.measure, label, f"{summary.mean:.4f}", f"{low:.4f} to {high:.4f}")
        rows.append(own + ("",) * (len(header) - len(own)))
        for found in summary.comparisons:
            low, high = found.interval
            rows.append(
                (
                    "",
                    found.baseline,
                    f"{found.mean:.4f}",
                    "",
                    f"{found.difference:+.4f}",
                    f"{low:+.4f} to {high:+.4f}",
                    p_shown(found.p),
                    p_shown(found.p_holm),
                    # Without spread, as of equal systems, nothing can be said.
                    f"{found.detectable:.4f}" if found.detectable else "",
                )
            )
    return header, rows


def notes(summaries: Sequence[MeasureSummary]) -> list[str]:
    """What the columns are."""
    found = [
        "95 % intervals: bootstrap over the queries (BCa). nDCG has linear gain (trec_eval).",
    ]
    if any(summary.comparisons for summary in summaries):
        found += [
            "p: two-sided paired randomisation test over the queries; p Holm: corrected for the "
            "number of baselines, for each measure by itself.",
            "difference: model minus baseline; detectable: the true one that this test finds "
            "four times in five with queries like these (power .8, alpha .05).",
        ]
    return found


def p_shown(p: float) -> str:
    """Four digits; what is below them is not shown as 0."""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


def summary_table(result: EvaluationResult, summaries: Sequence[MeasureSummary]) -> str:
    """The summary for a terminal or a log."""
    header, rows = summary_cells(result.label, summaries)
    lines = aligned([header, *rows])
    lines.insert(1, "-" * max(map(len, lines)))
    audit = [
        f"recall@{k} of {result.evaluation.search} against exact search: {recall:.4f}"
        for k, recall in result.index_recall.items()
    ]
    return "\n".join([collection_heading(result), "", *lines, "", *audit, *notes(summaries)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width: the first two to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:{'<' if column < 2 else '>'}{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
