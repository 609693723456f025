"""Texts to embeddings with the JAX encoder."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from synrank_jax.config import MeshConfig, ModelConfig
from synrank_jax.contract import EncodingContract, load_tokenizer, source_folder
from synrank_jax.data.windows import WindowEncoder
from synrank_jax.engine.checkpoint import load_trained
from synrank_jax.engine.compilation import use_compilation_cache
from synrank_jax.engine.state import merge_model, split_model
from synrank_jax.engine.step import make_encode_step
from synrank_jax.hub import model_folder
from synrank_jax.models.attention import choose_kernel
from synrank_jax.models.dual_encoder import DualEncoder
from synrank_jax.models.numerics import Numerics
from synrank_jax.models.pretrained import load_encoder
from synrank_jax.parallel.mesh import make_mesh, replicated, rows
from synrank_jax.types import Tokens

# Token rows are padded to a multiple of this: training's would pad 8 % of NFCorpus.
LENGTH_MULTIPLE = 16


class JaxEncoder(WindowEncoder):
    """Encodes texts as the contract says, on all devices of this process.

    Args:
        model: the dual encoder.
        contract: prompts, lengths and tokenizer hash that belong to it.
        folder: model folder with the tokenizer.
        batch_size: texts of full length per compiled call.
    """

    def __init__(
        self, model: DualEncoder, contract: EncodingContract, folder: Path, batch_size: int
    ) -> None:
        use_compilation_cache()
        mesh = make_mesh(MeshConfig(), jax.local_devices())
        super().__init__(contract, load_tokenizer(folder), batch_size, LENGTH_MULTIPLE, mesh.size)
        structure, params = split_model(model)
        self._params = jax.device_put(params, replicated(mesh))
        self._encode = make_encode_step(structure, mesh)
        self._sharding = rows(mesh)
        self._dtype = str(model.encoder.numerics.compute_dtype)

    @functools.cached_property
    def weights_sha256(self) -> str:
        """Hash of the weights, and of the precision that they compute in."""
        digest = hashlib.sha256(self._dtype.encode())
        for name, leaf in sorted(self._params.items()):
            values = np.asarray(leaf)
            digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def _start(
        self, input_ids: npt.NDArray[np.int32], attention_mask: npt.NDArray[np.bool_]
    ) -> Any:
        tokens = Tokens(*jax.device_put((input_ids, attention_mask), self._sharding))
        return self._encode(self._params, tokens)

    def _finish(self, started: Any) -> npt.NDArray[np.float32]:
        return np.asarray(started)


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
