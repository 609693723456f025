"""Stopping when asked to: finish the step, save, leave."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """`received` is the number of the first signal that asked to stop; None before."""

    received: int | None = None


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a request to stop after the current step.

    A second signal interrupts at once. Outside the main thread signals are left alone.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        if stop.received is not None:
            raise KeyboardInterrupt
        stop.received = number

    asked = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, request) for number in asked]
    try:
        yield stop
    finally:
        for number, handler in zip(asked, before, strict=True):
            signal.signal(number, handler)
