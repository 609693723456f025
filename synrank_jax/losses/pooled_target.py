"""The target of a pool with in-batch grade in O(Q L) numbers, without its [Q, P] matrix.

A row of the target is a constant c_k on in-batch passages, except on those that stand in the
query's own list too, which it masks (`pool.pool_labels`), plus L entries of its own:

    t_kj = c_k v_j (1 - [document of j in list k]) + own_kj        v: list items that exist
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

from synrank_jax.losses.rows import Temperature


class PoolLists(NamedTuple):
    """Q lists of L passages that share a pool: arguments of `pool.pool_labels`, no excluded_ids.

    labels: grades [Q, L]; where: [Q, L] bool, list items that exist; passage_ids: [Q, L] int32,
    equal for equal documents within the pool, -1 where masked; in_batch_grade: see there.
    """

    labels: Float[Array, "Q L"]
    where: Bool[Array, "Q L"]
    passage_ids: Int32[Array, "Q L"]
    in_batch_grade: float | None


class PooledTarget(NamedTuple):
    """Target rows t [Q, P], P = Q L, held as their parts; sums over k run over `counts`.

    own: [Q, L] probabilities on the own list, 0 where masked.
    in_batch: [Q] probability c_k of each in-batch passage.
    document: [P] number of the document in each column, equal for equal documents.
    first: [Q, L] bool, list items that exist and do not repeat an earlier one of their list.
    exists: [Q, L] bool, list items that exist.
    """

    own: Float[Array, "Q L"]
    in_batch: Float[Array, " Q"]
    document: Int[Array, " P"]
    first: Bool[Array, "Q L"]
    exists: Bool[Array, "Q L"]

    @property
    def counts(self) -> Bool[Array, " Q"]:
        """Queries with a list item."""
        return self.exists.any(axis=-1)


def pooled_target(
    lists: PoolLists, target_temperature: Temperature, dtype: jnp.dtype
) -> PooledTarget:
    """`target_distribution` of `pool_labels` of the same lists, in parts and in `dtype`."""
    labels, where, passage_ids, in_batch_grade = lists
    Q, L = labels.shape
    P = Q * L
    # The P log P of a sort: the one comparison of columns with columns.
    _, document = jnp.unique(passage_ids.reshape(P), size=P, return_inverse=True)
    earlier = jnp.tril(jnp.ones((L, L), bool), -1)
    repeats = (passage_ids[:, :, None] == passage_ids[:, None, :]) & where[:, None, :] & earlier
    first = where & ~repeats.any(axis=-1)
    grades = jnp.where(where, labels.astype(dtype) / target_temperature, -jnp.inf)
    top = jnp.max(grades, axis=-1)
    # Passages that carry the in-batch constant: all that exist but those of the list's documents.
    copies = jax.ops.segment_sum(where.reshape(P).astype(jnp.int32), document, P)[document]
    number = where.sum() - jnp.sum(copies.reshape(Q, L), axis=-1, where=first)
    counts = where.any(axis=-1)
    if in_batch_grade is None:
        weight = jnp.zeros(Q, dtype)
    else:
        in_batch = jnp.asarray(in_batch_grade, dtype) / target_temperature
        top = jnp.maximum(top, in_batch)
        weight = jnp.where(counts, jnp.exp(in_batch - top), 0)
    top = jnp.where(counts, top, 0)
    exponentials = jnp.where(where, jnp.exp(grades - top[:, None]), 0)
    total = exponentials.sum(axis=-1) + number * weight
    total = jnp.where(counts, total, 1)
    return PooledTarget(exponentials / total[:, None], weight / total, document, first, where)


def target_gaussian(target: PooledTarget) -> tuple[Float[Array, " P"], Float[Array, ""]]:
    """Mean row [P] and trace of the covariance of the target's rows.

    The trace is taken about c v, c being the mean of c_k, which is near the mean: sums of squares
    about 0 would cancel.
    """
    own, in_batch, document, first, exists = target
    counts = target.counts
    rows = jnp.maximum(counts.sum(), 1).astype(own.dtype)
    centre = in_batch.sum() / rows
    # Column sums of t - c v: own_j - (sum of c_k over the lists that hold the document of j).
    # Rows that do not count have c_k = 0, and their columns do not exist.
    taken = first * in_batch[:, None]
    taken = jax.ops.segment_sum(taken.reshape(-1), document, document.size)[document]
    offset = (own.reshape(-1) - jnp.where(exists.reshape(-1), taken, 0)) / rows
    mean = jnp.where(exists.reshape(-1), centre, 0) + offset
    copies = exists.reshape(-1).astype(own.dtype)
    copies = jax.ops.segment_sum(copies, document, document.size)[document].reshape(own.shape)
    of_list = jnp.sum(copies, axis=-1, where=first)  # columns that hold a document of list k
    squares = (
        jnp.sum((own - centre) ** 2, axis=-1, where=exists)
        + (exists.sum() - of_list) * (in_batch - centre) ** 2
        + (of_list - exists.sum(axis=-1)) * centre**2
    )
    spread = jnp.sum(squares, where=counts) - rows * jnp.sum(offset**2)
    return mean, spread / jnp.maximum(rows - 1, 1)


def cross_covariance(deviation: Float[Array, "Q P"], target: PooledTarget) -> Float[Array, "Q Q"]:
    """A = deviation (sqrt(f) E_t)^T in O(Q^2 L + Q P), deviation = sqrt(f) E_p.

    Rows of p and their mean have mass 1, so deviation v = 0 and the constant c_k v drops out of

        (deviation t^T)_ik = sum_l own_kl d_i,kl - c_k sum of d_ij over the documents j of list k;

    centring its columns turns t into E_t. Precondition: `deviation` is 0 on columns that no row may
    use and in rows that do not count.
    """
    own, in_batch, document, first, exists = target
    Q, L = own.shape
    counts = target.counts
    constant = first * in_batch[:, None]

    def of_lists(columns: Float[Array, "Q P"], weights: Float[Array, "Q L"]) -> Array:
        # Products and sums, no dot: accelerators run that in reduced precision by default.
        return jnp.sum(columns.reshape(Q, Q, L) * weights, axis=-1)

    def other_copies(deviation: Float[Array, "Q P"]) -> Array:
        columns = deviation.T  # rows are what scatters and gathers do well
        merged = jax.ops.segment_sum(columns, document, document.size)[document]
        return of_lists((merged - columns).T, constant)

    # Other columns with a document of the list are rare: without any, nothing is scattered.
    repeated = jax.ops.segment_sum(exists.reshape(-1).astype(jnp.int32), document, document.size)
    product = of_lists(deviation, own - constant) - jax.lax.cond(
        (repeated > 1).any(),
        other_copies,
        lambda deviation: jnp.zeros((Q, Q), deviation.dtype),
        deviation,
    )
    rows = jnp.maximum(counts.sum(), 1).astype(own.dtype)
    mean = jnp.sum(product, axis=1, where=counts, keepdims=True) / rows
    return jnp.where(counts, product - mean, 0) / jnp.sqrt(jnp.maximum(rows - 1, 1))
