"""Embeddings on disk: whose they are, whole or not there, the same rows in blocks of any size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from stand_in_encoder import CONTRACT

from synrank_jax.contract import EncodingContract
from synrank_jax.errors import UserError
from synrank_jax.retrieval import embeddings
from synrank_jax.retrieval.embeddings import EmbeddingStore, StoreKey

ROWS = 11
SHARD = 4
IDS = [f"d{row}" for row in range(ROWS)]


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "SHARD_ROWS", SHARD)


def key(**changes: Any) -> StoreKey:
    values = {
        "contract": CONTRACT,
        "weights_sha256": "a",
        "backend": "jax",
        "texts_sha256": "b",
        "texts": ROWS,
        "dtype": "float32",
    }
    return StoreKey(**{**values, **changes})


def vectors() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)


def filled(folder: Path, **changes: Any) -> EmbeddingStore:
    store = EmbeddingStore(folder, key(**changes))
    for shard in store.missing():
        rows = store.rows(shard)
        store.write(shard, vectors()[rows.start : rows.stop], IDS)
    return store


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8, 100])
def test_blocks_of_any_size_are_the_rows_in_order(tmp_path: Path, rows: int) -> None:
    blocks = list(filled(tmp_path).blocks(rows))
    assert {len(block) for block in blocks[:-1]} <= {rows}
    assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(np.concatenate(blocks), vectors())


def test_a_block_within_a_file_is_not_copied(tmp_path: Path) -> None:
    first = next(filled(tmp_path).blocks(SHARD))
    assert not first.flags.owndata
    assert not first.flags.writeable


def test_cosine_gives_unit_rows_and_half_precision_rounds_once(tmp_path: Path) -> None:
    cosine = CONTRACT.model_copy(update={"similarity": "cosine"})
    unit = np.concatenate(list(filled(tmp_path / "unit", contract=cosine).blocks(5)))
    expected = vectors() / np.linalg.norm(vectors(), axis=1, keepdims=True)
    np.testing.assert_allclose(unit, expected, rtol=1e-6)
    half = filled(tmp_path / "half", dtype="float16")
    assert half.nbytes() == ROWS * 3 * 2
    np.testing.assert_array_equal(
        np.concatenate(list(half.blocks(5))), vectors().astype(np.float16).astype(np.float32)
    )


def test_files_that_are_there_are_not_missing_in_a_new_process(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, key())
    assert store.missing() == [0, 1, 2]
    store.write(1, vectors()[4:8], IDS)
    assert EmbeddingStore(tmp_path, key()).missing() == [0, 2]


CHANGES: dict[str, Any] = {
    "weights_sha256": "c",
    "backend": "torch",
    "texts_sha256": "c",
    "texts": ROWS + 1,
    "dtype": "float16",
    "pooling": "cls",
    "normalize": True,
    "similarity": "cosine",
    "query_prompt": "q: ",
    "passage_prompt": "p: ",
    "query_length": 9,
    "passage_length": 9,
    "special_tokens": False,
    "dimension": 2,
    "tokenizer_sha256": "1" * 64,
}
ONE_VALUE = {"padding_side"}


def test_every_field_of_the_key_has_a_change() -> None:
    fields = {*StoreKey.model_fields, *EncodingContract.model_fields} - {"contract"}
    assert fields - ONE_VALUE == CHANGES.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_a_store_of_another_key_is_refused_and_has_another_name(tmp_path: Path, name: str) -> None:
    filled(tmp_path)
    if name in EncodingContract.model_fields:
        other = key(contract=CONTRACT.model_copy(update={name: CHANGES[name]}))
    else:
        other = key(**{name: CHANGES[name]})
    assert other.name() != key().name()
    with pytest.raises(UserError, match=rf"  {name}: .* there, {CHANGES[name]!r} now"):
        EmbeddingStore(tmp_path, other)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="neither empty nor has it a manifest"):
        EmbeddingStore(tmp_path, key())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_a_kill_or_another_process_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".manifest.json.0.tmp").write_text("{")
    assert EmbeddingStore(tmp_path, key()).missing() == [0, 1, 2]


def test_a_broken_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"texts": 3}))
    with pytest.raises(UserError, match="not the manifest of an embeddings folder"):
        EmbeddingStore(tmp_path, key())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6], ids=["nan", "inf", "above-half"])
def test_embeddings_that_are_not_finite_are_refused_by_document(
    tmp_path: Path, value: float
) -> None:
    store = EmbeddingStore(tmp_path, key(dtype="float16"))
    broken = vectors()[4:8]
    broken[2, 1] = value
    with pytest.raises(UserError, match=r"1 of 4 are NaN or infinite in float16 .*'d6'"):
        store.write(1, broken, IDS)
    assert store.missing() == [0, 1, 2]


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    store = filled(tmp_path)
    path = tmp_path / "00001.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"00001\.npy: is damaged .* delete it"):
        list(store.blocks(100))


def test_a_file_of_another_dimension_is_named(tmp_path: Path) -> None:
    store = filled(tmp_path)
    np.save(tmp_path / "00001.npy", np.zeros((SHARD, 2), np.float32))
    with pytest.raises(UserError, match=r"holds float32 \(4, 2\) instead of .*\(4, 3\)"):
        list(store.blocks(100))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (tmp_path / "00002.npy").unlink()
    with pytest.raises(UserError, match=r"00002\.npy: is missing; encode"):
        list(store.blocks(100))
