"""Self-attention of texts that share a row, by the kernel that suits the device.

- `plain`: two einsums, anywhere. On CPU faster than `jax.nn.dot_product_attention`.
- `cudnn`: flash attention of cuDNN, on NVIDIA GPUs, in bfloat16.
- `splash`: JAX' Pallas kernel for TPUs. Rows are padded to a multiple of 128 tokens for it.

The two kernels never store the [T, T] weights, so they cannot drop any of them.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int32

from synrank_jax.errors import UserError
from synrank_jax.models.backward import after
from synrank_jax.models.reductions import row_max, row_sum
from synrank_jax.types import TENSOR

Kernel = Literal["plain", "cudnn", "splash"]
Attend = Callable[[Array, Array, Array, Array], Array]

# Finite, so that nothing becomes NaN where a row has no text.
MASKED_LOGIT = -1e30
# Tokens per tile of the TPU's vector unit, and the largest tile that splash attention is given.
LANES = 128
LARGEST_TILE = 512
# Bytes moved on a v5e by forward and backward pass of 82k tokens with 12 heads of 64, as the TPU
# compiler counts them, in GB, plain / splash: .6 / 1.2 at 128 tokens, 1.1 / 1.2 at 256,
# 1.9 / 1.2 at 512, 3.6 / 1.2 at 1,024.
SHORT = 256


def choose_kernel(
    wanted: Literal["auto", "plain", "cudnn", "splash"],
    platform: str,
    compute_dtype: DTypeLike,
    dropout: float,
    longest: int,
) -> Kernel:
    """The kernel for a platform (`cpu`, `gpu`, `tpu`).

    `auto` takes the platform's own kernel if that can do what is asked, else `plain`. On TPU it
    takes `plain` for short texts, too: up to 256 tokens that moves no more bytes than `splash`.

    Args:
        wanted: model.attention.
        platform: as JAX names it.
        compute_dtype: model.compute_dtype.
        dropout: model.dropout.
        longest: most tokens of a text.

    Raises:
        UserError: the wanted kernel cannot: names what it lacks.
    """
    if wanted == "plain":
        return "plain"
    of_platform: dict[str, Kernel] = {"gpu": "cudnn", "tpu": "splash"}
    kernel = of_platform.get(platform, "plain") if wanted == "auto" else wanted
    if wanted == "auto" and kernel == "splash" and longest <= SHORT:
        return "plain"
    reasons = []
    if of_platform.get(platform) != kernel:
        device = {"cudnn": "an NVIDIA GPU", "splash": "a TPU"}.get(kernel)
        reasons.append(f"it needs {device}, and this is a {platform.upper()}")
    if dropout > 0:
        reasons.append(f"it cannot drop attention weights (model.dropout {dropout:g})")
    if kernel == "cudnn" and jnp.dtype(compute_dtype) != jnp.bfloat16:
        reasons.append("it computes in bfloat16 only (model.compute_dtype)")
    if not reasons:
        return kernel
    if wanted == "auto":
        return "plain"
    raise UserError(
        f"model.attention {wanted}: {'; '.join(reasons)}. Set model.attention to auto or plain"
    )


def attend(
    query: Float[Array, "*B T N D"],
    key: Float[Array, "*B T N D"],
    value: Float[Array, "*B T N D"],
    segments: Int32[Array, "*B T"],
    *,
    kernel: Kernel,
    precision: jax.lax.Precision,
    one_text: bool = False,
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "*B T N D"]:
    """softmax(q k^T / sqrt(D)) v of every token over the tokens of its own text.

    Args:
        query: of N heads.
        key: likewise.
        value: likewise.
        segments: number of the text a token belongs to, -1 at padding.
        kernel: how it is computed.
        precision: of the matmuls (`plain`).
        one_text: a row is one text and then padding, which cuDNN does better than general masks.
        drop: dropout of the weights [..., N, T, T]; `plain` only.

    Returns:
        In the type of `value`; the softmax is float32. Padding gets finite numbers.
    """
    if kernel == "plain":
        return _plain(query, key, value, segments, precision, one_text, drop)
    assert drop is None  # choose_kernel
    *batch, length, heads, size = query.shape
    query, key, value = (part.reshape(-1, length, heads, size) for part in (query, key, value))
    segments = segments.reshape(-1, length)
    of_kernel: Attend = (
        functools.partial(_cudnn, one_text=one_text) if kernel == "cudnn" else _splash
    )
    mixed = _split_heads(of_kernel)(query, key, value, segments)
    return mixed.reshape(*batch, length, heads, size)


def _split_heads(of_kernel: Attend) -> Attend:
    """A kernel call with the heads of a device of the tensor axis: XLA cannot split it itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if TENSOR not in mesh.axis_names:
        return of_kernel
    heads = PartitionSpec(None, None, TENSOR)
    split: Attend = jax.shard_map(
        of_kernel,
        in_specs=(heads, heads, heads, PartitionSpec()),
        out_specs=heads,
        axis_names=set(mesh.auto_axes),
        check_vma=False,
    )
    return split


