"""Retrieval metrics per query, by ir_measures.

nDCG is trec_eval's (through pytrec_eval): linear gain, the grade itself and not 2^grade - 1,
discounted by log2(rank + 1). Other numbers in the literature use the exponential gain.
"""

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from synrank_jax.errors import UserError
from synrank_jax.retrieval.files import Qrels, Run, ranked

PerQuery = dict[str, dict[str, float]]
"""{measure: {query_id: value}}."""
_QUERIES_AT_ONCE = 256


def parse_measures(names: Sequence[str], field: str = "evaluation.metrics") -> dict[str, Any]:
    """The ir_measures objects of names such as `nDCG@10`, `R@100`, `AP(rel=2)`.

    Raises:
        UserError: ir_measures is missing or does not know a name or a parameter.
    """
    try:
        import ir_measures
    except ImportError as error:
        raise UserError(
            f"metrics need ir_measures ({error}); "
            "install the extra: pip install 'synrank-jax[eval]'"
        ) from error
    measures = {}
    for name in names:
        try:
            with warnings.catch_warnings():
                # ir_measures 0.4.3 parses with ast.Num and ast.Str, deprecated since Python 3.12.
                warnings.filterwarnings("ignore", r"ast\.", DeprecationWarning)
                measure = ir_measures.parse_measure(name)
            _require_computable(measure)
        except (AssertionError, KeyError, NameError, TypeError, ValueError) as error:
            raise UserError(
                f"{field}: {name!r} is not a measure that ir_measures can compute here; "
                "write for example nDCG@10, R@100, AP, RR, P@5 or AP(rel=2)"
            ) from error
        measures[name] = measure
    return measures


def _require_computable(measure: Any) -> None:
    import ir_measures

    measure.validate_params()
    # In-process providers only: the others start a Perl script or need ids to be numbers.
    providers = (ir_measures.pytrec_eval, ir_measures.msmarco, ir_measures.judged)
    if not any(provider.supports(measure) for provider in providers):
        raise ValueError("no provider")
    # pytrec_eval aborts the whole process on cutoff 0.
    if "cutoff" in measure.params and measure.params["cutoff"] < 1:
        raise ValueError("cutoff below 1")


def per_query(run: Run, qrels: Qrels, measures: Sequence[str]) -> PerQuery:
    """Every measure of every judged query.

    A judged query for which `run` has nothing scores 0, as under trec_eval's -c; a query of `run`
    without judgements does not appear. Documents with equal scores are ranked as trec_eval ranks
    them, for every measure (see `ranked`).

    Args:
        run: {query_id: {doc_id: score}}.
        qrels: {query_id: {doc_id: grade}}.
        measures: names in ir_measures' notation.

    Raises:
        UserError: no query has judgements, or an unknown measure.
    """
    import ir_measures

    parsed = parse_measures(measures)
    judged = {query_id: grades for query_id, grades in qrels.items() if grades}
    if not judged:
        raise UserError("metrics: no query has judgements, so there is nothing to average")
    judged_run = {query_id: run[query_id] for query_id in judged if run.get(query_id)}
    values: PerQuery = {name: dict.fromkeys(judged, 0.0) for name in parsed}
    by_trec_eval = {m for m in parsed.values() if ir_measures.pytrec_eval.supports(m)}
    if by_trec_eval:
        _collect(values, parsed, ir_measures.iter_calc(by_trec_eval, judged, judged_run))
    if others := set(parsed.values()) - by_trec_eval:
        # RR@k and Judged@k have other rules for ties; scores without ties leave them no choice.
        query_ids = iter(judged_run)
        while some := list(itertools.islice(query_ids, _QUERIES_AT_ONCE)):
            without_ties = {
                query_id: {d: -float(rank) for rank, d in enumerate(ranked(judged_run[query_id]))}
                for query_id in some
            }
            qrels_of_some = {query_id: judged[query_id] for query_id in some}
            _collect(values, parsed, ir_measures.iter_calc(others, qrels_of_some, without_ties))
    return values


def _collect(values: PerQuery, parsed: Mapping[str, Any], metrics: Iterable[Any]) -> None:
    for metric in metrics:
        for name, measure in parsed.items():
            if measure == metric.measure:
                values[name][metric.query_id] = float(metric.value)


def means(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean over the queries of each measure."""
    return {name: math.fsum(column.values()) / len(column) for name, column in values.items()}
