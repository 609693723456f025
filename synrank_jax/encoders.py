"""Encoders that evaluation can use: a run folder of train in JAX, a model folder in PyTorch or JAX.

torch and JAX are imported only by the encoder that needs them.
"""

import argparse
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from synrank_jax.config import Config, EncodingConfig, ModelConfig
from synrank_jax.contract import (
    CONTRACT_FILE,
    EncodingContract,
    contract_of_folder,
    load_tokenizer,
)
from synrank_jax.data.windows import Side, WindowEncoder
from synrank_jax.errors import UserError
from synrank_jax.files import file_sha256
from synrank_jax.folder_settings import MODULES_FILE, declared_encoding
from synrank_jax.hub import model_folder

Backend = Literal["jax", "torch"]


class Encoder(Protocol):
    """What evaluation needs of a model."""

    contract: EncodingContract

    @property
    def weights_sha256(self) -> str:
        """Hash of everything but the contract that decides the embeddings."""

    def encode(self, texts: Sequence[str], side: Side) -> NDArray[np.float32]:
        """Embeddings [len(texts), D] float32 in the order of `texts`."""

    def encode_windows(
        self,
        windows: Iterable[Sequence[str]],
        side: Side,
        on_texts: Callable[[int], object] = lambda texts: None,
    ) -> Iterator[NDArray[np.float32]]:
        """Embeddings [n, D] float32 of each window of texts; `on_texts` hears of progress."""

    def timings(self) -> dict[str, float]:
        """What encoding has taken so far, where it is known: tokens, slots, tokenize_s."""


class TorchEncoder(WindowEncoder):
    """A model folder in PyTorch, loaded by sentence-transformers, on the device that it picks.

    Args:
        folder: with modules.json it is loaded as it is; a plain BERT-family folder gets the
            contract's pooling and normalisation.
        contract: prompts and lengths of the two sides.
        batch_size: texts of full length per forward pass.

    Raises:
        UserError: sentence-transformers is missing or cannot load the folder, or the folder pools
            or normalises otherwise than the contract says.
    """

    def __init__(self, folder: Path, contract: EncodingContract, batch_size: int) -> None:
        self._model = _sentence_transformer(folder, contract)
        self._model.eval()
        super().__init__(contract, load_tokenizer(folder), batch_size, multiple=1, devices=None)
        self._folder = folder
        # A folder that keeps more components than the contract.
        self._cut = contract.dimension != declared_encoding(folder).get("dimension")

    @functools.cached_property
    def weights_sha256(self) -> str:
        """Hash of the folder's weights and settings."""
        files = sorted([*self._folder.rglob("*.safetensors"), *self._folder.rglob("*.json")])
        named = (f"{path.relative_to(self._folder)} {file_sha256(path)}\n" for path in files)
        return hashlib.sha256("".join(named).encode()).hexdigest()

    def _start(self, input_ids: NDArray[np.int32], attention_mask: NDArray[np.bool_]) -> Any:
        import torch

        # As the model's own tokenizer gives them.
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        features = {
            name: torch.from_numpy(values.astype(np.int64)).to(self._model.device)
            for name, values in tokens.items()
        }
        with torch.inference_mode():
            embeddings = self._model(features)["sentence_embedding"]
            if self._cut:
                embeddings = embeddings[:, : self.contract.dimension]
                if self.contract.normalize:  # again: what was cut off had its share of the length
                    embeddings = torch.nn.functional.normalize(embeddings, dim=1)
            return embeddings

    def _finish(self, started: Any) -> NDArray[np.float32]:
        embeddings: NDArray[np.float32] = started.float().cpu().numpy()
        return embeddings


def _sentence_transformer(folder: Path, contract: EncodingContract) -> Any:
    try:
        import sentence_transformers
        from sentence_transformers.sentence_transformer import modules
        from transformers.utils import logging
    except ImportError as error:
        raise UserError(
            f"--backend torch needs sentence-transformers and torch ({error}); "
            "install the extra: pip install 'synrank-jax[eval]'"
        ) from error
    logging.disable_progress_bar()
    # Only safetensors, only what is in the folder, and never a model's own code.
    weights = {"use_safetensors": True, "dtype": "float32"}
    trusted = {"trust_remote_code": False, "local_files_only": True}
    declared = declared_encoding(folder)
    try:
        if not (folder / MODULES_FILE).is_file():
            encoder = modules.Transformer(
                str(folder),
                model_kwargs={**weights, **trusted},
                processor_kwargs=trusted,
                config_kwargs=trusted,
            )
            parts = [encoder, modules.Pooling(encoder.get_embedding_dimension(), contract.pooling)]
            parts += [modules.Normalize()] if contract.normalize else []
            return sentence_transformers.SentenceTransformer(modules=parts)
        model = sentence_transformers.SentenceTransformer(
            str(folder), model_kwargs=weights, **trusted
        )
    except Exception as error:  # torch, transformers and safetensors raise many unrelated types
        raise UserError(
            f"model folder {folder}: sentence-transformers cannot load it "
            f"({type(error).__name__}: {error})"
        ) from error
    for name in ("pooling", "normalize"):
        if declared[name] != getattr(contract, name):
            raise UserError(
                f"encoding.{name}: {getattr(contract, name)!r} asked for, but {folder} is built "
                f"with {declared[name]!r}; leave encoding.{name} null or use --backend jax"
            )
    return model


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What `encode` and `evaluate` share."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="FOLDER", help="the model; left out: as --zero-shot")
    which.add_argument("--zero-shot", action="store_true", help="model.path as it is, untrained")
    parser.add_argument(
        "--backend",
        choices=("jax", "torch"),
        help="what computes the embeddings (default: jax for checkpoints, else torch)",
    )
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="FOLDER",
        help="where the documents' embeddings are kept (default: a folder under runs/cache that "
        "belongs to this model and these documents; it may be deleted)",
    )


