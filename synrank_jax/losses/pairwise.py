"""Losses of pairs of passages: ranknet, lambdarank and margin_mse.

The upper side of a pair may carry target mass, the lower side has a lower label. In-batch passages
without target mass stand at the lowest label: they are never the upper side, and two of them make
no pair.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from synrank_jax.losses.anchors import at_anchor, sum_over_anchors
from synrank_jax.losses.gains import discount, gains, ideal_dcg, ranks
from synrank_jax.losses.rows import Rows, Temperature, as_rows, query_mean


def ranknet(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None = None,
    target_where: Bool[Array, "Q P"] | None = None,
    *,
    temperature: Temperature,
    target_temperature: Temperature,
) -> Float[Array, ""]:
    """log(1 + exp(-(s_i - s_j))), s = scores / temperature, mean over the pairs y_i > y_j.

    RankNet (Burges et al., ICML 2005) with certain targets. The mean is over a query's pairs, then
    over queries, so that neither list nor pool size scales the loss; a query without a pair has 0.
    `target_temperature` does not enter. Queries without a usable item do not count; 0 with zero
    gradient when none has one.
    """
    del target_temperature
    rows = as_rows(scores, labels, where, target_where)
    logits, anchors = rows.scores / temperature, upper_items(rows)
    total = sum_over_anchors(_logistic, logits, anchors, rows)
    number = sum_over_anchors(_count, logits, anchors, rows)
    return query_mean(total / jnp.maximum(number, 1), rows.counts)


def lambdarank(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None = None,
    target_where: Bool[Array, "Q P"] | None = None,
    *,
    temperature: Temperature,
    target_temperature: Temperature,
) -> Float[Array, ""]:
    """RankNet with every pair weighted by the nDCG that swapping it would change.

    LambdaRank (Burges et al., NIPS 2006), as the loss whose gradient it is:

        sum over y_i > y_j of dnDCG_ij log(1 + exp(-(s_i - s_j))),  s = scores / temperature
        dnDCG_ij = |g_i - g_j| |1 / log2(1 + r_i) - 1 / log2(1 + r_j)| / ideal DCG

    and the mean over queries. Gains g are linear (`gains`). Ranks r are those of the scores over
    all of `where`, tied scores at their mean rank: scores that all tie have no gradient. The
    weights are constants to the gradient. `target_temperature` does not enter. A query without a
    pair has 0. Queries without a usable item do not count; 0 with zero gradient when none has one.
    """
    del target_temperature
    rows = as_rows(scores, labels, where, target_where)
    logits, gain = rows.scores / temperature, gains(rows)
    ideal = ideal_dcg(gain, rows.where)
    weighted = _Weighted(
        rows=rows,
        gain=gain / jnp.where(ideal > 0, ideal, 1)[:, None],
        discount=discount(ranks(jax.lax.stop_gradient(rows.scores), rows.where)),
    )
    return query_mean(sum_over_anchors(_lambda, logits, upper_items(rows), weighted), rows.counts)


def margin_mse(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None = None,
    target_where: Bool[Array, "Q P"] | None = None,
    *,
    temperature: Temperature,
    target_temperature: Temperature,
    own: Bool[Array, "Q P"] | None = None,
) -> Float[Array, ""]:
    """((s_top - s_j) - (y_top - y_j))^2, mean over j != top, then over queries.

    Margin-MSE (Hofstaetter et al. 2020, arXiv 2010.02666) for lists: s = scores / temperature,
    y = labels / target_temperature stand for a teacher's scores, and `top` is the highest of the
    own list, the first column on ties. Only items of `target_where` have a teacher's score:
    in-batch passages without target mass do not enter. A query with one item has 0. Queries without
    a usable item do not count; 0 with zero gradient when none has one.

    Args:
        scores: [Q, P] raw scores.
        labels: [Q, P].
        where: [Q, P], items that take part.
        target_where: [Q, P], items that may carry target mass.
        temperature: divides the scores.
        target_temperature: divides the labels.
        own: [Q, P], the query's own list. None: `target_where`, as in `infonce`.
    """
    rows = as_rows(scores, labels, where, target_where)
    candidates = rows.target_where if own is None else rows.target_where & own
    top = jnp.argmax(jnp.where(candidates, rows.labels, -jnp.inf), axis=-1)
    is_top = (jnp.arange(scores.shape[-1]) == top[:, None]) & candidates
    others = rows.target_where & ~is_top
    student, teacher = rows.scores / temperature, rows.labels / target_temperature
    error = (at_anchor(is_top, student) - student) - (at_anchor(is_top, teacher) - teacher)
    total = jnp.sum(jnp.where(others, error, 0) ** 2, axis=-1)
    return query_mean(total / jnp.maximum(others.sum(axis=-1), 1), rows.counts)


def upper_items(rows: Rows) -> Bool[Array, "Q P"]:
    """Items that may carry target mass and stand above the lowest label of their row."""
    lowest = jnp.min(rows.labels, axis=-1, keepdims=True, where=rows.where, initial=jnp.inf)
    return rows.target_where & (rows.labels > lowest)


class _Weighted(NamedTuple):
    """gain, discount: [Q, P]; a pair's weight is the product of their distances."""

    rows: Rows
    gain: Float[Array, "Q P"]
    discount: Float[Array, "Q P"]


def _below(is_anchor: Bool[Array, "Q P"], rows: Rows) -> Bool[Array, "Q P"]:
    """Items below the anchor; none in a row without an anchor."""
    lower = rows.labels < at_anchor(is_anchor, rows.labels)
    return lower & rows.where & is_anchor.any(axis=-1, keepdims=True)


def _logistic(
    is_anchor: Bool[Array, "Q P"], logits: Float[Array, "Q P"], rows: Rows
) -> Float[Array, " Q"]:
    losses = jax.nn.softplus(logits - at_anchor(is_anchor, logits))
    return jnp.sum(losses, axis=-1, where=_below(is_anchor, rows))


def _lambda(
    is_anchor: Bool[Array, "Q P"], logits: Float[Array, "Q P"], weighted: _Weighted
) -> Float[Array, " Q"]:
    change = jnp.abs(at_anchor(is_anchor, weighted.gain) - weighted.gain) * jnp.abs(
        at_anchor(is_anchor, weighted.discount) - weighted.discount
    )
    losses = jax.nn.softplus(logits - at_anchor(is_anchor, logits))
    return jnp.sum(change * losses, axis=-1, where=_below(is_anchor, weighted.rows))


def _count(
    is_anchor: Bool[Array, "Q P"], logits: Float[Array, "Q P"], rows: Rows
) -> Float[Array, " Q"]:
    return _below(is_anchor, rows).sum(axis=-1).astype(logits.dtype)
