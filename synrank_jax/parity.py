"""How far one program's embeddings are from another's, and what counts as the same model."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

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
