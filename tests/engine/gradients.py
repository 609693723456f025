"""The gradient of one loss pool on a mesh, and how far two gradients are apart."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from synrank_jax.config import Config, MeshConfig
from synrank_jax.config_loss import LOSS_NAMES
from synrank_jax.contract import resolve_contract
from synrank_jax.engine.batches import to_devices
from synrank_jax.engine.encoding import load_model
from synrank_jax.engine.state import LOG_TEMPERATURE, initial_state, split_model
from synrank_jax.engine.step import make_pool_loss
from synrank_jax.optim import make_optimizer
from synrank_jax.parallel.mesh import make_mesh
from synrank_jax.types import Batch

# Float32 sums in another order: the loss is a mean of 8 values, a gradient leaf a sum over some
# thousand products. Leaves whose true gradient is zero (attention key biases) hold only rounding
# noise, hence the floor relative to the global norm.
LOSS_RTOL = 1e-5
GRADIENT_RTOL = 1e-5
GRADIENT_FLOOR = 1e-3


def mesh_of(data: int, fsdp: int, tensor: int = 1) -> Mesh:
    shape = MeshConfig(data=data, fsdp=fsdp, tensor=tensor)
    return make_mesh(shape, jax.devices()[: data * fsdp * tensor])


def gradients(config: Config, batch: Batch, mesh: Mesh) -> tuple[float, dict[str, np.ndarray]]:
    contract = resolve_contract(config)
    structure, params = split_model(load_model(config.model, contract))
    if config.loss.learn_temperature:
        params[LOG_TEMPERATURE] = jnp.log(jnp.float32(config.loss.temperature))
    state = initial_state(params, make_optimizer(config.optimizer, 10), mesh)
    loss = make_pool_loss(structure, config, contract, mesh)
    pool = jax.tree.map(lambda leaf: leaf[0], to_devices(batch, mesh))
    grad = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(state.params, state.step, pool)
    # Machine code is not optimised: compiling is what these tests spend their time on.
    compiled = grad.compile({"xla_backend_optimization_level": 0})
    (value, _), grads = compiled(state.params, state.step, pool)
    return float(value), jax.device_get(grads)


def worst_leaf(got: dict, expected: dict) -> float:
    """Largest |difference| of a leaf in units of max(|leaf|, floor of the global norm)."""
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in expected.values()))
    return max(
        np.linalg.norm(got[name] - leaf) / max(np.linalg.norm(leaf), GRADIENT_FLOOR * norm)
        for name, leaf in expected.items()
    )


OTHER_LOSSES = (
    *("sinkhorn", "gaussian_paired", "listnet_kl", "listmle", "ranknet", "lambdarank"),
    *("approx_ndcg", "soft_rank", "infonce_sampled", "margin_mse"),
)
LOSSES: dict[str, dict] = {
    "wasserstein": {"wasserstein": 1.0, "target_temperature": 0.5},
    "gaussian": {"wasserstein": 0.0, "gaussian_wasserstein": 1.0, "in_batch_grade": 0.0},
    "infonce": {"wasserstein": 0.0, "infonce": 1.0, "learn_temperature": True},
    "groups": {
        "wasserstein": 0.0,
        "gaussian_wasserstein": 1.0,
        "gaussian_paired": 1.0,
        "gaussian_group_size": 4,
        "gaussian_solver": "newton_schulz",
        "in_batch_grade": 0.0,
    },
    "all": dict.fromkeys(LOSS_NAMES, 1.0),
} | {name: {"wasserstein": 0.0, "target_temperature": 0.5, name: 1.0} for name in OTHER_LOSSES}


def with_loss(config: Config, name: str, dropout: float = 0.0) -> Config:
    return config.model_copy(
        update={
            "loss": config.loss.model_copy(update=LOSSES[name]),
            "model": config.model.model_copy(update={"dropout": dropout}),
        }
    )
