"""Exact search on the accelerator, streamed over blocks of passages."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, PartitionSpec

from synrank_jax.config import MeshConfig
from synrank_jax.parallel import mesh as meshes
from synrank_jax.retrieval.search import (
    Embeddings,
    Found,
    Vectors,
    require_finite,
    require_found,
    require_searchable,
)
from synrank_jax.types import BATCH_AXES

# Scores that a device holds at once: 256 MiB.
SCORES_AT_ONCE = 2**26
MAX_ROWS = 16_384

Best = tuple[jax.Array, jax.Array]


def search(queries: Embeddings, passages: Vectors, k: int, mesh: Mesh | None = None) -> Found:
    """The k passages with the largest inner product, exactly, as `retrieval.search.search`.

    Every device keeps the best of its share of each block; they meet once, at the end. The next
    block is read and sent while the devices compute. Products are in float32 at the highest
    precision. Memory of a device: queries, k results per query, two blocks and `SCORES_AT_ONCE`.

    Order: score descending, then row ascending, as computed; also at place k.

    Args:
        queries: [Q, D] float32.
        passages: [N, D], N below 2^31.
        k: at least 1; more than N gives all N.
        mesh: default: all devices of this process.

    Returns:
        scores [Q, min(k, N)] and rows [Q, min(k, N)].

    Raises:
        UserError: no passages, embeddings of two dimensions, a value or product that is not finite.
    """
    require_searchable(queries, passages)
    mesh = mesh or meshes.make_mesh(MeshConfig(), jax.local_devices())
    count, dimension = passages.shape
    k = min(k, count)
    rows = min(_rows_at_once(len(queries)), -(-count // mesh.size))
    block_sharding = meshes.rows(mesh)
    step = make_step(mesh, rows, count)
    held = (mesh.size, len(queries), k)
    best: Best = jax.device_put(
        (np.full(held, -np.inf, np.float32), np.full(held, -1, np.int32)), block_sharding
    )
    on_devices = jax.device_put(np.asarray(queries, np.float32), meshes.replicated(mesh))
    for first, block in _whole_blocks(passages, rows * mesh.size, dimension):
        before = best
        best = step(best, on_devices, jax.device_put(block, block_sharding), np.int32(first))
        # One block computes while the next is read; more would only fill the devices' memory.
        jax.block_until_ready(before)
    return _merged(np.asarray(best[0]), np.asarray(best[1]), k)


def _rows_at_once(queries: int) -> int:
    """Rows of a block per device, a power of two."""
    return min(1 << max((SCORES_AT_ONCE // queries).bit_length() - 1, 7), MAX_ROWS)


def make_step(
    mesh: Mesh, rows: int, count: int
) -> Callable[[Best, jax.Array, jax.Array, np.int32], Best]:
    """The compiled update of the best scores and rows [devices, Q, k] with a block.

    Args:
        mesh: whose devices share a block.
        rows: rows of a block per device.
        count: N; rows of a block beyond are filling.
    """
    split = PartitionSpec(BATCH_AXES)

    def on_device(best: Best, queries: jax.Array, block: jax.Array, first: jax.Array) -> Best:
        scores, numbers = best[0][0], best[1][0]
        own = first + jax.lax.axis_index(BATCH_AXES) * rows + jnp.arange(rows, dtype=jnp.int32)
        products = jnp.matmul(queries, block.T, precision=jax.lax.Precision.HIGHEST)
        products = jnp.where(own < count, products, -jnp.inf)
        # What is held comes first: of equal scores top_k takes the first, so the lowest row.
        scores, places = jax.lax.top_k(jnp.concatenate([scores, products], 1), scores.shape[1])
        held = numbers.shape[1]
        numbers = jnp.where(
            places < held,
            jnp.take_along_axis(numbers, jnp.minimum(places, held - 1), 1),
            own[jnp.maximum(places - held, 0)],
        )
        return scores[None], numbers[None]

    return jax.jit(
        jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=((split, split), PartitionSpec(), split, PartitionSpec()),
            out_specs=(split, split),
        )
    )


def _whole_blocks(passages: Vectors, rows: int, dimension: int) -> Iterator[tuple[int, Embeddings]]:
    """Blocks of exactly `rows` rows and the first row of each; the last is filled with zeros."""
    first = 0
    for block in passages.blocks(rows):
        require_finite(block, "passage", first)
        if len(block) < rows:
            block = np.concatenate([block, np.zeros((rows - len(block), dimension), np.float32)])
        yield first, block
        first += rows


def _merged(scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int32], k: int) -> Found:
    """The k best [Q, k] of all devices' [devices, Q, k]."""
    all_scores = np.concatenate(list(scores), axis=1)
    all_rows = np.concatenate(list(rows), axis=1).astype(np.int64)
    order = np.lexsort((all_rows, -all_scores))[:, :k]
    found = np.take_along_axis(all_scores, order, 1), np.take_along_axis(all_rows, order, 1)
    require_found(*found)
    return found
