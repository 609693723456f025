"""Training state, and the model as a pure function of a flat dictionary of weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from synrank_jax.models.dual_encoder import DualEncoder
from synrank_jax.parallel.rules import shardings

Params = dict[str, Any]

LOG_TEMPERATURE = "log_temperature"
"""Name among the weights of a learnable temperature's logarithm, a float32 scalar."""


class TrainState(NamedTuple):
    """What an optimizer step reads and replaces (donated to the compiled step).

    params: {"encoder.layers.0....kernel": float32 array}; opt_state: Optax state of the same
    shapes; step: scalar int32, completed updates.
    """

    params: Params
    opt_state: Any
    step: Any


def split_model(model: DualEncoder) -> tuple[Any, Params]:
    """Structure and weights of a model; weights are named by their dotted path."""
    structure, state = nnx.split(model)
    return structure, {
        ".".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(state)
    }


def merge_model(structure: Any, params: Params) -> DualEncoder:
    """Inverse of `split_model`; works on traced weights inside jit. A temperature is left out."""
    flat = [
        (tuple(map(_key, path.split("."))), nnx.Param(leaf))
        for path, leaf in params.items()
        if path != LOG_TEMPERATURE
    ]
    model: DualEncoder = nnx.merge(structure, nnx.from_flat_state(flat))
    return model


def _key(part: str) -> str | int:
    return int(part) if part.isdigit() else part


def initial_state(params: Params, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Step 0, placed on the mesh: weights and optimizer moments sharded by the rules."""
    params = jax.device_put(params, shardings(params, mesh))
    abstract = jax.eval_shape(tx.init, params)
    opt_state = jax.jit(tx.init, out_shardings=shardings(abstract, mesh))(params)
    step = jnp.zeros((), jnp.int32)
    return TrainState(params, opt_state, jax.device_put(step, shardings(step, mesh)))


def abstract_state(params: Params, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, without computing it: the target of a restore."""
    shapes = jax.eval_shape(lambda p: TrainState(p, tx.init(p), jnp.zeros((), jnp.int32)), params)
    abstract: TrainState = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, mesh),
    )
    return abstract
