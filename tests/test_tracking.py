"""Where metrics go: the file is cut at a resume and never doubled; sinks; the progress line."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from synrank_jax import tracking
from synrank_jax.errors import UserError
from synrank_jax.tracking import (
    METRICS_FILE,
    MetricsLog,
    TensorBoard,
    TrainProgress,
    WandB,
    read_metrics,
    require_wandb,
)


def steps(folder: Path) -> list[int]:
    return [record["step"] for record in read_metrics(folder)]


def write(folder: Path, start: int, stop: int) -> None:
    log = MetricsLog(folder, start_step=start)
    for step in range(start + 1, stop + 1):
        log.write(step, {"loss": step / 10})
    log.close()


def test_records_after_the_restored_step_are_cut(tmp_path: Path):
    write(tmp_path, 0, 5)
    write(tmp_path, 3, 6)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("torn", ['{"step": 4, "lo', '{"step": 4}'])
def test_a_line_torn_by_a_kill_is_dropped(tmp_path: Path, torn: str):
    write(tmp_path, 0, 3)
    path = tmp_path / METRICS_FILE
    path.write_text(path.read_text() + torn)
    write(tmp_path, 3, 4)
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert read_metrics(tmp_path)[-1]["loss"] == 0.4


def test_tensorboard_receives_the_numbers(tmp_path: Path):
    log = MetricsLog(tmp_path, start_step=0, sinks=(TensorBoard(tmp_path, 0),))
    log.write(1, {"loss": 0.25, "samples": "abc"})
    log.close()
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"loss" in events
    assert b"samples" not in events


class FakeWandb:
    """Remembers what is asked of the module `wandb`."""

    class Error(Exception):
        pass

    def __init__(self, refusal: str | None = None) -> None:
        self.errors = SimpleNamespace(Error=self.Error)
        self.__spec__ = SimpleNamespace()  # as an imported module has
        self.refusal = refusal
        self.inits: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = 0

    def init(self, **arguments: Any) -> "FakeWandb":
        if self.refusal is not None:
            raise self.Error(self.refusal)
        self.inits.append(arguments)
        return self

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logged.append((numbers, step))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_receives_the_numbers_and_a_resumed_folder_keeps_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for start in (0, 1):
        sink = WandB(tmp_path, "ranking", {"train": {"seed": 0}})
        log = MetricsLog(tmp_path, start_step=start, sinks=(sink,))
        log.write(start + 1, {"loss": 0.5 - start / 4, "samples": "abc"})
        log.close()
    assert wandb.logged == [({"loss": 0.5}, 1), ({"loss": 0.25}, 2)]
    assert wandb.finished == 2
    first, second = wandb.inits
    assert first["id"]
    assert first == second
    assert first["project"] == "ranking"
    assert first["name"] == tmp_path.name
    assert first["resume"] == "allow"
    assert first["dir"] == tmp_path
    assert first["config"] == {"train": {"seed": 0}}


def test_another_run_folder_is_another_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        WandB(tmp_path / name, "ranking", {})
    assert wandb.inits[0]["id"] != wandb.inits[1]["id"]


def test_what_wandb_refuses_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(refusal="api_key not configured"))
    with pytest.raises(UserError, match=r"api_key not configured[\s\S]*WANDB_API_KEY.*offline"):
        WandB(tmp_path, "ranking", {})


def test_a_missing_wandb_is_told_with_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train\.wandb_project.*synrank-jax\[wandb\]"):
        require_wandb()


class Clock:
    """A stand-in for `time`, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tracking, "time", clock)
    return clock


def test_without_a_terminal_progress_is_a_plain_line_now_and_then(clock: Clock):
    out = io.StringIO()
    note = f"loss 0.5000  {'x' * 90}  [bold]"  # longer than a terminal, and no markup
    with TrainProgress(Console(file=out, width=80), total=101, done=0) as progress:
        for step in range(1, 102):
            progress.update(step, note)
            clock.now += 10
    # Steps take 10 s, a line comes every 30 s, and the first step is no part of the estimate.
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert [int(line.split("/")[0].removeprefix("step ")) for line in lines] == [
        *range(1, 101, 3),
        101,
    ]
    assert lines[0] == f"step 1/101  {note}"
    assert lines[1] == f"step 4/101  {note}  0:16:10 left"
    assert lines[-1] == f"step 101/101  {note}"


def test_in_a_terminal_progress_is_a_bar_with_the_note_under_it():
    out = io.StringIO()
    console = Console(file=out, width=60, force_terminal=True, color_system=None)
    with TrainProgress(console, total=40, done=10) as progress:
        progress.update(20, "loss 0.5000  12.0 lists/s  " + "x" * 60)
    rendered = out.getvalue()
    assert "compiling" in rendered
    assert "20/40" in rendered
    assert "loss 0.5000  12.0 lists/s" in rendered
    assert "…" in rendered  # what does not fit is cut, not wrapped
