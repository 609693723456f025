"""Which steps are traced, and what is refused."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from synrank_jax.engine import profiling
from synrank_jax.engine.profiling import StepProfiler, check_profile, profile_steps
from synrank_jax.errors import UserError


@pytest.mark.parametrize(
    "text", ["", "3", "0:2", "2:0", "-1:2", "1:2:3", "a:b", "1.5:2", ":", "²:1"]
)
def test_what_is_no_start_and_count_is_refused(text: str):
    with pytest.raises(UserError, match=r"--profile.*START:N.*--profile 10:3"):
        profile_steps(text)


def test_steps_beyond_the_run_are_refused():
    check_profile(profile_steps("4:3"), total=6)
    with pytest.raises(UserError, match=r"4:4.*ends with step 7.*has 6 steps"):
        check_profile(profile_steps("4:4"), total=6)


def test_a_trace_that_would_crash_in_libtpu_is_refused(monkeypatch: pytest.MonkeyPatch):
    steps = profile_steps("1:1")
    monkeypatch.setattr(profiling, "find_spec", lambda name: object())
    check_profile(steps, total=6)  # the tests run under JAX_PLATFORMS=cpu
    fake = SimpleNamespace(
        default_backend=lambda: "cpu", config=SimpleNamespace(values={"jax_platforms": None})
    )
    monkeypatch.setattr(profiling, "jax", fake)
    with pytest.raises(UserError, match="JAX_PLATFORMS=cpu"):
        check_profile(steps, total=6)
    fake.default_backend = lambda: "tpu"
    check_profile(steps, total=6)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of JAX's profiler."""
    asked: list[str] = []
    monkeypatch.setattr(profiling.jax.profiler, "start_trace", lambda path: asked.append("start"))
    monkeypatch.setattr(profiling.jax.profiler, "stop_trace", lambda: asked.append("stop"))
    return asked


def steps_of(profiler: StepProfiler, traces: list[str], first: int, last: int) -> list[str]:
    def function(step: int) -> int:
        traces.append(str(step))
        return step + 100

    for step in range(first, last + 1):
        assert profiler.run(step, function, step) == step + 100
    return traces


def test_the_trace_surrounds_its_steps(traces: list[str], tmp_path: Path):
    said: list[str] = []
    profiler = StepProfiler(range(2, 4), 0, tmp_path, said.append)
    assert steps_of(profiler, traces, 1, 5) == ["1", "start", "2", "3", "stop", "4", "5"]
    profiler.close()
    assert traces.count("stop") == 1
    (line,) = said
    assert str(tmp_path / "profile") in line


def test_a_run_that_is_stopped_within_the_trace_still_writes_it(traces: list[str], tmp_path: Path):
    profiler = StepProfiler(range(2, 4), 0, tmp_path, lambda line: None)
    assert steps_of(profiler, traces, 1, 2) == ["1", "start", "2"]
    profiler.close()
    assert traces[-1] == "stop"


def test_steps_already_past_are_told_and_the_run_goes_on(traces: list[str], tmp_path: Path):
    said: list[str] = []
    profiler = StepProfiler(range(2, 4), 2, tmp_path, said.append)
    assert steps_of(profiler, traces, 3, 5) == ["3", "4", "5"]
    (line,) = said
    assert "no trace" in line
    assert "after step 2" in line
