"""The grade axis: the levels that labels take, and the mass a row has at each."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from synrank_jax.losses.rows import Rows


class Levels(NamedTuple):
    """Which level each item stands at.

    member: [Q, P, V] bool, at most one level per item, none where masked.
    on_axis: [Q] bool, False in a row where an item that takes part has a label off the axis.
    """

    member: Bool[Array, "Q P V"]
    on_axis: Bool[Array, " Q"]

    def sums(self, mass: Float[Array, "Q P"]) -> Float[Array, "Q V"]:
        """Mass of the items at each level."""
        return jnp.sum(mass[..., None], axis=1, where=self.member)

    def nan_off_axis(self, values: Float[Array, " Q"]) -> Float[Array, " Q"]:
        """A row with a label off the axis is NaN, not a number that leaves mass out."""
        return jnp.where(self.on_axis, values, jnp.nan)


def find_levels(rows: Rows, levels: tuple[float, ...]) -> Levels:
    """Match labels with levels, in float32: the dtype labels arrive in.

    Args:
        rows: the inputs of a loss.
        levels: V labels, static, strictly ascending; the in-batch label included when pooled.
    """
    equal = rows.labels.astype(jnp.float32)[..., None] == jnp.asarray(levels, jnp.float32)
    member = equal & rows.where[..., None]
    return Levels(member, jnp.all(member.any(axis=-1) | ~rows.where, axis=-1))
