"""Queries and passages into one vector space, by one shared encoder."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, Key

from synrank_jax.models.bert import BertEncoder
from synrank_jax.models.packing import packed_layout, rearrange
from synrank_jax.models.pooling import pool, unit_length
from synrank_jax.types import PackedTexts


class DualEncoder(nnx.Module):  # type: ignore[misc]
    """A token encoder, pooling, truncation and normalisation; for queries and passages alike."""

    def __init__(
        self,
        encoder: BertEncoder,
        pooling: Literal["mean", "cls"],
        normalize: bool,
        dimension: int | None = None,
    ) -> None:
        self.encoder = encoder
        self.pooling = pooling
        self.normalize = normalize
        self.dimension = dimension

    def encode(
        self,
        input_ids: Int32[Array, "B T"],
        attention_mask: Bool[Array, "B T"],
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B D"]:
        """Embed B texts: [B, T] tokens to [B, D] float32; see `BertEncoder` and `pool`."""
        hidden = self.encoder(input_ids, attention_mask, dropout_keys)
        return pool(hidden, attention_mask, self.pooling, self.normalize, self.dimension)

    def encode_packed(
        self, texts: PackedTexts, dropout_keys: Key[Array, "R S"] | None = None
    ) -> Float[Array, "R S D"]:
        """Embed the S texts of each of R rows, [R, S, D] float32 in the order of the texts.

        Equal to `encode` of the same texts, keys included. A text without tokens gives zero.
        """
        layout = packed_layout(texts, dropout_keys)
        blocks = layout.split(self.encoder.packed(texts, layout))
        pooled = [
            pool(block, places >= 0, self.pooling, self.normalize, self.dimension)
            for block, places in zip(blocks, texts.blocks, strict=True)
        ]
        in_order = jnp.concatenate(pooled, axis=1)
        return rearrange(in_order, texts.places, jnp.argsort(texts.places))


def similarity(
    query: Float[Array, "Q D"], passage: Float[Array, "P D"], kind: Literal["dot", "cosine"]
) -> Float[Array, "Q P"]:
    """Scores of every query with every passage, [Q, P] float32, multiplied in full float32.

    `cosine` normalises here, so for embeddings of unit length it equals `dot`.
    """
    if kind == "cosine":
        query, passage = unit_length(query), unit_length(passage)
    return jnp.einsum(
        "qd,pd->qp",
        query,
        passage,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
