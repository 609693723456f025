"""What must not change unnoticed: where weights live, and what the compiled step communicates."""

import math
import re
from collections import Counter
from pathlib import Path

import jax
from jax.sharding import AxisType

from synrank_jax import prepare
from synrank_jax.config import Config
from synrank_jax.config_file import to_yaml
from synrank_jax.contract import resolve_contract
from synrank_jax.data.pipeline import PreparedLists, batches
from synrank_jax.engine.batches import to_devices
from synrank_jax.engine.encoding import load_model
from synrank_jax.engine.state import initial_state, split_model
from synrank_jax.engine.step import make_train_step
from synrank_jax.optim import make_optimizer
from synrank_jax.parallel.mesh import BATCH_AXES

# {} is the layer. Vectors (biases, norms) are on every device.
SHARDED = {
    "encoder.embeddings.position.embedding": ("fsdp",),
    "encoder.embeddings.token_type.embedding": (None, "fsdp"),
    "encoder.embeddings.word.embedding": (None, "fsdp"),  # 65 words: not divisible
    "encoder.layers.{}.attention.key.kernel": ("fsdp",),
    "encoder.layers.{}.attention.output.kernel": ("fsdp",),
    "encoder.layers.{}.attention.query.kernel": ("fsdp",),
    "encoder.layers.{}.attention.value.kernel": ("fsdp",),
    "encoder.layers.{}.intermediate.kernel": (None, "fsdp"),
    "encoder.layers.{}.output.kernel": ("fsdp",),
}


def mesh(data: int, fsdp: int) -> jax.sharding.Mesh:
    return jax.make_mesh((data, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def test_weights_and_moments_live_where_the_table_says(tiny_config: Config):
    _, params = split_model(load_model(tiny_config.model, resolve_contract(tiny_config)))
    state = initial_state(params, make_optimizer(tiny_config.optimizer, 10), mesh(2, 4))
    for name, leaf in state.params.items():
        expected = SHARDED.get(re.sub(r"layers\.\d+", "layers.{}", name), ())
        assert tuple(leaf.sharding.spec) == expected, name
        assert state.opt_state[1][0].mu[name].sharding == leaf.sharding, name


def test_a_step_leaves_the_state_where_it_was(tiny_config: Config, tmp_path: Path):
    step, state, batch = compiled_step(tiny_config, tmp_path, 2, 4)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    for _ in range(2):
        state, _ = step(state, batch)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == placed
    assert step._cache_size() == 1


def compiled_step(config: Config, tmp_path: Path, data: int, fsdp: int) -> tuple:
    """(jitted step, state, batch) on a mesh."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    prepare.main(["--config", str(path)])
    lists = PreparedLists(Path(config.data.prepared))
    contract = resolve_contract(config)
    structure, params = split_model(load_model(config.model, contract))
    tx, on = make_optimizer(config.optimizer, 10), mesh(data, fsdp)
    batch = next(batches(lists, seed=0, global_batch_size=16, pool_size=16, rows=data * fsdp))
    step = make_train_step(structure, tx, config, contract, on)
    return step, initial_state(params, tx, on), to_devices(batch, on)


def test_data_parallelism_gathers_passage_embeddings_and_nothing_larger(
    tiny_config: Config, tmp_path: Path
):
    step, state, batch = compiled_step(tiny_config, tmp_path, 8, 1)
    text = step.lower(state, batch).compile().as_text()
    pattern = r"= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\("
    found = [
        (kind, math.prod(int(length) for length in filter(None, dims.split(","))))
        for shapes, kind in re.findall(pattern, text)
        for dims in re.findall(r"\w+\[([\d,]*)\]", shapes)
    ]
    gathered = [size for kind, size in found if kind == "all-gather"]
    embeddings = 16 * 4 * 32  # P D
    # Neither token activations (P T H) nor the scores [Q, P] of other queries travel.
    assert max(gathered) == embeddings, Counter(found)
    assert {kind for kind, _ in found} <= {"all-gather", "all-reduce"}
