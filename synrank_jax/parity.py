"""Whether an exported folder is the JAX model: embeddings of both, compared."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from synrank_jax.contract import EncodingContract, load_tokenizer, tokenizer_sha256
from synrank_jax.engine.encoding import JaxEncoder
from synrank_jax.errors import UserError
from synrank_jax.models.dual_encoder import DualEncoder

# What an export must reach. Float32 through a BERT leaves about 1e-7 on a unit vector.
MIN_COSINE = 0.9999
MAX_DIFFERENCE = 1e-5
VERIFICATION_TEXTS = (
    "wing",
    "",
    "How does heat reach the skin of a fast aircraft?",
    "Füße & naïve <b>cafés</b>, 東京 3.14 × 10⁻⁵ [MASK]\n\ttwo  lines",
    "A boundary layer grows along the plate until it turns turbulent. " * 5,
    "This text is longer than any encoder reads. " * 500,
)


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far the exported model is from the JAX model, at worst over all texts and batches.

    difference: largest absolute difference of a component. norm_difference: largest relative
    difference of lengths. Where an embedding is longer than 1, both count relative to its length:
    float32 carries seven digits, not seven decimals.
    """

    embeddings: int
    cosine: float
    difference: float
    norm_difference: float

    @classmethod
    def of(cls, ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> "Parity":
        """Compare embeddings [B, D] with embeddings [B, D]."""
        a, b = ours.astype(np.float64), theirs.astype(np.float64)
        norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        return cls(
            embeddings=len(a),
            cosine=float(np.min((a * b).sum(axis=1) / (norm_a * norm_b))),
            difference=float(np.max(np.abs(a - b).max(axis=1) / np.maximum(norm_a, 1.0))),
            norm_difference=float(np.max(np.abs(norm_a - norm_b) / norm_a)),
        )

    def holds(self) -> bool:
        """Whether the bounds are met; NaN meets none."""
        return (
            self.cosine >= MIN_COSINE
            and self.difference <= MAX_DIFFERENCE
            and self.norm_difference <= MAX_DIFFERENCE
        )

    def __str__(self) -> str:
        return (
            f"{self.embeddings} embeddings compared: cosine >= {self.cosine:.9f} "
            f"(bound {MIN_COSINE}), largest difference {self.difference:.1e} "
            f"(bound {MAX_DIFFERENCE:.0e}), of lengths {self.norm_difference:.1e} "
            f"(bound {MAX_DIFFERENCE:.0e})"
        )


def verify_export(folder: Path, encoder: DualEncoder, contract: EncodingContract) -> Parity:
    """Load an exported folder with sentence-transformers and compare it with the JAX model.

    Both sides, with prompts, on short, long, empty and over-long texts, as one batch and one by
    one.

    Raises:
        UserError: the folder does not load, or is not the same model; gives the figures.
    """
    model = _sentence_transformer(folder)
    if model.similarity_fn_name != contract.similarity:
        raise UserError(
            f"export: similarity is {contract.similarity!r} in the encoding contract, but "
            f"{model.similarity_fn_name!r} in the exported model"
        )
    digest = tokenizer_sha256(load_tokenizer(folder))
    if digest != contract.tokenizer_sha256:
        raise UserError(
            f"export: the tokenizer's hash is {contract.tokenizer_sha256} in the encoding "
            f"contract, but {digest} in the exported model; export from the model folder that "
            "training started from"
        )
    sides: tuple[tuple[Literal["query", "passage"], Callable[..., Any]], ...] = (
        ("query", model.encode_query),
        ("passage", model.encode_document),
    )
    texts = list(VERIFICATION_TEXTS)
    ours, theirs = [], []
    for batch_size in (len(texts), 1):
        ours_encoder = JaxEncoder(encoder, contract, folder, batch_size)
        for side, encode in sides:
            ours.append(ours_encoder.encode(texts, side))
            theirs.append(encode(texts, batch_size=batch_size, show_progress_bar=False))
    parity = Parity.of(np.concatenate(ours), np.concatenate(theirs))
    if not parity.holds():
        raise UserError(f"export: the exported model is not the JAX model: {parity}")
    return parity


def _sentence_transformer(folder: Path) -> Any:
    """The folder as its users will load it, on CPU; nothing is downloaded, no code executed."""
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError as error:
        raise UserError(
            f"export needs sentence-transformers and torch ({error}); "
            "install the extra: pip install 'synrank-jax[export]'"
        ) from error
    logging.disable_progress_bar()
    try:
        return SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # torch, transformers and safetensors raise many unrelated types
        raise UserError(
            f"export: sentence-transformers cannot load the exported folder "
            f"({type(error).__name__}: {error})"
        ) from error
