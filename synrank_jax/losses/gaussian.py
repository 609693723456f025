"""The Gaussian 2-Wasserstein loss of arXiv 2503.23239: rows of a pool as samples of a Gaussian."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from synrank_jax.losses.pool import target_distribution
from synrank_jax.losses.rows import Temperature, as_rows, log_softmax

ROOT_EPS = 1e-15
"""Added to each eigenvalue of A A^T under the root by the released code; damps the gradient."""


class GaussianTransport(NamedTuple):
    """value: the loss. alignment: tr(A) / ||A||_*, in [-1, 1] (see `gaussian_transport`)."""

    value: Float[Array, ""]
    alignment: Float[Array, ""]


def gaussian_wasserstein(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None = None,
    target_where: Bool[Array, "Q P"] | None = None,
    *,
    temperature: Temperature,
    target_temperature: Temperature,
) -> Float[Array, ""]:
    """Squared 2-Wasserstein distance of two Gaussians over the pool; see `gaussian_transport`."""
    return gaussian_transport(
        scores,
        labels,
        where,
        target_where,
        temperature=temperature,
        target_temperature=target_temperature,
    ).value


def gaussian_transport(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"] | None = None,
    target_where: Bool[Array, "Q P"] | None = None,
    *,
    temperature: Temperature,
    target_temperature: Temperature,
) -> GaussianTransport:
    """The loss and how well predicted and target rows are paired.

    Queries are the samples, passages the features. Predicted rows p = softmax(scores / temperature)
    and target rows t (`target_distribution`) are each summarised as a Gaussian: mean row and
    covariance f E^T E, E = rows minus mean, f = 1 / (Q - 1). With A = f E_p E_t^T [Q, Q],

        W2^2 = |mean_p - mean_t|^2 + f |E_p|_F^2 + f |E_t|_F^2 - 2 ||A||_*

    (||.||_* the sum of singular values). Rows without a usable item leave the statistics; with one
    row E = 0 and the mean gap remains, with none the value is 0. Values down to about -1e-7 are
    rounding. A batch statistic: it depends on which queries share the pool, and permuting the rows
    of p leaves it unchanged. The alignment r = tr(A) / ||A||_* tells whether p's rows stand at
    their own queries: 1 at the optimum, near 0 for noise; 0 where A = 0; it has no gradient.

    Deviation from the released code, which takes sum_i sqrt(lambda_i(A A^T) + ROOT_EPS) with a
    general eigen-solver in float64: here the value is the nuclear norm itself (the loss is at most
    2 Q sqrt(ROOT_EPS) larger), by an SVD that float32 and every accelerator can carry. The gradient
    is the released one.
    """
    rows = as_rows(scores, labels, where, target_where)
    _, p = log_softmax(rows.scores / temperature, rows.where)
    _, t = target_distribution(rows.labels, rows.target_where, target_temperature)
    mean_p, deviation_p = _gaussian(p, rows.counts)
    mean_t, deviation_t = _gaussian(t, rows.counts)
    # The only product with t: it has L entries per row that differ from a constant, which a
    # cheaper way to A can use.
    A = jnp.matmul(deviation_p, deviation_t.T, precision=jax.lax.Precision.HIGHEST)
    norm = nuclear_norm(A)
    gap = jnp.sum((mean_p - mean_t) ** 2)
    value = gap + jnp.sum(deviation_p**2) + jnp.sum(deviation_t**2) - 2 * norm
    alignment = jnp.where(norm > 0, jnp.trace(A) / jnp.where(norm > 0, norm, 1), 0)
    return GaussianTransport(value, jax.lax.stop_gradient(alignment))


def _gaussian(
    x: Float[Array, "Q P"], counts: Bool[Array, " Q"]
) -> tuple[Float[Array, " P"], Float[Array, "Q P"]]:
    """Mean over the rows that count, and sqrt(f) E: times its transpose it is the covariance.

    Rows that do not count have deviation 0; so has a single row, whose f = 1.
    """
    number = counts.sum().astype(x.dtype)
    mean = jnp.sum(x, axis=0, where=counts[:, None]) / jnp.maximum(number, 1)
    deviation = jnp.where(counts[:, None], x - mean, 0)
    return mean, deviation / jnp.sqrt(jnp.maximum(number - 1, 1))


@jax.custom_vjp
def nuclear_norm(A: Float[Array, "Q Q"]) -> Float[Array, ""]:
    """Sum of the singular values of A.

    With A = U diag(s) V^T its gradient is the polar factor U V^T, so no derivative of an SVD is
    needed (that one divides by differences of singular values). The factor is not unique where
    s_i = 0, and a product of deviations always has such an i: it is damped to
    U diag(s / sqrt(s^2 + ROOT_EPS)) V^T, the exact gradient of sum_i sqrt(s_i^2 + ROOT_EPS).
    """
    return jnp.linalg.svd(A, compute_uv=False).sum()


def _nuclear_norm_fwd(A: Float[Array, "Q Q"]) -> tuple[Float[Array, ""], Float[Array, "Q Q"]]:
    U, s, Vt = jnp.linalg.svd(A)
    damping = s / jnp.sqrt(s**2 + ROOT_EPS)
    return s.sum(), jnp.matmul(U * damping, Vt, precision=jax.lax.Precision.HIGHEST)


def _nuclear_norm_bwd(
    polar_factor: Float[Array, "Q Q"], g: Float[Array, ""]
) -> tuple[Float[Array, "Q Q"]]:
    return (g * polar_factor,)


nuclear_norm.defvjp(_nuclear_norm_fwd, _nuclear_norm_bwd)
