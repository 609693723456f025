"""Our metrics print what NIST's trec_eval printed on its own test inputs."""

from pathlib import Path

import pytest

from synrank_jax.retrieval.files import read_run
from synrank_jax.retrieval.metrics import means, per_query

ORACLE = Path(__file__).parents[1] / "oracles" / "trec_eval"
NAMES = {"map": "AP", "recip_rank": "RR", "P": "P", "recall": "R", "ndcg_cut": "nDCG"}

# file of expected values, run, judgements, lowest grade that counts as relevant (trec_eval's -l)
CASES = [
    ("out.test", "results.test", "qrels.test", 1),
    ("out.test.a", "results.test", "qrels.test", 1),
    ("out.test.aq", "results.test", "qrels.test", 1),
    ("out.test.aqc", "results.trunc", "qrels.test", 1),
    ("out.test.aql", "results.test", "qrels.rel_level", 2),
]


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for line in path.read_text().splitlines():
        query_id, _, doc_id, grade = line.split()
        qrels.setdefault(query_id, {})[doc_id] = int(grade)
    return qrels


def measure_name(name: str, level: int) -> str | None:
    """`recall_5` at level 2 -> `R(rel=2)@5`; None for a measure we make no claim about."""
    stem, _, cutoff = name.rpartition("_") if name[-1].isdigit() else (name, "", "")
    if stem not in NAMES:
        return None
    # nDCG takes every grade as its gain; trec_eval's level does not enter it.
    relevance = "" if level == 1 or stem == "ndcg_cut" else f"(rel={level})"
    return NAMES[stem] + relevance + (f"@{cutoff}" if cutoff else "")


def expected_values(path: Path, level: int) -> dict[tuple[str, str], str]:
    """(our measure, query id or `all`) -> the printed number."""
    expected = {}
    for line in path.read_text().splitlines():
        name, query_id, value = line.split()
        if measure := measure_name(name, level):
            expected[measure, query_id] = value
    return expected


@pytest.mark.parametrize(("output", "run", "judgements", "level"), CASES)
def test_metrics_are_those_trec_eval_prints(
    output: str, run: str, judgements: str, level: int
) -> None:
    expected = expected_values(ORACLE / output, level)
    measures = sorted({measure for measure, _ in expected})
    values = per_query(read_run(ORACLE / run), read_qrels(ORACLE / judgements), measures)
    averages = means(values)
    printed = {
        (measure, query_id): averages[measure] if query_id == "all" else values[measure][query_id]
        for measure, query_id in expected
    }
    # trec_eval prints four decimals: the strings must be equal, there is no tolerance.
    assert {key: f"{value:.4f}" for key, value in printed.items()} == expected


def test_the_oracle_covers_the_measures_and_queries_we_claim() -> None:
    covered = expected_values(ORACLE / "out.test.aqc", level=1)
    assert {measure.partition("@")[0] for measure, _ in covered} == set(NAMES.values())
    assert {query_id for _, query_id in covered} == {"301", "302", "303", "all"}
    assert covered["AP", "302"] == "0.0000"  # judged, but absent from the run
