"""Evaluation within training: the live weights, on all devices of all hosts, scored as `evaluate`
scores a checkpoint.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from synrank_jax.config import Config
from synrank_jax.contract import EncodingContract, load_tokenizer
from synrank_jax.data.tokenize import LENGTH_MULTIPLE
from synrank_jax.data.windows import Rows, Side, WindowEncoder
from synrank_jax.engine.distributed import First
from synrank_jax.engine.history import History
from synrank_jax.engine.state import Params
from synrank_jax.engine.step import make_encode_step
from synrank_jax.hub import model_folder
from synrank_jax.parallel.mesh import batch_devices, replicated, rows
from synrank_jax.retrieval.files import Qrels
from synrank_jax.retrieval.metrics import means, per_query
from synrank_jax.retrieval.search import ArrayVectors, ranking, unit_length
from synrank_jax.tracking import MetricsLog
from synrank_jax.types import Tokens


@dataclass(frozen=True)
class DevSet:
    """Documents, and the queries that are scored on them."""

    doc_ids: Sequence[str]
    documents: Sequence[str]
    queries: dict[str, str]
    qrels: Qrels
    excluded: frozenset[tuple[str, str]]
    sha256: str


class MeshEncoder(WindowEncoder):
    """Encodes with weights that lie on a mesh as training keeps them.

    Every process must encode the same; each gets all embeddings.
    """

    def __init__(
        self,
        contract: EncodingContract,
        folder: Path,
        batch_size: int,
        structure: Any,
        mesh: Mesh,
    ) -> None:
        devices = batch_devices(mesh)
        super().__init__(contract, load_tokenizer(folder), batch_size, LENGTH_MULTIPLE, devices)
        self.params: Params = {}
        self._encode = make_encode_step(structure, mesh, replicated(mesh))
        self._sharding = rows(mesh)

    def _start(self, input_ids: NDArray[np.int32], attention_mask: NDArray[np.bool_]) -> jax.Array:
        ids, mask = (
            jax.make_array_from_callback(array.shape, self._sharding, array.__getitem__)
            for array in (input_ids, attention_mask)
        )
        embeddings: jax.Array = self._encode(self.params, Tokens(ids, mask))
        return embeddings

    def _finish(self, started: jax.Array) -> NDArray[np.float32]:
        return np.asarray(started)


class Validation:
    """Evaluates a run as it goes, and remembers what it found.

    Args:
        config: with `validation` and `train.eval_every`.
        dev_set: what to score on; the same on all hosts.
        contract: how texts are encoded.
        structure: of the model that is trained.
        mesh: where its weights lie.
        steps: of the run.
    """

    def __init__(
        self,
        config: Config,
        dev_set: DevSet,
        contract: EncodingContract,
        structure: Any,
        mesh: Mesh,
        steps: int,
    ) -> None:
        section = config.validation
        assert section is not None
        self.sha256 = dev_set.sha256
        self.history = History(
            metric=section.metrics[0], collection_sha256=dev_set.sha256, values={}
        )
        self._train, self._section, self._set, self._steps = config.train, section, dev_set, steps
        self._kept = config.best_kept()
        folder = model_folder(config.model.path, config.model.revision)
        self._encoder = MeshEncoder(contract, folder, section.batch_size, structure, mesh)
        self._tokens: dict[Side, Rows] = {}

    def due(self, step: int) -> bool:
        """Whether the model after so many steps is to be evaluated and was not."""
        assert self._train.eval_every is not None  # Config
        now = step % self._train.eval_every == 0 or step == self._steps
        return now and step not in self.history.values

    def over(self) -> bool:
        """Whether the last `patience` evaluations found no better model."""
        patience = self._train.patience
        return patience is not None and self.history.without_better() >= patience

    def worth_saving(self, step: int) -> bool:
        """Whether the model after that step is among the best, of which so many are kept, or the
        last one of a run that ends early.
        """
        return self.over() or step in self.best()

    def best(self) -> list[int]:
        """Steps whose checkpoints are kept for their value."""
        return self.history.ranked()[: self._kept]

    def summary(self, done: int) -> str:
        """What came of a run that ended after so many steps."""
        ranked, values = self.history.ranked(), self.history.values
        early = ""
        if done < self._steps:
            early = (
                f"ended early: {self.history.without_better()} evaluations without a better one; "
            )
        before = f" ({values[0]:.4f} before the first step)" if 0 in values else ""
        return f"{early}step {ranked[0]} is {self.history.told(ranked[0])}{before}"

    def evaluate(self, step: int, params: Params, first: First, log: MetricsLog | None) -> str:
        """Score the weights after so many steps; all processes together.

        Process 0 measures, writes the record and validation.json, and tells the others.

        Args:
            step: completed updates.
            params: the weights, as training keeps them.
            first: decides for all.
            log: of process 0.

        Returns:
            A line for the console.

        Raises:
            UserError: embeddings are not finite, or something cannot be written.
        """
        began = time.perf_counter()
        passages = self._embed(params, "passage", lambda: self._set.documents)
        queries = self._embed(params, "query", lambda: list(self._set.queries.values()))

        def measured() -> dict[str, float]:
            values = self._measure(queries, passages)
            assert log is not None  # on process 0
            named = {f"validation/{name}": value for name, value in values.items()}
            log.write(step, {**named, "validation/seconds": time.perf_counter() - began})
            log.flush(to_disk=True)
            self.history.add(step, values[self.history.metric]).write(log.path.parent)
            return values

        values = first(measured)
        self.history = self.history.add(step, values[self.history.metric])
        found = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        best = self.history.ranked()[:1]
        rank = f"  best after step {best[0]}" if best and best[0] != step else "  the best so far"
        seconds = time.perf_counter() - began
        return f"step {step}  validation {found}{rank if step else ''}  {seconds:.1f} s"

    def _embed(
        self, params: Params, side: Side, texts: Callable[[], Sequence[str]]
    ) -> NDArray[np.float32]:
        if side not in self._tokens:  # the first time
            self._tokens[side] = self._encoder.tokenize(texts(), side)
        self._encoder.params = params
        (embeddings,) = self._encoder.encode_tokens([self._tokens[side]], side)
        self._encoder.params = {}  # the next step is given their memory
        return embeddings

    def _measure(
        self, queries: NDArray[np.float32], passages: NDArray[np.float32]
    ) -> dict[str, float]:
        if self._encoder.contract.similarity == "cosine":
            queries, passages = unit_length(queries), unit_length(passages)
        run = ranking(
            queries,
            ArrayVectors(passages),
            list(self._set.queries),
            self._set.doc_ids,
            self._section.top_k,
            self._set.excluded,
            self._section.exclude_self_match,
        )
        return means(per_query(run, self._set.qrels, self._section.metrics))
