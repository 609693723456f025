"""What must not change unnoticed: where weights live, and what the compiled step communicates."""

import re
from collections import Counter
from pathlib import Path

import jax
from jax.sharding import AxisType

from synrank_jax import prepare
from synrank_jax.config import Config, to_yaml
from synrank_jax.contract import resolve_contract
from synrank_jax.data.pipeline import PreparedLists, batches
from synrank_jax.engine.batches import to_devices
from synrank_jax.engine.encoding import load_model
from synrank_jax.engine.state import abstract_state, initial_state, split_model
from synrank_jax.engine.step import make_train_step
from synrank_jax.optim import make_optimizer
from synrank_jax.parallel.mesh import BATCH_AXES

# {} is the layer. Vectors (biases, norms) are on every device.
SHARDED = {
    "encoder.embeddings.position.embedding": ("fsdp", None),
    "encoder.embeddings.token_type.embedding": (None, "fsdp"),
    "encoder.embeddings.word.embedding": (None, "fsdp"),  # 65 words: not divisible
    "encoder.layers.{}.attention.key.kernel": ("fsdp", None),
    "encoder.layers.{}.attention.output.kernel": ("fsdp", None),
    "encoder.layers.{}.attention.query.kernel": ("fsdp", None),
    "encoder.layers.{}.attention.value.kernel": ("fsdp", None),
    "encoder.layers.{}.intermediate.kernel": (None, "fsdp"),
    "encoder.layers.{}.output.kernel": ("fsdp", None),
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


def collectives(config: Config, tmp_path: Path, data: int, fsdp: int) -> list[tuple[str, int]]:
    """(kind, elements) of every collective in the compiled step."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    prepare.main(["--config", str(path)])
    lists = PreparedLists(Path(config.data.prepared))
    contract = resolve_contract(config)
    structure, params = split_model(load_model(config.model, contract))
    tx, on = make_optimizer(config.optimizer, 10), mesh(data, fsdp)
    batch = next(batches(lists, seed=0, global_batch_size=16, pool_size=16, start_step=0))
    step = make_train_step(structure, tx, config, contract, on)
    text = step.lower(abstract_state(params, tx, on), to_devices(batch, on)).compile().as_text()
    found = []
    pattern = r"= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\("
    for shapes, kind in re.findall(pattern, text):
        for dims in re.findall(r"\w+\[([\d,]*)\]", shapes):
            size = 1
            for length in filter(None, dims.split(",")):
                size *= int(length)
            found.append((kind, size))
    return found


def test_data_parallelism_gathers_passage_embeddings_and_nothing_larger(
    tiny_config: Config, tmp_path: Path
):
    found = collectives(tiny_config, tmp_path, 8, 1)
    gathered = [size for kind, size in found if kind == "all-gather"]
    embeddings = 16 * 4 * 32  # P D
    assert embeddings in gathered
    # Neither token activations (P T H) nor the scores' gradient need to travel.
    assert max(gathered) == embeddings, Counter(found)
    assert Counter(kind for kind, _ in found).keys() <= {"all-gather", "all-reduce"}
