"""Hosts without processes: what they conclude from what they tell each other."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from functools import partial

import jax.numpy as jnp
import pytest

from synrank_jax.cli import EXIT_HOST_LOST, EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_USER_ERROR
from synrank_jax.config import Config
from synrank_jax.contract import resolve_contract
from synrank_jax.engine.distributed import Coordination, First, coordination, joined
from synrank_jax.engine.hosts import Hosts
from synrank_jax.engine.liveness import Record, Seen, Verdict, judge
from synrank_jax.engine.preemption import Agreed, Offer, Stop, decide
from synrank_jax.engine.runfolder import check_same_run, identity
from synrank_jax.errors import HostLostError, UserError

# Long enough for a thread to be scheduled on a loaded machine.
PATIENCE_S = 60.0


class FakeStore:
    """One process' way to the store; after `cut` it is as dead for the others.

    While `thawed` is not set, the store is frozen: calls hang, as with process 0 stopped.
    """

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values
        self.cut = False
        self.thawed = threading.Event()
        self.thawed.set()

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        self.thawed.wait()
        if self.cut:
            raise RuntimeError("UNAVAILABLE")
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        self.thawed.wait()
        if self.cut:
            raise RuntimeError("UNAVAILABLE")
        return [(name, value) for name, value in list(self.values.items()) if name.startswith(key)]


def seen(*records: tuple[dict, float]) -> dict[int, Seen]:
    """Hosts h0, h1, ... as seen at times."""
    return {
        index: Seen(Record(f"h{index}", **values), at) for index, (values, at) in enumerate(records)
    }


def verdict(hosts: dict[int, Seen], idle_s: float = 0, own: int = 0) -> Verdict | None:
    return judge(hosts, own, now=100.0, silence_s=30.0, idle_s=idle_s)


def test_hosts_that_tell_and_advance_are_left_alone():
    assert verdict(seen(({}, 99), ({}, 80))) is None


def test_a_silent_host_is_named():
    hosts = seen(
        ({"completed": 12, "begun": 13}, 99),
        ({"completed": 12, "begun": 12}, 66),
        ({"completed": 12, "begun": 13}, 98),
    )
    message = "host 1 (h1): last completed step 12, silent for 34 s; hosts 0, 2 wait at step 13"
    assert verdict(hosts) == Verdict(EXIT_HOST_LOST, message)


def test_a_host_that_ended_well_may_be_silent():
    assert verdict(seen(({}, 99), ({"code": 0}, 10))) is None


def test_whoever_hears_nothing_names_process_0():
    found = verdict(seen(({"completed": 3}, 50), ({"completed": 3}, 50)), own=1)
    assert found is not None
    assert found.message.startswith("host 0 (h0): last completed step 3, silent for 50 s; host 1")


def test_a_host_without_its_next_data_is_named():
    hosts = seen(({"begun": 8, "completed": 7}, 99), ({"begun": 7, "completed": 7}, 99))
    found = verdict(hosts, idle_s=31)
    assert found is not None
    assert "host 1 (h1): last completed step 7, has not begun the next in 31 s" in found.message


def test_a_step_that_hangs_on_all_hosts_is_told_as_such():
    hosts = seen(({"begun": 8, "completed": 7}, 99), ({"begun": 8, "completed": 7}, 99))
    expected = Verdict(EXIT_HOST_LOST, "no host completed step 8 in 31 s, all wait in it")
    assert verdict(hosts, idle_s=31) == expected


@pytest.mark.parametrize("code", [EXIT_HOST_LOST, EXIT_USER_ERROR])
def test_the_reason_of_another_host_is_passed_on(code: int):
    found = verdict(seen(({}, 99), ({"code": code, "message": "why"}, 99)))
    who = {EXIT_HOST_LOST: "", EXIT_USER_ERROR: "host 1 (h1) ended: "}[code]
    assert found == Verdict(code, f"{who}why")


def test_a_record_survives_the_store():
    record = Record("h", 1, 2, 3, False, Offer(15, 4), Agreed(5, 15), 76, "gone")
    assert Record.from_json(record.to_json()) == record


def test_hosts_stop_after_the_first_step_that_none_has_passed():
    assert decide([Offer(None, 7), Offer(15, 9), Offer(None, None)]) is None
    assert decide([Offer(None, 7), Offer(15, 9), Offer(None, 8)]) == Agreed(10, 15)


def test_a_paused_host_waits_for_the_others():
    stop = Stop(alone=False)
    assert stop.after(4) is None
    assert stop.offer([Offer(signal.SIGTERM, None)]) == Offer(None, 4)
    went_on: list[int | None] = []
    thread = threading.Thread(target=lambda: went_on.append(stop.after(5)))
    thread.start()
    time.sleep(0.1)
    assert not went_on
    stop.agree(Agreed(6, signal.SIGTERM))
    thread.join(PATIENCE_S)
    assert went_on == [None]
    assert stop.after(6) == signal.SIGTERM


def test_a_second_signal_interrupts_at_once():
    stop = Stop(alone=True)
    stop.request(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        stop.request(signal.SIGTERM)


class Group:
    """Two hosts in one process; `codes` are those they would have ended with."""

    def __init__(self, limit_s: float) -> None:
        values: dict[str, str] = {}
        self.stores = [FakeStore(values) for _ in range(2)]
        self.codes: dict[int, int] = {}
        self.hosts = [
            Hosts(store, index, 2, limit_s, partial(self.codes.__setitem__, index))
            for index, store in enumerate(self.stores)
        ]

    def wait_for_end(self, *hosts: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.codes.keys() >= set(hosts):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_the_death_of_a_host_ends_the_other_in_time(capsys: pytest.CaptureFixture[str]):
    group = Group(limit_s=1.0)
    one, other = group.hosts
    with one, other:
        for host in group.hosts:
            host.resumed(4)
        time.sleep(0.3)
        group.stores[1].cut = True
        group.wait_for_end(0, 1)
    assert group.codes == {0: EXIT_HOST_LOST, 1: EXIT_HOST_LOST}
    errors = capsys.readouterr().err
    assert "host 1 (" in errors
    assert "last completed step 4, silent for 1 s; host 0 waits at step 5" in errors


def test_a_slow_host_is_named_after_the_first_step(capsys: pytest.CaptureFixture[str]):
    group = Group(limit_s=0.5)
    one, other = group.hosts
    with one, other:
        time.sleep(1.0)  # longer than the limit: both are starting
        assert not group.codes
        for host in group.hosts:
            host.begin(1, jnp.zeros(2))
            host.dispatched(1, jnp.zeros(2))
        one.begin(2, jnp.zeros(2))
        group.wait_for_end(0, 1)
    assert set(group.codes.values()) == {EXIT_HOST_LOST}
    assert "last completed step 1, has not begun the next in" in capsys.readouterr().err


def test_a_frozen_store_ends_the_process_and_holds_up_no_step(capsys: pytest.CaptureFixture[str]):
    group = Group(limit_s=1.0)
    one, other = group.hosts
    frozen = group.stores[1].thawed
    with one, other:
        for host in group.hosts:
            host.resumed(4)
        time.sleep(0.3)
        frozen.clear()
        began = time.monotonic()
        for step in (5, 6):
            other.begin(step, jnp.zeros(2))
            other.dispatched(step, jnp.zeros(2))
        assert time.monotonic() - began < 0.5
        group.wait_for_end(1)
        frozen.set()
    assert group.codes[1] == EXIT_HOST_LOST
    assert "last completed step 4, silent for" in capsys.readouterr().err


def test_who_is_silent_when_no_step_ends_in_time_is_named(capsys: pytest.CaptureFixture[str]):
    """Host 1 stops telling half a limit after the last step; host 0 has begun the next one."""
    group = Group(limit_s=2.0)
    one, other = group.hosts
    with one, other:
        for host in group.hosts:
            for step in (1, 2):
                host.begin(step, jnp.zeros(2))
                host.dispatched(step, jnp.zeros(2))
        time.sleep(0.9)
        group.stores[1].cut = True
        group.wait_for_end(0)
    errors = capsys.readouterr().err
    assert group.codes[0] == EXIT_HOST_LOST
    assert "last completed step 2, silent for" in errors
    assert "all wait in it" not in errors


def test_a_signal_to_one_host_stops_both_after_one_step():
    group = Group(limit_s=5.0)
    stopped: dict[int, tuple[int, int | None]] = {}

    def train(index: int, step: int) -> None:
        while (number := group.hosts[index].stop.after(step)) is None:
            step += 1
            time.sleep(0.01)
        stopped[index] = step, number

    with group.hosts[0], group.hosts[1]:
        threads = [threading.Thread(target=train, args=(index, 3 * index)) for index in range(2)]
        for thread in threads:
            thread.start()
        group.hosts[1].stop.request(signal.SIGTERM)
        for thread in threads:
            thread.join(PATIENCE_S)
    assert stopped[0] == stopped[1]
    assert stopped[0][1] == signal.SIGTERM


def test_an_error_on_one_host_is_told_to_the_other(capsys: pytest.CaptureFixture[str]):
    group = Group(limit_s=5.0)
    one, other = group.hosts

    def fail() -> None:
        with other:
            raise UserError("no such file")

    with one:
        with pytest.raises(UserError):
            fail()
        group.wait_for_end(0, 1)
    assert group.codes == {0: EXIT_USER_ERROR, 1: EXIT_USER_ERROR}
    assert ") ended: no such file" in capsys.readouterr().err


def test_process_0_decides_for_all():
    store = FakeStore({})
    first = [First(store, index) for index in range(2)]
    assert first[0](lambda: {"step": 3}) == {"step": 3}
    assert first[1](lambda: pytest.fail("asked on process 1")) == {"step": 3}

    def refuse() -> None:
        raise UserError("in use")

    for decide_for_all in first:
        with pytest.raises(UserError, match="in use"):
            decide_for_all(refuse)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("127.0.0.1:1", 2, None), "--process-index missing"),
        ((None, None, 0), "--coordinator and --process-count missing"),
        (("127.0.0.1", 2, 0), "give HOST:PORT"),
        (("a:99999", 2, 0), "give HOST:PORT"),
        (("a:1", 2, 2), "must be 0 to 1"),
    ],
    ids=["two", "one", "no port", "port", "index"],
)
def test_options_that_do_not_make_sense_are_refused(given: tuple, message: str):
    with pytest.raises(UserError, match=message):
        coordination(*given)


def test_the_options_may_all_be_left_out():
    assert coordination(None, None, None) is None
    assert coordination("a:1", 2, 0) == Coordination("a:1", 2, 0)


def test_a_coordinator_that_does_not_answer_is_one_error():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    where = Coordination(f"127.0.0.1:{port}", 2, 1)
    with (
        pytest.raises(HostLostError, match=rf"127.0.0.1:{port} did not answer within 0.3 s"),
        joined(where, 0.3),
    ):
        pytest.fail("joined nobody")


def test_a_port_in_use_is_refused():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        where = Coordination(f"127.0.0.1:{port}", 2, 0)
        with pytest.raises(UserError, match=f"cannot listen on port {port}"), joined(where, 5):
            pytest.fail("joined nobody")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"train": {"output": "elsewhere"}, "data": {"prepared": "elsewhere"}}, None),
        ({"train": {"save_every": 3}}, r"train\.save_every: 2 on process 0, 3 here"),
        ({"mesh": {"fsdp": 2}}, r"mesh\.fsdp: 1 on process 0, 2 here"),
    ],
    ids=["equal", "folders", "settings", "mesh"],
)
def test_hosts_with_other_settings_are_refused(
    tiny_config: Config, change: dict, message: str | None
):
    contract = resolve_contract(tiny_config)
    sections = {
        section: getattr(tiny_config, section).model_copy(update=values)
        for section, values in change.items()
    }
    first = json.loads(json.dumps(identity(tiny_config, contract, "sha", None)))
    own = identity(tiny_config.model_copy(update=sections), contract, "sha", None)
    with nullcontext() if message is None else pytest.raises(UserError, match=message):
        check_same_run(first, own)


def test_hosts_with_other_lists_are_refused(tiny_config: Config):
    first, own = (identity(tiny_config, resolve_contract(tiny_config), name, None) for name in "ab")
    with pytest.raises(UserError, match=r"\(fingerprint\): 'a' on process 0, 'b' here"):
        check_same_run(first, own)


@pytest.mark.slow  # starts a process
def test_processes_that_never_come_end_the_waiting_one():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    waiting = (
        "from synrank_jax.engine.distributed import Coordination, joined\n"
        f"with joined(Coordination('127.0.0.1:{port}', 2, 0), 2.0): pass\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", waiting], capture_output=True, text=True, check=False, env=os.environ
    )
    assert process.returncode == EXIT_HOST_LOST
    assert "all 2 processes did not come together" in process.stderr


def test_exit_codes_are_distinct():
    codes = (EXIT_USER_ERROR, EXIT_PREEMPTED, EXIT_HOST_LOST, EXIT_INTERRUPTED)
    assert len(set(codes)) == 4
