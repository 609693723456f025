"""Where metrics go: a JSONL file that survives kills, and TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synrank_jax.files import write_text

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """One JSON object per completed step, appended; TensorBoard events beside it.

    On resume the records after the restored step are cut, so that no step appears twice.

    Args:
        folder: the run folder.
        start_step: completed steps of the restored state (0 for a new run).
        tensorboard: also write events to `folder`/tensorboard.
    """

    def __init__(self, folder: Path, start_step: int, tensorboard: bool) -> None:
        self.path = folder / METRICS_FILE
        _cut_after(self.path, start_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._events = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(
                logdir=str(folder / "tensorboard"), purge_step=start_step + 1
            )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one step's record; numbers also go to TensorBoard."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._events is not None:
            for name, value in metrics.items():
                if isinstance(value, (int, float)):
                    self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        self._file.flush()
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Flush and close both sinks."""
        self.flush()
        self._file.close()
        if self._events is not None:
            self._events.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, in step order."""
    text = (folder / METRICS_FILE).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _cut_after(path: Path, step: int) -> None:
    """Keep the whole records up to `step`; a line torn by a kill goes with the rest."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if not line.endswith("\n") or record["step"] > step:
            break
        kept.append(line)
    write_text(path, "".join(kept))
