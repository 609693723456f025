"""Embeddings of fewer components: who says so, who refuses, and that every program agrees."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from synrank_jax import export
from synrank_jax.card_code import transformers_code
from synrank_jax.config import EncodingConfig, ModelConfig
from synrank_jax.contract import EncodingContract, contract_of_folder
from synrank_jax.encoders import TorchEncoder
from synrank_jax.engine.encoding import load_model, pretrained_encoder
from synrank_jax.errors import UserError
from synrank_jax.export_folder import write_folder
from synrank_jax.folder_settings import declared_encoding

# Two programs that add float32 in different orders, on unit vectors.
PARITY_TOLERANCE = 1e-6
SIZE, KEPT = 32, 12
TEXTS = ["wing lift", "", "drag of a slender wing " * 20]


def encoding(dimension: int | None = KEPT, **values: object) -> EncodingConfig:
    given = {"pooling": "mean", "normalize": True, "similarity": "cosine", **values}
    lengths = {"query_length": 16, "passage_length": 32}
    return EncodingConfig.model_validate({**given, **lengths, "dimension": dimension})


def written(source: Path, contract: EncodingContract, folder: Path) -> Path:
    """The untrained model as `export` writes it."""
    folder.mkdir()
    write_folder(load_model(ModelConfig(path=str(source)), contract), source, contract, folder)
    return folder


@pytest.fixture
def truncated(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with the first components of its unit vectors."""
    return written(tiny_model, contract_of_folder(tiny_model, encoding()), tmp_path / "truncated")


@pytest.mark.parametrize("normalize", [True, False])
def test_sentence_transformers_reads_the_jax_vectors_of_the_folder_unchanged(
    tiny_model: Path, tmp_path: Path, normalize: bool
):
    from sentence_transformers import SentenceTransformer

    contract = contract_of_folder(tiny_model, encoding(normalize=normalize))
    folder = written(tiny_model, contract, tmp_path / "folder")
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    whole = contract_of_folder(tiny_model, encoding(None, normalize=False))
    vectors = pretrained_encoder(ModelConfig(path=str(tiny_model)), whole, 4).encode(TEXTS, "query")
    expected = vectors[:, :KEPT]
    if normalize:
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    got = model.encode_query(TEXTS)
    assert got.shape == (3, KEPT)
    assert model.get_embedding_dimension() == KEPT
    np.testing.assert_allclose(got, expected, rtol=0, atol=PARITY_TOLERANCE)
    ours = pretrained_encoder(ModelConfig(path=str(folder)), contract, 4).encode(TEXTS, "query")
    np.testing.assert_allclose(ours, expected, rtol=0, atol=PARITY_TOLERANCE)


def test_the_cards_code_cuts_with_transformers_alone(truncated: Path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(truncated), device="cpu", local_files_only=True)
    found: dict = {}
    code = transformers_code(EncodingContract.read(truncated), str(truncated))
    exec(code, found)  # our own text, nothing from outside
    expected = model.encode_query(["a question"])
    assert expected.shape == (1, KEPT)
    np.testing.assert_allclose(found["queries"], expected, rtol=0, atol=PARITY_TOLERANCE)


def test_the_cut_is_exact_in_sentence_transformers(tiny_model: Path, tmp_path: Path):
    """The identity module adds zeros only: no bit of a kept component changes."""
    from sentence_transformers import SentenceTransformer

    raw = encoding(None, normalize=False, similarity="dot")
    folders = [
        written(
            tiny_model,
            contract_of_folder(tiny_model, raw.model_copy(update={"dimension": dimension})),
            tmp_path / f"{dimension}",
        )
        for dimension in (None, KEPT)
    ]
    whole, cut = (
        SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode_query(TEXTS)
        for folder in folders
    )
    np.testing.assert_array_equal(cut, whole[:, :KEPT])


