"""Where the time goes: traces of chosen steps, and the seconds spent compiling."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from synrank_jax.errors import UserError

PROFILE = "profile"


def profile_steps(text: str) -> range:
    """The steps that `--profile START:N` names: N of them, from step START on.

    Raises:
        UserError: not two whole numbers above 0.
    """
    start, _, count = text.partition(":")
    if not (start.isdecimal() and count.isdecimal() and int(start) and int(count)):
        raise UserError(
            f"--profile {text!r}: give START:N, the first step (from 1) and the number of steps, "
            "for example --profile 10:3"
        )
    return range(int(start), int(start) + int(count))


def check_profile(steps: range, total: int) -> None:
    """Refuse a trace of steps that the run does not have, or that would end the process.

    Raises:
        UserError: names the last step that there is, or how to start the run instead.
    """
    if steps.stop - 1 > total:
        raise UserError(
            f"--profile {steps.start}:{len(steps)}: it ends with step {steps.stop - 1}, but the "
            f"run has {total} steps"
        )
    backend = jax.default_backend()
    if (
        backend != "tpu"
        and not jax.config.values["jax_platforms"]
        and find_spec("libtpu") is not None
    ):
        # JAX has loaded it, found no TPU, and the profiler calls into it all the same.
        raise UserError(
            "--profile: libtpu is installed, but there is no TPU here, and tracing would crash in "
            f"it; start the run with JAX_PLATFORMS={backend} in the environment"
        )


class StepProfiler:
    """Runs the steps under their numbers and writes a trace of some of them.

    Each process would trace its own devices only; process 0 does, into one folder.

    Args:
        steps: The steps to trace, or None.
        done: Completed steps when the run starts.
        folder: The run folder; the trace goes into its `profile/`.
        say: Prints a line.
    """

    def __init__(
        self, steps: range | None, done: int, folder: Path, say: Callable[[str], object]
    ) -> None:
        if steps is not None and steps.start <= done:
            say(
                f"--profile {steps.start}:{len(steps)}: no trace, the run goes on after step {done}"
            )
            steps = None
        self._steps = steps if jax.process_index() == 0 else None
        self._folder = folder / PROFILE
        self._say = say
        self._tracing = False

    def run(self, step: int, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args)` as step number `step`; waits for the devices only around a trace."""
        if self._steps is not None and step == self._steps.start:
            jax.block_until_ready(args)  # what came before does not belong to the trace
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = function(*args)
        if self._steps is not None and step == self._steps.stop - 1:
            jax.block_until_ready(result)
            self.close()
        return result

    def close(self) -> None:
        """Write the trace if one is under way, as when the run is stopped within it."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            self._say(f"trace in {self._folder}: for xprof or ui.perfetto.dev")


class CompileClock:
    """Counts the seconds that tracing, lowering and compiling take while it is entered."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> Self:
        jax.monitoring.register_event_time_span_listener(self._span)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        jax.monitoring.unregister_event_time_span_listener(self._span)

    def take(self) -> float:
        """Seconds since the last call."""
        # A new list, for a span may come from another thread.
        spans, self._spans = self._spans, []
        return sum((end - start for start, end in spans), 0.0)

    def _span(self, event: str, start_time: float, end_time: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            # A function traced within another reports before it: the outer span covers it.
            outside = [span for span in self._spans if span[0] < start_time]
            self._spans = [*outside, (start_time, end_time)]
