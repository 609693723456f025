"""Checkpoints: Orbax behind one thin module.

A checkpoint holds the weights, the optimizer state, and as JSON the step, the resolved
configuration, the encoding contract and the fingerprint of the prepared data. The data position
is the step itself: which lists step k reads is a pure function of (seed, k).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pydantic
from jax.tree_util import DictKey, GetAttrKey, SequenceKey
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
    PreservationPolicy,
)

from synrank_jax.config import Config
from synrank_jax.config_file import validate_config
from synrank_jax.contract import EncodingContract
from synrank_jax.engine.history import History
from synrank_jax.engine.integrity import (
    HALF_WRITTEN,
    first_line,
    first_whole,
    newest_whole,
    remove_half_written,
    steps_in,
)
from synrank_jax.engine.runfolder import CHECKPOINTS
from synrank_jax.engine.state import LOG_TEMPERATURE, Params, TrainState
from synrank_jax.errors import UserError

# Orbax reports every save at INFO, warns about restores we ask for on purpose, and prints a stack
# for each thread of a failed save, which we turn into one error.
logging.getLogger("absl").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Trained:
    """A trained model as stored: weights by dotted path as NumPy arrays, and how to use them."""

    config: Config
    contract: EncodingContract
    params: dict[str, np.ndarray]
    step: int
    data_sha256: str
    folder: Path = Path()
    """The checkpoint."""
    because: str = ""
    """Why this one of a run's checkpoints, as ", the newest"; empty: it was named."""

    @property
    def temperature(self) -> float:
        """What scores are divided by, as learned or as configured."""
        if LOG_TEMPERATURE not in self.params:
            return self.config.loss.temperature
        return float(np.exp(self.params[LOG_TEMPERATURE]))


