"""An exported folder runs in mteb as it is, and scores there what `evaluate` says."""

import json
from pathlib import Path
from typing import Any

import pytest

from synrank_jax.config import EncodingConfig, EvaluationConfig
from synrank_jax.contract import contract_of_folder
from synrank_jax.data import beir
from synrank_jax.encoders import named_encoder
from synrank_jax.evaluation import evaluate_collection, read_collection
from synrank_jax.export_folder import write_folder
from synrank_jax.models.dual_encoder import DualEncoder
from synrank_jax.models.numerics import Numerics
from synrank_jax.models.pretrained import load_encoder

mteb = pytest.importorskip("mteb")
# Its models and tasks are written against older versions of what they use.
pytestmark = pytest.mark.filterwarnings("default")
# Both compute in float32 and break ties in their own order.
TOLERANCE = 1e-4


@pytest.fixture
def exported(tiny_model: Path, tmp_path: Path) -> Path:
    """Prompts and lengths differ between the sides, so that mixing them up shows."""
    settings = {
        "pooling": "mean",
        "normalize": True,
        "similarity": "cosine",
        "query_prompt": "wing ",
        "passage_prompt": "flow ",
        "query_length": 5,
        "passage_length": 12,
    }
    contract = contract_of_folder(tiny_model, EncodingConfig.model_validate(settings))
    encoder = load_encoder(tiny_model, Numerics())
    model = DualEncoder(encoder, contract.pooling, contract.normalize, contract.dimension)
    (tmp_path / "exported").mkdir()
    write_folder(model, tiny_model, contract, tmp_path / "exported")
    return tmp_path / "exported"


def local_task(collection: Path, split: str) -> Any:
    """A BEIR folder as a retrieval task of mteb."""
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    def records(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (collection / name).read_text().splitlines()]

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Local",
            description="A collection on this machine.",
            dataset={"path": str(collection), "revision": "1"},
            type="Retrieval",
            category="t2t",
            eval_splits=[split],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, **options: object) -> None:
            self.corpus = {
                split: {
                    row["_id"]: {"title": row["title"], "text": row["text"]}
                    for row in records("corpus.jsonl")
                }
            }
            self.relevant_docs = {split: beir.read_qrels(collection, split)}
            self.queries = {
                split: {
                    row["_id"]: row["text"]
                    for row in records("queries.jsonl")
                    if row["_id"] in self.relevant_docs[split]
                }
            }
            self.data_loaded = True

    return Local()


def test_exported_folder_scores_in_mteb_what_evaluate_says(
    exported: Path, tiny_lists: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    evaluation = EvaluationConfig(path=str(tiny_lists), split="train", metrics=["nDCG@10"])
    ours, _ = evaluate_collection(
        named_encoder(str(exported), 32),
        evaluation,
        read_collection(evaluation),
        label="tiny",
        model="tiny",
        backend="torch",
    )
    model = SentenceTransformer(str(exported), device="cpu", local_files_only=True)
    result = mteb.evaluate(
        model,
        local_task(tiny_lists, "train"),
        cache=mteb.ResultCache(tmp_path / "cache"),
        show_progress_bar=False,
    )
    (scores,) = result.task_results[0].scores["train"]
    assert 0.1 < ours.metrics["nDCG@10"] < 0.9
    assert scores["ndcg_at_10"] == pytest.approx(ours.metrics["nDCG@10"], abs=TOLERANCE)
