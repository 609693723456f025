"""What must not change unnoticed: where weights live, and what the compiled step communicates."""

import math
import re
from collections import Counter
from pathlib import Path

import jax
import pytest

from synrank_jax import prepare
from synrank_jax.config import Config, MeshConfig
from synrank_jax.config_file import to_yaml
from synrank_jax.contract import resolve_contract
from synrank_jax.data.pipeline import PreparedLists, batches
from synrank_jax.engine.batches import to_devices
from synrank_jax.engine.encoding import load_model
from synrank_jax.engine.state import initial_state, split_model
from synrank_jax.engine.step import make_train_step
from synrank_jax.optim import make_optimizer
from synrank_jax.parallel.mesh import make_mesh, rows_per_pool

# {} is the layer. Other vectors (biases, norms) are on every device.
COLUMNS, ROWS = ("fsdp", "tensor"), ("tensor", "fsdp")
SHARDED = {
    "encoder.embeddings.position.embedding": (None, "fsdp"),
    "encoder.embeddings.token_type.embedding": (None, "fsdp"),
    "encoder.embeddings.word.embedding": (None, "fsdp"),
    "encoder.layers.{}.attention.key.kernel": COLUMNS,
    "encoder.layers.{}.attention.key.bias": ("tensor",),
    "encoder.layers.{}.attention.output.kernel": ROWS,
    "encoder.layers.{}.attention.query.kernel": COLUMNS,
    "encoder.layers.{}.attention.query.bias": ("tensor",),
    "encoder.layers.{}.attention.value.kernel": COLUMNS,
    "encoder.layers.{}.attention.value.bias": ("tensor",),
    "encoder.layers.{}.intermediate.kernel": COLUMNS,
    "encoder.layers.{}.intermediate.bias": ("tensor",),
    "encoder.layers.{}.output.kernel": ROWS,
}


def mesh(data: int, fsdp: int, tensor: int = 1) -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


def test_weights_and_moments_live_where_the_table_says(tiny_config: Config):
    _, params = split_model(load_model(tiny_config.model, resolve_contract(tiny_config)))
    state = initial_state(params, make_optimizer(tiny_config.optimizer, 10), mesh(2, 2, 2))
    for name, leaf in state.params.items():
        expected = SHARDED.get(re.sub(r"layers\.\d+", "layers.{}", name), ())
        assert tuple(leaf.sharding.spec) == expected, name
        assert state.opt_state.inner[1][0].mu[name].sharding == leaf.sharding, name


def test_a_step_leaves_the_state_where_it_was(tiny_config: Config, tmp_path: Path):
    step, state, batch = compiled_step(tiny_config, tmp_path, 2, 4)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    for _ in range(2):
        state, _ = step(state, batch)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == placed
    assert step._cache_size() == 1


def compiled_step(
    config: Config, tmp_path: Path, data: int, fsdp: int, tensor: int = 1, chunk: int | None = None
) -> tuple:
    """(jitted step, state, batch of one pool of 16) on a mesh."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    prepare.main(["--config", str(path)])
    lists = PreparedLists(Path(config.data.prepared))
    contract = resolve_contract(config)
    structure, params = split_model(load_model(config.model, contract))
    tx, on = make_optimizer(config.optimizer, 10), mesh(data, fsdp, tensor)
    rows = rows_per_pool(on, 16, chunk)
    batch = next(batches(lists, seed=0, global_batch_size=16, pool_size=16, rows=rows))
    step = make_train_step(structure, tx, config, contract, on)
    return step, initial_state(params, tx, on), to_devices(batch, on)


def collectives(step, state, batch) -> dict[str, Counter]:
    """Kind -> {elements of a result: how often} of a step that has none in a loop."""
    text = step.lower(state, batch).compile().as_text()
    pattern = r"= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\("
    bodies = set(re.findall(r"body=%?([\w.-]+)", text))
    found: dict[str, Counter] = {}
    for computation in re.split(r"\n(?=%|ENTRY)", text):
        name = re.match(r"(?:ENTRY )?%?([\w.-]+)", computation)
        for shapes, kind in re.findall(pattern, computation):
            assert name is not None
            assert name[1] not in bodies, name[1]
            for dims in re.findall(r"\w+\[([\d,]*)\]", shapes):
                size = math.prod(int(length) for length in filter(None, dims.split(",")))
                found.setdefault(kind, Counter())[size] += 1
    return found


Q = 16  # queries of the pool
P = 4 * Q  # passages
EMBEDDINGS = P * 32  # [P, D]


@pytest.mark.parametrize(
    ("loss", "chunk"),
    [
        ("wasserstein", 1),
        pytest.param("gaussian_wasserstein", None, marks=pytest.mark.slow),
        pytest.param("wasserstein", None, marks=pytest.mark.slow),
        pytest.param("gaussian_wasserstein", 1, marks=pytest.mark.slow),
        pytest.param("infonce", None, marks=pytest.mark.slow),
    ],
)
def test_data_parallelism_gathers_passage_embeddings_and_nothing_larger(
    tiny_config: Config, tmp_path: Path, loss: str, chunk: int | None
):
    weights = {name: float(name == loss) for name in ("wasserstein", loss)}
    section = tiny_config.loss.model_copy(update=weights)
    config = tiny_config.model_copy(update={"loss": section})
    found = collectives(*compiled_step(config, tmp_path, 8, 1, chunk=chunk))
    # Neither token activations (P T H) nor the scores [Q, P] of other queries travel.
    assert max(found["all-gather"]) == EMBEDDINGS, found
    assert Q * P not in found["all-gather"]
    assert found.keys() == {"all-gather", "all-reduce"}


@pytest.mark.parametrize("chunk", [pytest.param(None, marks=pytest.mark.slow), 1])
def test_fsdp_gathers_weights_and_passage_embeddings_once(
    tiny_config: Config, tmp_path: Path, chunk: int | None
):
    step, state, batch = compiled_step(tiny_config, tmp_path, 2, 4, chunk=chunk)
    found = collectives(step, state, batch)
    weights = Counter(leaf.size for leaf in state.params.values() if leaf.ndim > 1)
    small = batch.labels.size  # ids and masks of passages; the token types are as small
    gathered = Counter({size: n for size, n in found["all-gather"].items() if size > small})
    # Every matrix once, though every chunk uses it.
    assert gathered == weights + Counter({EMBEDDINGS: 1}) - Counter({small: 1})
    assert max(found["all-reduce"]) <= max(weights), found
    assert found.keys() == {"all-gather", "all-reduce"}


@pytest.mark.slow
def test_tensor_parallelism_sums_activations_and_gathers_none(tiny_config: Config, tmp_path: Path):
    step, state, batch = compiled_step(tiny_config, tmp_path, 4, 1, 2)
    found = collectives(step, state, batch)
    activations = 32 * batch.texts.input_ids.size // 4
    assert max(found["all-gather"]) == EMBEDDINGS < activations, found
    # Two layers, two pairs of matmuls in each, forward and backward.
    assert found["all-reduce"][activations] >= 2 * 2 * 2, found
    assert found.keys() == {"all-gather", "all-reduce"}
