"""Evaluating a corpus takes memory that hardly depends on its size."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_words import WORDS

from synrank_jax.config import Config, EvaluationConfig
from synrank_jax.config_file import to_yaml

DOCUMENTS, BASELINE = 1_000_000, 1_000
QUERIES = 1_000
DIMENSION = 384
LIMIT_MB = 1_000


@pytest.fixture(scope="module")
def wide_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer as wide as MiniLM's, with the tiny model's vocabulary."""
    import shutil

    import torch
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wide") / "model"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((tiny_model / "config.json").read_text())
    config = transformers.BertConfig(
        vocab_size=settings["vocab_size"],
        hidden_size=DIMENSION,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def write_collection(folder: Path, documents: int) -> Path:
    rng = random.Random(0)
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as file:
        for number in range(documents):
            text = " ".join(rng.choices(WORDS, k=rng.randint(2, 8)))
            file.write(f'{{"_id": "d{number}", "text": "{text}"}}\n')
    with (folder / "queries.jsonl").open("w") as file:
        for number in range(QUERIES):
            file.write(f'{{"_id": "q{number}", "text": "{" ".join(rng.choices(WORDS, k=3))}"}}\n')
    lines = [f"q{number}\td{rng.randrange(documents)}\t1" for number in range(QUERIES)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    return folder


def peak_mb(config: Config, model: Path, folder: Path, documents: int) -> float:
    """Largest anonymous memory of the command, in MB, sampled every 20 ms."""
    collection = write_collection(folder / "collection", documents)
    changes = {
        "model": config.model.model_copy(update={"path": str(model)}),
        "evaluation": EvaluationConfig(path=str(collection), top_k=100),
    }
    (folder / "config.yaml").write_text(to_yaml(config.model_copy(update=changes)))
    with subprocess.Popen(
        [sys.executable, "-m", "synrank_jax.evaluate", "--config", "config.yaml"],
        cwd=folder,
        env={**os.environ, "XLA_FLAGS": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        peak = 0.0
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if "RssAnon:" in status:
                peak = max(peak, int(status.split("RssAnon:")[1].split()[0]) / 1e3)
            time.sleep(0.02)
    assert process.returncode == 0
    assert next(folder.glob("runs/evaluate/*/metrics.json")).is_file()
    return peak


@pytest.mark.slow
def test_a_million_documents_take_less_than_a_gigabyte_more_than_a_thousand(
    tiny_config: Config, wide_model: Path, tmp_path: Path
) -> None:
    few = peak_mb(tiny_config, wide_model, tmp_path / "few", BASELINE)
    many = peak_mb(tiny_config, wide_model, tmp_path / "many", DOCUMENTS)
    print(f"{few:.0f} MB with {BASELINE:,} documents, {many:.0f} MB with {DOCUMENTS:,}")
    assert many - few < LIMIT_MB
