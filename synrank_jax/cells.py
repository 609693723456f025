"""One cell of an experiment, done once: train, evaluate, keep the results, drop the checkpoints.

A kill at any moment loses at most the cell under way: an evaluation counts when its metrics.json is
whole, a training when all evaluations of its model count.
"""

import functools
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from synrank_jax import prepare, train
from synrank_jax.config_file import to_yaml
from synrank_jax.contract import contract_of_folder
from synrank_jax.data.manifest import read_manifest
from synrank_jax.encoders import load_encoder
from synrank_jax.engine.runfolder import CHECKPOINTS, claim
from synrank_jax.engine.updates import BadUpdateError
from synrank_jax.errors import UserError
from synrank_jax.evaluation import METRICS_FILE, evaluate_collection, read_collection, write_results
from synrank_jax.experiment import Cell
from synrank_jax.files import write_text
from synrank_jax.hub import model_folder
from synrank_jax.retrieval.result import EvaluationResult

logger = logging.getLogger(__name__)

FAILED_FILE = "failed.txt"
LISTS_FILE = "lists.sha256"
SECONDS_FILE = "seconds.json"
TRAINING = "(training)"  # no evaluation can have this name


def finished(cell: Cell, evaluation: str) -> EvaluationResult | None:
    """The result of one evaluation of a cell, None if it has not been made (wholly).

    Raises:
        UserError: it was made with other evaluation settings.
    """
    file = cell.results(evaluation) / METRICS_FILE
    if not file.exists():
        return None
    try:
        result = EvaluationResult.read(file)
    except UserError:
        logger.warning("%s: not whole, so this is evaluated again", file)
        return None
    section = cell.evaluations[evaluation]
    # The collection may have moved; its hash says whether it is the same one.
    if result.evaluation.model_copy(update={"path": section.path}) != section:
        raise UserError(
            f"{file}: made with other evaluation settings than the experiment has now; "
            f"delete {cell.folder} or choose another --output"
        )
    return result


def failure(cell: Cell) -> str | None:
    """Why the cell's training broke off for good; None if it did not."""
    file = cell.folder / FAILED_FILE
    return file.read_text("utf-8").strip() if file.exists() else None


def seconds(cell: Cell) -> dict[str, float]:
    """What the finished parts of a cell took: `TRAINING` and the names of its evaluations."""
    file = cell.folder / SECONDS_FILE
    if not file.exists():
        return {}
    measured: dict[str, float] = json.loads(file.read_text("utf-8"))
    return measured


@contextmanager
def _timed(cell: Cell, part: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    measured = {**seconds(cell), part: round(time.perf_counter() - began, 1)}
    write_text(cell.folder / SECONDS_FILE, json.dumps(measured) + "\n")


class Runner:
    """Runs cells in this process, so that collections are read once and programs compiled once.

    Args:
        evaluations: those whose collections are here.
    """

    def __init__(self, evaluations: Sequence[str]) -> None:
        self._evaluations = set(evaluations)
        self._prepared: dict[Path, str] = {}  # folder -> fingerprint of its lists
        self._contract = functools.cache(contract_of_folder)
        self._collection = functools.cache(read_collection)

    def run(self, cell: Cell) -> None:
        """Do what of the cell has no result yet.

        A training that stops being finite is recorded as failed, and not tried again.

        Raises:
            UserError: the cell's folder belongs to other settings; anything that train, prepare
                and evaluate refuse.
        """
        model = cell.config.model
        contract = self._contract(model_folder(model.path, model.revision), cell.config.encoding)
        cell.folder.mkdir(parents=True, exist_ok=True)
        claim(cell.folder, cell.config, contract)
        if cell.trained:
            self._claim_lists(cell)
        wanted = [name for name in cell.evaluations if name in self._evaluations]
        todo = [name for name in wanted if finished(cell, name) is None]
        if todo and failure(cell) is None:
            print(f"\n== {cell.arm} {cell.name}: {', '.join(todo)}", flush=True)
            try:
                self._train_and_evaluate(cell, todo)
            except BadUpdateError as error:
                logger.warning("%s %s failed: %s", cell.arm, cell.name, error)
                write_text(cell.folder / FAILED_FILE, f"{error}\n")
        shutil.rmtree(cell.folder / CHECKPOINTS, ignore_errors=True)

    def _train_and_evaluate(self, cell: Cell, names: Sequence[str]) -> None:
        if cell.trained:
            with _timed(cell, TRAINING):
                train.run(cell.config)
        sections = {name: cell.evaluations[name] for name in names}
        model = str(cell.folder) if cell.trained else None
        batch_size = max(section.batch_size for section in sections.values())
        encoder, backend = load_encoder(model, "jax", cell.config, batch_size)
        for name, section in sections.items():
            with _timed(cell, name):
                result, run = evaluate_collection(
                    encoder,
                    section,
                    self._collection(section),
                    label=cell.arm,
                    model=cell.config.model.path,
                    backend=backend,
                    embeddings=cell.results(name) / "embeddings",
                )
            write_results(cell.results(name), result, run)
            # Of a model that is dropped too.
            shutil.rmtree(cell.results(name) / "embeddings")

    def _claim_lists(self, cell: Cell) -> None:
        """Store the fingerprint of a new cell's lists, or compare it with that of a begun one.

        The lists are prepared, or verified, once for all cells that share them.

        Raises:
            UserError: the cell was trained on other lists.
        """
        folder = Path(cell.config.data.prepared)
        if folder not in self._prepared:
            # Not the cell's stored configuration, whose sources may be former ones.
            config_file = folder.with_suffix(".yaml")
            config_file.parent.mkdir(parents=True, exist_ok=True)
            write_text(config_file, to_yaml(cell.config))
            prepare.main(["--config", str(config_file)])
            self._prepared[folder] = read_manifest(folder).lists_sha256
        file, fingerprint = cell.folder / LISTS_FILE, self._prepared[folder]
        if not file.exists():
            write_text(file, f"{fingerprint}\n")
        elif (stored := file.read_text("utf-8").strip()) != fingerprint:
            raise UserError(
                f"{cell.folder}: trained on lists with fingerprint {stored[:12]}, but those of "
                f"the experiment now have {fingerprint[:12]}; delete the folder to train it again, "
                "or choose another --output"
            )
