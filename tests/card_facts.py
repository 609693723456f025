"""A configuration and an evaluation as a model card states them."""

from pathlib import Path
from typing import Any

from synrank_jax.config import Config, EvaluationConfig
from synrank_jax.contract import EncodingContract
from synrank_jax.retrieval.result import EvaluationResult


def training_config(source: Path, **encoding: Any) -> Config:
    """Seven steps on the bundled lists, from the encoder in `source`."""
    return Config.model_validate(
        {
            "model": {"path": str(source)},
            "encoding": encoding,
            "data": {"sources": [{"path": "bundled:cranfield-synthetic"}], "prepared": "prepared"},
            "loss": {"wasserstein": 1.0},
            "train": {"output": "run", "steps": 7},
        }
    )


def evaluated(
    contract: EncodingContract, label: str = "tiny", model: str = "tiny"
) -> EvaluationResult:
    """An evaluation of one query on Cranfield."""
    return EvaluationResult(
        label=label,
        model=model,
        backend="jax",
        contract=contract,
        evaluation=EvaluationConfig(path="bundled:cranfield"),
        documents=2,
        empty_documents=0,
        queries=1,
        excluded_pairs=0,
        collection_sha256="0",
        metrics={"nDCG@10": 0.31591},
        per_query={"nDCG@10": {"1": 0.31591}},
        versions={},
    )
