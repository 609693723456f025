"""Per-step metrics: kept on the devices between flushes, so that the loop never waits for them."""

import math
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax

from synrank_jax.data.pipeline import batch_statistics
from synrank_jax.errors import UserError
from synrank_jax.tracking import MetricsLog
from synrank_jax.types import Batch

CHECKED = ("loss", "grad_norm", "param_norm")


class NonFiniteError(UserError):
    """Loss, gradient or weights are no longer finite numbers."""


class StepMonitor:
    """Collects the metrics of dispatched steps and writes them at the next flush."""

    def __init__(self, log: MetricsLog, schedule: Callable[[int], Any]) -> None:
        self._log = log
        self._schedule = schedule
        self._pending: list[tuple[int, dict[str, Any], dict[str, Any]]] = []
        self._window_began = time.perf_counter()

    def add(self, step: int, metrics: Any, batch: Batch, wait_s: float) -> None:
        """Remember a dispatched step: device metrics, its host batch, seconds waited for data.

        `samples` in the record is a checksum of the record numbers in order, so that two runs'
        streams can be compared.
        """
        samples = f"{zlib.crc32(batch.sample_ids.tobytes()):08x}"
        host = {"samples": samples, "data_wait_s": wait_s, **batch_statistics(batch)}
        self._pending.append((step, metrics, host))

    def flush(self, last_checkpoint: int) -> str:
        """Wait for the pending steps, write their records, and return a note for the console.

        Raises:
            NonFiniteError: names the first bad step, the window, and the checkpoint to go back to.
        """
        window = jax.device_get([metrics for _, metrics, _ in self._pending])
        seconds = time.perf_counter() - self._window_began
        lists = sum(host["lists"] for _, _, host in self._pending)
        tokens = sum(host["tokens"] for _, _, host in self._pending)
        rates = {"lists_per_s": lists / seconds, "tokens_per_s": tokens / seconds}
        first, last = self._pending[0][0], self._pending[-1][0]
        for (step, _, host), metrics in zip(self._pending, window, strict=True):
            values = {name: float(value) for name, value in metrics.items()}
            rate = float(self._schedule(step - 1))
            self._log.write(step, {**values, "learning_rate": rate, **host, **rates})
            if not all(math.isfinite(values[name]) for name in CHECKED):
                self._log.flush()
                found = ", ".join(f"{name} {values[name]}" for name in CHECKED)
                raise NonFiniteError(
                    f"step {step} (window {first} to {last}): {found}; nothing of this window was "
                    f"saved, the newest checkpoint is of step {last_checkpoint}. Lower "
                    "optimizer.learning_rate or raise loss.temperature, and train into another "
                    "train.output"
                )
        self._log.flush()
        self._pending.clear()
        self._window_began = time.perf_counter()
        return f"loss {values['loss']:.4f}  {rates['lists_per_s']:.1f} lists/s"
