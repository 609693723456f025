"""launch/worker.sh: when training is started again, and what signals and notices do."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from launch_stage import LAUNCH, Stage

WORKER = LAUNCH / "worker.sh"
Eventually = Callable[[Callable[[], bool]], None]

# Stands for training: saves on SIGTERM like it, and counts the signals.
SAVES_ON_TERM = """
trap 'echo TERM >> "$stage/signals"; sleep 0.2; exit 75' TERM
trap 'echo INT >> "$stage/signals"; exit 130' INT
echo > "$stage/ready"
while :; do sleep 0.02; done
"""


def starts(stage: Stage) -> int:
    return len(stage.calls())


@pytest.mark.parametrize("code", [0, 1, 2, 130, 137])
def test_other_exit_codes_are_passed_on_at_once(stage: Stage, code: int):
    stage.fake("train", f"exit {code}")
    assert stage.run(WORKER, "--", "train", "--config", "x y").returncode == code
    assert stage.calls() == ["train --config x y"]


@pytest.mark.parametrize("code", [75, 76])
def test_training_that_asks_for_it_is_started_again_until_it_makes_no_progress(
    stage: Stage, code: int
):
    stage.fake("train", f"exit {code}")
    done = stage.run(WORKER, "--restarts", "2", "--", "train")
    assert done.returncode == 1
    assert starts(stage) == 3
    assert f"exit code {code} again after 2 restarts without a new checkpoint" in done.stdout


@pytest.mark.parametrize(("restarts", "code", "begun"), [("1", 1, 2), ("2", 0, 6)])
def test_a_new_checkpoint_starts_the_count_again(
    stage: Stage, restarts: str, code: int, begun: int
):
    stage.fake(
        "train",
        'n=$(wc -l < "$stage/log"); ((n < 6)) || exit 0\n'
        # Saves before its 1st, 3rd and 5th end, but not before the others.
        '((n % 2 == 0)) || mkdir -p "$stage/run/checkpoints/$n"; exit 75',
    )
    done = stage.run(WORKER, "--run", stage.folder / "run", "--restarts", restarts, "--", "train")
    assert (done.returncode, starts(stage)) == (code, begun)


def test_a_scheduler_that_restarts_gets_every_code(stage: Stage):
    stage.fake("train", "exit 76")
    assert stage.run(WORKER, "--restarts", "0", "--", "train").returncode == 76
    assert starts(stage) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_reaches_training_once_and_ends_the_loop(
    stage: Stage, eventually: Eventually, number: signal.Signals, code: int
):
    stage.fake("train", SAVES_ON_TERM)
    with stage.start(WORKER, "--", "train") as worker:
        eventually((stage.folder / "ready").exists)
        os.killpg(worker.pid, number)  # as a terminal or a shutdown does: everyone in the group
        eventually((stage.folder / "signals").exists)
        os.killpg(worker.pid, number)
        assert worker.wait(timeout=30) == code
    assert (stage.folder / "signals").read_text() == number.name.removeprefix("SIG") + "\n"
    assert starts(stage) == 1


def test_a_signal_that_training_cannot_handle_yet_means_run_again(
    stage: Stage, eventually: Eventually
):
    stage.fake("train", 'echo > "$stage/ready"; exec sleep 60')
    with stage.start(WORKER, "--", "train") as worker:
        eventually((stage.folder / "ready").exists)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=30) == 75


class Metadata(ThreadingHTTPServer):
    """Google Cloud's metadata server: values by key, and requests that wait for a change."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.values = {"id": "17", "preempted": "FALSE", "maintenance-event": "NONE"}
        self.waiting: list[str] = []
        self.failures = 0
        self.changed = threading.Condition()
        self.closed = False

    def change(self, key: str, value: str) -> None:
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()


class Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        prefix, _, key = url.path.rpartition("/")
        right = prefix == "/computeMetadata/v1/instance"
        if not right or self.headers["Metadata-Flavor"] != "Google":
            self.send_error(403)
            return
        with self.server.changed:
            if "wait_for_change=true" in url.query:
                if self.server.failures:
                    self.server.failures -= 1
                    self.send_error(503)
                    return
                before = self.server.values[key]
                self.server.waiting.append(key)
                self.server.changed.wait_for(
                    lambda: self.server.closed or self.server.values[key] != before, timeout=30
                )
            body = self.server.values[key].encode()
        with suppress(ConnectionError):  # whoever waited has been ended
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    with server.changed:
        server.closed = True
        server.changed.notify_all()
    server.shutdown()
    server.server_close()
    thread.join()


def address(metadata: Metadata) -> str:
    return f"127.0.0.1:{metadata.server_address[1]}"


@pytest.mark.parametrize("failures", [0, 1], ids=["steady", "server restarts"])
def test_a_preemption_notice_makes_training_save_and_is_the_end(
    stage: Stage, eventually: Eventually, metadata: Metadata, failures: int
):
    metadata.failures = failures
    stage.fake("train", SAVES_ON_TERM)
    with stage.start(WORKER, "--", "train", GCE_METADATA_HOST=address(metadata)) as worker:
        eventually((stage.folder / "ready").exists)
        eventually(lambda: len(metadata.waiting) >= 2)
        assert sorted(metadata.waiting)[:2] == ["maintenance-event", "preempted"]
        assert not (stage.folder / "signals").exists()
        metadata.change("preempted", "TRUE")
        assert worker.wait(timeout=30) == 75
        assert "preempted is TRUE" in worker.stdout.read()
    assert (stage.folder / "signals").read_text() == "TERM\n"
    assert starts(stage) == 1


def test_a_host_that_is_already_being_preempted_is_noticed(
    stage: Stage, eventually: Eventually, metadata: Metadata
):
    metadata.change("preempted", "TRUE")
    stage.fake("train", SAVES_ON_TERM)
    done = stage.run(WORKER, "--", "train", GCE_METADATA_HOST=address(metadata))
    assert done.returncode == 75
    assert starts(stage) <= 1  # the notice may come before the first


def test_a_maintenance_notice_makes_training_save_and_start_again(
    stage: Stage, eventually: Eventually, metadata: Metadata
):
    stage.fake("train", f'[[ $(wc -l < "$stage/log") == 1 ]] || exit 0\n{SAVES_ON_TERM}')
    with stage.start(WORKER, "--", "train", GCE_METADATA_HOST=address(metadata)) as worker:
        eventually((stage.folder / "ready").exists)
        eventually(lambda: "maintenance-event" in metadata.waiting)
        metadata.change("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")  # needs nothing
        eventually(lambda: metadata.waiting.count("maintenance-event") == 2)
        metadata.change("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
        assert worker.wait(timeout=30) == 0
    assert (stage.folder / "signals").read_text() == "TERM\n"
    assert starts(stage) == 2


def test_nothing_keeps_running_after_the_worker(
    stage: Stage, eventually: Eventually, metadata: Metadata
):
    """Else a pod or a batch step would never end."""
    stage.fake("train", "sleep 1; exit 0")
    with stage.start(WORKER, "--", "train", GCE_METADATA_HOST=address(metadata)) as worker:
        eventually(lambda: len(metadata.waiting) >= 2)
        assert worker.wait(timeout=30) == 0
        # A process that is left over would hold the pipe open, and this would time out.
        worker.communicate(timeout=5)
