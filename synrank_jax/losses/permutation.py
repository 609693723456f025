"""Losses of a whole order: listmle and approx_ndcg."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from synrank_jax.losses.anchors import at_anchor, sum_over_anchors
from synrank_jax.losses.gains import discount, gains, ideal_dcg
from synrank_jax.losses.pairwise import upper_items
from synrank_jax.losses.rows import Rows, Temperature, as_rows, log_softmax, query_mean


def listmle(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None = None,
    target_where: Bool[Array, "Q P"] | None = None,
    *,
    temperature: Temperature,
    target_temperature: Temperature,
) -> Float[Array, ""]:
    """-log(exp s_i / sum over y_j <= y_i of exp s_j), s = scores / temperature, mean over items i.

    The Plackett-Luce likelihood of the order of the labels: ListMLE (Xia et al., ICML 2008). Ties
    as Breslow treats them in the partial likelihood (Biometrics 30, 1974): every tied item is drawn
    from among all items that are not above it, its equals included, so the order within a grade
    does not matter and their scores are drawn together. Items of the row's lowest label are what is
    left in the end; they stand in denominators only, as in-batch passages do. Without ties this is
    the exact likelihood.

    The mean over a query's items in place of the sum keeps the list size out of the scale. A query
    with one grade has 0. `target_temperature` does not enter. Queries without a usable item do not
    count; 0 with zero gradient when none has one.
    """
    del target_temperature
    rows = as_rows(scores, labels, where, target_where)
    anchors = upper_items(rows)
    total = sum_over_anchors(_surprise, rows.scores / temperature, anchors, rows)
    return query_mean(total / jnp.maximum(anchors.sum(axis=-1), 1), rows.counts)


def approx_ndcg(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None = None,
    target_where: Bool[Array, "Q P"] | None = None,
    *,
    temperature: Temperature,
    target_temperature: Temperature,
) -> Float[Array, ""]:
    """1 - sum_i g_i / log2(1 + r_i) / ideal DCG, mean over queries.

    ApproxNDCG (Qin, Liu and Li, Information Retrieval 13, 2010): ranks are smoothed,
    r_i = 1 + sum over j != i of sigmoid((s_j - s_i) / temperature), over all of `where`. Gains are
    linear (`gains`), of the items that may carry target mass. A query without gain has 0.
    `target_temperature` does not enter. Queries without a usable item do not count; 0 with zero
    gradient when none has one.
    """
    del target_temperature
    rows = as_rows(scores, labels, where, target_where)
    gain = jnp.where(rows.target_where, gains(rows), 0)
    ideal = ideal_dcg(gain, rows.where)
    share = gain / jnp.where(ideal > 0, ideal, 1)[:, None]
    ndcg = sum_over_anchors(
        _smooth_dcg, rows.scores / temperature, share > 0, _Gains(rows.where, share)
    )
    return query_mean(jnp.where(ideal > 0, 1 - ndcg, 0), rows.counts)


class _Gains(NamedTuple):
    where: Bool[Array, "Q P"]
    gain: Float[Array, "Q P"]


def _surprise(
    is_anchor: Bool[Array, "Q P"], logits: Float[Array, "Q P"], rows: Rows
) -> Float[Array, " Q"]:
    """-log of the anchor's probability among the items that are not above it."""
    rest = rows.where & (rows.labels <= at_anchor(is_anchor, rows.labels))
    log_p, _ = log_softmax(logits, rest)
    return -jnp.sum(log_p, axis=-1, where=is_anchor)


def _smooth_dcg(
    is_anchor: Bool[Array, "Q P"], logits: Float[Array, "Q P"], row: _Gains
) -> Float[Array, " Q"]:
    above = jax.nn.sigmoid(logits - at_anchor(is_anchor, logits))
    rank = 1 + jnp.sum(above, axis=-1, where=row.where & ~is_anchor)
    return at_anchor(is_anchor, row.gain)[:, 0] * discount(rank)
