"""Where metrics go: a JSONL file that survives kills, TensorBoard, W&B, and the console."""

import json
import os
import secrets
import time
from collections.abc import Mapping
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from synrank_jax.errors import UserError
from synrank_jax.files import write_text

METRICS_FILE = "metrics.jsonl"
WANDB_ID_FILE = "wandb_id"
# Between two lines of progress where no terminal shows a bar.
LINE_EVERY_S = 30.0


class Sink(Protocol):
    """A further receiver of the numbers of a step."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """One JSON object per completed step, appended; the numbers also go to the sinks.

    On resume the records after the restored step are cut, so that no step appears twice.

    Args:
        folder: the run folder.
        start_step: completed steps of the restored state (0 for a new run).
        sinks: closed with the log.
    """

    def __init__(self, folder: Path, start_step: int, sinks: tuple[Sink, ...] = ()) -> None:
        self.path = folder / METRICS_FILE
        _cut_after(self.path, start_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._sinks = sinks

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one step's record."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        numbers = {
            name: value for name, value in metrics.items() if isinstance(value, (int, float))
        }
        for sink in self._sinks:
            sink.write(step, numbers)

    def flush(self, to_disk: bool = False) -> None:
        """Hand everything written so far to the operating system, or have that write it out."""
        self._file.flush()
        if to_disk:
            os.fsync(self._file.fileno())
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Flush and close the file and the sinks."""
        self.flush()
        self._file.close()
        for sink in self._sinks:
            sink.close()


class TensorBoard:
    """TensorBoard events in the run folder's `tensorboard/`."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(logdir=str(folder / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        self._events.flush()

    def close(self) -> None:
        self._events.close()


class WandB:
    """A run of Weights & Biases; a resumed run folder continues the same one.

    Steps that were sent before a kill and are trained again are not sent twice: wandb drops them,
    and an exact resume gives the same numbers. Offline mode (WANDB_MODE=offline) writes into the
    run folder's `wandb/`.

    Args:
        folder: the run folder; it keeps the id of the run.
        project: name of the project.
        config: the resolved configuration, shown with the run.

    Raises:
        UserError: wandb refuses, for want of a key or of a network.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        require_wandb()
        import wandb

        stored = folder / WANDB_ID_FILE
        if not stored.exists():
            write_text(stored, secrets.token_hex(4) + "\n")
        try:
            self._run = wandb.init(
                project=project,
                id=stored.read_text(encoding="utf-8").strip(),
                name=folder.name,
                resume="allow",
                dir=folder,
                config=dict(config),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"train.wandb_project {project}: {error}\nset WANDB_API_KEY in the environment, or "
                "WANDB_MODE=offline and upload later with `wandb sync`, or train.wandb_project=null"
            ) from error

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def flush(self) -> None:
        """Nothing to do: wandb sends in the background."""

    def close(self) -> None:
        self._run.finish()


def require_wandb() -> None:
    """Refuse a run that wants Weights & Biases where it is not installed.

    Raises:
        UserError: says how to install it.
    """
    if find_spec("wandb") is None:
        raise UserError(
            "train.wandb_project: wandb is not installed; pip install 'synrank-jax[wandb]', or set "
            "train.wandb_project=null"
        )


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


class TrainProgress:
    """A bar with a note under it; where the console is no terminal, a plain line now and then.

    Args:
        console: where it is shown.
        total: steps of the run.
        done: completed steps when it starts.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console = console
        self._total = total
        self._first: tuple[int, float] | None = None
        self._last_line = float("-inf")
        self._bar = _Bar(console=console) if console.is_terminal else None
        if self._bar is not None:
            self._task = self._bar.add_task("train", total=total, completed=done)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, note: str) -> None:
        """Show that `step` steps are completed."""
        if self._bar is not None:
            self._bar.note = note
            self._bar.update(self._task, completed=step)
            return
        now = time.monotonic()
        # The first steps wait for compilation: the estimate counts from their end.
        self._first = self._first or (step, now)
        if now - self._last_line >= LINE_EVERY_S or step == self._total:
            self._last_line = now
            line = f"step {step}/{self._total}  {note}{self._left(step, now)}"
            self._console.out(line, highlight=False)

    def _left(self, step: int, now: float) -> str:
        first, began = self._first or (step, now)
        if step in (first, self._total):
            return ""
        left = timedelta(seconds=round((self._total - step) * (now - began) / (step - first)))
        return f"  {left} left"


class _Bar(Progress):
    """A progress bar with a note on a line of its own."""

    def __init__(self, console: Console) -> None:
        self.note = "compiling"  # read when rich renders, from its first line on
        super().__init__(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )

    def get_renderables(self) -> list[RenderableType]:
        return [
            self.make_tasks_table(self.tasks),
            Text(self.note, no_wrap=True, overflow="ellipsis"),
        ]
