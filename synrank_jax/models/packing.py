"""Packed rows: many texts one after the other, so that no token slot is spent on padding.

Everything but attention works on single tokens and never sees where a text ends. Attention gathers
the tokens of each text into a block of texts of similar length, and its result goes back to the
row. Masking a whole row of T tokens by segment instead costs T per token and lost to plain padding
on CPU (benchmarks/packing.py).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Key

from synrank_jax.types import PackedTexts


class Layout(NamedTuple):
    """How an encoder's token arrays [..., H] relate to the blocks in which texts attend.

    split: token array to blocks [..., T_g, H], one text per row of a block; join is its inverse.
    segments: per block [..., T_g] int32, the text a token belongs to, -1 at padding.
    one_text: every row of a block holds one text, and padding after it.
    token_keys: key per token, for dropout, or None; block_keys: the same per block.
    """

    split: Callable[[Array], Sequence[Array]]
    join: Callable[[Sequence[Array]], Array]
    segments: Sequence[Array]
    one_text: bool
    token_keys: Array | None
    block_keys: Sequence[Array | None]


def padded_layout(mask: Array, keys: Array | None) -> Layout:
    """Texts in rows of their own: mask [B, T], keys [B]."""
    if keys is not None:
        keys = fold_in(keys[:, None], jnp.arange(mask.shape[1]))
    segments = jnp.where(mask, 0, -1)
    return Layout(lambda x: [x], lambda parts: parts[0], [segments], False, keys, [keys])


def packed_layout(texts: PackedTexts, keys: Array | None) -> Layout:
    """Texts in packed rows; keys [R, S] in the order of the texts."""
    rows = texts.input_ids.shape[0]
    shapes = [block.shape[1:] for block in texts.blocks]
    borders = np.cumsum([0, *(np.prod(shape) for shape in shapes)])
    tokens = jnp.concatenate([block.reshape(rows, -1) for block in texts.blocks], axis=1)
    slots = _slots(texts)

    def split(x: Array) -> list[Array]:
        flat = rearrange(x, tokens, slots)
        parts = jnp.split(flat, borders[1:-1], axis=1)
        return [part.reshape(rows, *shape, -1) for part, shape in zip(parts, shapes, strict=True)]

    def join(parts: Sequence[Array]) -> Array:
        flat = jnp.concatenate([part.reshape(rows, -1, part.shape[-1]) for part in parts], axis=1)
        return rearrange(flat, slots, tokens)

    segments = [jnp.where(block >= 0, 0, -1) for block in texts.blocks]
    if keys is None:
        return Layout(split, join, segments, True, None, [None] * len(segments))
    packed = jnp.take_along_axis(keys, jnp.argsort(texts.places), axis=1)
    own = jnp.take_along_axis(packed, jnp.maximum(texts.segment_ids, 0), axis=1)
    starts = np.cumsum([shape[0] for shape in shapes])[:-1]
    of_blocks = [
        fold_in(part[..., None], jnp.arange(shape[1]))
        for part, shape in zip(jnp.split(packed, starts, axis=1), shapes, strict=True)
    ]
    return Layout(split, join, segments, True, fold_in(own, texts.positions), of_blocks)


def _slots(texts: PackedTexts) -> Array:
    """[R, T] place of every token in the row's blocks, one after the other; -1 at padding."""
    count = 0
    starts = []  # of every segment
    for block in texts.blocks:
        segments, width = block.shape[1:]
        starts += [count + width * segment for segment in range(segments)]
        count += segments * width
    first = jnp.asarray(np.array(starts, np.int32))[jnp.maximum(texts.segment_ids, 0)]
    return jnp.where(texts.segment_ids >= 0, first + texts.positions, -1)


@jax.custom_vjp
def rearrange(
    x: Float[Array, "R M H"], index: Int32[Array, "R K"], inverse: Int32[Array, "R M"]
) -> Float[Array, "R K H"]:
    """x[r, index[r, k]], zero where the index is -1.

    `inverse` holds for every m the k that took it, or -1. With it the gradient is a gather too: XLA
    would scatter, which is slow on accelerators and not deterministic on some.
    """
    taken = jnp.take_along_axis(x, jnp.maximum(index, 0)[..., None], axis=1)
    return jnp.where((index >= 0)[..., None], taken, 0)


def _forward(x: Array, index: Array, inverse: Array) -> tuple[Array, tuple[Array, Array]]:
    return rearrange(x, index, inverse), (index, inverse)


def _backward(maps: tuple[Array, Array], gradient: Array) -> tuple[Array, None, None]:
    index, inverse = maps
    return rearrange(gradient, inverse, index), None, None


rearrange.defvjp(_forward, _backward)


def fold_in(keys: Key[Array, "..."], data: Array) -> Key[Array, "..."]:
    """`jax.random.fold_in` of arrays that broadcast against each other."""
    shape = jnp.broadcast_shapes(keys.shape, data.shape)
    keys, data = jnp.broadcast_to(keys, shape).ravel(), jnp.broadcast_to(data, shape).ravel()
    return jax.vmap(jax.random.fold_in)(keys, data).reshape(shape)
