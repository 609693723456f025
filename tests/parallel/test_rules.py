"""Sharding rules: every weight has exactly one, and a mesh that does not fit is refused."""

import jax
import pytest
from jax.sharding import PartitionSpec

from synrank_jax.config import MeshConfig
from synrank_jax.errors import UserError
from synrank_jax.parallel.mesh import make_mesh
from synrank_jax.parallel.rules import RULES, shardings, weight_spec

KERNEL = "encoder.layers.11.output.kernel"


def test_an_axis_of_one_device_is_not_named():
    mesh = make_mesh(MeshConfig(fsdp=8))
    assert weight_spec(KERNEL, (32, 16), mesh) == PartitionSpec(None, "fsdp")
    assert weight_spec("encoder.layers.0.intermediate.bias", (32,), mesh) == PartitionSpec()


def test_a_weight_without_a_rule_is_refused():
    with pytest.raises(UserError, match=r"weight encoder.pooler.kernel: exactly one .*: none"):
        weight_spec("encoder.pooler.kernel", (8, 8), make_mesh(MeshConfig()))


def test_a_weight_with_two_rules_is_refused():
    rules = (*RULES, (r".*\.kernel", ("fsdp", None)))
    with pytest.raises(UserError, match=r"output.kernel: exactly one .*output\\.kernel; "):
        weight_spec(KERNEL, (32, 16), make_mesh(MeshConfig()), rules)


@pytest.mark.parametrize("axes", [("fsdp",), ("fsdp", "fsdp")], ids=str)
def test_a_rule_that_does_not_fit_the_dimensions_is_refused(axes: tuple[str, ...]):
    with pytest.raises(UserError, match="must name each dimension, and an axis once"):
        weight_spec(KERNEL, (32, 16), make_mesh(MeshConfig()), ((r".*", axes),))


def test_an_axis_that_does_not_divide_its_dimension_names_sizes_that_would():
    with pytest.raises(UserError, match=r"mesh.fsdp 8 does not divide the 12 .*; 1, 2 or 4 would"):
        weight_spec(KERNEL, (32, 12), make_mesh(MeshConfig(fsdp=8)))


def test_moments_live_with_their_weights_and_counters_everywhere():
    mesh = make_mesh(MeshConfig(fsdp=4))
    leaf = jax.ShapeDtypeStruct((32, 16), "float32")
    counter = jax.ShapeDtypeStruct((), "int32")
    placed = shardings(({KERNEL: leaf}, ({"moments": {KERNEL: leaf}}, counter)), mesh)
    assert placed[0][KERNEL].spec == placed[1][0]["moments"][KERNEL].spec
    assert placed[0][KERNEL].spec == PartitionSpec(None, "fsdp")
    assert placed[1][1].spec == PartitionSpec()
