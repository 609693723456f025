"""Sinkhorn divergence between predicted and target mass, for a general ground cost."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from synrank_jax.losses.axis import find_levels
from synrank_jax.losses.ott_jax import Geometry, sinkhorn_divergence
from synrank_jax.losses.pool import target_distribution
from synrank_jax.losses.rows import Temperature, as_rows, log_softmax, query_mean

LEAST_MASS = 1e-30
"""Put where there is none; far below the rounding of masses that sum to 1."""


def sinkhorn(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None = None,
    target_where: Bool[Array, "Q P"] | None = None,
    *,
    temperature: Temperature,
    target_temperature: Temperature,
    epsilon: float | Float[Array, ""],
    cost: Literal["grade", "embedding"] = "grade",
    levels: tuple[float, ...] | None = None,
    positions: tuple[float, ...] | None = None,
    order: Literal[1, 2] = 1,
    passages: Float[Array, "P D"] | Float[Array, "Q P D"] | None = None,
    threshold: float = 1e-5,
    max_iterations: int = 1000,
) -> Float[Array, ""]:
    """Sinkhorn divergence of predicted and target mass, mean over queries.

    With p = softmax(scores / temperature) over `where` and t the `target_distribution`,

        S(p, t) = OT(p, t) - OT(p, p) / 2 - OT(t, t) / 2
        OT(a, b) = min over plans of sum_xy plan_xy c(x, y) + epsilon KL(plan | a x b)

    (Genevay, Peyre and Cuturi, AISTATS 2018; Feydy et al., AISTATS 2019): 0 at p = t, the transport
    cost as epsilon goes to 0. Values and gradients come from OTT's `sinkhorn_divergence`; gradients
    are the dual potentials (Danskin), nothing is unrolled.

    Cost `grade` sums the masses per level first and takes c = |x - y|^order on the grade axis: as
    `wasserstein`, but smooth. Cost `embedding` moves mass between passages at c = 1 - cos of their
    embeddings, through which no gradient flows: an encoder could make the loss 0 by making all
    passages alike. It takes O(Q P^2) time and memory.

    Queries without a usable item do not count; 0 with zero gradient when none has one.

    Args:
        scores: [Q, P] raw scores.
        labels: [Q, P]; for cost `grade` as for `wasserstein`.
        where: [Q, P], items that take part.
        target_where: [Q, P], items that may carry target mass.
        temperature: divides the scores.
        target_temperature: divides the grades.
        epsilon: entropic regularisation, in units of the cost.
        cost: which of the two.
        levels: for `grade`: labels, static, strictly ascending.
        positions: for `grade`: where the levels lie; None: at their own values.
        order: for `grade`: exponent of the distance.
        passages: for `embedding`: finite, [P, D] of a pool that all queries meet or [Q, P, D].
        threshold: iterations end when the plan's marginals are this close (L1) to the masses; the
            gradient by the scores is off by about as much.
        max_iterations: or after as many; more are needed the smaller epsilon is.
    """
    rows = as_rows(scores, labels, where, target_where)
    _, p = log_softmax(rows.scores / temperature, rows.where)
    _, t = target_distribution(rows.labels, rows.target_where, target_temperature)
    divergences = functools.partial(
        _divergences,
        counts=rows.counts,
        epsilon=epsilon,
        threshold=threshold,
        max_iterations=max_iterations,
    )
    if cost == "grade":
        assert levels is not None, "cost 'grade' needs levels"
        axis = find_levels(rows, levels)
        points = jnp.asarray(positions or levels, p.dtype)
        costs = jnp.abs(points[:, None] - points) ** order
        values = divergences(axis.sums(p), axis.sums(t), costs)
        return query_mean(axis.nan_off_axis(values), rows.counts)
    assert passages is not None, "cost 'embedding' needs passages"
    costs = _cosine_distances(jax.lax.stop_gradient(passages).astype(p.dtype))
    return query_mean(divergences(p, t, costs), rows.counts)


def _divergences(
    p: Float[Array, "Q V"],
    t: Float[Array, "Q V"],
    costs: Float[Array, "V V"] | Float[Array, "Q V V"],
    *,
    counts: Bool[Array, " Q"],
    epsilon: float | Float[Array, ""],
    threshold: float,
    max_iterations: int,
) -> Float[Array, " Q"]:
    def divergence(
        p: Float[Array, " V"], t: Float[Array, " V"], costs: Float[Array, "V V"]
    ) -> Float[Array, ""]:
        value: Float[Array, ""] = sinkhorn_divergence(
            Geometry,
            costs,
            costs,
            costs,
            a=p,
            b=t,
            epsilon=epsilon,
            solve_kwargs={"threshold": threshold, "max_iterations": max_iterations},
        )[0]
        return value

    # OTT's potentials are eps log(mass) + ...: where that is log(0), their gradient is NaN. A row
    # with nothing to transport, left out of the mean, gets some mass, as it has no plan.
    p, t = (
        jnp.where(counts[:, None], jnp.maximum(mass, LEAST_MASS), 1 / mass.shape[-1])
        for mass in (p, t)
    )
    return jax.vmap(divergence, in_axes=(0, 0, 0 if costs.ndim == 3 else None))(p, t, costs)


def _cosine_distances(x: Float[Array, "*Q P D"]) -> Float[Array, "*Q P P"]:
    squares = jnp.sum(x**2, axis=-1, keepdims=True)
    unit = x / jnp.sqrt(jnp.where(squares > 0, squares, 1))
    return 1 - jnp.einsum("...id,...jd->...ij", unit, unit, precision=jax.lax.Precision.HIGHEST)
