"""Stopping when asked to: finish the step, save, leave; several hosts all after the same step."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

from synrank_jax.cli import EXIT_INTERRUPTED, EXIT_PREEMPTED

EXIT_CODES: dict[int, int] = {signal.SIGTERM: EXIT_PREEMPTED, signal.SIGINT: EXIT_INTERRUPTED}


class Agreed(NamedTuple):
    """All hosts stop after `step`, because one of them received `signal`."""

    step: int
    signal: int


class Offer(NamedTuple):
    """What one host tells the others about stopping.

    signal: the first it received. paused: the last step it began when it heard of a signal; it
    begins at most one more until all have agreed.
    """

    signal: int | None
    paused: int | None


class Stop:
    """A request to stop, from a signal here or on another host.

    Hosts run ahead of each other, for steps are only dispatched. So those who hear of a signal
    pause until each has told how far it is; process 0 then names the first step that none has
    passed.

    Args:
        alone: There is no other process.
    """

    def __init__(self, alone: bool) -> None:
        self._alone = alone
        self._signal: int | None = None
        self._step = 0
        self._paused: int | None = None
        self._agreed: Agreed | None = None
        self._changed = threading.Condition()

    def request(self, number: int) -> None:
        """Ask to stop; a second request interrupts at once."""
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number

    def after(self, step: int) -> int | None:
        """The signal for which to stop after this step; None: go on. Called after every step."""
        if self._alone:
            return self._signal
        with self._changed:
            self._changed.wait_for(lambda: self._paused is None or self._agreed is not None)
            self._step = step
            due = self._agreed is not None and step >= self._agreed.step
            return self._agreed.signal if due and self._agreed is not None else None

    def offer(self, others: Iterable[Offer]) -> Offer:
        """What to tell the others, given what they told; pauses once there is a signal."""
        with self._changed:
            heard = self._signal is not None or any(other.signal is not None for other in others)
            if heard and self._paused is None:
                self._paused = self._step
            return Offer(self._signal, self._paused)

    def agree(self, agreed: Agreed | None) -> None:
        """Take over what process 0 decided."""
        with self._changed:
            self._agreed = self._agreed or agreed
            self._changed.notify_all()


def decide(offers: Iterable[Offer]) -> Agreed | None:
    """What process 0 makes of the offers of all hosts; None while one has not paused."""
    offers = list(offers)
    paused = [offer.paused for offer in offers if offer.paused is not None]
    if len(paused) < len(offers):
        return None
    signals = [offer.signal for offer in offers if offer.signal is not None]
    return Agreed(max(paused) + 1, signals[0])


@contextmanager
def stop_signals(stop: Stop) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a request. Outside the main thread signals are left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request(number: int, frame: FrameType | None) -> None:
        stop.request(number)

    before = [signal.signal(number, request) for number in EXIT_CODES]
    try:
        yield
    finally:
        for number, handler in zip(EXIT_CODES, before, strict=True):
            signal.signal(number, handler)


def leave_when_terminated() -> None:
    """Before the first step there is nothing to save: SIGTERM ends the process at once."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(EXIT_PREEMPTED)

    signal.signal(signal.SIGTERM, leave)
