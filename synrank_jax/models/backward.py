"""Layers whose backward pass says what it keeps, what it computes again, and in which order.

Left to itself, XLA keeps the results of activations and normalisations (computing them again costs
less than writing and reading them), and the CPU compiler puts off the gradients of all weights to
the end of the step, which keeps the gradients of all activations.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from synrank_jax.models.reductions import row_sum

Activation = Callable[[Array], Array]


def after(value: Array, *others: Array) -> Array:
    """`value` itself, but known only once all others are.

    `jax.lax.optimization_barrier` would say so, but the CPU compiler drops it before it merges
    equal expressions and orders the rest. Where the others are not finite, neither is the result.
    """
    return value + sum(0 * other.ravel()[0].astype(value.dtype) for other in others)


def linear(
    x: Float[Array, "*B I"],
    kernel: Float[Array, "I O"],
    bias: Float[Array, " O"],
    precision: jax.lax.Precision,
    activation: Activation | None = None,
) -> Float[Array, "*B O"]:
    """activation(x) @ kernel + bias, all in one type. Of activation(x) nothing is kept."""
    out = _flat_linear(x.reshape(-1, x.shape[-1]), kernel, bias, precision, activation)
    return out.reshape(*x.shape[:-1], -1)


def layer_norm(
    x: Float[Array, "*B H"], scale: Float[Array, " H"], bias: Float[Array, " H"], epsilon: float
) -> Float[Array, "*B H"]:
    """Layer normalisation (Ba et al. 2016, arXiv 1607.06450), in float32, to the type of x.

    Keeps x and two numbers per row of it.
    """
    return _flat_layer_norm(x.reshape(-1, x.shape[-1]), scale, bias, epsilon).reshape(x.shape)


# All in two dimensions: the CPU compiler transposes the operands of other matmuls first, and
# computes what leads to a reshape once for either shape.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _flat_linear(
    x: Float[Array, "T I"],
    kernel: Float[Array, "I O"],
    bias: Float[Array, " O"],
    precision: jax.lax.Precision,
    activation: Activation | None,
) -> Float[Array, "T O"]:
    activated = x if activation is None else activation(x)
    return jnp.matmul(activated, kernel, precision=precision) + bias


def _linear(
    x: Array,
    kernel: Array,
    bias: Array,
    precision: jax.lax.Precision,
    activation: Activation | None,
) -> tuple[Array, tuple[Array, Array]]:
    return _flat_linear(x, kernel, bias, precision, activation), (x, kernel)


def _linear_backward(
    precision: jax.lax.Precision,
    activation: Activation | None,
    kept: tuple[Array, Array],
    gradient: Array,
) -> tuple[Array, Array, Array]:
    x, kernel = kept
    activated = x if activation is None else activation(after(x, gradient))
    of_kernel = jnp.matmul(activated.T, gradient, precision=precision)
    of_bias = gradient.sum(axis=0)
    of_x = jnp.matmul(gradient, kernel.T, precision=precision)
    if activation is not None:
        # Computed a second time, in one pass over memory with the product.
        (of_x,) = jax.vjp(activation, after(x, of_kernel))[1](of_x)
    return after(of_x, of_kernel, of_bias), of_kernel, of_bias


_flat_linear.defvjp(_linear, _linear_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _flat_layer_norm(
    x: Float[Array, "T H"], scale: Float[Array, " H"], bias: Float[Array, " H"], epsilon: float
) -> Float[Array, "T H"]:
    return _layer_norm(x, scale, bias, epsilon)[0]


def _layer_norm(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, tuple[Array, ...]]:
    wide = x.astype(jnp.float32)
    mean = row_sum(wide) / x.shape[-1]
    inverse = jax.lax.rsqrt(row_sum(jnp.square(wide - mean)) / x.shape[-1] + epsilon)
    normed = (wide - mean) * inverse * scale + bias
    return normed.astype(x.dtype), (x, mean, inverse, scale)


def _layer_norm_backward(
    epsilon: float, kept: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array]:
    x, mean, inverse, scale = kept
    wide = gradient.astype(jnp.float32)
    normed = (after(x, gradient).astype(jnp.float32) - mean) * inverse
    of_scale, of_bias = (wide * normed).sum(axis=0), wide.sum(axis=0)
    scaled = wide * scale
    along = row_sum(scaled * normed) / x.shape[-1]
    of_x = (scaled - row_sum(scaled) / x.shape[-1] - along * normed) * inverse
    return after(of_x.astype(x.dtype), of_scale, of_bias), of_scale, of_bias


_flat_layer_norm.defvjp(_layer_norm, _layer_norm_backward)
