"""Token vectors to one text vector."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Squared, so that it stays a normal float32; torch's F.normalize divides by max(norm, 1e-12).
SMALLEST_SQUARED_NORM = 1e-24


def pool(
    hidden: Float[Array, "*B T H"],
    attention_mask: Bool[Array, "*B T"],
    pooling: Literal["mean", "cls"],
    normalize: bool,
    dimension: int | None = None,
) -> Float[Array, "*B D"]:
    """Pool token vectors under the attention mask.

    Args:
        hidden: [..., T, H] token vectors.
        attention_mask: [..., T], False at padding on either side.
        pooling: `mean` of the attended vectors, or `cls`, the first attended vector.
        normalize: scale to unit Euclidean length.
        dimension: D, the components kept before that; None: all H.

    Returns:
        [..., D] float32. A row without attended tokens (list padding) is zero, its gradient finite.
    """
    hidden = hidden.astype(jnp.float32)
    weights = attention_mask.astype(jnp.float32)
    if pooling == "cls":
        weights = weights * (jnp.cumsum(attention_mask, axis=-1) == 1)
    total = jnp.sum(hidden * weights[..., None], axis=-2)
    pooled = total / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1.0)
    pooled = pooled[..., :dimension]
    return unit_length(pooled) if normalize else pooled


def unit_length(vectors: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
    """Scale vectors [..., D] to unit Euclidean length; zero stays zero with a finite gradient."""
    squared = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors / jnp.sqrt(jnp.maximum(squared, SMALLEST_SQUARED_NORM))