class Checkpoints:
    """The checkpoints of one run folder, written in the background.

    Args:
        run: the run folder.
        config: says how many are kept; stored in each.
        contract: stored in each.
        data_sha256: fingerprint of the prepared data, stored in each.
        best: the steps to keep as the best ones; None: those with the lowest loss.
    """

    def __init__(
        self,
        run: Path,
        config: Config,
        contract: EncodingContract,
        data_sha256: str,
        best: Callable[[], Sequence[int]] | None = None,
    ):
        self._config, self._contract, self._data_sha256 = config, contract, data_sha256
        self.folder = (run / CHECKPOINTS).absolute()
        train = config.train
        lowest_loss = BestN(
            get_metric_fn=_loss,
            reverse=True,
            n=train.keep_best,
            keep_checkpoints_without_metrics=False,
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers=_handlers(),
            options=ocp.CheckpointManagerOptions(
                best_fn=_loss,  # else the metrics are not stored
                preservation_policy=AnyPreservationPolicy(
                    [
                        LatestN(train.keep_checkpoints),
                        lowest_loss if best is None else _Steps(best),
                    ]
                ),
            ),
        )
        self._failed = False

    def save(self, step: int, state: TrainState, loss: float) -> None:
        """Start writing the state after `step` updates; a kill leaves no half checkpoint behind.

        Args:
            step: Completed updates.
            state: What they made.
            loss: Mean loss since the last checkpoint.

        Raises:
            UserError: this or the last one cannot be written.
        """
        meta = {
            "step": step,
            "config": self._config.model_dump(mode="json"),
            "contract": self._contract.model_dump(mode="json"),
            "data_sha256": self._data_sha256,
        }
        with self._errors_named():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    optimizer=ocp.args.StandardSave(state.opt_state),
                    meta=ocp.args.JsonSave(meta),
                ),
                metrics={"loss": loss},
            )

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state after `step` updates, laid out as `abstract` says (any mesh).

        Raises:
            UserError: it is the state of another model, or of another version of this program, or
                cannot be read.
        """
        folder = self.folder / str(step)
        try:
            metadata = self._manager.item_metadata(step)
            _check_same_shapes(
                metadata["params"],
                abstract.params,
                f"{folder}: weight",
                f"in model.path {self._config.model.path}: a checkpoint of another model; set "
                "another train.output",
            )
            _check_same_shapes(
                metadata["optimizer"],
                abstract.opt_state,
                f"{folder}: state",
                "here: a checkpoint of another version of this program; finish the run with the "
                "version that began it, or set another train.output",
            )
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(abstract.params),
                    optimizer=ocp.args.StandardRestore(abstract.opt_state),
                ),
            )
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise UserError(
                f"{folder} cannot be read ({first_line(error)}): run the same command again, which "
                "looks for the newest checkpoint that can"
            ) from error
        counter = jax.device_put(np.int32(step), abstract.step.sharding)
        return TrainState(restored["params"], restored["optimizer"], counter)

    def data_sha256(self, step: int) -> str:
        """Fingerprint of the prepared data that a checkpoint was trained on."""
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
            "meta"
        ]
        stored: str = meta["data_sha256"]
        return stored

    def close(self) -> None:
        """Wait for the writes under way.

        Raises:
            UserError: the last one could not be written.
        """
        if self._failed:
            return  # said before
        with self._errors_named():
            self._manager.wait_until_finished()
        self._manager.close()

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        """One error for a full disk and the like; what it left half-written is removed."""
        try:
            yield
        except TimeoutError:
            raise  # of a wait for other hosts
        except (OSError, ValueError) as error:
            self._failed = True
            half = [path.name.partition(".")[0] for path in self.folder.glob(HALF_WRITTEN)]
            remove_half_written(self.folder)
            raise UserError(
                f"the checkpoint of step {', '.join(half)} cannot be written to {self.folder} "
                f"({first_line(error)}); make room or see to the folder, then run the same "
                "command again"
            ) from error


class _Steps(PreservationPolicy):  # type: ignore[misc]
    """Keeps the checkpoints of the steps that are asked for each time."""

    def __init__(self, steps: Callable[[], Sequence[int]]) -> None:
        self._steps = steps

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = self._steps()
        return [checkpoint.step in steps for checkpoint in checkpoints]


def _check_same_shapes(stored: Any, wanted: Any, what: str, where: str) -> None:
    """Compare what a checkpoint holds with what is to be restored, leaf by leaf."""
    stored, wanted = _leaf_shapes(stored), _leaf_shapes(wanted)
    for name in sorted(stored.keys() | wanted.keys()):
        there, here = stored.get(name, "missing"), wanted.get(name, "missing")
        if there != here:
            raise UserError(f"{what} {name} is {there} there and {here} {where}")


def _leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Dotted name -> shape; Orbax gives the fields of a tuple back as entries of a dictionary."""

    def name(key: Any) -> str:
        match key:
            case GetAttrKey(name=part) | SequenceKey(idx=part) | DictKey(key=part):
                return str(part)
        raise TypeError(key)

    return {
        ".".join(map(name, path)): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def size_bytes(state: TrainState) -> int:
    """Bytes of a checkpoint of such a state, or shapes of one, before compression."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _loss(metrics: Any) -> float:
    loss: float = metrics["loss"]
    return loss


def _handlers() -> dict[str, Any]:
    return {
        "params": ocp.StandardCheckpointHandler(),
        "optimizer": ocp.StandardCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
    }


def is_run_folder(path: Path) -> bool:
    """Whether `path` is a run folder of `train` or one of its checkpoints."""
    return (path / CHECKPOINTS).is_dir() or (
        (path / "params").is_dir() and (path / "meta").is_dir()
    )


def load_trained(path: Path) -> Trained:
    """Weights and settings of one checkpoint folder, or of that for which a run folder stands.

    Raises:
        UserError: there is no whole checkpoint.
    """
    path = path.absolute()
    if not is_run_folder(path):
        raise UserError(f"{path}: neither a run folder of train nor one of its checkpoints")
    folder, because = chosen_checkpoint(path)
    with ocp.CheckpointManager(folder.parent, item_handlers=_handlers()) as manager:
        step = int(folder.name)
        shapes = manager.item_metadata(step)["params"]
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_on_one_device(shapes)),
                meta=ocp.args.JsonRestore(),
            ),
        )
    meta = restored["meta"]
    try:
        contract = EncodingContract.model_validate(meta["contract"])
    except pydantic.ValidationError as error:
        raise UserError(f"{folder}: no readable encoding contract ({error})") from error
    return Trained(
        config=validate_config(meta["config"], name=f"{folder} (stored configuration)"),
        contract=contract,
        params={name: np.asarray(leaf) for name, leaf in restored["params"].items()},
        step=meta["step"],
        data_sha256=meta["data_sha256"],
        folder=folder,
        because=because,
    )


def chosen_checkpoint(path: Path) -> tuple[Path, str]:
    """The checkpoint for which a run folder stands, and why (`Trained.because`).

    It is the one with the best validation metric, else the newest. A checkpoint stands for itself.

    Raises:
        UserError: there is no whole checkpoint.
    """
    if (path / "meta").is_dir():
        return path, ""
    folder, history = path / CHECKPOINTS, History.read(path)
    saved = steps_in(folder)
    if history is not None:
        ranked = [step for step in history.ranked() if step in saved]
        step = first_whole(folder, ranked, ("params",))
        if step is not None:
            return folder / str(step), f", {history.told(step)}"
    step = newest_whole(folder, ("params",))
    if step is None:
        raise UserError(f"{path}: no checkpoint yet; run train until it has saved one")
    return folder / str(step), ", the newest"


def _on_one_device(shapes: Any) -> Params:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for name, leaf in dict(shapes).items()
    }
