"""One training step: its random draws, its pools, what a list excludes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradients import LOSS_RTOL, mesh_of, with_loss

from synrank_jax.config import Config
from synrank_jax.contract import resolve_contract
from synrank_jax.data.pipeline import PreparedLists, batches
from synrank_jax.engine.batches import to_devices
from synrank_jax.engine.encoding import load_model
from synrank_jax.engine.state import initial_state, merge_model, split_model
from synrank_jax.engine.step import item_keys, make_pool_loss, make_score_loss, make_train_step
from synrank_jax.optim import make_optimizer
from synrank_jax.types import Batch


def first_batch(lists: PreparedLists, pool_size: int, rows: int) -> Batch:
    return next(batches(lists, seed=0, global_batch_size=16, pool_size=pool_size, rows=rows))


@pytest.fixture
def batch(lists: PreparedLists) -> Batch:
    """Two pools of eight lists, every list in a packed row of its own."""
    return first_batch(lists, 8, rows=8)


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


@pytest.mark.slow
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
