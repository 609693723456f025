"""Targets: which passages a query meets, with which labels, and the distribution made of them."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from synrank_jax.losses.rows import Temperature, log_softmax, query_mean


class PoolLabels(NamedTuple):
    """Labels and masks of Q queries against the P = Q L passages of their pool.

    Passages of query i are columns i L .. (i + 1) L - 1.
    labels: [Q, P]; where: [Q, P] bool, items that take part; target_where: [Q, P] bool, items
    that may carry target mass, part of `where`.
    """

    labels: Float[Array, "Q P"]
    where: Bool[Array, "Q P"]
    target_where: Bool[Array, "Q P"]


def pool_labels(
    labels: Float[Array, "Q L"],
    where: Bool[Array, "Q L"],
    passage_ids: Int32[Array, "Q L"],
    *,
    in_batch_grade: float | None,
    in_batch_level: float,
    excluded_ids: Int32[Array, "Q J"] | None = None,
) -> PoolLabels:
    """Let each query meet the passages of all lists of its pool.

    In-batch passages (those of the other lists) get the label `in_batch_grade` and may carry target
    mass; if that is None they get the label `in_batch_level` and carry none. The reference
    (arXiv 2503.23239, released code) is in_batch_grade = 0.

    Two kinds of in-batch passages are masked, for they are no negatives: those that also stand in
    the query's own list, whose grade counts there, and those that are excluded for the query, as it
    has a judgement for them that its list does not show.

    A masked list item is masked for every query, and a query without list items takes no part.

    Args:
        labels: grades [Q, L].
        where: list items that exist [Q, L].
        passage_ids: [Q, L], equal for equal documents within the pool; -1 where masked.
        in_batch_grade: see above.
        in_batch_level: one level below the lowest grade.
        excluded_ids: [Q, J], numbered as passage_ids; -1 is padding. None: no further documents.
    """
    Q, L = labels.shape
    own = own_list(Q, L)
    ids = passage_ids.reshape(1, Q * L, 1)
    # Q P (L + J) integer comparisons, fused by XLA: nothing of that size is stored, and it stays
    # far below the Q P D of the scores.
    negative = ~(passage_ids[:, None, :] == ids).any(axis=-1)
    if excluded_ids is not None:
        negative &= ~(excluded_ids[:, None, :] == ids).any(axis=-1)
    grade = in_batch_level if in_batch_grade is None else in_batch_grade
    in_batch_labels = jnp.full(own.shape, grade, labels.dtype)
    carries_mass = own if in_batch_grade is None else jnp.ones_like(own)
    takes_part = where.reshape(1, Q * L) & where.any(axis=-1, keepdims=True) & (own | negative)
    return PoolLabels(
        # Column i L + l of row i is labels[i, l]: a tiled row needs no labels of other devices.
        labels=jnp.where(own, jnp.tile(labels, (1, Q)), in_batch_labels),
        where=takes_part,
        target_where=takes_part & carries_mass,
    )


def own_list(Q: int, L: int) -> Bool[Array, "Q P"]:
    """Columns of each query's own list."""
    return jnp.arange(Q)[:, None] == jnp.arange(Q * L) // L


def target_distribution(
    labels: Float[Array, "Q P"],
    target_where: Bool[Array, "Q P"],
    target_temperature: Temperature,
) -> tuple[Float[Array, "Q P"], Float[Array, "Q P"]]:
    """Target of every loss: t = softmax(labels / target_temperature) over `target_where`.

    Returns:
        (log t, t), [Q, P]; both 0 where masked, so a fully masked row has no mass.
    """
    return log_softmax(labels / target_temperature, target_where)


def own_list_target_mass(
    pooled: PoolLabels, target_temperature: Temperature, group_size: int | None = None
) -> Float[Array, ""]:
    """Mean over queries of the target mass on the own list (a diagnostic, in [0, 1]).

    With `group_size` G the target is that of pools of G queries (`gaussian_transport`).

    1 without in-batch grade. With one it falls as the pool grows (the target flattens): with grades
    3, 2, 1, 0, in-batch grade 0 and temperature 1, 0.34 at Q = 16 and 0.11 at 64.
    """
    Q, P = pooled.labels.shape
    target_where = pooled.target_where
    if group_size is not None:
        group_of_column = jnp.arange(P) * Q // P // group_size
        target_where &= (jnp.arange(Q) // group_size)[:, None] == group_of_column
    _, target = target_distribution(pooled.labels, target_where, target_temperature)
    own_mass = jnp.sum(target, axis=-1, where=own_list(Q, P // Q))
    return query_mean(own_mass, target_where.any(axis=-1))
