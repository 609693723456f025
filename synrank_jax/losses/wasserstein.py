"""Optimal transport between predicted and target mass on the grade axis."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from synrank_jax.losses.axis import find_levels
from synrank_jax.losses.ott_jax import LinearProblem, PNormP, PointCloud, quantile_solver
from synrank_jax.losses.pool import target_distribution
from synrank_jax.losses.rows import Temperature, as_rows, log_softmax, query_mean


def wasserstein(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None = None,
    target_where: Bool[Array, "Q P"] | None = None,
    *,
    temperature: Temperature,
    target_temperature: Temperature,
    levels: tuple[float, ...],
    positions: tuple[float, ...] | None = None,
    order: Literal[1, 2] = 1,
) -> Float[Array, ""]:
    """Cost of moving the predicted mass to the target mass on the grade axis, mean over queries.

    p = softmax(scores / temperature) over `where`, t: `target_distribution`. Both are summed per
    level; the loss is the exact 1-D transport cost between the two histograms,
    min over plans of sum_xy plan_xy |x - y|^order (for order 2 the cost, not its root), x and y
    being positions of levels. Order 1 is sum_k (x_{k+1} - x_k) |CDF_p(k) - CDF_t(k)|. Passages of
    one grade are interchangeable. Queries without a usable item do not count; 0 with zero gradient
    when none has one.

    Args:
        scores: [Q, P] raw scores.
        labels: [Q, P]. Precondition: the label of every item in `where` is one of `levels` (equal
            in float32). Otherwise the loss is NaN, not a number that leaves mass out.
        where: [Q, P], items that take part.
        target_where: [Q, P], items that may carry target mass.
        temperature: divides the scores.
        target_temperature: divides the grades.
        levels: static, strictly ascending; the in-batch label included when pooled.
        positions: where the levels lie on the axis: static, strictly ascending, as many as levels.
            None: at their own values.
        order: p of the ground cost |x - y|^p.
    """
    rows = as_rows(scores, labels, where, target_where)
    _, p = log_softmax(rows.scores / temperature, rows.where)
    _, t = target_distribution(rows.labels, rows.target_where, target_temperature)
    axis = find_levels(rows, levels)
    cost = jax.vmap(lambda a, b: transport_cost(a, b, positions or levels, order))(
        axis.sums(p), axis.sums(t)
    )
    return query_mean(axis.nan_off_axis(cost), rows.counts)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def transport_cost(
    p: Float[Array, " V"], t: Float[Array, " V"], points: tuple[float, ...], order: int
) -> Float[Array, ""]:
    """Least sum_xy plan_xy |x - y|^order over plans from p to t, histograms on `points`.

    The value comes from OTT's `quantile_solver`, the derivatives from `_potential`. Differentiating
    the solver itself goes through a sort of both CDFs, which hands the whole derivative to one of
    the entries that tie. Ties are common here: a level without target mass repeats a CDF value, and
    a saturated softmax makes several equal 1. There the solver's gradient is wrong even where the
    cost is differentiable (tests pin such a case).

    Args:
        p: masses per level [V].
        t: masses per level [V], the same total as p.
        points: V points, strictly ascending.
        order: exponent of the ground cost.
    """
    x = jnp.asarray(points, p.dtype)[:, None]
    problem = LinearProblem(PointCloud(x, x, cost_fn=PNormP(order)), a=p, b=t)
    cost: Float[Array, ""] = order * quantile_solver(problem).ot_costs[0]  # PNormP divides by it
    return cost


@transport_cost.defjvp
def _transport_cost_jvp(
    points: tuple[float, ...],
    order: int,
    primals: tuple[Float[Array, " V"], Float[Array, " V"]],
    tangents: tuple[Float[Array, " V"], Float[Array, " V"]],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    (p, t), (dp, dt) = primals, tangents
    # Products and sums, no dot: accelerators run that in reduced precision by default.
    slopes = _potential(p, t, points, order) * dp + _potential(t, p, points, order) * dt
    return transport_cost(p, t, points, order), slopes.sum()


def _potential(
    p: Float[Array, " V"], t: Float[Array, " V"], points: tuple[float, ...], order: int
) -> Float[Array, " V"]:
    """Kantorovich potential of p's side, 0 on the top point: the gradient at constant total mass.

    With c = |x - y|^order, F = CDF_p and G^-1 the quantile function of t, the cost is the integral
    over q of c(F^-1(q), G^-1(q)). Raising F(k) moves mass from point k + 1 to point k against the
    target point y = G^-1(F(k)): dcost / dF(k) = c(x_k, y) - c(x_{k+1}, y). Where F(k) is a jump of
    G^-1 the mean of both sides is a subgradient, for order 1 that of |CDF_p - CDF_t| with
    sign(0) = 0.
    """
    x = jnp.asarray(points, p.dtype)
    at, below = jnp.cumsum(p)[:-1, None], jnp.cumsum(t)
    slope = jnp.zeros(len(points) - 1, p.dtype)
    for passed in (below < at, below <= at):  # G^-1 from the left and from the right
        y = x[jnp.minimum(passed.sum(axis=-1), len(points) - 1)]
        slope += 0.5 * (jnp.abs(x[:-1] - y) ** order - jnp.abs(x[1:] - y) ** order)
    return jnp.append(jnp.cumsum(slope[::-1])[::-1], jnp.zeros(1, p.dtype))
