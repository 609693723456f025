"""Meshes and shardings on eight virtual devices."""

import jax
import pytest
from jax.sharding import PartitionSpec

from synrank_jax.errors import UserError
from synrank_jax.parallel.mesh import check_pool_divides, fsdp_sharding, make_mesh


def test_data_takes_what_fsdp_leaves():
    assert dict(make_mesh(-1, 2).shape) == {"data": 4, "fsdp": 2}


@pytest.mark.parametrize(("data", "fsdp"), [(3, 2), (-1, 3), (8, 2)])
def test_a_mesh_that_does_not_make_the_devices_is_refused(data: int, fsdp: int):
    with pytest.raises(UserError, match=f"the {jax.device_count()} devices"):
        make_mesh(data, fsdp)


def test_a_pool_the_devices_do_not_divide_names_sizes_that_would_do():
    with pytest.raises(UserError, match=r"20 is not divisible by the 8 devices.*16 or 24"):
        check_pool_divides(make_mesh(-1, 1), 20)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((6, 16), PartitionSpec(None, "fsdp")),
        ((32, 16), PartitionSpec("fsdp")),
        ((7, 5), PartitionSpec()),
        ((16,), PartitionSpec()),
        ((), PartitionSpec()),
    ],
)
def test_fsdp_splits_the_longest_divisible_dimension_of_matrices(shape, spec):
    assert fsdp_sharding(make_mesh(-1, 4), shape).spec == spec
