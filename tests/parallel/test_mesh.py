"""Meshes, and what does not fit on them, on eight virtual devices."""

import jax
import pytest

from synrank_jax.config import MeshConfig
from synrank_jax.errors import UserError
from synrank_jax.parallel.mesh import (
    batch_devices,
    check_heads_divide,
    make_mesh,
    rows_per_pool,
)


def test_data_takes_what_fsdp_and_tensor_leave():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert batch_devices(mesh) == 4


@pytest.mark.parametrize(
    "shape",
    [{"data": 3, "fsdp": 2}, {"fsdp": 3}, {"data": 8, "fsdp": 2}, {"data": 4, "tensor": 4}],
    ids=str,
)
def test_a_mesh_that_does_not_make_the_devices_is_refused(shape: dict[str, int]):
    with pytest.raises(UserError, match=f"the {jax.device_count()} devices.*1, 2, 4 or 8"):
        make_mesh(MeshConfig(**shape))


def test_a_tensor_axis_over_hosts_is_refused():
    class Device:
        """As far as a mesh looks at one."""

        def __init__(self, number: int):
            self.id, self.process_index = number, number // 2

    with pytest.raises(UserError, match=r"mesh.tensor 4 does not divide the 2 devices of a host"):
        make_mesh(MeshConfig(tensor=4), [Device(number) for number in range(8)])


def test_a_pool_the_devices_do_not_divide_names_sizes_that_would_do():
    with pytest.raises(UserError, match=r"20 is not divisible by the 8 devices.*16 or 24"):
        rows_per_pool(make_mesh(MeshConfig()), 20, None)


def test_a_chunk_that_does_not_divide_a_device_s_share_names_sizes_that_would_do():
    with pytest.raises(UserError, match=r"encode_chunk_size 5 .* 8 queries.*1, 2, 4 or 8 would"):
        rows_per_pool(make_mesh(MeshConfig()), 64, 5)


@pytest.mark.parametrize(("chunk", "rows"), [(None, 8), (8, 8), (100, 8), (2, 32), (1, 64)])
def test_every_device_has_a_row_for_each_of_its_chunks(chunk: int | None, rows: int):
    assert rows_per_pool(make_mesh(MeshConfig()), 64, chunk) == rows


def test_devices_along_tensor_share_their_lists():
    assert rows_per_pool(make_mesh(MeshConfig(tensor=4)), 64, 8) == 8


def test_heads_the_tensor_axis_does_not_divide_are_refused():
    with pytest.raises(
        UserError, match=r"mesh.tensor 8 .* 12 attention heads; 1, 2, 3, 4, 6 or 12"
    ):
        check_heads_divide(make_mesh(MeshConfig(tensor=8)), 12)
