"""Gradients of one pool are those of a single device, whatever the mesh."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from synrank_jax import prepare
from synrank_jax.config import LOSS_NAMES, Config
from synrank_jax.config_file import load_config, to_yaml
from synrank_jax.contract import resolve_contract
from synrank_jax.data.pipeline import PreparedLists, batches
from synrank_jax.engine.batches import to_devices
from synrank_jax.engine.encoding import load_model
from synrank_jax.engine.state import LOG_TEMPERATURE, initial_state, merge_model, split_model
from synrank_jax.engine.step import item_keys, make_pool_loss, make_score_loss, make_train_step
from synrank_jax.optim import make_optimizer
from synrank_jax.parallel.mesh import BATCH_AXES
from synrank_jax.types import Batch

# Float32 sums in another order: the loss is a mean of 8 values, a gradient leaf a sum over some
# thousand products. Leaves whose true gradient is zero (attention key biases) hold only rounding
# noise, hence the floor relative to the global norm.
LOSS_RTOL = 1e-5
GRADIENT_RTOL = 1e-5
GRADIENT_FLOOR = 1e-3

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
LAYOUTS = {"data 8": (8, 1), "data 2 x fsdp 4": (2, 4), "fsdp 8": (1, 8)}
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


def mesh_of(data: int, fsdp: int) -> Mesh:
    return jax.make_mesh(
        (data, fsdp),
        BATCH_AXES,
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[: data * fsdp],
    )


@pytest.fixture
def lists(tiny_config: Config, tmp_path: Path) -> PreparedLists:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(tiny_config))
    prepare.main(["--config", str(path)])
    return PreparedLists(Path(tiny_config.data.prepared))


def first_batch(lists: PreparedLists, pool_size: int, rows: int) -> Batch:
    return next(batches(lists, seed=0, global_batch_size=16, pool_size=pool_size, rows=rows))


@pytest.fixture
def batch(lists: PreparedLists) -> Batch:
    """Two pools of eight lists, every list in a packed row of its own."""
    return first_batch(lists, 8, rows=8)


def gradients(config: Config, batch: Batch, mesh: Mesh) -> tuple[float, dict[str, np.ndarray]]:
    contract = resolve_contract(config)
    structure, params = split_model(load_model(config.model, contract))
    if config.loss.learn_temperature:
        params[LOG_TEMPERATURE] = jnp.log(jnp.float32(config.loss.temperature))
    state = initial_state(params, make_optimizer(config.optimizer, 10), mesh)
    loss = make_pool_loss(structure, config, contract, mesh)
    pool = jax.tree.map(lambda leaf: leaf[0], to_devices(batch, mesh))
    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, _), grads = grad(state.params, state.step, pool)
    return float(value), jax.device_get(grads)


def worst_leaf(got: dict, expected: dict) -> float:
    """Largest |difference| of a leaf in units of max(|leaf|, floor of the global norm)."""
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in expected.values()))
    return max(
        np.linalg.norm(got[name] - leaf) / max(np.linalg.norm(leaf), GRADIENT_FLOOR * norm)
        for name, leaf in expected.items()
    )


def with_loss(config: Config, name: str, dropout: float = 0.0) -> Config:
    return config.model_copy(
        update={
            "loss": config.loss.model_copy(update=LOSSES[name]),
            "model": config.model.model_copy(update={"dropout": dropout}),
        }
    )


@pytest.mark.parametrize(
    ("loss", "layout", "dropout"),
    [
        *(
            pytest.param(name, "data 2 x fsdp 4", 0.1, marks=pytest.mark.slow)
            for name in (*OTHER_LOSSES, "all")
        ),
        ("groups", "fsdp 8", 0.0),
        ("wasserstein", "data 8", 0.0),
        ("wasserstein", "fsdp 8", 0.1),
        ("gaussian", "data 2 x fsdp 4", 0.0),
        pytest.param("gaussian", "data 8", 0.1, marks=pytest.mark.slow),
        ("infonce", "fsdp 8", 0.0),
        pytest.param("infonce", "data 2 x fsdp 4", 0.1, marks=pytest.mark.slow),
    ],
)
def test_eight_devices_give_the_gradient_of_one(
    tiny_config: Config, lists: PreparedLists, loss: str, layout: str, dropout: float
):
    config = with_loss(tiny_config, loss, dropout)
    one_loss, one = gradients(config, first_batch(lists, 8, rows=1), mesh_of(1, 1))
    on_eight = first_batch(lists, 8, rows=8)
    loss_of_eight, eight = gradients(config, on_eight, mesh_of(*LAYOUTS[layout]))
    assert loss_of_eight == pytest.approx(one_loss, rel=LOSS_RTOL)
    assert worst_leaf(eight, one) <= GRADIENT_RTOL


@pytest.mark.slow
def test_eight_devices_give_the_gradient_of_one_on_minilm(tmp_path: Path):
    overrides = [f"data.prepared={tmp_path / 'lists'}", f"train.output={tmp_path / 'run'}"]
    config = load_config(QUICKSTART, overrides)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    prepare.main(["--config", str(path)])
    lists = PreparedLists(Path(config.data.prepared))
    one_loss, one = gradients(config, first_batch(lists, 16, rows=1), mesh_of(1, 1))
    loss_of_eight, eight = gradients(config, first_batch(lists, 16, rows=8), mesh_of(2, 4))
    assert loss_of_eight == pytest.approx(one_loss, rel=LOSS_RTOL)
    assert worst_leaf(eight, one) <= GRADIENT_RTOL


def test_the_comparison_notices_a_swapped_grade(tiny_config: Config, batch: Batch):
    config = with_loss(tiny_config, "wasserstein")
    _, expected = gradients(config, batch, mesh_of(1, 1))
    labels = batch.labels.copy()
    labels[0, 0, :2] = labels[0, 0, 1::-1]
    _, swapped = gradients(config, batch._replace(labels=labels), mesh_of(8, 1))
    assert worst_leaf(swapped, expected) > 100 * GRADIENT_RTOL


def test_dropout_changes_with_the_step_and_not_with_the_place_in_the_batch(
    tiny_config: Config, batch: Batch
):
    config = with_loss(tiny_config, "wasserstein", dropout=0.1)
    config = config.model_copy(update={"loss": config.loss.model_copy(update={"scope": "list"})})
    contract = resolve_contract(config)
    structure, params = split_model(load_model(config.model, contract))
    loss = jax.jit(make_pool_loss(structure, config, contract, mesh_of(1, 1)))
    pool = jax.tree.map(lambda leaf: leaf[0], batch)
    reversed_pool = jax.tree.map(lambda leaf: leaf[::-1], pool)
    first, _ = loss(params, 0, pool)
    assert float(loss(params, 0, reversed_pool)[0]) == pytest.approx(float(first), rel=LOSS_RTOL)
    assert abs(float(loss(params, 1, pool)[0]) - float(first)) > 1e-3


def test_a_drawn_positive_changes_with_the_step_and_not_with_the_place_in_the_batch(
    tiny_config: Config, batch: Batch
):
    config = with_loss(tiny_config, "infonce_sampled")
    contract = resolve_contract(config)
    structure, params = split_model(load_model(config.model, contract))
    loss = jax.jit(make_pool_loss(structure, config, contract, mesh_of(1, 1)))
    pool = jax.tree.map(lambda leaf: leaf[0], batch)
    reversed_pool = jax.tree.map(lambda leaf: leaf[::-1], pool)
    first, _ = loss(params, 0, pool)
    assert float(loss(params, 0, reversed_pool)[0]) == pytest.approx(float(first), rel=LOSS_RTOL)
    assert abs(float(loss(params, 1, pool)[0]) - float(first)) > 1e-3


@pytest.mark.parametrize("loss", ["wasserstein", "gaussian", "infonce"])
def test_an_excluded_document_is_no_negative(tiny_config: Config, batch: Batch, loss: str):
    """A passage that only its own list uses does not move the other queries, once excluded."""
    config = with_loss(tiny_config, loss)
    score_loss = make_score_loss(config)
    pool = jax.tree.map(lambda leaf: leaf[0], batch)
    queries, items = pool.labels.shape
    keys = item_keys(0, 0, pool).draw
    embeddings = jnp.zeros((queries, items, 2))

    scores = np.random.default_rng(0).normal(size=(queries, queries * items)).astype(np.float32)

    @jax.jit
    @jax.grad
    def gradient(scores: jax.Array, excluded: jax.Array) -> jax.Array:
        part = jax.tree.map(jnp.asarray, pool)._replace(excluded_ids=excluded)
        return score_loss(scores, part, keys, embeddings, 0.5)[0]

    of_list_0 = np.full((queries, 8), -1, np.int32)
    of_list_0[3, 0] = pool.passage_ids[0, 1]
    assert gradient(scores, np.zeros((queries, 0), np.int32))[3, 1] != 0
    assert gradient(scores, of_list_0)[3, 1] == 0


def test_a_step_over_pools_takes_the_mean_gradient(tiny_config: Config, batch: Batch):
    """Two pools in one step: its loss and gradient norm are those of the pools' mean."""
    config = with_loss(tiny_config, "gaussian")
    mesh = mesh_of(1, 1)
    contract = resolve_contract(config)
    structure, params = split_model(load_model(config.model, contract))
    tx = make_optimizer(config.optimizer, 10)
    pool_loss = make_pool_loss(structure, config, contract, mesh)
    grad = jax.jit(jax.value_and_grad(pool_loss, has_aux=True))
    pools = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in (0, 1)]
    values = [grad(params, 0, pool) for pool in pools]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, values[0][1], values[1][1])
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in mean.values()))
    step = make_train_step(structure, tx, config, contract, mesh)
    state, metrics = step(initial_state(params, tx, mesh), to_devices(batch, mesh))
    losses = [float(value[0][0]) for value in values]
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=LOSS_RTOL)
    assert float(metrics["grad_norm"]) == pytest.approx(float(norm), rel=LOSS_RTOL)
    assert int(state.step) == 1


def test_splitting_a_model_and_merging_it_changes_nothing(tiny_config: Config):
    model = load_model(tiny_config.model, resolve_contract(tiny_config))
    structure, params = split_model(model)
    ids = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
    mask = jnp.ones((2, 5), bool)
    np.testing.assert_array_equal(
        merge_model(structure, params).encode(ids, mask), model.encode(ids, mask)
    )