def _plain(
    query: Array,
    key: Array,
    value: Array,
    segments: Array,
    precision: jax.lax.Precision,
    one_text: bool,
    drop: Callable[[Array], Array] | None,
) -> Array:
    # Heads first, by hand: the CPU compiler's own layout doubles the time of both matmuls.
    query = (query / math.sqrt(query.shape[-1])).swapaxes(-3, -2)
    key, value = key.swapaxes(-3, -2), value.swapaxes(-3, -2)
    may = segments[..., None, None, :] >= 0
    if not one_text:
        may = segments[..., None, :, None] == segments[..., None, None, :]
    if drop is None:
        return weighted_values(query, key, value, may, precision).swapaxes(-3, -2)
    logits = jnp.where(may, _logits(query, key, precision), MASKED_LOGIT)
    weights = drop(jax.nn.softmax(logits))
    mixed = jnp.einsum(
        "...qk,...kd->...qd", weights.astype(value.dtype), value, precision=precision
    )
    return mixed.swapaxes(-3, -2)


def _logits(query: Array, key: Array, precision: jax.lax.Precision) -> Array:
    return jnp.einsum(
        "...qd,...kd->...qk",
        query,
        key,
        precision=precision,
        preferred_element_type=jnp.float32,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def weighted_values(
    query: Float[Array, "*B N T D"],
    key: Float[Array, "*B N T D"],
    value: Float[Array, "*B N T D"],
    may: Bool[Array, "*B 1 #T T"],
    precision: jax.lax.Precision,
) -> Float[Array, "*B N T D"]:
    """softmax(q k^T) v, heads first, over the tokens that a token may attend to.

    The backward pass computes the weights again from one number per row of them, as flash attention
    does (Dao et al. 2022, arXiv 2205.14135): keeping the [T, T] of all heads and layers is what
    fills memory, and on CPU it takes longer than the second matmul. A row without any such token
    has no gradient.
    """
    return _weighted_values(query, key, value, may, precision)[0]


def _weighted_values(
    query: Array, key: Array, value: Array, may: Array, precision: jax.lax.Precision
) -> tuple[Array, tuple[Array, ...]]:
    logits = jnp.where(may, _logits(query, key, precision), MASKED_LOGIT)
    top = row_max(logits)
    exponentials = jnp.exp(logits - top)
    total = row_sum(exponentials)
    mixed = jnp.einsum(
        "...qk,...kd->...qd",
        exponentials.astype(value.dtype),
        value,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    mixed = (mixed / total).astype(value.dtype)
    return mixed, (query, key, value, may, mixed, top + jnp.log(total))


def _weighted_values_backward(
    precision: jax.lax.Precision, kept: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array, None]:
    query, key, value, may, mixed, log_total = kept
    matmul = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    logits = _logits(after(query, gradient), key, precision)
    weights = jnp.where(may, jnp.exp(logits - log_total), 0)
    of_weights = matmul("...qd,...kd->...qk", gradient, value)
    mean = jnp.sum(gradient * mixed, axis=-1, keepdims=True, dtype=jnp.float32)
    of_logits = (weights * (of_weights - mean)).astype(value.dtype)
    return (
        matmul("...qk,...kd->...qd", of_logits, key).astype(query.dtype),
        matmul("...qk,...qd->...kd", of_logits, query).astype(key.dtype),
        matmul("...qk,...qd->...kd", weights.astype(value.dtype), gradient).astype(value.dtype),
        None,
    )


weighted_values.defvjp(_weighted_values, _weighted_values_backward)


def _cudnn(query: Array, key: Array, value: Array, segments: Array, one_text: bool) -> Array:
    if one_text:
        lengths = (segments >= 0).sum(axis=-1, dtype=jnp.int32)
        # An empty row would divide by zero; what it gives is padding.
        lengths = jnp.maximum(lengths, 1)
        return jax.nn.dot_product_attention(
            query, key, value, key_value_seq_lengths=lengths, implementation="cudnn"
        )
    same = segments[:, None, :, None] == segments[:, None, None, :]
    return jax.nn.dot_product_attention(query, key, value, mask=same, implementation="cudnn")


def _splash(query: Array, key: Array, value: Array, segments: Array) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads, size = query.shape[1:]
    padding = -length % LANES
    padded = length + padding
    tile = next(tile for tile in range(LARGEST_TILE, 0, -LANES) if padded % tile == 0)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((padded, padded))] * heads),
        block_sizes=splash.BlockSizes(
            block_q=tile,
            block_kv=tile,
            block_q_dkv=tile,
            block_kv_dkv=tile,
            block_q_dq=tile,
            block_kv_dq=tile,
        ),
        head_shards=1,
        q_seq_shards=1,
    )

    def heads_first(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)

    ids = jnp.pad(segments, ((0, 0), (0, padding)), constant_values=-1)
    mixed = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, splash.SegmentIds(ids, ids)))(
        heads_first(query / math.sqrt(size)), heads_first(key), heads_first(value), ids
    )
    rows: Array = mixed.swapaxes(1, 2)[:, :length]
    return rows.astype(value.dtype)
