"""Sum and maximum of rows, which XLA computes one number at a time on CPU."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Numbers that a vector register of the CPU holds, in float32 and AVX-512.
LANES = 16


def row_sum(x: Float[Array, "*B N"]) -> Float[Array, "*B 1"]:
    """Sum over the last axis."""
    return _by_platform(x, jnp.add, jnp.sum)


def row_max(x: Float[Array, "*B N"]) -> Float[Array, "*B 1"]:
    """Maximum over the last axis."""
    return _by_platform(x, jnp.maximum, jnp.max)


def _by_platform(
    x: Array, pair: Callable[[Array, Array], Array], all_of: Callable[..., Array]
) -> Array:
    def direct(x: Array) -> Array:
        return all_of(x, axis=-1, keepdims=True)

    def in_lanes(x: Array) -> Array:
        """As many rows' worth of lanes side by side: element i goes to lane i % LANES."""
        parts = [x[..., start : start + LANES] for start in range(0, x.shape[-1], LANES)]
        return direct(functools.reduce(pair, parts))

    if x.shape[-1] % LANES:
        return direct(x)
    reduced: Array = jax.lax.platform_dependent(x, cpu=in_lanes, default=direct)
    return reduced
