"""How an encoder computes, apart from its weights."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from synrank_jax.models.attention import Kernel


@dataclasses.dataclass(frozen=True)
class Numerics:
    """How an encoder computes; none of it is part of the weights.

    compute_dtype: type of matmul inputs and of the hidden states between layers. Softmax and layer
        norms are evaluated in float32, and weights are stored in float32, whatever it is.
    dropout: rate used when a call is given dropout keys.
    attention: see `synrank_jax.models.attention`.
    remat: what the backward pass computes again: nothing, all of a layer but its matmuls with
        weights, or whole layers.
    scan_layers: one compiled layer in a loop instead of all of them in a row.
    """

    compute_dtype: DTypeLike = "float32"
    dropout: float = 0.0
    attention: Kernel = "plain"
    remat: Literal["none", "dots", "layer"] = "none"
    scan_layers: bool = False

    @property
    def precision(self) -> jax.lax.Precision:
        """Float32 means float32: accelerators would otherwise multiply in bfloat16 or TF32."""
        is_float32 = jnp.dtype(self.compute_dtype) == jnp.float32
        return jax.lax.Precision.HIGHEST if is_float32 else jax.lax.Precision.DEFAULT

    def drop(self, x: Array, keys: Array | None, site: int | Array) -> Array:
        """Inverted dropout of x [..., T, H] with a key [..., T] for every token.

        `site` tells apart the places where a token is dropped. A token's mask depends on its key
        alone, neither on the tokens beside it nor on how texts are padded or packed.
        """
        if keys is None or self.dropout == 0.0:
            return x
        kept = self._keep(keys, site, x.shape[-1:])
        return jnp.where(kept, x / (1.0 - self.dropout), 0.0).astype(x.dtype)

    def drop_attention(self, weights: Array, keys: Array | None, site: int | Array) -> Array:
        """The same for attention weights [..., heads, T, T'], with the attending tokens' keys."""
        if keys is None or self.dropout == 0.0:
            return weights
        heads, _, attended = weights.shape[-3:]
        # Attended token first: the bits of the first T' are then the same for every T'.
        kept = jnp.moveaxis(self._keep(keys, site, (attended, heads)), -1, -3)
        return jnp.where(kept, weights / (1.0 - self.dropout), 0.0)

    def _keep(self, keys: Array, site: int | Array, shape: tuple[int, ...]) -> Array:
        def keep(key: Array) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - self.dropout, shape)

        return jax.vmap(keep)(keys.ravel()).reshape(*keys.shape, *shape)
