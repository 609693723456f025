"""Texts to embeddings with the JAX encoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import numpy.typing as npt

from synrank_jax.config import ModelConfig
from synrank_jax.contract import EncodingContract, load_tokenizer, source_folder
from synrank_jax.data.tokenize import pad, padded_length, tokenize_texts
from synrank_jax.engine.checkpoint import load_trained
from synrank_jax.engine.compilation import use_compilation_cache
from synrank_jax.engine.state import merge_model, split_model
from synrank_jax.engine.step import make_encode_step
from synrank_jax.hub import model_folder
from synrank_jax.models.attention import choose_kernel
from synrank_jax.models.dual_encoder import DualEncoder
from synrank_jax.models.numerics import Numerics
from synrank_jax.models.pretrained import load_encoder
from synrank_jax.types import Tokens


class JaxEncoder:
    """Encodes texts as the contract says.

    Args:
        model: the dual encoder.
        contract: prompts, lengths and tokenizer hash that belong to it.
        folder: model folder with the tokenizer.
        batch_size: texts per compiled call.
    """

    def __init__(
        self, model: DualEncoder, contract: EncodingContract, folder: Path, batch_size: int
    ) -> None:
        use_compilation_cache()
        self.contract = contract
        self._batch_size = batch_size
        self._tokenizer = load_tokenizer(folder)
        structure, self._params = split_model(model)
        self._encode = make_encode_step(structure)

    def encode(
        self, texts: Sequence[str], side: Literal["query", "passage"]
    ) -> npt.NDArray[np.float32]:
        """Embeddings [len(texts), D] float32 in the order given; batches are sorted by length."""
        of_query = side == "query"
        prompt = self.contract.query_prompt if of_query else self.contract.passage_prompt
        length = self.contract.query_length if of_query else self.contract.passage_length
        rows = tokenize_texts(self._tokenizer, list(texts), prompt, length)
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        starts = range(0, len(rows), self._batch_size)
        blocks = [by_length[start : start + self._batch_size] for start in starts]
        encoded = [self._encode_block([rows[i] for i in block], length) for block in blocks]
        embeddings = np.concatenate([np.asarray(block) for block in encoded])
        out = np.empty_like(embeddings)
        out[by_length] = embeddings
        return out

    def _encode_block(
        self, rows: list[npt.NDArray[np.int32]], length: int
    ) -> npt.NDArray[np.float32]:
        width = padded_length(max(len(row) for row in rows), length)
        # A last, smaller block is filled up, so that it needs no compilation of its own.
        filler = [rows[0][:1]] * (self._batch_size - len(rows))
        ids, mask = pad(rows + filler, width)
        return np.asarray(self._encode(self._params, Tokens(ids, mask))[: len(rows)])


def load_model(
    config: ModelConfig, contract: EncodingContract, platform: str | None = None
) -> DualEncoder:
    """The pretrained dual encoder of a configuration, weights in float32.

    Args:
        config: the model section.
        contract: pooling, normalisation and lengths.
        platform: where it will compute; default: JAX' default here.

    Raises:
        UserError: no such model, or an attention kernel that the platform cannot run.
    """
    platform = jax.default_backend() if platform is None else platform
    folder = model_folder(config.path, config.revision)
    encoder = load_encoder(folder, numerics_of(config, contract, platform))
    return DualEncoder(encoder, contract.pooling, contract.normalize, contract.dimension)


def numerics_of(config: ModelConfig, contract: EncodingContract, platform: str) -> Numerics:
    """How the encoder of a configuration computes on a platform.

    Raises:
        UserError: an attention kernel that the platform cannot run.
    """
    dtype, dropout = config.compute_dtype, config.dropout
    longest = max(contract.query_length, contract.passage_length)
    attention = choose_kernel(config.attention, platform, dtype, dropout, longest)
    return Numerics(dtype, dropout, attention, config.remat, config.scan_layers)


def _for_encoding(config: ModelConfig) -> ModelConfig:
    """Without what only training needs; a model may be used elsewhere than it was trained."""
    return config.model_copy(update={"attention": "auto", "dropout": 0.0, "remat": "none"})


def load_trained_model(path: Path) -> tuple[DualEncoder, EncodingContract, ModelConfig, int]:
    """Model, contract, model section and step of a run folder or checkpoint.

    Raises:
        UserError: there is none, or the folder that it started from gives another contract.
    """
    trained = load_trained(path)
    source_folder(trained.config, trained.contract, str(path))
    structure, _ = split_model(load_model(_for_encoding(trained.config.model), trained.contract))
    model = merge_model(structure, dict(trained.params))
    return model, trained.contract, trained.config.model, trained.step


def checkpoint_encoder(path: Path, batch_size: int) -> JaxEncoder:
    """Encoder of a run folder's newest checkpoint, or of one checkpoint."""
    model, contract, config, _ = load_trained_model(path)
    return JaxEncoder(model, contract, model_folder(config.path, config.revision), batch_size)


def pretrained_encoder(
    config: ModelConfig, contract: EncodingContract, batch_size: int
) -> JaxEncoder:
    """Encoder of a pretrained model, untrained by us."""
    folder = model_folder(config.path, config.revision)
    return JaxEncoder(load_model(_for_encoding(config), contract), contract, folder, batch_size)
