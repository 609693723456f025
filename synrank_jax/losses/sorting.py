"""Soft sorting: ranks as an optimal transport problem."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from synrank_jax.losses.axis import find_levels
from synrank_jax.losses.ott_jax import LinearProblem, PointCloud, Sinkhorn
from synrank_jax.losses.rows import Temperature, as_rows, query_mean

EPSILON = 0.03
"""Entropic regularisation of the sort, on squared distances in [0, 1]."""
ITERATIONS = 50


def soft_rank(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None = None,
    target_where: Bool[Array, "Q P"] | None = None,
    *,
    temperature: Temperature,
    target_temperature: Temperature,
    levels: tuple[float, ...],
    positions: tuple[float, ...] | None = None,
) -> Float[Array, ""]:
    """Squared distance of soft ranks and labels on the unit axis, mean over items, then queries.

    Soft sorting (Cuturi, Teboul and Vert, NeurIPS 2019), with tied targets: the n items of a row
    share their ranks by label. Transport takes each item's mass 1 / n from its place
    x_i = sigmoid(s_i - mean s), s = scores / temperature, to the levels y_v, scaled to [0, 1],
    which take the share of items that has their label; cost (x - y)^2, regularised by EPSILON. An
    item's soft rank R_i = n sum_v plan_iv y_v is the level it would have if labels were handed out
    in the order of the scores, and the loss is the mean of (R_i - y(label_i))^2 over the items that
    may carry target mass. In-batch passages hold n - L places at the lowest level, and their order
    among each other means nothing. With one item per level these are the ranks of
    `ott.tools.soft_sort.ranks` over n - 1.

    OTT solves it by ITERATIONS Sinkhorn steps, through which the gradient goes (its implicit
    derivative is not finite), so it holds about 200 Q P floats. A perfect order costs a little, for
    the ranks are blurred. `target_temperature` does not enter. Labels off the axis give NaN, as in
    `wasserstein`. Queries without a usable item do not count; 0 with zero gradient when none has
    one.

    Args:
        scores: [Q, P] raw scores.
        labels: [Q, P].
        where: [Q, P], items that take part.
        target_where: [Q, P], items that may carry target mass.
        temperature: divides the scores.
        target_temperature: unused.
        levels: labels, static, strictly ascending; the in-batch label included when pooled.
        positions: where the levels lie; None: at their own values.
    """
    del target_temperature
    rows = as_rows(scores, labels, where, target_where)
    axis = find_levels(rows, levels)
    share = rows.where / jnp.maximum(rows.where.sum(axis=-1, keepdims=True), 1).astype(
        rows.scores.dtype
    )
    logits = rows.scores / temperature
    x = jax.nn.sigmoid(logits - jnp.sum(share * logits, axis=-1, keepdims=True))
    y = jnp.asarray(positions or levels, x.dtype)
    y = (y - y[0]) / (y[-1] - y[0])
    # Nothing to sort has no plan: such a row, left out of the mean, gets some mass.
    counts = rows.counts[:, None]
    a = jnp.where(counts, share, 1 / share.shape[-1])
    b = jnp.where(counts, axis.sums(share), 1 / len(levels))
    error = jax.vmap(_soft_ranks, in_axes=(0, 0, 0, None))(x, a, b, y) - jnp.sum(
        axis.member * y, axis=-1
    )
    total = jnp.sum(error**2, axis=-1, where=rows.target_where)
    values = total / jnp.maximum(rows.target_where.sum(axis=-1), 1)
    return query_mean(axis.nan_off_axis(values), rows.counts)


def _soft_ranks(
    x: Float[Array, " P"], a: Float[Array, " P"], b: Float[Array, " V"], y: Float[Array, " V"]
) -> Float[Array, " P"]:
    """Mean target of each point under the regularised plan from (x, a) to (y, b)."""
    problem = LinearProblem(PointCloud(x[:, None], y[:, None], epsilon=EPSILON), a=a, b=b)
    # One less as the minimum: OTT 0.6.0 goes back through a *fixed* number of iterations in the
    # wrong order, and the gradient is finite but wrong (a test pins it). All are taken
    # nevertheless, as the solver looks for convergence only after them.
    solver = Sinkhorn(implicit_diff=None, min_iterations=ITERATIONS - 1, max_iterations=ITERATIONS)
    moved: Float[Array, " P"] = solver(problem).apply(y, axis=1)
    return moved / jnp.where(a > 0, a, 1)
