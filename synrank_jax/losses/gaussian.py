"""The Gaussian 2-Wasserstein loss of arXiv 2503.23239 and its paired form.

Queries are the samples, passages the features: the rows of a pool are summarised as a Gaussian.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from synrank_jax.errors import UserError
from synrank_jax.losses.nuclear_norm import Solver, nuclear_norm
from synrank_jax.losses.pool import target_distribution
from synrank_jax.losses.pooled_target import (
    PoolLists,
    cross_covariance,
    pooled_target,
    target_gaussian,
)
from synrank_jax.losses.rows import Temperature, as_rows, log_softmax, query_mean

ROOT_EPS = 1e-15
"""Added to each eigenvalue of A A^T under the root by the released code; damps the gradient."""

DAMPING = 1e-5
"""Bound of the damping, sqrt(ROOT_EPS), relative to the mean singular value of A where p = t."""

Result = TypeVar("Result")


class GaussianTransport(NamedTuple):
    """value: the loss. alignment: tr(A) / ||A||_*, in [-1, 1] (see `gaussian_transport`)."""

    value: Float[Array, ""]
    alignment: Float[Array, ""]


def gaussian_wasserstein(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None = None,
    target_where: Bool[Array, "Q P"] | None = None,
    *,
    temperature: Temperature,
    target_temperature: Temperature,
    solver: Solver = "svd",
    group_size: int | None = None,
    lists: PoolLists | None = None,
) -> Float[Array, ""]:
    """Squared 2-Wasserstein distance of two Gaussians over the pool; see `gaussian_transport`."""
    return gaussian_transport(
        scores,
        labels,
        where,
        target_where,
        temperature=temperature,
        target_temperature=target_temperature,
        solver=solver,
        group_size=group_size,
        lists=lists,
    ).value


def gaussian_transport(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None = None,
    target_where: Bool[Array, "Q P"] | None = None,
    *,
    temperature: Temperature,
    target_temperature: Temperature,
    solver: Solver = "svd",
    group_size: int | None = None,
    lists: PoolLists | None = None,
) -> GaussianTransport:
    """The loss and how well predicted and target rows are paired.

    Predicted rows p = softmax(scores / temperature) and target rows t (`target_distribution`) are
    each summarised as a Gaussian: mean row and covariance f E^T E, E = rows minus mean,
    f = 1 / (Q - 1). With A = f E_p E_t^T [Q, Q],

        W2^2 = |mean_p - mean_t|^2 + f |E_p|_F^2 + f |E_t|_F^2 - 2 ||A||_*

    (||.||_* the sum of singular values). Rows without a usable item leave the statistics; with one
    row E = 0 and the mean gap remains, with none the value is 0. Values down to about -1e-7 are
    rounding. A batch statistic: it depends on which queries share the pool, and permuting the rows
    of p leaves it unchanged. The alignment r = tr(A) / ||A||_* tells whether p's rows stand at
    their own queries: 1 at the optimum, near 0 for noise; 0 where A = 0; it has no gradient.

    Deviation from the released code, which takes sum_i sqrt(lambda_i(A A^T) + ROOT_EPS) with a
    general eigen-solver in float64: here the value is the nuclear norm itself, by solvers that
    float32 and every accelerator can carry (at small pools the loss is up to 2 Q sqrt(ROOT_EPS)
    larger), and the gradient is the released one only while ROOT_EPS is small beside the singular
    values a good prediction would have (DAMPING). ROOT_EPS is absolute, but they shrink like
    Q^-2 to Q^-3. At temperature 1, in-batch grade 0 and unit-norm embeddings it changes the
    gradient by 1e-5 to 7 % at Q = 64 and by 6 % to 45 % at 256; at 1024 it removes the cross term
    from gradient and value.

    Args:
        scores: [Q, P] raw scores.
        labels: [Q, P] grades.
        where: [Q, P], items that take part.
        target_where: [Q, P], items that may carry target mass.
        temperature: divides the scores.
        target_temperature: divides the grades.
        solver: of the nuclear norm.
        group_size: G makes pools of G queries, each over its own G L passages, and takes the mean
            of their losses (those without a row that counts do not enter). Needs P = Q L with
            list i in columns i L .. (i + 1) L - 1. A large batch then does not flatten the target.
        lists: what `pool_labels` made labels, where and target_where from. Precondition: without
            excluded_ids, whose rows differ from a constant elsewhere too. The same result, with A
            in O(Q^2 L) instead of O(Q^3 L) and no [Q, P] target; with rows sharded over devices
            none gathers a [Q, P] array, only A [Q, Q], for solver "svd". Without it a matrix
            product reads labels and target_where as they are: as fast on one CPU up to Q = 256.

    Raises:
        UserError: group_size does not divide Q.
    """
    groups = _number_of_groups(len(scores), group_size)

    def one_pool(
        scores: Array,
        labels: Array,
        where: Array | None,
        target_where: Array | None,
        own_lists: tuple[Array, Array, Array] | None,
    ) -> tuple[GaussianTransport, Bool[Array, ""]]:
        rows = as_rows(scores, labels, where, target_where)
        _, p = log_softmax(rows.scores / temperature, rows.where)
        mean_p, deviation_p = _gaussian(p, rows.counts)
        if lists is None or own_lists is None:
            _, t = target_distribution(rows.labels, rows.target_where, target_temperature)
            mean_t, deviation_t = _gaussian(t, rows.counts)
            spread_t = jnp.sum(deviation_t**2)
            A = jnp.matmul(deviation_p, deviation_t.T, precision=jax.lax.Precision.HIGHEST)
        else:
            group = PoolLists(*own_lists, lists.in_batch_grade)
            target = pooled_target(group, target_temperature, p.dtype)
            mean_t, spread_t = target_gaussian(target)
            A = cross_covariance(deviation_p, target)
        spread_p = jnp.sum(deviation_p**2)
        result = _transport(mean_p - mean_t, spread_p, spread_t, A, rows.counts, solver)
        return result, rows.counts.any()

    own_columns = _own_columns((scores, labels, where, target_where), groups)
    own_lists = None
    if lists is not None:
        size = lists.labels.shape[1]
        own_lists = tuple(array.reshape(groups, -1, size) for array in lists[:3])
    return _mean_over_groups(one_pool, (*own_columns, own_lists), groups)


def gaussian_paired(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None = None,
    target_where: Bool[Array, "Q P"] | None = None,
    *,
    temperature: Temperature,
    target_temperature: Temperature,
    group_size: int | None = None,
) -> Float[Array, ""]:
    """`gaussian_wasserstein` with every predicted row held at its own query: a Brier score.

    W2^2 = |mean_p - mean_t|^2 + min over orthogonal O of f |E_p - O E_t|_F^2, where O may relabel
    the queries. O = identity gives, with n rows that count, d_i = p_i - t_i, their mean m and
    f = 1 / (n - 1),

        |m|^2 + f sum_i |d_i - m|^2 = f (sum_i |d_i|^2 - |m|^2) = B + (B - |m|^2) / (n - 1)

    with B = 1/n sum_i |d_i|^2: P times the plain MSE of p against t, and up to the constant
    1 - |t_i|^2 the Brier score of p expected when the relevant passage is drawn from t. As
    |m|^2 <= B the value is in [B, B n / (n - 1)]: B, with a little less weight on an error that all
    rows share. It is at least `gaussian_wasserstein`, and equal where A is symmetric positive
    semi-definite. At n = 1 it is |d_1|^2 = B, with no row 0.

    Args:
        scores: [Q, P] raw scores.
        labels: [Q, P] grades.
        where: [Q, P], items that take part.
        target_where: [Q, P], items that may carry target mass.
        temperature: divides the scores.
        target_temperature: divides the grades.
        group_size: see `gaussian_transport`.

    Raises:
        UserError: group_size does not divide Q.
    """
    groups = _number_of_groups(len(scores), group_size)

    def one_pool(
        scores: Array, labels: Array, where: Array | None, target_where: Array | None
    ) -> tuple[Float[Array, ""], Bool[Array, ""]]:
        rows = as_rows(scores, labels, where, target_where)
        _, p = log_softmax(rows.scores / temperature, rows.where)
        _, t = target_distribution(rows.labels, rows.target_where, target_temperature)
        mean_gap, deviation = _gaussian(p - t, rows.counts)
        return jnp.sum(mean_gap**2) + jnp.sum(deviation**2), rows.counts.any()

    own_columns = _own_columns((scores, labels, where, target_where), groups)
    return _mean_over_groups(one_pool, own_columns, groups)


def _gaussian(
    x: Float[Array, "Q P"], counts: Bool[Array, " Q"]
) -> tuple[Float[Array, " P"], Float[Array, "Q P"]]:
    """Mean over the rows that count, and sqrt(f) E: times its transpose it is the covariance.

    Rows that do not count have deviation 0; so has a single row, whose f = 1.
    """
    number = counts.sum().astype(x.dtype)
    mean = jnp.sum(x, axis=0, where=counts[:, None]) / jnp.maximum(number, 1)
    deviation = jnp.where(counts[:, None], x - mean, 0)
    return mean, deviation / jnp.sqrt(jnp.maximum(number - 1, 1))


def _transport(
    mean_gap: Float[Array, " P"],
    spread_p: Float[Array, ""],
    spread_t: Float[Array, ""],
    A: Float[Array, "Q Q"],
    counts: Bool[Array, " Q"],
    solver: Solver,
) -> GaussianTransport:
    """The distance, from traces of the covariances (spreads) and the cross term."""
    mean_singular = spread_t / jnp.maximum(counts.sum() - 1, 1)
    floor = jnp.minimum(ROOT_EPS**0.5, DAMPING * mean_singular)
    norm = nuclear_norm(A, floor, solver)
    value = jnp.sum(mean_gap**2) + spread_p + spread_t - 2 * norm
    alignment = jnp.where(norm > 0, jnp.trace(A) / jnp.where(norm > 0, norm, 1), 0)
    return GaussianTransport(value, jax.lax.stop_gradient(alignment))


def _number_of_groups(Q: int, group_size: int | None) -> int:
    if group_size is None:
        return 1
    if Q % group_size:
        raise UserError(
            f"group_size {group_size} does not divide the {Q} queries of the pool; "
            "choose a divisor of the pool's size"
        )
    return Q // group_size


def _own_columns(
    arrays: tuple[Shaped[Array, "Q P"] | None, ...], groups: int
) -> tuple[Shaped[Array, "groups G GL"] | None, ...]:
    """Rows and columns of each group: the blocks on the diagonal."""

    def blocks(array: Shaped[Array, "Q P"]) -> Shaped[Array, "groups G GL"]:
        Q, P = array.shape
        split = array.reshape(groups, Q // groups, groups, P // groups)
        own = jnp.eye(groups, dtype=bool)[:, None, :, None]
        # A reduction over a mask instead of a gather: sharded rows stay where they are.
        if array.dtype == bool:
            return jnp.any(split & own, axis=2)
        return jnp.sum(split, axis=2, where=own)

    return tuple(None if array is None else blocks(array) for array in arrays)


def _mean_over_groups(
    one_pool: Callable[..., tuple[Result, Bool[Array, ""]]], arrays: tuple[Any, ...], groups: int
) -> Result:
    """Mean of the results of `one_pool` over the groups that count; arrays are [groups, ...]."""
    if groups == 1:  # without vmap, which runs both sides of a `cond`
        return one_pool(*jax.tree.map(lambda array: array[0], arrays))[0]
    results, counts = jax.vmap(one_pool)(*arrays)
    mean: Result = jax.tree.map(lambda values: query_mean(values, counts), results)
    return mean
