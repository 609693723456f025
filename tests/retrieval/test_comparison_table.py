from pathlib import Path
from typing import Any

import pytest

from synrank_jax.config import EvaluationConfig
from synrank_jax.contract import EncodingContract
from synrank_jax.errors import UserError
from synrank_jax.retrieval.report import comparison_table
from synrank_jax.retrieval.result import EvaluationResult

CONTRACT = EncodingContract(
    pooling="mean",
    normalize=True,
    similarity="cosine",
    query_prompt="",
    passage_prompt="",
    query_length=64,
    passage_length=128,
    tokenizer_sha256="0" * 64,
)


def result(ndcg: dict[str, float], **changes: Any) -> EvaluationResult:
    fields: dict[str, Any] = {
        "label": "model",
        "model": "folder",
        "backend": "torch",
        "contract": CONTRACT,
        "evaluation": EvaluationConfig(path="bundled:cranfield", metrics=("nDCG@10",)),
        "documents": 1400,
        "empty_documents": 2,
        "queries": len(ndcg),
        "excluded_pairs": 3,
        "collection_sha256": "c" * 64,
        "metrics": {"nDCG@10": sum(ndcg.values()) / len(ndcg)},
        "per_query": {"nDCG@10": ndcg},
        "versions": {"numpy": "2"},
    }
    return EvaluationResult(**{**fields, **changes})


# Means .2 and .4; the differences .1 .2 .3 all have one sign: 2 of 8 sign patterns, p = .25.
BASE = result({"a": 0.1, "b": 0.2, "c": 0.3})
BETTER = result({"a": 0.2, "b": 0.4, "c": 0.6})

TWO_ROWS = """\
bundled:cranfield, split test: 3 queries, 1,400 documents, 3 pairs excluded

                           nDCG@10
model      tokens    mean     diff        p
-------------------------------------------
zero-shot  64/128  0.2000
trained    64/128  0.4000  +0.2000   0.2500

tokens: most of a query / a passage; nDCG has linear gain (trec_eval)
diff, p: against zero-shot; p from a two-sided paired randomisation test over the queries,
not corrected for the number of comparisons"""

ONE_ROW = """\
bundled:cranfield, split test: 3 queries, 1,400 documents, 3 pairs excluded

               nDCG@10
model  tokens     mean
----------------------
base   64/128   0.2000

tokens: most of a query / a passage; nDCG has linear gain (trec_eval)"""


def test_later_rows_are_compared_with_the_first() -> None:
    assert comparison_table([("zero-shot", BASE), ("trained", BETTER)]) == TWO_ROWS


def test_one_result_stands_alone() -> None:
    assert comparison_table([("base", BASE)]) == ONE_ROW


def test_tiny_p_is_not_shown_as_zero() -> None:
    low, high = ({f"q{i}": value for i in range(99)} for value in (0.1, 0.2))
    assert "+0.1000  <0.0001" in comparison_table([("low", result(low)), ("high", result(high))])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (result({"a": 0.1, "b": 0.2}), "other: scored on 2 queries, the other on 3, 2 in common"),
        (result({"a": 0.1, "b": 0.2, "c": 0.3}, collection_sha256="d" * 64), "other documents"),
        (result({"a": 0.1}, per_query={"AP": {"a": 0.1}}), "other: has no nDCG@10, only AP"),
    ],
)
def test_incomparable_results_are_refused(other: EvaluationResult, message: str) -> None:
    with pytest.raises(UserError, match=message):
        comparison_table([("zero-shot", BASE), ("other", other)])


def test_result_comes_back_from_json_unchanged(tmp_path: Path) -> None:
    odd = result({"a": 1 / 3, "b": 0.1 + 0.2})
    odd.write(tmp_path / "metrics.json")
    assert EvaluationResult.read(tmp_path / "metrics.json") == odd


@pytest.mark.parametrize("content", [None, "{", '{"label": "x"}'])
def test_file_that_is_no_result_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "metrics.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=r"metrics\.json: not a metrics\.json written by evaluate"):
        EvaluationResult.read(file)
