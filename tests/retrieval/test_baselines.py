import logging
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from synrank_jax.config import EvaluationConfig
from synrank_jax.data import beir
from synrank_jax.errors import UserError
from synrank_jax.hub import collection_folder
from synrank_jax.retrieval.baselines import Baseline, read_baselines
from synrank_jax.retrieval.metrics import means

# The reference points are given to three digits, and other tokenisers differ a little.
BM25_TOLERANCE = 0.01


class Documents:
    def __init__(self, texts: dict[str, str]) -> None:
        self.ids = list(texts)
        self._texts = texts

    def __len__(self) -> int:
        return len(self.ids)

    def texts(self, start: int, stop: int) -> list[str]:
        return list(self._texts.values())[start:stop]

    def unknown(self, ids: Sequence[str]) -> list[str]:
        return [doc_id for doc_id in ids if doc_id not in self._texts]


@dataclass(frozen=True)
class Collection:
    documents: Documents
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    excluded: Set[tuple[str, str]] = field(default_factory=frozenset)
    sha256: str = "c" * 64


SMALL = Collection(
    documents=Documents({"a": "wing flutter", "b": "heat", "c": "wing", "q1": "wing flutter wing"}),
    queries={"q1": "wing flutter", "q2": "heat of the wing"},
    qrels={"q1": {"a": 1}, "q2": {"b": 2, "c": 1}},
)


def evaluation(**changes: Any) -> EvaluationConfig:
    return EvaluationConfig(path="small", **{"metrics": ("RR", "Judged@2"), **changes})


def of_run(tmp_path: Path, lines: str, collection: Collection = SMALL, **changes: Any) -> Baseline:
    file = tmp_path / "others" / "run.trec"
    file.parent.mkdir(exist_ok=True)
    file.write_text(lines)
    (found,) = read_baselines([], [str(file)], False, collection, evaluation(**changes), "model")
    return found


def test_run_file_is_scored_on_the_queries_of_the_collection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = of_run(tmp_path, "q1 Q0 b 1 9 t\nq1 Q0 a 2 8 t\nq9 Q0 zzz 1 1 t\n")
    assert found.label == "others/run"
    assert found.per_query == {"RR": {"q1": 0.5, "q2": 0.0}, "Judged@2": {"q1": 0.5, "q2": 0.0}}
    assert found.run == {"q1": {"b": 9, "a": 8}}
    assert "1 of 2 queries are missing and score 0 (for example q2)" in caplog.text


def test_equal_scores_are_ranked_as_trec_eval_does_whatever_the_file_says(tmp_path: Path) -> None:
    found = of_run(tmp_path, "q1 Q0 a 1 5 t\nq1 Q0 b 2 5 t\nq1 Q0 c 3 5 t\nq2 Q0 b 1 1 t\n")
    assert found.per_query["RR"] == {"q1": 1 / 3, "q2": 1.0}
    assert found.per_query["Judged@2"]["q1"] == 0.0


def test_run_file_loses_what_the_model_may_not_find_and_is_cut_at_its_depth(tmp_path: Path) -> None:
    collection = Collection(
        SMALL.documents, SMALL.queries, SMALL.qrels, excluded=frozenset({("q1", "b")})
    )
    lines = "q1 Q0 q1 1 9 t\nq1 Q0 b 1 8 t\nq1 Q0 c 1 7 t\nq1 Q0 a 1 6 t\nq2 Q0 b 1 1 t\n"
    found = of_run(tmp_path, lines, collection, exclude_self_match=True, top_k=1)
    assert found.run == {"q1": {"c": 7}, "q2": {"b": 1}}
    assert found.per_query["RR"] == {"q1": 0.0, "q2": 1.0}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("q7 Q0 a 1 9 t\n", "run.trec: has none of the 2 scored queries"),
        ("q1 Q0 x 1 9 t\nq1 Q0 a 2 8 t\n", "run.trec: ranks 1 documents .* example x"),
        ("q1 Q0 a 1 9 t\nq1 Q0 a 2 8 t\n", "run.trec:2: document 'a' twice"),
        ("q1 Q0 a 1 9\n", "run.trec:1: expected qid Q0 docid"),
    ],
    ids=["queries", "documents", "duplicate", "fields"],
)
def test_run_of_something_else_is_refused(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        of_run(tmp_path, lines)


def test_missing_run_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.trec: not a TREC run file"):
        read_baselines([], [str(tmp_path / "none.trec")], False, SMALL, evaluation(), "model")


def test_bm25_ranks_by_words_and_keeps_to_the_rules_of_the_collection() -> None:
    collection = Collection(
        SMALL.documents, SMALL.queries, SMALL.qrels, excluded=frozenset({("q2", "c")})
    )
    (found,) = read_baselines(
        [], [], True, collection, evaluation(exclude_self_match=True, top_k=2), "model"
    )
    assert found.run is not None
    assert {query_id: list(scores) for query_id, scores in found.run.items()} == {
        "q1": ["a", "c"],  # q1, the best, is the query's own
        "q2": ["b", "q1"],
    }
    assert found.per_query["RR"] == {"q1": 1.0, "q2": 1.0}


def test_every_baseline_has_a_label_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    files = []
    for number in range(2):
        files.append(tmp_path / str(number) / "same" / "run.trec")
        files[-1].parent.mkdir(parents=True)
        files[-1].write_text("q1 Q0 a 1 9 t\n")
    found = read_baselines([], list(map(str, files)), True, SMALL, evaluation(), "BM25")
    assert [baseline.label for baseline in found] == ["same/run", "same/run (2)", "BM25 (2)"]


def bm25_ndcg(folder: Path, splits: tuple[str, ...]) -> tuple[int, float]:
    qrels = {q: grades for split in splits for q, grades in beir.read_qrels(folder, split).items()}
    texts = beir.read_queries(folder)
    collection = Collection(
        Documents(beir.read_corpus(folder)),
        {query_id: texts[query_id] for query_id in qrels},
        qrels,
    )
    (found,) = read_baselines([], [], True, collection, evaluation(metrics=("nDCG@10",)), "model")
    return len(qrels), means(found.per_query)["nDCG@10"]


def test_bm25_on_cranfield_is_the_reference_figure() -> None:
    folder = collection_folder("bundled:cranfield", "evaluation.path")
    queries, ndcg = bm25_ndcg(folder, ("train", "test"))
    assert queries == 225
    assert ndcg == pytest.approx(0.343, abs=BM25_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("nfcorpus", 0.318), ("scifact", 0.676)])
def test_bm25_is_the_reference_figure(shared_data: Path, name: str, expected: float) -> None:
    assert bm25_ndcg(shared_data / name, ("test",))[1] == pytest.approx(
        expected, abs=BM25_TOLERANCE
    )
