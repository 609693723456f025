"""The optimizer: AdamW with warm-up, decay and clipping, built from Optax; bad updates left out."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from synrank_jax.config import OptimizerConfig

# The running mean of the loss forgets over so many updates, and finds spikes only after so many.
LOSS_MEMORY = 32


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of applied update t = 0 ... steps - 1.

    Warm-up over W = ceil(warmup_fraction * steps) updates: `linear` is peak * (t+1)/W, so no
    update is wasted on rate 0; `log` is the reference's peak * min(1, ln(t+1)/ln(W)), W >= 2.
    After it peak decays to 0 at t = steps.
    """
    warmup = math.ceil(config.warmup_fraction * steps)
    if warmup and config.warmup == "log":
        warmup = max(2, warmup)

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        if config.warmup == "log":
            rise = jnp.log(t + 1) / math.log(warmup) if warmup else jnp.float32(1)
        else:
            rise = (t + 1) / max(warmup, 1)
        left = jnp.clip((steps - t) / max(steps - warmup, 1), 0, 1)
        fall = {
            "linear": left,
            "cosine": 0.5 * (1 - jnp.cos(jnp.pi * left)),
            "constant": jnp.float32(1),
        }[config.schedule]
        return config.learning_rate * jnp.minimum(jnp.minimum(rise, 1), fall)

    return rate


def make_optimizer(
    config: OptimizerConfig, steps: int, spike_factor: float | None = None
) -> optax.GradientTransformationExtraArgs:
    """Clip by global norm, then AdamW; weight decay touches matrices only.

    A learnable temperature has a peak rate of its own. Bad updates are left out
    (`skip_bad_updates`), so `update` takes the loss too.
    """
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
    adamw = optax.adamw(
        learning_rate_schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    )
    of_temperature = optax.masked(
        optax.scale(config.temperature_learning_rate / config.learning_rate),
        lambda params: jax.tree.map(lambda leaf: leaf.ndim == 0, params),  # the only scalar
    )
    return skip_bad_updates(optax.chain(clip, adamw, of_temperature), spike_factor)


class SkipState(NamedTuple):
    """State of `skip_bad_updates`: scalars beside the state of the optimizer within.

    applied_updates, skipped_updates: int32; loss_mean: float32, of the applied updates' losses.
    """

    inner: Any
    applied_updates: jax.Array
    skipped_updates: jax.Array
    loss_mean: jax.Array


def skip_bad_updates(
    inner: optax.GradientTransformation, spike_factor: float | None
) -> optax.GradientTransformationExtraArgs:
    """Never apply an update whose loss or gradient norm is not finite, or whose loss is a spike.

    Such an update leaves weights, moments and the update count of the schedule bit for bit, and is
    counted. `optax.apply_if_finite` would apply it after so many in a row.

    Args:
        inner: The optimizer.
        spike_factor: A loss above this multiple of the running mean is a spike, once `LOSS_MEMORY`
            updates were applied; None: none is.

    Returns:
        A transformation whose `update` takes the keyword `loss`.
    """

    def init(params: optax.Params) -> SkipState:
        zero = jnp.zeros((), jnp.int32)
        return SkipState(inner.init(params), zero, zero, jnp.zeros((), jnp.float32))

    def update(
        grads: optax.Updates, state: SkipState, params: optax.Params | None = None, *, loss: Any
    ) -> tuple[optax.Updates, SkipState]:
        good = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        if spike_factor is not None:
            # At its optimum a loss is 0, by rounding less: then nothing is a multiple of it.
            known = (state.applied_updates >= LOSS_MEMORY) & (state.loss_mean > 0)
            good &= ~(known & (loss > spike_factor * state.loss_mean))

        def choose(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

        updates, updated = inner.update(grads, state.inner, params)
        # x + -0.0 is x for every x; x + 0.0 would make 0.0 of -0.0.
        updates = jax.tree.map(lambda leaf: jnp.where(good, leaf, -0.0), updates)
        applied = state.applied_updates + good
        share = 1 / jnp.clip(applied, 1, LOSS_MEMORY).astype(jnp.float32)
        mean = state.loss_mean + share * (loss - state.loss_mean)
        return updates, SkipState(
            choose(updated, state.inner),
            applied,
            state.skipped_updates + ~good,
            choose(mean, state.loss_mean),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def skip_metrics(before: Any, after: Any) -> dict[str, jax.Array]:
    """What the monitor needs of the optimizer state before and after an update.

    Returns:
        `skipped_updates` since the run began, this one included; `applied_updates` before it, where
        the schedule is; and `loss_mean`, which this loss was compared with. Nothing for an
        optimizer that applies every update.
    """
    if not isinstance(after, SkipState):
        return {}
    return {
        "skipped_updates": after.skipped_updates,
        "applied_updates": before.applied_updates,
        "loss_mean": before.loss_mean,
    }
