"""Losses of one row: cross-entropies between the target and the predicted distribution."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from synrank_jax.losses.pool import target_distribution
from synrank_jax.losses.rows import Temperature, as_rows, log_softmax, query_mean


def listnet_kl(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None = None,
    target_where: Bool[Array, "Q P"] | None = None,
    *,
    temperature: Temperature,
    target_temperature: Temperature,
) -> Float[Array, ""]:
    """KL(t || p) = sum_j t_j (log t_j - log p_j), mean over queries.

    ListNet's top-one cross-entropy (Cao et al., ICML 2007) minus the entropy of the target, so that
    a perfect row scores 0. p = softmax(scores / temperature) over `where`, t the
    `target_distribution`.
    Queries without a usable item do not count; 0 with zero gradient when none has one.
    """
    rows = as_rows(scores, labels, where, target_where)
    log_p, _ = log_softmax(rows.scores / temperature, rows.where)
    log_t, t = target_distribution(rows.labels, rows.target_where, target_temperature)
    return query_mean(jnp.sum(t * (log_t - log_p), axis=-1), rows.counts)


def infonce(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None = None,
    target_where: Bool[Array, "Q P"] | None = None,
    *,
    temperature: Temperature,
    target_temperature: Temperature,
) -> Float[Array, ""]:
    """-log p of the top-grade passage, mean over queries (van den Oord et al., 2018).

    p = softmax(scores / temperature) over `where`. The positive is the highest label of
    `target_where`, the first column on ties; everything else in `where` is a negative, the query's
    own lower grades included. `target_temperature` does not enter. Queries without a usable item do
    not count; 0 with zero gradient when none has one.
    """
    del target_temperature
    rows = as_rows(scores, labels, where, target_where)
    log_p, _ = log_softmax(rows.scores / temperature, rows.where)
    positive = jnp.argmax(jnp.where(rows.target_where, rows.labels, -jnp.inf), axis=-1)
    # A comparison instead of a gather: it needs no communication when columns are sharded.
    is_positive = jnp.arange(log_p.shape[-1]) == positive[:, None]
    return query_mean(-jnp.sum(log_p, axis=-1, where=is_positive), rows.counts)
