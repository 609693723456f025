"""The optimizer: AdamW with warm-up, decay and clipping, built from Optax."""

import math

import jax
import jax.numpy as jnp
import optax

from synrank_jax.config import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of update t = 0 ... steps - 1.

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


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; weight decay touches matrices only.

    A learnable temperature has a peak rate of its own.
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
    return optax.chain(clip, adamw, of_temperature)
