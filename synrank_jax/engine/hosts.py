"""A slow or dead host is named within a time limit; without it a collective would wait forever.

Every process tells the others, in the coordination service's key-value store, that it is alive and
how far it is, and watches what the others tell.
"""

import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import jax
from rich.console import Console

from synrank_jax.cli import EXIT_FAILURE, report
from synrank_jax.engine.distributed import (
    PREFIX,
    First,
    Store,
    before_abort,
    coordinator_answers,
    store,
)
from synrank_jax.engine.liveness import Record, Seen, Verdict, coordinator_lost, judge
from synrank_jax.engine.preemption import Stop, decide
from synrank_jax.errors import UserError

RECORDS = f"{PREFIX}hosts/"
BEAT_S = 1.0
# While hosts agree on a step to stop at, they pause.
FAST_BEAT_S = 0.1
# After an error that a lost host may have caused, a host that is silent for so long is lost.
SUSPECT_S = 5.0


class Hosts:
    """This process among the others: tells and watches in background threads, while entered.

    With one process it does nothing.

    Args:
        store: What the processes share; None: there is one.
        index: This process.
        count: Number of processes.
        limit_s: Seconds without a completed step, or without a word from a host.
        end: Ends this process with an exit code.
    """

    def __init__(
        self,
        store: Store | None,
        index: int,
        count: int,
        limit_s: float,
        end: Callable[[int], object],
    ) -> None:
        self.stop = Stop(alone=store is None)
        self.first = First(store, index)
        self._store, self._index, self._limit_s, self._end = store, index, limit_s, end
        self._beat_s = min(BEAT_S, limit_s / 10)
        self._silence_s = limit_s
        self._suspect_s = min(SUSPECT_S, limit_s / 2)
        now = time.monotonic()
        self._seen = {other: Seen(Record("never heard of"), now) for other in range(count)}
        self._mine = Record(socket.gethostname())
        self._advanced_at = now
        self._shapes: set[Any] = set()
        self._running: deque[tuple[int, Any]] = deque()
        self._noting, self._publishing = threading.Lock(), threading.Lock()
        self._ending = threading.Lock()
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        if self._store is not None:
            for work in (self._tell_on, self._watch_on):
                threading.Thread(target=work, name=work.__name__, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.check(kind, error, trace)
        if self._store is not None:
            self._tell(code=0)
            self._closed.set()

    def check(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process on an error, with one message; an exit of a context manager.

        To leave in good order would need all the processes, and they are not all here.
        """
        agreed = self._mine.agreed is not None and isinstance(error, SystemExit)
        if self._store is None or error is None or agreed:
            return
        if isinstance(error, Exception) and not isinstance(error, UserError):
            # If a lost host caused it, the watch names it and ends the process meanwhile.
            self._silence_s = self._suspect_s
            time.sleep(self._suspect_s + 3 * self._beat_s)
        with self._ending:
            code = report(error) or EXIT_FAILURE
            asked = isinstance(error, SystemExit)
            message = "asked to stop" if asked else str(error) or type(error).__name__
            self._leave(Verdict(code, message))

    def resumed(self, step: int) -> None:
        """So many steps are completed, and the next can begin."""
        self._tell(begun=step, completed=step, busy=False)

    def begin(self, step: int, batch: Any) -> None:
        """This process has the data of a step and dispatches it; a new shape is compiled first."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        self._tell(begun=step, busy=shapes not in self._shapes)
        self._shapes.add(shapes)

    def dispatched(self, step: int, result: jax.Array) -> None:
        """The step will be completed when `result`, one of its arrays, is ready."""
        self._running.append((step, result))
        self._tell(busy=False)

    def pause(self) -> None:
        """No step is expected until the next begins: an evaluation, or the end of the run."""
        self._tell(busy=True)

    def last_words(self) -> None:
        """JAX aborts the process, as it does when process 0 is gone: name the lost host.

        The store is not touched: the thread that aborts may hold its lock.
        """
        with self._ending:
            verdict = self._judge(self._suspect_s)
            if verdict is None and not coordinator_answers():
                verdict = coordinator_lost(self._seen, "gone")
            if verdict is not None:
                self._say(verdict)
                self._end(verdict.code)

    def _tell(self, **values: Any) -> None:
        """Note something for the next beat; how a process ends is told at once, if it can be."""
        if self._store is None:
            return
        with self._noting:
            self._mine = self._mine._replace(**values)
        if "code" in values:
            with suppress(RuntimeError):
                self._publish()

    def _publish(self) -> None:
        assert self._store is not None
        with self._publishing:  # in order
            # The store may hang, as when process 0 is frozen: training goes on noting meanwhile.
            with self._noting:
                while self._running and self._running[0][1].is_ready():
                    self._mine = self._mine._replace(completed=self._running.popleft()[0])
                self._mine = self._mine._replace(beat=self._mine.beat + 1)
                text = self._mine.to_json()
            self._store.key_value_set(f"{RECORDS}{self._index}", text, allow_overwrite=True)

    def _tell_on(self) -> None:
        """Publish, read, and take part in agreeing when to stop, beat by beat."""
        pause = 0.0
        while not self._closed.wait(pause):
            try:
                self._publish()
                self._read()
            except RuntimeError:  # the store is not reached: the watch sees that all are silent
                pause = self._beat_s
                continue
            self._agree()
            agreeing = self._mine.offer.paused is not None and self._mine.agreed is None
            pause = min(FAST_BEAT_S, self._beat_s) if agreeing else self._beat_s

    def _read(self) -> None:
        assert self._store is not None
        now = time.monotonic()
        for key, text in self._store.key_value_dir_get(RECORDS):
            index = int(key.rpartition("/")[2])
            before, record = self._seen[index].record, Record.from_json(text)
            if record.beat == before.beat:
                continue
            self._seen[index] = Seen(record, now)
            if record.busy or record.completed > before.completed:
                self._advanced_at = now

    def _agree(self) -> None:
        records = [record for record, _ in self._seen.values()]
        offer = self.stop.offer(record.offer for record in records)
        agreed = records[0].agreed
        if self._index == 0 and agreed is None:
            agreed = decide(record.offer for record in records)
        self.stop.agree(agreed)
        self._tell(offer=offer, agreed=agreed)

    def _watch_on(self) -> None:
        while not self._closed.wait(self._beat_s):
            if (verdict := self._judge(self._silence_s)) is not None:
                with self._ending:
                    self._say(verdict)
                    self._leave(verdict)
                return

    def _judge(self, silence_s: float) -> Verdict | None:
        now = time.monotonic()
        idle = now - self._advanced_at
        if idle > self._limit_s:  # if a host is silent by now, it is why
            silence_s = self._suspect_s
        return judge(
            dict(self._seen),
            self._index,
            now=now,
            silence_s=silence_s,
            idle_s=idle if idle > self._limit_s else 0,
        )

    def _say(self, verdict: Verdict) -> None:
        print(f"error: {verdict.message}", file=sys.stderr, flush=True)

    def _leave(self, verdict: Verdict) -> None:
        """End the process when the others had the time to read why, if the store answers."""
        words = {"code": verdict.code, "message": verdict.message}
        threading.Thread(target=self._tell, kwargs=words, daemon=True).start()
        time.sleep(3 * self._beat_s)
        self._closed.set()
        self._end(verdict.code)


@contextmanager
def watched(limit_s: float) -> Iterator[Hosts]:
    """The hosts of this run, with a limit of seconds (`Hosts`)."""
    shared = store()
    hosts = Hosts(shared, jax.process_index(), jax.process_count(), limit_s, end_process)
    if shared is None:
        yield hosts
        return
    with before_abort(hosts.last_words), hosts:
        yield hosts


def end_process(code: int) -> None:
    """Leave at once: a collective that waits for a lost host would keep a thread forever."""
    Console().show_cursor()  # a progress bar had hidden it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
