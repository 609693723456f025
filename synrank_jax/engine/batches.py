"""Host batches to sharded device arrays."""

import itertools
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from synrank_jax.parallel.mesh import batch_sharding
from synrank_jax.types import Batch


def to_devices(batch: Batch, mesh: Mesh) -> Batch:
    """Global arrays from this host's rows; queries are split over all devices."""
    sharding = batch_sharding(mesh)

    placed: Batch = jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch
    )
    return placed


def on_devices(host_batches: Iterator[Batch], mesh: Mesh) -> Iterator[Batch]:
    """The batches of an endless stream on the devices, the next always on its way.

    A step therefore never waits for a transfer, even if its metrics are fetched before the next
    begins; reading and decoding run ahead in the pipeline's own threads.
    """
    placed = (to_devices(batch, mesh) for batch in host_batches)
    for batch, _ in itertools.pairwise(placed):
        yield batch
