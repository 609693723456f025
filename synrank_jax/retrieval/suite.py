"""What one model scored on a suite: the content of suite.json, its averages and its table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import pydantic

from synrank_jax.config_section import Section
from synrank_jax.config_suite import SuiteConfig
from synrank_jax.errors import UserError
from synrank_jax.files import write_text
from synrank_jax.retrieval.result import EvaluationResult
from synrank_jax.retrieval.significance import holm, paired_p_value
from synrank_jax.retrieval.summary import aligned, p_shown


class CollectionScores(Section):
    """The figures of one collection, and how they came about."""

    name: str
    source: str
    """Where its files come from: a folder, or a hub dataset at a commit."""
    split: str
    queries: int
    """Queries scored: those with judgements."""
    unjudged_queries: int
    """Queries of the collection without judgements in this split; not scored."""
    documents: int
    exclude_self_match: bool
    excluded_pairs: int
    query_prompt: str
    passage_prompt: str
    metrics: dict[str, float]
    """{measure: mean over the queries}."""
    result: str
    """Its metrics.json, relative to suite.json."""


class Average(Section):
    """The mean over a suite's collections, groups counted as one each."""

    metrics: dict[str, float]
    over: tuple[str, ...]
    """Collections and groups that entered."""
    missing: tuple[str, ...]
    """Those that should have entered."""

    def label(self) -> str:
        """The average's name; it never claims more collections than it has."""
        if not self.missing:
            return f"mean over {len(self.over)}"
        wanted = len(self.over) + len(self.missing)
        return f"mean over {len(self.over)} of {wanted} (missing: {', '.join(self.missing)})"


class Comparison(Section):
    """One collection against a baseline, on the collection's first measure."""

    measure: str
    mean: float
    baseline: float
    p: float
    """Of the two-sided paired randomisation test."""
    p_holm: float
    """Corrected for the number of collections, by Holm."""


class Comparisons(Section):
    """All collections that a baseline has as well."""

    baseline: str
    collections: dict[str, Comparison]


class SuiteResult(Section):
    """One model on one suite."""

    suite: str
    note: str
    label: str
    model: str
    backend: Literal["jax", "torch"]
    weights_sha256: str
    collections: tuple[CollectionScores, ...]
    groups: dict[str, dict[str, float]]
    """Means over the collections of each group that is whole."""
    average: Average | None
    """None where no collection counts in it."""
    missing: dict[str, str]
    """Collections that were skipped, and why."""
    comparisons: tuple[Comparisons, ...] = ()

    def write(self, path: Path) -> None:
        """Write as JSON; `path` is never seen half-written."""
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            UserError: the file is missing or holds something else.
        """
        try:
            return cls.model_validate_json(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, pydantic.ValidationError) as error:
            raise UserError(f"{path}: not a suite.json of evaluate --suite ({error})") from error


def averages(
    suite: SuiteConfig, metrics: Mapping[str, Mapping[str, float]]
) -> tuple[dict[str, dict[str, float]], Average | None]:
    """Means of the groups that are whole, and the mean over collections and groups.

    A group with a missing collection has no mean and counts as missing.

    Args:
        suite: says what counts as what.
        metrics: {collection: {measure: mean}} of those that were evaluated.
    """
    by_group: dict[str, list[str]] = {}
    for collection in suite.collections:
        if collection.group:
            by_group.setdefault(collection.group, []).append(collection.name)
    groups = {
        group: _mean([metrics[name] for name in names])
        for group, names in by_group.items()
        if all(name in metrics for name in names)
    }
    found: dict[str, Mapping[str, float]] = {}
    missing = []
    for unit, members in suite.units().items():
        if unit in groups or unit in metrics:
            found[unit] = groups[unit] if unit in groups else metrics[unit]
        elif unit in by_group:
            there = sum(member.name in metrics for member in members)
            missing.append(f"{unit} with {there} of {len(members)}")
        else:
            missing.append(unit)
    if not found:
        return groups, None
    mean = _mean(list(found.values()))
    return groups, Average(metrics=mean, over=tuple(found), missing=tuple(missing))


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every measure that all rows have."""
    shared = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in shared}


def compare(
    label: str,
    results: Mapping[str, EvaluationResult],
    baselines: Mapping[str, EvaluationResult],
) -> Comparisons:
    """Paired test of each collection that both have; Holm's correction over them.

    Args:
        label: of the baseline.
        results: by collection.
        baselines: the other side's, by collection; comparable to them.
    """
    both = [name for name in results if name in baselines]
    measures = {name: results[name].evaluation.metrics[0] for name in both}
    p_values = {
        name: paired_p_value(results[name].per_query[measure], baselines[name].per_query[measure])
        for name, measure in measures.items()
    }
    corrected = holm(p_values)
    rows = {
        name: Comparison(
            measure=measure,
            mean=results[name].metrics[measure],
            baseline=baselines[name].metrics[measure],
            p=p_values[name],
            p_holm=corrected[name],
        )
        for name, measure in measures.items()
    }
    return Comparisons(baseline=label, collections=rows)


def suite_table(suite: SuiteConfig, result: SuiteResult) -> str:
    """Fixed-width text: a row per collection, means of the groups, the average, what is missing."""
    measures = list(dict.fromkeys(name for row in result.collections for name in row.metrics))
    rows = [["collection", "split", "queries", "documents", *measures]]
    groups = {entry.name: entry.group for entry in suite.collections}
    left = dict(result.groups)
    for number, scores in enumerate(result.collections):
        name = scores.name + ("*" if scores.exclude_self_match else "")
        counts = [f"{scores.queries:,}", f"{scores.documents:,}"]
        rows.append([name, scores.split, *counts, *_figures(scores.metrics, measures)])
        group = groups[scores.name]
        rest = [groups[later.name] for later in result.collections[number + 1 :]]
        if group in left and group not in rest:
            means = left.pop(group)
            count = list(groups.values()).count(group)
            rows.append([f"{group}, mean of {count}", "", "", "", *_figures(means, measures)])
    average = result.average
    if average is not None:
        rows.append(["average", "", "", "", *_figures(average.metrics, measures)])
    lines = aligned(rows)
    lines.insert(1, "-" * max(map(len, lines)))
    notes = [f"average: {average.label()}"] if average else []
    if any(scores.exclude_self_match for scores in result.collections):
        notes.append("*: a document with the query's id is dropped from its ranking")
    notes += [f"missing: {name}: {reason}" for name, reason in result.missing.items()]
    heading = f"{result.label} on {result.suite}; nDCG has linear gain (trec_eval)"
    tables = [_comparison_table(comparisons) for comparisons in result.comparisons]
    return "\n\n".join(["\n".join([heading, "", *lines, "", *notes]), *tables])


def _comparison_table(comparisons: Comparisons) -> str:
    rows = [["collection", "measure", "mean", comparisons.baseline, "diff", "p", "p (Holm)"]]
    for name, row in comparisons.collections.items():
        figures = [f"{row.mean:.4f}", f"{row.baseline:.4f}", f"{row.mean - row.baseline:+.4f}"]
        rows.append([name, row.measure, *figures, p_shown(row.p), p_shown(row.p_holm)])
    lines = aligned(rows)
    lines.insert(1, "-" * max(map(len, lines)))
    notes = ["p: two-sided paired randomisation test over the queries", "Holm: over collections"]
    return "\n".join([*lines, "", "; ".join(notes)])


def _figures(metrics: Mapping[str, float], measures: Sequence[str]) -> list[str]:
    return [f"{metrics[name]:.4f}" if name in metrics else "" for name in measures]
