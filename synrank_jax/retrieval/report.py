"""Evaluation results as a table that reads well in a terminal and in a log."""

from collections.abc import Sequence

from synrank_jax.retrieval.result import EvaluationResult
from synrank_jax.retrieval.significance import paired_p_value

_MEAN, _DIFFERENCE, _P = 6, 9, 9
_GAP = "  "


def comparison_table(results: Sequence[tuple[str, EvaluationResult]]) -> str:
    """Fixed-width table: per measure the mean and, against the first row, difference and p-value.

    Args:
        results: (label, result), the baseline first; all on the same collection.

    Raises:
        UserError: two of them were not scored on the same queries, documents and judgements.
    """
    (baseline_label, baseline), *others = results
    measures = list(baseline.metrics)
    query_ids = set().union(*baseline.per_query.values())
    for label, result in others:
        result.require_comparable(baseline.collection_sha256, query_ids, set(measures), name=label)
    columns = f"{'mean':>{_MEAN}}" + (f"{'diff':>{_DIFFERENCE}}{'p':>{_P}}" if others else "")
    group = max(len(columns), *map(len, measures))
    centred = "^" if others else ">"
    rows = [("", "", [f"{name:{centred}{group}}" for name in measures])]
    rows += [("model", "tokens", [columns] * len(measures))]
    for label, result in results:
        cells = [_cell(result, baseline, name).ljust(len(columns)) for name in measures]
        rows.append((label, _lengths(result), cells))
    lines = _aligned(rows, group)
    lines.insert(2, "-" * max(map(len, lines)))
    notes = ["tokens: most of a query / a passage; nDCG has linear gain (trec_eval)"]
    if others:
        notes += [
            f"diff, p: against {baseline_label}; p from a two-sided paired randomisation test over "
            "the queries,",
            "not corrected for the number of comparisons",
        ]
    return "\n".join([collection_heading(baseline), "", *lines, "", *notes])


def _aligned(rows: Sequence[tuple[str, str, list[str]]], group: int) -> list[str]:
    label_width = max(len(label) for label, _, _ in rows)
    length_width = max(len(length) for _, length, _ in rows)
    return [
        _GAP.join(
            [
                f"{label:<{label_width}}",
                f"{length:>{length_width}}",
                *(f"{c:>{group}}" for c in cells),
            ]
        ).rstrip()
        for label, length, cells in rows
    ]


def _cell(result: EvaluationResult, baseline: EvaluationResult, name: str) -> str:
    mean = result.metrics[name]
    if result is baseline:
        return f"{mean:{_MEAN}.4f}"
    p = paired_p_value(result.per_query[name], baseline.per_query[name])
    shown = "<0.0001" if p < 0.0001 else f"{p:.4f}"
    return f"{mean:{_MEAN}.4f}{mean - baseline.metrics[name]:+{_DIFFERENCE}.4f}{shown:>{_P}}"


def _lengths(result: EvaluationResult) -> str:
    return f"{result.contract.query_length}/{result.contract.passage_length}"


def collection_heading(result: EvaluationResult) -> str:
    """One line: collection, split, and how much of it was scored."""
    evaluation = result.evaluation
    subset = f" (only {evaluation.queries})" if evaluation.queries else ""
    excluded = f", {result.excluded_pairs:,} pairs excluded" if result.excluded_pairs else ""
    if evaluation.exclude_self_match:
        excluded += ", self-matches excluded"
    return (
        f"{evaluation.path}, split {evaluation.split}{subset}: "
        f"{result.queries:,} queries, {result.documents:,} documents{excluded}"
    )
