"""Discounted cumulative gain of a row: linear gains, logarithmic discount."""

import jax.numpy as jnp
import jax.scipy.stats
from jaxtyping import Array, Bool, Float

from synrank_jax.losses.rows import Rows


def gains(rows: Rows) -> Float[Array, "Q P"]:
    """Linear gains: the label, or its height above the row's lowest label where that is negative.

    In-batch passages one level below grade 0 so gain 0 and a grade-0 passage gains 1. Masked items
    gain 0.
    """
    lowest = jnp.min(rows.labels, axis=-1, keepdims=True, where=rows.where, initial=0)
    return jnp.where(rows.where, rows.labels - lowest, 0)


def discount(ranks: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1 / log2(1 + rank), for ranks from 1 on."""
    weight: Float[Array, "*shape"] = jnp.log(jnp.asarray(2, ranks.dtype)) / jnp.log1p(ranks)
    return weight


def ranks(scores: Float[Array, "Q P"], where: Bool[Array, "Q P"]) -> Float[Array, "Q P"]:
    """Rank of each item by descending score, from 1 on; ties share their mean, masked come last."""
    descending = jnp.where(where, -scores, jnp.inf)
    result: Float[Array, "Q P"] = jax.scipy.stats.rankdata(descending, axis=-1)
    return result.astype(scores.dtype)


def ideal_dcg(gain: Float[Array, "Q P"], where: Bool[Array, "Q P"]) -> Float[Array, " Q"]:
    """Largest DCG of each row, that of its items in order of gain; 0 in a fully masked row."""
    best = -jnp.sort(jnp.where(where, -gain, 0), axis=-1)
    return jnp.sum(best * discount(jnp.arange(1, gain.shape[-1] + 1, dtype=gain.dtype)), axis=-1)
