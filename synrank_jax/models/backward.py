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

Activation = Callable[[Array], Array]


def after(value: Array, *others: Array) -> Array:
    """`value` itself, but known only once all others are.

    `jax.lax.optimization_barrier` would say so, but the CPU compiler drops it before it merges
    equal expressions and orders the rest. Where the others are not finite, neither is the result.
    """
    return value + sum(0 * other.ravel()[0].astype(value.dtype) for other in others)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def linear(
    x: Float[Array, "*B T I"],
    kernel: Float[Array, "I O"],
    bias: Float[Array, " O"],
    precision: jax.lax.Precision,
    activation: Activation | None = None,
) -> Float[Array, "*B T O"]:
    """activation(x) @ kernel + bias, all in one type. Of activation(x) nothing is kept."""
    activated = x if activation is None else activation(x)
    return jnp.matmul(activated, kernel, precision=precision) + bias


def _linear(
    x: Array,
    kernel: Array,
    bias: Array,
    precision: jax.lax.Precision,
    activation: Activation | None,
) -> tuple[Array, tuple[Array, Array]]:
    return linear(x, kernel, bias, precision, activation), (x, kernel)


def _linear_backward(
    precision: jax.lax.Precision,
    activation: Activation | None,
    kept: tuple[Array, Array],
    gradient: Array,
) -> tuple[Array, Array, Array]:
    x, kernel = kept
    activated = x
    if activation is not None:
        activated, of_activation = jax.vjp(activation, after(x, gradient))
    # In two dimensions, or the CPU compiler writes the transpose of `activated` first.
    flat, flat_gradient = (part.reshape(-1, part.shape[-1]) for part in (activated, gradient))
    of_kernel = jnp.matmul(flat.T, flat_gradient, precision=precision)
    of_bias = gradient.sum(axis=range(gradient.ndim - 1))
    of_x = jnp.matmul(gradient, kernel.T, precision=precision)
    if activation is not None:
        (of_x,) = of_activation(of_x)
    return after(of_x, of_kernel, of_bias), of_kernel, of_bias


linear.defvjp(_linear, _linear_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*B H"], scale: Float[Array, " H"], bias: Float[Array, " H"], epsilon: float
) -> Float[Array, "*B H"]:
    """Layer normalisation (Ba et al. 2016, arXiv 1607.06450), in float32, to the type of x.

    Keeps x and one number per row of it.
    """
    return _layer_norm(x, scale, bias, epsilon)[0]


def _layer_norm(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, tuple[Array, ...]]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(wide - mean).mean(axis=-1, keepdims=True) + epsilon)
    normed = (wide - mean) * inverse * scale + bias
    return normed.astype(x.dtype), (x, mean, inverse, scale)


def _layer_norm_backward(
    epsilon: float, kept: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array]:
    x, mean, inverse, scale = kept
    wide = gradient.astype(jnp.float32)
    normed = (after(x, gradient).astype(jnp.float32) - mean) * inverse
    rows = range(x.ndim - 1)
    of_scale = (wide * normed).sum(axis=rows)
    scaled = wide * scale
    along = (scaled * normed).mean(axis=-1, keepdims=True)
    of_x = (scaled - scaled.mean(axis=-1, keepdims=True) - along * normed) * inverse
    of_bias = wide.sum(axis=rows)
    return after(of_x.astype(x.dtype), of_scale, of_bias), of_scale, of_bias


layer_norm.defvjp(_layer_norm, _layer_norm_backward)
