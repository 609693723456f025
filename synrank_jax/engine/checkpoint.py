"""Checkpoints: Orbax behind one thin module.

A checkpoint holds the weights, the optimizer state, and as JSON the step, the resolved
configuration, the encoding contract and the fingerprint of the prepared data. The data position
is the step itself: which lists step k reads is a pure function of (seed, k).
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from synrank_jax.config import Config
from synrank_jax.config_file import validate_config
from synrank_jax.contract import EncodingContract
from synrank_jax.engine.state import LOG_TEMPERATURE, Params, TrainState
from synrank_jax.errors import UserError

CHECKPOINTS = "checkpoints"

# Orbax reports every save at INFO and warns about restores we ask for on purpose.
logging.getLogger("absl").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Trained:
    """A trained model as stored: weights by dotted path as NumPy arrays, and how to use them."""

    config: Config
    contract: EncodingContract
    params: dict[str, np.ndarray]
    step: int
    data_sha256: str

    @property
    def temperature(self) -> float:
        """What scores are divided by, as learned or as configured."""
        if LOG_TEMPERATURE not in self.params:
            return self.config.loss.temperature
        return float(np.exp(self.params[LOG_TEMPERATURE]))


class Checkpoints:
    """The checkpoints of one run folder, written in the background."""

    def __init__(self, run: Path, config: Config, contract: EncodingContract, data_sha256: str):
        self._config, self._contract, self._data_sha256 = config, contract, data_sha256
        self._manager = ocp.CheckpointManager(
            (run / CHECKPOINTS).absolute(),
            item_handlers=_handlers(),
            options=ocp.CheckpointManagerOptions(max_to_keep=config.train.keep_checkpoints),
        )

    def latest_step(self) -> int | None:
        """Completed steps of the newest whole checkpoint; None before the first."""
        step: int | None = self._manager.latest_step()
        return step

    def save(self, step: int, state: TrainState) -> None:
        """Start writing the state after `step` updates; a kill leaves no half checkpoint behind."""
        meta = {
            "step": step,
            "config": self._config.model_dump(mode="json"),
            "contract": self._contract.model_dump(mode="json"),
            "data_sha256": self._data_sha256,
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave(state.opt_state),
                meta=ocp.args.JsonSave(meta),
            ),
        )

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state after `step` updates, laid out as `abstract` says (any mesh)."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                optimizer=ocp.args.StandardRestore(abstract.opt_state),
            ),
        )
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
        """Wait for the writes under way."""
        self._manager.wait_until_finished()
        self._manager.close()


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
    """Weights and settings of a run folder's newest checkpoint, or of one checkpoint folder.

    Raises:
        UserError: there is no whole checkpoint.
    """
    path = path.absolute()
    if not is_run_folder(path):
        raise UserError(f"{path}: neither a run folder of train nor one of its checkpoints")
    folder = path if (path / "meta").is_dir() else _newest(path)
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
    return Trained(
        config=validate_config(meta["config"], name=f"{folder} (stored configuration)"),
        contract=EncodingContract.model_validate(meta["contract"]),
        params={name: np.asarray(leaf) for name, leaf in restored["params"].items()},
        step=meta["step"],
        data_sha256=meta["data_sha256"],
    )


def _newest(run: Path) -> Path:
    with ocp.CheckpointManager(run / CHECKPOINTS, item_handlers=_handlers()) as manager:
        step = manager.latest_step()
    if step is None:
        raise UserError(f"{run}: no checkpoint yet; run train until it has saved one")
    return run / CHECKPOINTS / str(step)


def _on_one_device(shapes: Any) -> Params:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for name, leaf in dict(shapes).items()
    }
