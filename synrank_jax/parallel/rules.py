"""Where each weight lives: rules from names to mesh axes.

`fsdp` splits what is kept (weights, optimizer moments); a step gathers the weights once and
scatters their gradients. `tensor` splits what is computed (Shoeybi et al. 2019, arXiv 1909.08053):
the first matmul of a pair by columns, the second by rows, so that one sum follows each pair.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from synrank_jax.divisors import divisors_named
from synrank_jax.errors import UserError
from synrank_jax.types import FSDP, TENSOR

Rules = tuple[tuple[str, tuple[str | None, ...]], ...]

# Pattern of the whole name -> mesh axis of each dimension; every weight matches exactly one.
# Vectors are split only where their matrix is: it saves next to nothing.
RULES: Rules = (
    (r"encoder\.embeddings\.(word|position|token_type)\.embedding", (None, FSDP)),
    (r"encoder\.embeddings\.norm\.(scale|bias)", (None,)),
    (r"encoder\.layers\.\d+\.attention\.(query|key|value)\.kernel", (FSDP, TENSOR)),
    (r"encoder\.layers\.\d+\.attention\.(query|key|value)\.bias", (TENSOR,)),
    (r"encoder\.layers\.\d+\.attention\.output\.kernel", (TENSOR, FSDP)),
    (r"encoder\.layers\.\d+\.attention\.output\.bias", (None,)),
    (r"encoder\.layers\.\d+\.intermediate\.kernel", (FSDP, TENSOR)),
    (r"encoder\.layers\.\d+\.intermediate\.bias", (TENSOR,)),
    (r"encoder\.layers\.\d+\.output\.kernel", (TENSOR, FSDP)),
    (r"encoder\.layers\.\d+\.output\.bias", (None,)),
    (r"encoder\.layers\.\d+\.(attention|output)_norm\.(scale|bias)", (None,)),
    (r"log_temperature", ()),
)


def weight_spec(
    name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules = RULES
) -> PartitionSpec:
    """The mesh axes of a weight's dimensions.

    Args:
        name: dotted path, such as `encoder.layers.0.output.kernel`.
        shape: of the weight.
        mesh: the device mesh.
        rules: patterns and axes.

    Raises:
        UserError: no rule or several hold for the name, a rule has another number of dimensions or
            one axis twice, or an axis does not divide its dimension.
    """
    found = [(pattern, axes) for pattern, axes in rules if re.fullmatch(pattern, name)]
    if len(found) != 1:
        patterns = "; ".join(pattern for pattern, _ in found) or "none"
        raise UserError(
            f"weight {name}: exactly one sharding rule must hold for it, but these do: {patterns}"
        )
    pattern, axes = found[0]
    named = [axis for axis in axes if axis is not None]
    if len(axes) != len(shape) or len(named) != len(set(named)):
        raise UserError(
            f"weight {name} of shape {list(shape)}: sharding rule {pattern} -> {list(axes)} must "
            "name each dimension, and an axis once at most"
        )
    for length, axis in zip(shape, axes, strict=True):
        if axis is not None and length % mesh.shape[axis]:
            raise UserError(
                f"mesh.{axis} {mesh.shape[axis]} does not divide the {length} of weight {name} "
                f"{list(shape)}; {divisors_named(math.gcd(length, mesh.size))} would"
            )
    split = [axis if axis and mesh.shape[axis] > 1 else None for axis in axes]
    while split and split[-1] is None:  # as XLA names the shardings of its results
        split.pop()
    return PartitionSpec(*split)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Sharding of every leaf of a training state, or of its shapes.

    Optimizer moments are dictionaries under the names of their weights, and live with them. What
    stands under no weight's name is on every device.
    """

    def of_leaf(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        spec = weight_spec(names[-1], np.shape(leaf), mesh) if names else PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(of_leaf, tree)
