"""Several hosts, one process each: how they find each other, agree and part."""

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar

import jax

# The coordination service's key-value store has no public name; Orbax reaches it this way too.
from jax._src.distributed import global_state

from synrank_jax.cli import EXIT_HOST_LOST
from synrank_jax.errors import HostLostError, UserError

T = TypeVar("T")

PREFIX = "synrank/"
# Between two looks at a key that another host has yet to write.
POLL_S = 0.1
# One attempt to reach process 0.
PROBE_S = 5.0


class Coordination(NamedTuple):
    """Where process 0 listens, how many processes there are, and which one this is."""

    address: str
    process_count: int
    process_index: int


class Store(Protocol):
    """The part of JAX' coordination client that is used here."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...


def coordination(
    address: str | None, process_count: int | None, process_index: int | None
) -> Coordination | None:
    """The options --coordinator, --process-count and --process-index; None if none is given.

    Raises:
        UserError: they do not make sense together.
    """
    given = {
        "--coordinator": address,
        "--process-count": process_count,
        "--process-index": process_index,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if address is None or process_count is None or process_index is None:
        raise UserError(
            f"{', '.join(given)} belong together: {' and '.join(missing)} missing; --distributed "
            "finds all three on a TPU pod, GKE, SLURM and Open MPI"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator {address}: give HOST:PORT of process 0")
    if not 0 <= process_index < process_count:
        raise UserError(
            f"--process-index {process_index}: must be 0 to {process_count - 1} with "
            f"--process-count {process_count}"
        )
    return Coordination(address, process_count, process_index)


@contextmanager
def joined(where: Coordination | None, timeout_s: float) -> Iterator[None]:
    """Join the other processes before any device is used, and part from them at the end.

    Args:
        where: The other processes; None: JAX finds them in the environment.
        timeout_s: How long to wait for them, at the beginning and at the end.

    Raises:
        HostLostError: the coordinator does not answer, or lets this process not in.
        UserError: nothing in the environment tells of other processes.
    """
    began = time.monotonic()
    if where is not None:
        _wait_for_address(where, timeout_s)
    # Preemption is agreed on by `preemption.Stop`, which also knows Ctrl-C.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX ends the process with a stack trace when it waits in vain, so it must not be the first.
    patience = round(timeout_s) + 60
    with _deadline(where, timeout_s, began):
        try:
            jax.distributed.initialize(
                coordinator_address=where and where.address,
                num_processes=where and where.process_count,
                process_id=where and where.process_index,
                initialization_timeout=patience,
                heartbeat_timeout_seconds=2 * patience,
                shutdown_timeout_seconds=max(round(timeout_s), 1),
            )
        except ValueError as error:
            raise UserError(
                f"--distributed: found no TPU pod, GKE, SLURM or Open MPI here ({error}); give "
                "--coordinator HOST:PORT, --process-count and --process-index"
            ) from error
        except RuntimeError as error:
            raise HostLostError(f"cannot join the other processes: {error}") from error
    try:
        yield
    finally:  # after an error of this process alone, `hosts.Hosts` does not let it come here
        jax.distributed.shutdown()


def store() -> Store | None:
    """The key-value store of all processes; None when there is one process."""
    client: Store | None = global_state.client
    return client


def coordinator_answers() -> bool:
    """Whether process 0 still listens; this process has joined it."""
    address = _host_and_port(global_state.coordinator_address or "")
    try:
        socket.create_connection(address, timeout=PROBE_S).close()
    except OSError:
        return False
    return True


class First:
    """Decisions that process 0 takes for all.

    Args:
        store: What the processes share; None when there is one.
        index: This process.
    """

    def __init__(self, store: Store | None, index: int) -> None:
        self._store, self._index, self._decisions = store, index, 0

    def __call__(self, decide: Callable[[], T]) -> T:
        """Run `decide` on process 0; all return its (JSON) value, or raise its error.

        Every process must come here, in the same order.

        Raises:
            UserError: `decide` raised it.
        """
        if self._store is None:
            return decide()
        self._decisions += 1
        key = f"{PREFIX}first/{self._decisions}/"
        if self._index == 0:
            try:
                value = decide()
            except UserError as error:
                self._store.key_value_set(f"{key}error", str(error))
                raise
            self._store.key_value_set(f"{key}value", json.dumps(value))
            return value
        # A dead process 0 is noticed elsewhere (`hosts.Hosts`).
        while not (found := self._store.key_value_dir_get(key)):
            time.sleep(POLL_S)
        ((name, text),) = found
        if name.endswith("error"):
            raise UserError(text)
        decided: T = json.loads(text)
        return decided


@contextmanager
def before_abort(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` before an abort() of native code ends the process.

    JAX' coordination client aborts as soon as process 0 is gone, and a callback of its own cannot
    be Python (jax 0.10). The thread that aborts raises the signal in itself, so that Python may run
    in its handler.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p

    def handle(number: int) -> None:
        act()
        libc.signal(signal.SIGABRT, 0)  # the default: the abort goes on

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    before = libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, before)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _wait_for_address(where: Coordination, timeout_s: float) -> None:
    """Return once process 0 listens; itself, it finds the port free."""
    address = _host_and_port(where.address)
    if where.process_index == 0:
        try:
            # As JAX binds: on all interfaces.
            socket.create_server(("", address[1])).close()
        except OSError as error:
            raise UserError(
                f"--coordinator {where.address}: cannot listen on port {address[1]} "
                f"({error.strerror}); choose a free one"
            ) from error
        return
    ends, reason = time.monotonic() + timeout_s, "no time left"
    while (left := ends - time.monotonic()) > 0:
        try:
            socket.create_connection(address, timeout=min(left, PROBE_S)).close()
        except OSError as error:
            reason = str(error)
            time.sleep(min(left, POLL_S))
        else:
            return
    raise HostLostError(
        f"--coordinator {where.address} did not answer within {timeout_s:g} s ({reason}): is "
        "process 0 running there, and may this host reach that port? (train.stall_timeout is the "
        "limit)"
    )


@contextmanager
def _deadline(where: Coordination | None, timeout_s: float, began: float) -> Iterator[None]:
    """End the process when the block takes longer: it waits where no exception reaches it."""

    def end() -> None:
        who = "the processes" if where is None else f"all {where.process_count} processes"
        at = "" if where is None else f" at {where.address}"
        print(
            f"error: {who} did not come together{at} within {timeout_s:g} s "
            "(train.stall_timeout): start one process per host, each with its own index",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_HOST_LOST)

    timer = threading.Timer(began + timeout_s - time.monotonic(), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
