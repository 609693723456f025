"""The device mesh, and how batches lie on it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from synrank_jax.config import MeshConfig
from synrank_jax.divisors import divisors_named
from synrank_jax.errors import UserError
from synrank_jax.types import BATCH_AXES, DATA, FSDP, TENSOR


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh with axes (data, fsdp, tensor); data = -1 takes what the others leave.

    Devices stand in the order of their hosts, so that a host's devices hold neighbouring lists and
    the innermost axes communicate within a host.

    Args:
        config: sizes of the axes.
        devices: jax.Devices; default: all of all hosts.

    Raises:
        UserError: the product is not the number of devices, or tensor reaches over hosts.
    """
    devices = jax.devices() if devices is None else devices
    count, inner = len(devices), config.fsdp * config.tensor
    data = count // inner if config.data == -1 else config.data
    if data * inner != count:
        raise UserError(
            f"mesh.data {config.data} x mesh.fsdp {config.fsdp} x mesh.tensor {config.tensor} does "
            f"not make the {count} devices here; mesh.fsdp x mesh.tensor must divide {count} "
            f"({divisors_named(count)}), and mesh.data be -1 or what is left"
        )
    hosts = len({device.process_index for device in devices})
    if count // hosts % config.tensor:
        raise UserError(
            f"mesh.tensor {config.tensor} does not divide the {count // hosts} devices of a host, "
            f"which read the same lists; {divisors_named(count // hosts)} would"
        )
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(
        np.array(ordered).reshape(data, config.fsdp, config.tensor),
        (DATA, FSDP, TENSOR),
        axis_types=(AxisType.Auto,) * 3,
    )


def batch_devices(mesh: Mesh) -> int:
    """Devices that compute different lists: all but for the tensor axis."""
    return int(mesh.shape[DATA] * mesh.shape[FSDP])


def rows_per_pool(mesh: Mesh, pool_size: int, encode_chunk_size: int | None) -> int:
    """Packed rows R of a loss pool: one for every chunk that a device encodes at once.

    A chunk larger than a device's share of the pool is the whole share, so that one configuration
    serves a laptop and a pod.

    Raises:
        UserError: the devices cannot share the pool, or chunks the share, equally; names the
            nearest values that would work.
    """
    devices = batch_devices(mesh)
    if pool_size % devices:
        below = pool_size // devices * devices
        sizes = f"{below} or {below + devices}" if below else f"{devices}"
        raise UserError(
            f"train.pool_size (default: train.global_batch_size) {pool_size} is not divisible "
            f"by the {devices} devices (data x fsdp) that share it; {sizes} would be"
        )
    share = pool_size // devices
    chunk = min(encode_chunk_size or share, share)
    if share % chunk:
        raise UserError(
            f"train.encode_chunk_size {chunk} does not divide the {share} queries that each of "
            f"{devices} devices has of a pool of {pool_size}; {divisors_named(share)} would"
        )
    return devices * (share // chunk)


def check_heads_divide(mesh: Mesh, heads: int) -> None:
    """Refuse attention heads that the tensor axis cannot share equally.

    Raises:
        UserError: names the sizes that would work.
    """
    if heads % mesh.shape[TENSOR]:
        raise UserError(
            f"mesh.tensor {mesh.shape[TENSOR]} does not divide the encoder's {heads} attention "
            f"heads; {divisors_named(heads)} would"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of batch arrays [N, Q_data_fsdp, ...]: queries over all but the tensor axis."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))


def rows(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose leading dimension is split as the queries are."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())
