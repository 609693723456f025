"""Which checkpoints can be read to the end; what to do with those that cannot."""

import json
import logging
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import tensorstore as ts

from synrank_jax.errors import UserError

# Orbax gives a checkpoint its final name when all is written.
HALF_WRITTEN = "*.orbax-checkpoint-tmp*"
# What a step's folder holds: arrays, and JSON beside them.
ARRAYS = ("params", "optimizer")
META = "meta"

log = logging.getLogger(__name__)


def newest_whole(folder: Path, items: tuple[str, ...] = ARRAYS) -> int | None:
    """Step of the newest checkpoint that can be read in full; a warning names those that cannot.

    Args:
        folder: The folder of the checkpoints.
        items: Which arrays are needed.
    """
    return first_whole(folder, sorted(steps_in(folder), reverse=True), items)


def steps_in(folder: Path) -> set[int]:
    """Steps of the checkpoints in their folder, whole or not."""
    return {int(path.name) for path in folder.glob("*") if path.name.isdecimal()}


def first_whole(folder: Path, steps: Iterable[int], items: tuple[str, ...] = ARRAYS) -> int | None:
    """The first of the steps whose checkpoint can be read in full; likewise."""
    for step in steps:
        reason = damage(folder / str(step), items)
        if reason is None:
            return step
        log.warning("%s is damaged and not used (%s)", folder / str(step), reason)
    return None


def tidy(folder: Path) -> int | None:
    """Before a run begins or resumes: `newest_whole`, and out of the way what is none.

    Half-written checkpoints are removed, damaged ones renamed to STEP.damaged.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    for path in folder.glob(HALF_WRITTEN):
        log.warning("%s was not written to the end and is removed", path)
    remove_half_written(folder)
    newest = newest_whole(folder)
    steps = [path for path in folder.glob("*") if path.name.isdecimal()]
    if newest is None and steps:
        raise UserError(
            f"{folder}: none of the {len(steps)} checkpoints can be read to the end; bring one "
            "back from a copy, set another train.output, or remove it to begin anew"
        )
    for path in steps:
        if int(path.name) > (newest or 0):
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
    return newest


def damage(checkpoint: Path, items: tuple[str, ...] = ARRAYS) -> str | None:
    """What is wrong with a checkpoint's files; None: nothing. Reads them all, value by value."""
    try:
        for item in items:
            json.loads((checkpoint / item / "_METADATA").read_bytes())
            arrays = ts.KvStore.open(
                {"driver": "ocdbt", "base": f"file://{checkpoint / item}/"}
            ).result()
            names = arrays.list().result()
            if not names:
                return f"{item} is empty"
            for name in names:
                if not arrays.read(name).result().value:  # its file is missing
                    return f"{item} lacks a value of {name.decode()}"
        json.loads((checkpoint / META / "metadata").read_bytes())
    except (OSError, ValueError) as error:
        return first_line(error)
    return None


def remove_half_written(folder: Path) -> None:
    """Remove what a kill or a failed save left."""
    for path in folder.glob(HALF_WRITTEN):
        for _ in range(10):  # other threads of a failed save may still write
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                break
            time.sleep(0.1)


def first_line(error: Exception) -> str:
    """The gist of a library's long message."""
    return str(error).partition("\n")[0][:300]