@pytest.mark.parametrize("modules", [True, False], ids=["modules", "plain"])
def test_torch_cuts_a_folder_that_was_not_cut(tiny_model: Path, tmp_path: Path, modules: bool):
    folder = tiny_model
    if modules:
        folder = written(
            tiny_model, contract_of_folder(tiny_model, encoding(None)), tmp_path / "whole"
        )
    contract = contract_of_folder(folder, encoding())
    ours = pretrained_encoder(ModelConfig(path=str(folder)), contract, 4).encode(TEXTS, "passage")
    theirs = TorchEncoder(folder, contract, 2).encode(TEXTS, "passage")
    assert theirs.shape == (3, KEPT)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=PARITY_TOLERANCE)


def test_a_cut_folder_hands_its_dimension_on(truncated: Path):
    assert declared_encoding(truncated)["dimension"] == KEPT
    assert contract_of_folder(truncated, encoding(None)).dimension == KEPT
    assert contract_of_folder(truncated, encoding(KEPT - 1)).dimension == KEPT - 1
    with pytest.raises(UserError, match=f"encoding.dimension: {KEPT + 1} components, but .* only"):
        contract_of_folder(truncated, encoding(KEPT + 1))


@pytest.mark.parametrize("dimension", [SIZE, SIZE + 1])
def test_as_many_components_as_there_are_is_no_cut(tiny_model: Path, dimension: int):
    message = rf"encoding\.dimension: {dimension} is not below the encoder's {SIZE} components"
    with pytest.raises(UserError, match=message):
        contract_of_folder(tiny_model, encoding(dimension))


def tampered_weights(folder: Path) -> None:
    weight = np.eye(KEPT, SIZE, dtype=np.float32)
    weight[0, 1] = 1
    save_file({"linear.weight": weight}, folder / "2_Dense" / "model.safetensors")


def tampered_activation(folder: Path) -> None:
    file = folder / "2_Dense" / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(
        json.dumps({**settings, "activation_function": "torch.nn.modules.activation.Tanh"})
    )


def tampered_order(folder: Path) -> None:
    file = folder / "modules.json"
    one, two, three, four = json.loads(file.read_text())
    file.write_text(json.dumps([one, two, four, three]))


def set_truncate_dim(folder: Path) -> None:
    file = folder / "config_sentence_transformers.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "truncate_dim": 4}))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (tampered_weights, r"does more than keep the first components \(its weights\)"),
        (tampered_activation, r"more than keep the first components \(activation_function\)"),
        (tampered_order, r"module sentence_transformers\.models\.Dense is not supported here"),
        (set_truncate_dim, "truncate_dim 4 cuts after Normalize"),
        (lambda folder: shutil.rmtree(folder / "2_Dense"), "cannot be read as JSON"),
        (lambda folder: (folder / "2_Dense" / "model.safetensors").unlink(), "no readable weights"),
    ],
    ids=["weights", "activation", "order", "truncate_dim", "gone", "no weights"],
)
def test_a_module_that_does_something_else_is_refused(truncated: Path, tamper, message: str):
    tamper(truncated)
    with pytest.raises(UserError, match=message):
        declared_encoding(truncated)


def test_a_contract_stored_before_there_was_a_dimension_still_reads(
    tiny_model: Path, tmp_path: Path
):
    contract = contract_of_folder(tiny_model, encoding(None))
    contract.write(tmp_path)
    file = tmp_path / "encoding_contract.json"
    stored = json.loads(file.read_text())
    del stored["dimension"]
    file.write_text(json.dumps(stored))
    assert EncodingContract.read(tmp_path) == contract


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        (0, "--dimension 0: at least one component"),
        (SIZE, f"--dimension: {SIZE} is not below the encoder's {SIZE} components"),
    ],
)
def test_export_refuses_a_dimension_that_is_no_cut(tiny_model: Path, dimension: int, message: str):
    contract = contract_of_folder(tiny_model, encoding(None))
    with pytest.raises(UserError, match=message):
        export._truncated(contract, dimension, tiny_model)
    with pytest.raises(UserError, match=r"--dimension: 9 components, but .* the first 8"):
        export._truncated(contract.model_copy(update={"dimension": 8}), 9, tiny_model)
    assert export._truncated(contract, 8, tiny_model).dimension == 8
