"""The JAX encoder at its borders."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from synrank_jax.config import EncodingConfig, ModelConfig
from synrank_jax.contract import contract_of_folder
from synrank_jax.engine.encoding import pretrained_encoder

POSITIONS = 40  # no multiple of the padding


@pytest.fixture
def short_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with fewer positions."""
    folder = tmp_path / "short"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": POSITIONS}))
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("position_embeddings.weight"))
    tensors[name] = tensors[name][:POSITIONS].copy()
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_text_may_fill_the_last_position(short_model: Path):
    encoding = EncodingConfig(
        pooling="mean",
        normalize=True,
        similarity="cosine",
        query_length=POSITIONS,
        passage_length=POSITIONS,
    )
    contract = contract_of_folder(short_model, encoding)
    encoder = pretrained_encoder(ModelConfig(path=str(short_model)), contract, batch_size=2)
    exact, cut, short = encoder.encode(
        ["bal " * (POSITIONS - 2), "bal " * 100, "bal"], side="passage"
    )
    np.testing.assert_array_equal(exact, cut)
    assert np.linalg.norm(exact - short) > 0.01
