"""List-wise losses on one signature; gaussian_wasserstein, listnet_kl, infonce and wasserstein.

    loss(scores, labels, where=None, target_where=None, *, temperature, target_temperature, ...)

scores and labels are [Q, P] (P = L for lists alone, Q L for a pool, see `pool.pool_labels`), masks
[Q, P] bool; the result is a scalar in float32, or float64 for float64 scores. Temperatures divide.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from synrank_jax.losses.gaussian import gaussian_transport, gaussian_wasserstein
from synrank_jax.losses.listwise import infonce, listnet_kl
from synrank_jax.losses.rows import Temperature
from synrank_jax.losses.wasserstein import wasserstein

LOSSES: dict[str, Callable[..., Float[Array, ""]]] = {
    "wasserstein": wasserstein,
    "gaussian_wasserstein": gaussian_wasserstein,
    "listnet_kl": listnet_kl,
    "infonce": infonce,
}


def list_loss(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"],
    target_where: Bool[Array, "Q P"],
    *,
    weights: dict[str, float],
    temperature: Temperature,
    target_temperature: Temperature,
    levels: tuple[float, ...],
    wasserstein_order: Literal[1, 2],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Weighted sum of losses.

    Args:
        scores: [Q, P] raw scores.
        labels: [Q, P] grades.
        where: [Q, P], items that take part.
        target_where: [Q, P], items that may carry target mass.
        weights: name in LOSSES -> weight.
        temperature: divides the scores.
        target_temperature: divides the grades.
        levels: points of the grade axis, for `wasserstein`.
        wasserstein_order: order of `wasserstein`.

    Returns:
        The sum, and metrics: each loss's unweighted value under its name and, with
        `gaussian_wasserstein`, its `alignment`.

    Raises:
        KeyError: a name that is not in LOSSES.
    """
    options: dict[str, dict[str, Any]] = {name: {} for name in LOSSES}
    options["wasserstein"] = {"levels": levels, "order": wasserstein_order}
    shared: dict[str, Any] = {"temperature": temperature, "target_temperature": target_temperature}
    metrics: dict[str, Float[Array, ""]] = {}
    total = jnp.zeros((), jnp.promote_types(scores.dtype, jnp.float32))
    for name, weight in weights.items():
        arguments = (scores, labels, where, target_where)
        if name == "gaussian_wasserstein":  # one SVD gives the value and the diagnostic
            value, metrics["alignment"] = gaussian_transport(*arguments, **shared)
        else:
            value = LOSSES[name](*arguments, **shared, **options[name])
        metrics[name] = value
        total += weight * value
    return total, metrics
