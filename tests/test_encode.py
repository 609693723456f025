"""Documents to files of embeddings: the command, its parts, and what a kill leaves."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_words import WORDS

from synrank_jax import encode, evaluate
from synrank_jax.config import Config, EvaluationConfig
from synrank_jax.config_file import to_yaml
from synrank_jax.encoders import load_encoder
from synrank_jax.errors import UserError
from synrank_jax.evaluation import open_store, read_documents
from synrank_jax.retrieval import embeddings

DOCUMENTS = 50
KILLS = 10
# Two programs, padded to other lengths: float32 sums in another order, on unit vectors.
BATCHING = 1e-6


def write_collection(folder: Path, documents: int) -> Path:
    """Documents of 1 to 20 words and two judged queries."""
    rng = random.Random(0)
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as file:
        for number in range(documents):
            text = " ".join(rng.choices(WORDS, k=rng.randint(1, 20)))
            file.write(json.dumps({"_id": f"d{number}", "text": text}) + "\n")
    queries = [{"_id": f"q{number}", "text": WORDS[number]} for number in range(2)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td3\t1\nq1\td4\t2\n")
    return folder


def config_file(tiny_config: Config, folder: Path, documents: int) -> Path:
    collection = write_collection(folder / "collection", documents)
    evaluation = EvaluationConfig(path=str(collection), batch_size=4)
    path = folder / "config.yaml"
    path.write_text(to_yaml(tiny_config.model_copy(update={"evaluation": evaluation})))
    return path


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "SHARD_ROWS", 8)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*")}


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_parts_write_the_files_of_a_whole_run(
    tiny_config: Config, tmp_path: Path, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--config", str(config_file(tiny_config, tmp_path, DOCUMENTS)), "--backend", backend]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    encode.main([*base, "--embeddings", str(whole)])
    assert "all files there" in capsys.readouterr().out
    encode.main([*base, "--embeddings", str(parts), "--part", "2/3"])
    assert "5 of 7 files are still missing" in capsys.readouterr().out
    assert sorted(path.name for path in parts.glob("*.npy")) == ["00001.npy", "00004.npy"]
    for part in ("1/3", "3/3"):
        encode.main([*base, "--embeddings", str(parts), "--part", part])
    assert files(parts) == files(whole)


@pytest.mark.usefixtures("small_files")
def test_rows_are_the_documents_in_order_whatever_the_devices(
    tiny_config: Config, tmp_path: Path
) -> None:
    path = config_file(tiny_config, tmp_path, DOCUMENTS)
    evaluation = EvaluationConfig(path=str(tmp_path / "collection"), batch_size=4)
    documents = read_documents(evaluation)
    stored = {}
    for backend in ("jax", "torch"):  # eight virtual devices, and one
        folder = tmp_path / backend
        encode.main(["--config", str(path), "--backend", backend, "--embeddings", str(folder)])
        encoder, name = load_encoder(None, backend, tiny_config, 4)
        store = open_store(encoder, name, documents, evaluation, folder)
        stored[backend] = np.concatenate(list(store.blocks(100)))
    one = np.concatenate([encoder.encode([text], "passage") for text in documents.texts(0, 50)])
    np.testing.assert_allclose(stored["torch"], one, rtol=0, atol=BATCHING)
    np.testing.assert_allclose(stored["jax"], one, rtol=0, atol=BATCHING)


def test_evaluate_takes_what_encode_left_and_refuses_embeddings_of_another_model(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--config", str(config_file(tiny_config, tmp_path, DOCUMENTS))]
    shared = ["--embeddings", str(tmp_path / "shared")]
    encode.main([*base, *shared, "--backend", "torch"])
    evaluate.main([*base, *shared, "--output", str(tmp_path / "out")])
    assert f"{DOCUMENTS} documents were encoded before" in capsys.readouterr().out
    timings = json.loads((tmp_path / "out" / "metrics.json").read_text())["timings"]
    assert timings["documents_encoded"] == 0
    assert timings["texts"] == 2  # the queries
    with pytest.raises(UserError, match=r"passage_length: 32 there, 31 now"):
        evaluate.main([*base, *shared, "--set", "encoding.passage_length=31"])
    with pytest.raises(UserError, match=r"pooling: 'mean' there, 'cls' now"):
        evaluate.main([*base, *shared, "--set", "encoding.pooling=cls"])


def test_changed_documents_are_encoded_again(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--config", str(config_file(tiny_config, tmp_path, DOCUMENTS))]
    encode.main(base)
    encode.main(base)
    assert "encoded before" in capsys.readouterr().out
    corpus = tmp_path / "collection" / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace(WORDS[0], WORDS[1], 1))
    encode.main(base)
    assert "encoded before" not in capsys.readouterr().out


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_part_that_there_is_not_is_refused(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        encode.main(["--config", "any.yaml", "--part", part])
    assert "give I/N, for example 1/4 to 4/4" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_killed_at_ten_moments_the_files_are_those_of_an_undisturbed_run(
    tiny_config: Config, tmp_path: Path, backend: str
) -> None:
    """SIGKILL while encoding, again and again; every restart goes on, and bytes are equal."""
    path = config_file(tiny_config, tmp_path, 160_000)
    command = [
        *(sys.executable, "-m", "synrank_jax.encode", "--config", str(path)),
        *("--backend", backend, "--set", "evaluation.batch_size=64", "--embeddings"),
    ]
    environment = {**os.environ, "XLA_FLAGS": "", "XDG_CACHE_HOME": str(tmp_path / "xdg")}

    def start(folder: Path) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [*command, str(folder)],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    count = len(list(whole.glob("*.npy")))
    assert count == 40
    rng, kills = random.Random(0), 0
    for kill in range(KILLS):
        process = start(killed)
        # A moment at random while the next three or four files are written.
        target = len(list(killed.glob("*.npy"))) + 3
        while process.poll() is None and len(list(killed.glob("*.npy"))) < target:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(list(killed.glob("*.npy"))) < count, kill
    assert kills == KILLS
    assert start(killed).wait() == 0
    for path in killed.glob(".*.tmp"):  # what a kill in the middle of a write left
        path.unlink()
    assert files(killed) == files(whole)
