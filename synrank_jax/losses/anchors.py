"""Sums over the pairs of a row: one judged item after the other meets all items of its row.

A query has a few judged items and meets P passages, so this costs (judged items) Q P operations
and holds O(Q P) memory, where all pairs at once would take Q P^2 of both. An in-batch grade above
the lowest grade makes all P passages judged items, and the operations Q P^2 too.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Term = Callable[[Bool[Array, "Q P"], Float[Array, "Q P"], Any], Float[Array, " Q"]]


def at_anchor(is_anchor: Bool[Array, "Q P"], x: Float[Array, "Q P"]) -> Float[Array, "Q 1"]:
    """Each row's entry at its anchor, 0 in a row without; a comparison, no gather."""
    return jnp.sum(x, axis=-1, keepdims=True, where=is_anchor)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sum_over_anchors(
    term: Term, logits: Float[Array, "Q P"], anchors: Bool[Array, "Q P"], context: Any
) -> Float[Array, " Q"]:
    """Sum of term(is_anchor, logits, context) over the anchors of each row.

    The loop takes one anchor of every row at a time and ends with the longest row. It carries the
    gradient along with the value: reverse differentiation could not go through it, and would store
    every step.

    Args:
        term: [Q] from is_anchor [Q, P] (True at no more than one item per row), the logits and the
            context. A row's term depends on that row only, and is 0 without an anchor.
        logits: [Q, P], differentiable, once.
        anchors: [Q, P].
        context: arrays that the term reads, without gradient.
    """

    def add(is_anchor: Bool[Array, "Q P"], total: Float[Array, " Q"]) -> Float[Array, " Q"]:
        return total + term(is_anchor, logits, context)

    total: Float[Array, " Q"] = _for_each(anchors, add, jnp.zeros_like(logits[:, 0]))
    return total


def _forward(
    term: Term, logits: Float[Array, "Q P"], anchors: Bool[Array, "Q P"], context: Any
) -> tuple[Float[Array, " Q"], Float[Array, "Q P"]]:
    def add(is_anchor: Bool[Array, "Q P"], total: Any) -> Any:
        value, pullback = jax.vjp(lambda logits: term(is_anchor, logits, context), logits)
        (gradient,) = pullback(jnp.ones_like(value))
        return total[0] + value, total[1] + gradient

    total: tuple[Float[Array, " Q"], Float[Array, "Q P"]] = _for_each(
        anchors, add, (jnp.zeros_like(logits[:, 0]), jnp.zeros_like(logits))
    )
    return total


def _backward(
    term: Term, gradient: Float[Array, "Q P"], g: Float[Array, " Q"]
) -> tuple[Float[Array, "Q P"], None, None]:
    return g[:, None] * gradient, None, None


sum_over_anchors.defvjp(_forward, _backward)


def _for_each(anchors: Bool[Array, "Q P"], add: Callable[..., Any], total: Any) -> Any:
    place = jnp.cumsum(anchors, axis=-1)  # 1, 2, ... at the anchors of each row

    def step(number: Array, total: Any) -> Any:
        return add(anchors & (place == number), total)

    return jax.lax.fori_loop(1, place[:, -1].max() + 1, step, total)
