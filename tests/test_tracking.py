"""The metrics file: appended, cut at a resume, never doubled."""

from pathlib import Path

import pytest

from synrank_jax.tracking import METRICS_FILE, MetricsLog, read_metrics


def steps(folder: Path) -> list[int]:
    return [record["step"] for record in read_metrics(folder)]


def write(folder: Path, start: int, stop: int) -> None:
    log = MetricsLog(folder, start_step=start, tensorboard=False)
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
    log = MetricsLog(tmp_path, start_step=0, tensorboard=True)
    log.write(1, {"loss": 0.25, "samples": "abc"})
    log.close()
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"loss" in events
    assert b"samples" not in events
