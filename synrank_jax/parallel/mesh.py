"""The device mesh and where each array lives on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from synrank_jax.errors import UserError

BATCH_AXES = ("data", "fsdp")


def make_mesh(data: int, fsdp: int) -> Mesh:
    """Mesh with axes (data, fsdp) over all devices; data = -1 takes what fsdp leaves.

    Raises:
        UserError: data x fsdp is not the number of devices.
    """
    devices = jax.device_count()
    groups = devices // fsdp if data == -1 else data
    if groups * fsdp != devices:
        raise UserError(
            f"mesh.data {data} x mesh.fsdp {fsdp} does not make the {devices} devices here; "
            f"mesh.fsdp must divide {devices}, and mesh.data be -1 or {devices} / mesh.fsdp"
        )
    return jax.make_mesh((groups, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def check_pool_divides(mesh: Mesh, pool_size: int) -> None:
    """Refuse a loss pool that the devices cannot share equally.

    Raises:
        UserError: names the nearest sizes that would work.
    """
    if pool_size % mesh.size:
        below = pool_size // mesh.size * mesh.size
        sizes = f"{below} or {below + mesh.size}" if below else f"{mesh.size}"
        raise UserError(
            f"train.pool_size (default: train.global_batch_size) {pool_size} is not divisible "
            f"by the {mesh.size} devices of the mesh; {sizes} would be"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of batch arrays [N, Q_data_fsdp, ...]: queries over all devices."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))


def rows(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose leading dimension is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def fsdp_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Sharding of a weight (or its optimizer moments): its longest divisible dimension over fsdp.

    Vectors and scalars are replicated: splitting them saves nothing and costs a collective each.
    """
    size = mesh.shape["fsdp"]
    divisible = [axis for axis, length in enumerate(shape) if length % size == 0]
    if size == 1 or len(shape) < 2 or not divisible:
        return replicated(mesh)
    longest = max(divisible, key=lambda axis: shape[axis])
    # Without trailing Nones, as XLA names the shardings of its results.
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))


def shard(tree: object, mesh: Mesh) -> object:
    """FSDP shardings for a pytree of arrays or shape structs, leaf by leaf."""
    return jax.tree.map(lambda leaf: fsdp_sharding(mesh, np.shape(leaf)), tree)
