"""The run folder: one process at a time, one configuration for its whole life."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synrank_jax.config import Config
from synrank_jax.config_file import load_config, to_yaml
from synrank_jax.contract import CONTRACT_FILE, EncodingContract
from synrank_jax.data.manifest import Manifest
from synrank_jax.errors import UserError
from synrank_jax.files import write_text

CHECKPOINTS = "checkpoints"
CONFIG_FILE = "config.yaml"

# What may change between a run and its resumption: it moves no weight, or only by rounding.
FREE = {
    "model": {"attention", "remat", "scan_layers"},
    # The prepared data has a fingerprint of its own.
    "data": {
        *("prepared", "shards", "sources", "duplicates", "missing_queries"),
        *("draws", "seed", "allow_missing"),
    },
    "train": {
        *("output", "log_every", "save_every", "keep_checkpoints", "keep_best", "tensorboard"),
        *("wandb_project", "stall_timeout", "skip_updates", "encode_chunk_size", "patience"),
    },
    "mesh": None,
    # The collection has a fingerprint, too.
    "validation": {"path", "queries", "batch_size"},
    "evaluation": None,
}

log = logging.getLogger(__name__)


def claim(run: Path, config: Config, contract: EncodingContract) -> None:
    """Store configuration and contract in a new run folder, or compare them with a begun run's.

    Raises:
        UserError: the folder belongs to a run with other settings; every field is named.
    """
    stored_file = run / CONFIG_FILE
    if not stored_file.exists():
        contract.write(run)
        write_text(stored_file, to_yaml(config))
        return
    stored = load_config(stored_file)
    changed = list(_differences(stored.model_dump(mode="json"), config.model_dump(mode="json")))
    if changed:
        raise UserError(
            f"train.output {run} holds a run with another configuration:\n"
            + "\n".join(f"  {path}: {old!r} there, {new!r} now" for path, old, new in changed)
            + "\ngo back to those values to resume it, or set another train.output"
        )
    EncodingContract.read(run).require_equal(
        contract, f"{run}/{CONTRACT_FILE}", "this configuration"
    )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for section, values in new.items():
        free = FREE.get(section, set())
        if free is None or old[section] == values:
            continue
        if values is None or old[section] is None:
            yield section, old[section], values
            continue
        for field, value in values.items():
            if field not in free and old[section][field] != value:
                yield f"{section}.{field}", old[section][field], value


def check_grades(config: Config, manifest: Manifest) -> None:
    """Refuse prepared lists whose grades are not the configured levels.

    Raises:
        UserError: names the grades and their counts.
    """
    unknown = sorted(set(manifest.grade_counts) - set(config.data.grades))
    if unknown:
        raise UserError(
            f"data.grades {list(config.data.grades)} lack the grades {unknown} of the lists in "
            f"{config.data.prepared}; prepare them again or add the levels"
        )


def check_same_data(stored: str, current: str, prepared: str, run: Path) -> None:
    """Refuse to resume on other data than the run began with.

    Raises:
        UserError: names both fingerprints.
    """
    if stored != current:
        raise UserError(
            f"data.prepared {prepared} has fingerprint {current[:12]}, but {run} was trained on "
            f"{stored[:12]}: the lists were prepared again with other content. "
            "Set another train.output, or prepare the former lists"
        )


def check_space(run: Path, state_bytes: int, config: Config) -> None:
    """Refuse a disk that cannot hold one more checkpoint; warn if it cannot hold all to be kept.

    Args:
        run: The run folder.
        state_bytes: Size of weights and optimizer state.
        config: Says how many are kept.

    Raises:
        UserError: names the folder, what there is and what is needed.
    """
    free = shutil.disk_usage(run).free
    kept = config.train.keep_checkpoints + config.best_kept()
    # A new one is whole before an old one goes.
    wanted = state_bytes * (kept + 1)
    there = f"train.output {run}: {free / 2**30:.2f} GiB free"
    if free < state_bytes:
        raise UserError(
            f"{there}, a checkpoint needs {state_bytes / 2**30:.2f} GiB; make room, or set another "
            "train.output"
        )
    held = sum(path.name.isdecimal() for path in (run / CHECKPOINTS).glob("*"))
    if free + held * state_bytes < wanted:
        log.warning(
            "%s, but %d checkpoints of %.2f GiB are kept and one is written beside them: %.2f GiB",
            there,
            kept,
            state_bytes / 2**30,
            wanted / 2**30,
        )


def identity(
    config: Config, contract: EncodingContract, data_sha256: str, validation_sha256: str | None
) -> dict[str, Any]:
    """What must be the same on all hosts, in JSON: everything but where their folders are.

    Args:
        config: the configuration.
        contract: how texts are encoded.
        data_sha256: fingerprint of the prepared lists.
        validation_sha256: that of the validation collection, None without one.
    """
    elsewhere: Any = {
        "train": {"output"},
        "data": {"prepared"},
        "validation": {"path", "queries"},
        "evaluation": True,
    }
    sections = config.model_dump(mode="json", exclude=elsewhere)
    sections["contract"] = contract.model_dump(mode="json")
    sections["data"]["prepared (fingerprint)"] = data_sha256
    sections["validation"] = {
        **(sections["validation"] or {}),
        "collection (fingerprint)": validation_sha256,
    }
    return {
        f"{section}.{field}": value
        for section, fields in sections.items()
        for field, value in fields.items()
    }


def check_same_run(first: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse to train with another configuration or other data than process 0.

    Args:
        first: `identity` of process 0.
        own: that of this process.

    Raises:
        UserError: names every field.
    """
    changed = [
        f"  {name}: {first.get(name)!r} on process 0, {own.get(name)!r} here"
        for name in sorted(first.keys() | own.keys())
        if first.get(name) != own.get(name)
    ]
    if changed:
        raise UserError(
            "the hosts do not train the same:\n"
            + "\n".join(changed)
            + "\nstart all of them with one configuration and the same prepared lists"
        )


def check_shared(run: Path) -> None:
    """Refuse a run folder that this host does not share with the one that made it.

    Raises:
        UserError: names the folder.
    """
    if not (run / CONFIG_FILE).exists():
        raise UserError(
            f"train.output {run}: this host does not see what process 0 wrote there; all hosts "
            "need one folder on a shared file system"
        )
