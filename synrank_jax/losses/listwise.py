"""Losses of one row: cross-entropies between the target and the predicted distribution."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

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
    own: Bool[Array, "Q P"] | None = None,
) -> Float[Array, ""]:
    """-log p of the top-grade passage, mean over queries (van den Oord et al., 2018).

    p = softmax(scores / temperature). The positive is the highest label of the own list, the first
    column on ties; everything else in `where` is a negative, the query's own lower grades included.
    Only what may carry target mass with a grade no lower than the positive's is left out, in the
    list or in-batch: it is no worse an answer. `target_temperature` does not enter. Queries without
    a usable item do not count; 0 with zero gradient when none has one.

    Args:
        scores: [Q, P] raw scores.
        labels: [Q, P].
        where: [Q, P], items that take part.
        target_where: [Q, P], items that may carry target mass.
        temperature: divides the scores.
        target_temperature: unused.
        own: [Q, P], the query's own list. None: `target_where`, which is the own list unless
            in-batch passages carry target mass.
    """
    del target_temperature
    rows = as_rows(scores, labels, where, target_where)
    candidates = rows.target_where if own is None else rows.target_where & own
    positive = jnp.argmax(jnp.where(candidates, rows.labels, -jnp.inf), axis=-1)
    # A comparison instead of a gather: it needs no communication when columns are sharded.
    is_positive = (jnp.arange(scores.shape[-1]) == positive[:, None]) & candidates
    grade = jnp.sum(rows.labels, axis=-1, keepdims=True, where=is_positive)
    equals = rows.target_where & ~is_positive & (rows.labels >= grade)
    return _cross_entropy(rows.scores / temperature, is_positive, rows.where & ~equals)


def infonce_sampled(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None = None,
    target_where: Bool[Array, "Q P"] | None = None,
    *,
    temperature: Temperature,
    target_temperature: Temperature,
    positive_grade: float,
    keys: Key[Array, " Q"],
    own: Bool[Array, "Q P"] | None = None,
) -> Float[Array, ""]:
    """InfoNCE with one random positive: -log p of it, mean over queries.

    As `infonce` (van den Oord et al., 2018), but every passage of the own list with a grade of
    `positive_grade` or more is a positive. One is drawn, all with equal probability; the others are
    masked, as is any in-batch passage that may carry target mass with such a grade. The negatives
    are the own list's lower grades (hard) and the in-batch passages. Queries whose list has no
    positive do not count; 0 with zero gradient when none has one.

    Args:
        scores: [Q, P] raw scores.
        labels: [Q, P].
        where: [Q, P], items that take part.
        target_where: [Q, P], items that may carry target mass.
        temperature: divides the scores.
        target_temperature: unused.
        positive_grade: lowest label of a positive.
        keys: [Q], typed. The key of a row chooses the first, second, ... of its positives in order
            of their columns, whatever else the pool holds.
        own: as in `infonce`.
    """
    del target_temperature
    rows = as_rows(scores, labels, where, target_where)
    positives = rows.target_where & (rows.labels >= positive_grade)
    candidates = positives if own is None else positives & own
    number = candidates.sum(axis=-1)
    drawn = jax.vmap(lambda key, number: jax.random.randint(key, (), 0, number, jnp.int32))(
        keys, jnp.maximum(number, 1)
    )
    is_positive = candidates & (jnp.cumsum(candidates, axis=-1) == drawn[:, None] + 1)
    negatives = rows.where & ~positives
    return _cross_entropy(rows.scores / temperature, is_positive, negatives | is_positive)


def _cross_entropy(
    logits: Float[Array, "Q P"], is_positive: Bool[Array, "Q P"], where: Bool[Array, "Q P"]
) -> Float[Array, ""]:
    """-log softmax at the positive, mean over the rows that have one."""
    counts = is_positive.any(axis=-1)
    log_p, _ = log_softmax(logits, where & counts[:, None])
    return query_mean(-jnp.sum(log_p, axis=-1, where=is_positive), counts)
