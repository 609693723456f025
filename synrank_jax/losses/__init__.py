"""List-wise losses on one signature.

    loss(scores, labels, where=None, target_where=None, *, temperature, target_temperature, ...)

scores and labels are [Q, P] (P = L for lists alone, Q L for a pool, see `pool.pool_labels`), masks
[Q, P] bool; the result is a scalar in float32, or float64 for float64 scores. Temperatures divide,
and every loss is differentiable in `temperature`. Further keywords belong to single losses.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from synrank_jax.losses.gaussian import gaussian_paired, gaussian_transport, gaussian_wasserstein
from synrank_jax.losses.listwise import infonce, infonce_sampled, listnet_kl
from synrank_jax.losses.pairwise import lambdarank, margin_mse, ranknet
from synrank_jax.losses.permutation import approx_ndcg, listmle
from synrank_jax.losses.rows import Temperature
from synrank_jax.losses.sinkhorn import sinkhorn
from synrank_jax.losses.sorting import soft_rank
from synrank_jax.losses.wasserstein import wasserstein

LOSSES: dict[str, Callable[..., Float[Array, ""]]] = {
    "wasserstein": wasserstein,
    "sinkhorn": sinkhorn,
    "gaussian_wasserstein": gaussian_wasserstein,
    "gaussian_paired": gaussian_paired,
    "listnet_kl": listnet_kl,
    "listmle": listmle,
    "ranknet": ranknet,
    "lambdarank": lambdarank,
    "approx_ndcg": approx_ndcg,
    "soft_rank": soft_rank,
    "infonce": infonce,
    "infonce_sampled": infonce_sampled,
    "margin_mse": margin_mse,
}


def list_loss(
    scores: Float[Array, "Q P"],
    labels: Float[Array, "Q P"],
    where: Bool[Array, "Q P"],
    target_where: Bool[Array, "Q P"],
    *,
    weights: Mapping[str, float],
    temperature: Temperature,
    target_temperature: Temperature,
    options: Mapping[str, Mapping[str, Any]],
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
        options: name in LOSSES -> the further keywords of that loss; losses that need none, or
            have no weight, may be absent.

    Returns:
        The sum, and metrics: each loss's unweighted value under its name and, with
        `gaussian_wasserstein`, its `alignment`.

    Raises:
        KeyError: a name that is not in LOSSES.
    """
    own_keywords: dict[str, Mapping[str, Any]] = {name: {} for name in LOSSES} | dict(options)
    metrics: dict[str, Float[Array, ""]] = {}
    total = jnp.zeros((), jnp.promote_types(scores.dtype, jnp.float32))
    for name, weight in weights.items():
        keywords = {
            "temperature": temperature,
            "target_temperature": target_temperature,
            **own_keywords[name],
        }
        arguments = (scores, labels, where, target_where)
        if name == "gaussian_wasserstein":  # one SVD gives the value and the diagnostic
            value, metrics["alignment"] = gaussian_transport(*arguments, **keywords)
        else:
            value = LOSSES[name](*arguments, **keywords)
        metrics[name] = value
        total += weight * value
    return total, metrics
