"""Each field of the encoding contract, changed alone, is refused by train, evaluate and export."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from other_contracts import OTHER_VALUES

from synrank_jax import export, prepare, train
from synrank_jax.config import Config, EncodingConfig
from synrank_jax.config_file import to_yaml, validate_config
from synrank_jax.contract import EncodingContract, resolve_contract
from synrank_jax.encoders import load_encoder
from synrank_jax.engine.checkpoint import Checkpoints, load_trained
from synrank_jax.engine.encoding import load_model
from synrank_jax.engine.state import initial_state, split_model
from synrank_jax.errors import UserError
from synrank_jax.export_folder import write_folder
from synrank_jax.export_manifest import Origin, write_manifest
from synrank_jax.optim import make_optimizer
from synrank_jax.parallel.mesh import make_mesh

ORIGIN = Origin(
    checkpoint="run", step=1, data_sha256="0", model_path="tiny", base_model=None, version="0"
)
FIELDS = tuple(EncodingContract.model_fields)
CONFIGURED = [name for name in FIELDS if name in EncodingConfig.model_fields]


def test_there_is_another_value_for_every_field():
    assert set(OTHER_VALUES) == set(FIELDS)


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_lists: Path
) -> tuple[Config, Path]:
    """A configuration that gives every field, its lists, a checkpoint and an exported folder.

    Without training, whose compilation would be most of the time.
    """
    folder = tmp_path_factory.mktemp("made")
    config = validate_config(
        {
            "model": {"path": str(tiny_model)},
            "encoding": {
                "pooling": "mean",
                "normalize": True,
                "dimension": 16,
                "similarity": "cosine",
                "query_prompt": "query: ",
                "passage_prompt": "",
                "query_length": 16,
                "passage_length": 32,
            },
            "data": {"sources": [{"path": str(tiny_lists)}], "prepared": str(folder / "lists")},
            "loss": {"wasserstein": 1.0},
            "train": {
                "output": str(folder / "run"),
                "steps": 1,
                "global_batch_size": 8,
                "tensorboard": False,
            },
        },
        name="made",
    )
    (folder / "config.yaml").write_text(to_yaml(config))
    prepare.main(["--config", str(folder / "config.yaml")])
    contract = resolve_contract(config)
    model, mesh = load_model(config.model, contract), make_mesh(config.mesh)
    _, params = split_model(model)
    checkpoints = Checkpoints(folder / "run", config, contract, data_sha256="0")
    checkpoints.save(1, initial_state(params, make_optimizer(config.optimizer, 1), mesh), 0.0)
    checkpoints.close()
    (folder / "exported").mkdir()
    write_folder(model, tiny_model, contract, folder / "exported")
    write_manifest(folder / "exported", ORIGIN)
    return config, folder


def mutated(contract: dict[str, Any], field: str) -> tuple[str, str]:
    """Change one field of a stored contract; its values before and after, as errors show them."""
    before, contract[field] = contract[field], OTHER_VALUES[field]
    assert before != contract[field]
    return repr(before), repr(contract[field])


def refused(error: pytest.ExceptionInfo[UserError], field: str, values: tuple[str, str]) -> None:
    """The message has one line for the field, with both values, and none for another field."""
    lines = re.findall(r"^  (\w+): (.*)$", str(error.value), re.MULTILINE)
    assert [name for name, _ in lines] == [field]
    assert all(value in lines[0][1] for value in values)


@pytest.mark.parametrize("field", FIELDS)
def test_train_refuses_lists_prepared_otherwise(
    made: tuple[Config, Path], tmp_path: Path, field: str
):
    config, folder = made
    lists = shutil.copytree(folder / "lists", tmp_path / "lists")
    manifest = json.loads((lists / "manifest.json").read_text())
    values = mutated(manifest["contract"], field)
    (lists / "manifest.json").write_text(json.dumps(manifest))
    data = config.data.model_copy(update={"prepared": str(lists)})
    part = config.train.model_copy(update={"output": str(tmp_path / "run")})
    with pytest.raises(UserError) as error:
        train.run(config.model_copy(update={"data": data, "train": part}))
    refused(error, field, values)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def exported(made: tuple[Config, Path], tmp_path: Path) -> Path:
    """An alterable copy of the exported folder."""
    return Path(shutil.copytree(made[1] / "exported", tmp_path / "exported"))


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_evaluate_refuses_a_folder_that_is_not_what_its_contract_says(
    made: tuple[Config, Path], exported: Path, backend: Any, field: str
):
    file = exported / "encoding_contract.json"
    contract = json.loads(file.read_text())
    values = mutated(contract, field)
    file.write_text(json.dumps(contract))
    with pytest.raises(UserError, match=r"encoding_contract\.json: changed since the export"):
        load_encoder(str(exported), backend, made[0], 2)
    write_manifest(exported, ORIGIN)  # as if it had been exported so
    with pytest.raises(UserError) as error:
        load_encoder(str(exported), backend, made[0], 2)
    refused(error, field, values)


@pytest.mark.parametrize("field", CONFIGURED)
@pytest.mark.parametrize("model", ["exported", "run"])
def test_evaluate_refuses_a_configuration_that_asks_for_something_else(
    made: tuple[Config, Path], model: str, field: str
):
    config, folder = made
    values = repr(getattr(config.encoding, field)), repr(OTHER_VALUES[field])
    encoding = config.encoding.model_copy(update={field: OTHER_VALUES[field]})
    with pytest.raises(UserError) as error:
        load_encoder(str(folder / model), None, config.model_copy(update={"encoding": encoding}), 2)
    refused(error, field, values)


@pytest.fixture
def run(made: tuple[Config, Path], tmp_path: Path) -> Path:
    """An alterable copy of the run folder."""
    return Path(shutil.copytree(made[1] / "run", tmp_path / "run"))


@pytest.mark.parametrize("field", FIELDS)
def test_evaluate_and_export_refuse_a_checkpoint_that_its_source_contradicts(
    made: tuple[Config, Path], run: Path, tmp_path: Path, field: str
):
    file = run / "checkpoints" / "1" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    values = mutated(meta["contract"], field)
    file.write_text(json.dumps(meta))
    assert getattr(load_trained(run).contract, field) == OTHER_VALUES[field]
    with pytest.raises(UserError) as error:
        load_encoder(str(run), None, made[0], 2)
    refused(error, field, values)
    with pytest.raises(UserError) as error:
        export.main(["--checkpoint", str(run), "--output", str(tmp_path / "again")])
    refused(error, field, values)
    assert not (tmp_path / "again").exists()
