"""Fixtures of the launch tests."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_stage import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait until a condition holds, for half a minute at most."""

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, "did not come about in 30 s"
            time.sleep(0.02)

    return wait
