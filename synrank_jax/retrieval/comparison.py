"""Several arms over several seeds: means, spreads, and differences tested and corrected."""

import math
import statistics
from collections.abc import Mapping, Sequence

from synrank_jax.config_section import Section
from synrank_jax.retrieval.report import collection_heading
from synrank_jax.retrieval.result import EvaluationResult
from synrank_jax.retrieval.significance import holm, paired_p_value

NOT_RUN = "not run"


class Spread(Section):
    """A metric over the seeds of an arm."""

    mean: float
    sd: float | None
    """Sample standard deviation (n - 1); None for one seed."""


class Difference(Section):
    """Arm minus baseline in the first metric."""

    baseline: str
    difference: float
    p: float
    """Paired randomisation test over the queries, each query's value averaged over the seeds."""
    p_holm: float
    """The same, corrected for the number of arms compared with this baseline."""


class ArmRow(Section):
    """One arm on one collection; nothing but the name if it was not run."""

    arm: str
    seeds: int
    metrics: dict[str, Spread]
    differences: tuple[Difference, ...]


class EvaluationTable(Section):
    """All arms on one collection."""

    name: str
    heading: str
    metrics: tuple[str, ...]
    baselines: tuple[str, ...]
    rows: tuple[ArmRow, ...]


class Tuned(Section):
    """The settings an arm was given, and how they did on the validation queries."""

    arm: str
    overrides: tuple[str, ...]
    validation: float
    candidates: int
    """Points that were compared."""


class Report(Section):
    """All that a comparison found so far."""

    metric: str
    """The first metric: chooses settings and is tested."""
    tables: tuple[EvaluationTable, ...]
    tuned: tuple[Tuned, ...]
    not_run: dict[str, str]
    """What has no result yet -> why."""


def evaluation_table(
    name: str,
    results: Mapping[str, Sequence[EvaluationResult]],
    baselines: Sequence[str],
    metrics: Sequence[str],
) -> EvaluationTable:
    """Arms x metrics on one collection, and each arm's difference to each baseline.

    A query's value is averaged over an arm's seeds before the test, so the queries are the sample
    and the seeds are not counted as more of them. Holm's correction takes all arms that are
    compared with one baseline on this collection as one family.

    Args:
        name: of the collection.
        results: arm -> one result per seed, none if the arm was not run.
        baselines: arms to compare with; one without results is left out.
        metrics: all measures, the one to test first.

    Raises:
        UserError: two results are not of the same queries, documents and judgements.
    """
    found = {arm: seeds for arm, seeds in results.items() if seeds}
    if not found:
        rows = tuple(ArmRow(arm=arm, seeds=0, metrics={}, differences=()) for arm in results)
        return EvaluationTable(
            name=name, heading=NOT_RUN, metrics=tuple(metrics), baselines=(), rows=rows
        )
    reference = next(iter(found.values()))[0]
    query_ids = set().union(*reference.per_query.values())
    for arm, seeds in found.items():
        for result in seeds:
            result.require_comparable(
                reference.collection_sha256, query_ids, set(metrics), f"{arm} on {name}"
            )
    averaged = {arm: _seed_average(seeds, metrics[0]) for arm, seeds in found.items()}
    compared = {
        baseline: _differences(averaged, baseline) for baseline in baselines if baseline in found
    }
    rows = tuple(
        ArmRow(
            arm=arm,
            seeds=len(seeds),
            metrics={metric: _spread(seeds, metric) for metric in metrics} if seeds else {},
            differences=tuple(
                differences[arm] for differences in compared.values() if arm in differences
            ),
        )
        for arm, seeds in results.items()
    )
    return EvaluationTable(
        name=name,
        heading=collection_heading(reference),
        metrics=tuple(metrics),
        baselines=tuple(compared),
        rows=rows,
    )


def _seed_average(seeds: Sequence[EvaluationResult], metric: str) -> dict[str, float]:
    """{query_id: mean over the seeds}."""
    return {
        query_id: math.fsum(result.per_query[metric][query_id] for result in seeds) / len(seeds)
        for query_id in seeds[0].per_query[metric]
    }


def _spread(seeds: Sequence[EvaluationResult], metric: str) -> Spread:
    means = [result.metrics[metric] for result in seeds]
    sd = statistics.stdev(means) if len(means) > 1 else None
    return Spread(mean=statistics.fmean(means), sd=sd)


def _differences(averaged: Mapping[str, dict[str, float]], baseline: str) -> dict[str, Difference]:
    """Every other arm against one baseline."""
    base = averaged[baseline]
    others = {arm: values for arm, values in averaged.items() if arm != baseline}
    p_values = {arm: paired_p_value(values, base) for arm, values in others.items()}
    corrected = holm(p_values)
    return {
        arm: Difference(
            baseline=baseline,
            difference=(math.fsum(values.values()) - math.fsum(base.values())) / len(base),
            p=p_values[arm],
            p_holm=corrected[arm],
        )
        for arm, values in others.items()
    }


def report_text(report: Report) -> str:
    """The report for a terminal or a log."""
    parts = []
    for table in report.tables:
        rows = _cells(table)
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(_padded(row, widths)).rstrip() for row in rows]
        lines.insert(1, "-" * max(map(len, lines)))
        parts.append("\n".join([f"{table.name}: {table.heading}", "", *lines]))
    return "\n\n".join([*parts, "\n".join(_notes(report))]) + "\n"


def report_markdown(report: Report) -> str:
    """The report in Markdown."""
    parts = []
    for table in report.tables:
        header, *rows = _cells(table)
        rule = ["---", *["---:"] * (len(header) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]
        parts.append("\n".join([f"**{table.name}**: {table.heading}", "", *lines]))
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in _notes(report))]) + "\n"


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]


def _cells(table: EvaluationTable) -> list[list[str]]:
    """Header and rows as text."""
    header = ["arm", "seeds", *table.metrics]
    for baseline in table.baselines:
        header += [f"vs {baseline}", "p", "p Holm"]
    rows = [header]
    for row in table.rows:
        if not row.seeds:
            rows.append([row.arm, "0", NOT_RUN, *[""] * (len(header) - 3)])
            continue
        cells = [row.arm, str(row.seeds), *(_shown(row.metrics[name]) for name in table.metrics)]
        differences = {difference.baseline: difference for difference in row.differences}
        for baseline in table.baselines:
            cells += _compared(differences[baseline]) if baseline in differences else [""] * 3
        rows.append(cells)
    return rows


def _shown(spread: Spread) -> str:
    return f"{spread.mean:.4f}" + ("" if spread.sd is None else f" ± {spread.sd:.4f}")


def _compared(difference: Difference) -> list[str]:
    shown = [f"{difference.difference:+.4f}"]
    return shown + ["<.0001" if p < 1e-4 else f"{p:.4f}" for p in (difference.p, difference.p_holm)]


def _notes(report: Report) -> list[str]:
    notes = [
        "mean ± standard deviation over the seeds; nDCG has linear gain (trec_eval)",
        f"differences and p-values: {report.metric}; two-sided paired randomisation test over the "
        "queries, values averaged over the seeds that were run; p Holm is corrected for the number "
        "of arms in the table, for each baseline and collection by itself (Holm 1979)",
    ]
    notes += [
        f"{tuned.arm}: {' '.join(tuned.overrides)} (best of {tuned.candidates} on the validation "
        f"queries, {report.metric} {tuned.validation:.4f})"
        for tuned in report.tuned
    ]
    return notes + [f"{NOT_RUN}: {what}: {why}" for what, why in report.not_run.items()]