def load_encoder(
    model: str | None, backend: Backend | None, config: Config, batch_size: int
) -> tuple[Encoder, Backend]:
    """The encoder that `--model` (None: the untrained model.path) and `--backend` ask for.

    Raises:
        UserError: no such model, or it was made with another encoding contract than the config
            asks for.
    """
    if model is None:
        folder = model_folder(config.model.path, config.model.revision)
        contract = contract_of_folder(folder, config.encoding)
        return _pretrained(folder, config.model, contract, backend or "torch", batch_size)
    folder = Path(model)
    if (folder / MODULES_FILE).is_file():
        contract = _folder_contract(folder, config.encoding)
        source = config.model.model_copy(update={"path": model, "revision": None})
        return _pretrained(folder, source, contract, backend or "torch", batch_size)
    if not folder.is_dir() or not _is_run_folder(folder):
        raise UserError(
            f"--model {model}: expected a run folder of train, a checkpoint, or a "
            "sentence-transformers folder (with modules.json); for an untrained model leave "
            "--model out and set model.path"
        )
    if backend == "torch":
        raise UserError(
            f"--backend torch: {model} is a JAX checkpoint; run export and give its folder"
        )
    from synrank_jax.engine.encoding import checkpoint_encoder

    encoder: Encoder = checkpoint_encoder(folder, batch_size)
    _require_requested(config.encoding, encoder.contract, model)
    return encoder, "jax"


def checkpoint_of(model: str) -> str:
    """The checkpoint for which a run folder stands, said on the console; another model as it is.

    Raises:
        UserError: a run folder without a whole checkpoint.
    """
    if not _is_run_folder(Path(model)):
        return model
    from synrank_jax.engine.checkpoint import chosen_checkpoint

    folder, because = chosen_checkpoint(Path(model))
    print(f"{model}: step {folder.name}{because}")
    return str(folder)


def named_encoder(model: str, batch_size: int) -> Encoder:
    """The encoder that a name alone describes: a run folder, an exported or sentence-transformers
    folder, `bundled:NAME` or a hub id; texts of the lengths it was made with, else 256 tokens.

    Raises:
        UserError: no such model, or its folder does not say how it pools.
    """
    if _is_run_folder(Path(model)):
        from synrank_jax.engine.encoding import checkpoint_encoder

        encoder: Encoder = checkpoint_encoder(Path(model), batch_size)
        return encoder
    folder, encoding = model_folder(model), EncodingConfig()
    if (folder / CONTRACT_FILE).is_file():
        stored = EncodingContract.read(folder)
        lengths = {"query_length": stored.query_length, "passage_length": stored.passage_length}
        encoding = EncodingConfig.model_validate(lengths)
    return TorchEncoder(folder, _folder_contract(folder, encoding), batch_size)


def _pretrained(
    folder: Path, source: ModelConfig, contract: EncodingContract, backend: Backend, batch_size: int
) -> tuple[Encoder, Backend]:
    if backend == "torch":
        return TorchEncoder(folder, contract, batch_size), backend
    from synrank_jax.engine.encoding import pretrained_encoder

    return pretrained_encoder(source, contract, batch_size), backend


def _folder_contract(folder: Path, encoding: EncodingConfig) -> EncodingContract:
    """The stored contract of an exported folder; else what the folder and the config say."""
    if not (folder / CONTRACT_FILE).is_file():
        return contract_of_folder(folder, encoding)
    stored = stored_contract(folder)
    _require_requested(encoding, stored, str(folder))
    return stored


def stored_contract(folder: Path) -> EncodingContract:
    """The contract of an exported folder, which its other files fulfil.

    Raises:
        UserError: no exported folder, or one that was changed since.
    """
    stored = EncodingContract.read(folder)
    lengths = EncodingConfig(query_length=stored.query_length, passage_length=stored.passage_length)
    found = contract_of_folder(folder, lengths)
    stored.require_equal(found, f"{folder / CONTRACT_FILE}", "the other files of this folder")
    return stored


def _require_requested(encoding: EncodingConfig, stored: EncodingContract, name: str) -> None:
    given = {key: value for key, value in encoding.model_dump().items() if value is not None}
    stored.model_copy(update=given).require_equal(stored, "the config's encoding section", name)


def _is_run_folder(folder: Path) -> bool:
    from synrank_jax.engine.checkpoint import is_run_folder

    return is_run_folder(folder)
