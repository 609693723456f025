"""What every loss does to a row of scores: defaults, precision, masked softmax, mean over queries.

A loss is a function of global arrays: under `jit` with sharded inputs the pool spans all devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Temperature = float | Float[Array, ""]


class Rows(NamedTuple):
    """Inputs of a loss, ready for arithmetic (see `as_rows`).

    scores, labels: [Q, P], one floating dtype, float32 or wider.
    where: [Q, P] bool, all False in a row that does not count.
    target_where: [Q, P] bool, part of `where`.
    counts: [Q] bool, the queries that enter the mean.
    """

    scores: Float[Array, "Q P"]
    labels: Float[Array, "Q P"]
    where: Bool[Array, "Q P"]
    target_where: Bool[Array, "Q P"]
    counts: Bool[Array, " Q"]


def as_rows(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None,
    target_where: Bool[Array, "Q P"] | None,
) -> Rows:
    """Fill in the masks' defaults and widen half precision to float32 (float64 stays).

    A query counts when some item that takes part may carry target mass; the other rows are masked
    as a whole, so that they have neither value nor gradient. Scores of masked items are replaced
    by 0, whatever they hold (NaN included).
    """
    dtype = jnp.promote_types(scores.dtype, jnp.float32)
    where = jnp.ones(scores.shape, bool) if where is None else where
    target_where = where if target_where is None else where & target_where
    counts = target_where.any(axis=-1)
    where = where & counts[:, None]
    return Rows(
        scores=jnp.where(where, scores.astype(dtype), 0),
        labels=jnp.where(where, labels.astype(dtype), 0),
        where=where,
        target_where=target_where,
        counts=counts,
    )


def log_softmax(
    logits: Float[Array, "Q P"], where: Bool[Array, "Q P"]
) -> tuple[Float[Array, "Q P"], Float[Array, "Q P"]]:
    """Softmax of each row over the items of `where`: (log probabilities, probabilities), [Q, P].

    Masked items get 0 in *both*: the logarithm stays finite, and 0 * log 0 costs nothing. A fully
    masked row is all 0, with zero gradient.
    """
    top = jnp.max(logits, axis=-1, keepdims=True, where=where, initial=-jnp.inf)
    top = jax.lax.stop_gradient(jnp.where(where.any(axis=-1, keepdims=True), top, 0))
    shifted = jnp.where(where, logits - top, 0)
    total = jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True, where=where)
    log_p = jnp.where(where, shifted - jnp.log(jnp.where(total > 0, total, 1)), 0)
    return log_p, jnp.where(where, jnp.exp(log_p), 0)


def query_mean(values: Float[Array, " Q"], counts: Bool[Array, " Q"]) -> Float[Array, ""]:
    """Mean over the queries that count; 0 when none does."""
    number = jnp.maximum(counts.sum(), 1).astype(values.dtype)
    return jnp.sum(jnp.where(counts, values, 0)) / number
