"""What a step's record says of its batch."""

import jax
import jax.numpy as jnp

from synrank_jax.types import Batch


def batch_counts(batch: Batch) -> dict[str, jax.Array]:
    """What is counted of a batch; part of the compiled step, so over all hosts, and nothing waits.

    Returns:
        Scalars: `passages` that are not masked; `tokens` of texts; `squared_lengths`, the sum of
        T^2 over the texts; and `samples`, a checksum of the record numbers in order, by which the
        streams of two runs can be compared.
    """
    texts = batch.texts
    is_token = texts.segment_ids >= 0
    ids = batch.sample_ids.ravel().astype(jnp.uint32)
    mixed = ids + jnp.arange(ids.size, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    for factor in (0x85EBCA6B, 0xC2B2AE35):  # the finalizer of MurmurHash3
        mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(factor)
    return {
        "passages": jnp.sum(batch.where),
        "tokens": jnp.sum(is_token),
        # The odd numbers from 1 to 2 T - 1 add up to T^2.
        "squared_lengths": jnp.sum(jnp.where(is_token, 2.0 * texts.positions + 1.0, 0.0)),
        "samples": jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32),
    }
