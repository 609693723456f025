"""launch/tpu.sh against a gcloud that keeps the state of one queued resource in files."""

import os
import shlex
import signal
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_stage import LAUNCH, ROOT, Stage

TPU = LAUNCH / "tpu.sh"
OPTIONS = (
    *("--project", "my-project", "--zone", "us-west4-a", "--accelerator-type", "v5litepod-8"),
    *("--bucket", "my-bucket", "--output", "runs/first"),
)
TRAIN = ("--", "--config", "configs/quickstart.yaml")
Eventually = Callable[[Callable[[], bool]], None]

# `states` and `jobs` hold what is answered, a line each; the last line stays. A line of `jobs` has
# what each worker says, between commas. SILENT does not answer, PREEMPT takes the TPU away and HANG
# never comes back.
GCLOUD = r"""
pop() { head -n 1 "$stage/$1"; [[ $(wc -l < "$stage/$1") == 1 ]] || sed -i 1d "$stage/$1"; }
hang() { : > "$stage/hanging"; exec sleep 60; }
missing() { echo "ERROR: (gcloud) NOT_FOUND: Resource was not found" >&2; exit 1; }
case "$3 $4" in
  "queued-resources describe")
    [[ ! -e $stage/broken ]] || { echo "ERROR: (gcloud) PERMISSION_DENIED" >&2; exit 1; }
    [[ -s $stage/states ]] || missing
    pop states ;;
  "queued-resources create")
    [[ ! -s $stage/states ]] || { echo ALREADY_EXISTS >&2; exit 1; }
    cp "$stage/created" "$stage/states"
    [[ ! -e $stage/slow ]] || hang ;;
  "queued-resources delete")
    [[ -s $stage/states ]] || missing
    rm "$stage/states" ;;
  "tpu-vm scp") cp "$5" "$stage/archive" ;;
  "tpu-vm ssh")
    case "$*" in
      *journalctl*) echo "last words" ;;
      *systemctl*)
        echo "SSH: Attempting to connect to worker 0..." >&2
        IFS=, read -ra jobs <<< "$(pop jobs)"
        code=0
        for worker in "${!jobs[@]}"; do
          case ${jobs[worker]} in
            SILENT) code=255 ;;
            PREEMPT) echo SUSPENDED > "$stage/states"; exit 255 ;;
            HANG) hang ;;
            *) echo "job ${jobs[worker]} host-$worker" ;;
          esac
        done
        echo "a word of gcloud"
        exit $code ;;
    esac ;;
esac
"""


@pytest.fixture
def cloud(stage: Stage) -> Stage:
    stage.fake("gcloud", GCLOUD)
    (stage.folder / "created").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    return stage


def answers(cloud: Stage, *jobs: str) -> None:
    (cloud.folder / "jobs").write_text("".join(f"{job}\n" for job in jobs))


def steps(cloud: Stage) -> list[str]:
    """What was done, without the questions."""
    named = {
        "queued-resources create": "create",
        "queued-resources delete": "delete",
        "tpu-vm scp": "copy",
        "tpu_vm.sh install": "install",
        "tpu_vm.sh start": "start",
    }
    return [name for call in cloud.calls() for text, name in named.items() if text in call]


def exists(cloud: Stage) -> bool:
    return (cloud.folder / "states").exists()


def test_creating_and_deleting_twice_is_doing_it_once(cloud: Stage):
    for _ in range(2):
        assert cloud.run(TPU, "create", *OPTIONS).returncode == 0
    assert exists(cloud)
    for _ in range(2):
        last = cloud.run(TPU, "delete", *OPTIONS)
        assert last.returncode == 0
    assert "synrank does not exist; nothing to delete" in last.stdout
    assert steps(cloud) == ["create", "delete"]


def test_an_error_of_gcloud_is_not_taken_for_absence(cloud: Stage):
    (cloud.folder / "broken").touch()
    for command in ("create", "delete"):
        done = cloud.run(TPU, command, *OPTIONS)
        assert done.returncode != 0
        assert "PERMISSION_DENIED" in done.stdout
    assert steps(cloud) == []


def test_up_trains_to_the_end_and_deletes(cloud: Stage):
    answers(cloud, "dead 0", "running 0", "exited 0")
    done = cloud.run(TPU, "up", *OPTIONS, *TRAIN, POLL_S="0")
    assert done.returncode == 0, done.stdout
    assert steps(cloud) == ["create", "copy", "install", "start", "delete"]
    shown = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert [line for line in done.stdout.splitlines() if line.startswith("synrank: ")] == [
        f"synrank: {state}" for state in shown
    ]
    (start,) = [call for call in cloud.calls() if "tpu_vm.sh start" in call]
    folder = "/mnt/my-bucket/runs/first"
    assert start.endswith(f"start {folder} 3 {' '.join(TRAIN[1:])} --set train.output={folder}")


def test_the_workers_get_this_tree_without_what_git_ignores(cloud: Stage):
    assert cloud.run(TPU, "install", *OPTIONS, TMPDIR=str(cloud.folder)).returncode == 0
    with tarfile.open(cloud.folder / "archive") as archive:
        names = archive.getnames()
    for path in (TPU, LAUNCH / "worker.sh", LAUNCH / "tpu_vm.sh", ROOT / "requirements.lock"):
        assert str(path.relative_to(ROOT)) in names
    assert [name for name in names if ".git/" in name or "__pycache__" in name] == []
    assert list(cloud.folder.glob("tmp.*")) == []  # the copy here is gone


def test_after_a_preemption_everything_is_made_again_with_the_same_code(cloud: Stage):
    answers(cloud, "dead 0", "running 0", "PREEMPT", "dead 0", "failed 75", "running 0", "exited 0")
    done = cloud.run(TPU, "up", *OPTIONS, *TRAIN, POLL_S="0", TMPDIR=str(cloud.folder))
    assert done.returncode == 0, done.stdout
    once = ["create", "copy", "install", "start"]
    assert steps(cloud) == [*once, "delete", *once, "start", "delete"]
    first, second = (call for call in cloud.calls() if "tpu-vm scp" in call)
    assert first == second
    first, second, *_ = (call for call in cloud.calls() if "tpu_vm.sh start" in call)
    assert first == second


def test_watch_goes_on_after_a_preemption_and_leaves_the_tpu(cloud: Stage):
    (cloud.folder / "states").write_text("SUSPENDED\n")
    answers(cloud, "dead 0", "exited 0")
    done = cloud.run(TPU, "watch", *OPTIONS, *TRAIN, POLL_S="0")
    assert done.returncode == 0, done.stdout
    assert steps(cloud) == ["delete", "create", "copy", "install", "start"]
    assert exists(cloud)


SEEN = {
    # A worker alone is run again while the others run, and only its own unit is not left alone.
    "one preempted": (["running 0,running 0,failed 75"], ["start"]),
    "one lost another": (["exited 0,failed 76"], ["start"]),
    "one never started": (["running 0,dead 0"], ["copy", "install", "start"]),
    "one started anew": (["failed 76,dead 0,exited 0"], ["copy", "install", "start"]),
    "one finished": (["exited 0,running 0", "running 0,exited 0"], []),
    # It may come back as any of the above.
    "one silent": (["SILENT,exited 0", "dead 0,SILENT", "failed 75,SILENT", "SILENT"], []),
}


@pytest.mark.parametrize("name", SEEN)
def test_watch_looks_at_all_workers(cloud: Stage, name: str):
    (cloud.folder / "states").write_text("ACTIVE\n")
    seen, done = SEEN[name]
    answers(cloud, *seen, "exited 0,exited 0,exited 0")
    watched = cloud.run(TPU, "watch", *OPTIONS, *TRAIN, POLL_S="0")
    assert watched.returncode == 0, watched.stdout
    assert watched.stdout.endswith("training has finished\n")
    silent = sum("SILENT" in line for line in seen)
    assert watched.stdout.count("a worker does not answer; trying again") == silent
    assert steps(cloud) == done
    asked = [call for call in cloud.calls() if "systemctl" in call]
    assert len(asked) == len(seen) + 1
    assert all("--worker=all" in call for call in asked)


def test_watch_does_not_make_what_somebody_else_deleted(cloud: Stage):
    done = cloud.run(TPU, "watch", *OPTIONS, *TRAIN, POLL_S="0")
    assert done.returncode == 2
    assert "synrank does not exist; launch/tpu.sh create makes it" in done.stdout
    assert steps(cloud) == []


def test_requests_that_fail_are_not_repeated_for_ever(cloud: Stage):
    (cloud.folder / "created").write_text("FAILED\n")
    done = cloud.run(TPU, "up", *OPTIONS, *TRAIN, POLL_S="0")
    assert done.returncode == 2
    assert "3 requests in a row came to nothing" in done.stdout
    assert steps(cloud) == ["create", "delete"] * 4
    assert not exists(cloud)


@pytest.mark.parametrize(
    ("said", "code", "host"),
    [
        ("failed 1", 1, 0),
        ("failed 130,failed 130", 130, 0),
        ("running 0,failed 2", 2, 1),
        ("failed 75,dead 0,failed 137", 137, 2),
        ("SILENT,failed 1", 1, 1),
    ],
)
def test_an_error_of_training_ends_up_with_its_last_words_and_deletes(
    cloud: Stage, said: str, code: int, host: int
):
    answers(cloud, "dead 0", said)
    done = cloud.run(TPU, "up", *OPTIONS, *TRAIN, POLL_S="0")
    assert done.returncode == 2
    error = f"last words\nerror: training ended with exit code {code} on host-{host}"
    assert error in done.stdout
    (words,) = (call for call in cloud.calls() if "journalctl" in call)
    assert "--worker=all" in words
    assert steps(cloud) == ["create", "copy", "install", "start", "delete"]


@pytest.mark.parametrize("moment", ["create", "poll", "pause"])
def test_ctrl_c_during_up_deletes(cloud: Stage, eventually: Eventually, moment: str):
    answers(cloud, "HANG" if moment == "poll" else "running 0")
    if moment == "create":
        (cloud.folder / "slow").touch()
    (cloud.folder / "created").write_text("ACTIVE\n")

    def reached() -> bool:
        if moment == "pause":
            return any("systemctl" in call for call in cloud.calls())
        return (cloud.folder / "hanging").exists()

    with cloud.start(TPU, "up", *OPTIONS, *TRAIN, POLL_S="60") as up:
        eventually(reached)
        assert exists(cloud)
        os.killpg(up.pid, signal.SIGINT)
        assert up.wait(timeout=30) == 130
    assert steps(cloud) == ["create", "delete"]
    assert not exists(cloud)


def test_up_leaves_what_it_did_not_create(cloud: Stage):
    (cloud.folder / "states").write_text("ACTIVE\n")
    answers(cloud, "exited 0")
    done = cloud.run(TPU, "up", *OPTIONS, *TRAIN, POLL_S="0")
    assert "synrank exists (ACTIVE); not created" in done.stdout
    assert steps(cloud) == []
    assert exists(cloud)


def test_a_deletion_that_fails_is_said_loudly(cloud: Stage):
    answers(cloud, "exited 0")
    # The permission goes once training has begun.
    body = GCLOUD.replace("exit $code", 'touch "$stage/broken"')
    cloud.fake("gcloud", body)
    done = cloud.run(TPU, "up", *OPTIONS, *TRAIN, POLL_S="0")
    assert done.returncode == 1
    assert "NOT DELETED: synrank costs money until this succeeds: launch/tpu.sh" in done.stdout


VM = LAUNCH / "tpu_vm.sh"
START = ("start", "/mnt/b/run", "3", "--config", "a b.yaml")


@pytest.mark.parametrize(("state", "begun"), [("running", 0), ("dead", 1), ("failed", 1)])
def test_a_worker_starts_training_unless_it_runs(stage: Stage, state: str, begun: int):
    stage.fake("systemctl", f"echo {state}")
    stage.fake("sudo")
    done = stage.run(VM, *START)
    assert done.returncode == 0, done.stdout
    begins = [call for call in stage.calls() if "systemd-run" in call]
    assert len(begins) == begun
    for call in begins:
        assert " --unit=synrank --uid=tester " in call
        assert (
            f"{LAUNCH}/worker.sh --run /mnt/b/run --restarts 3 -- {ROOT}/.venv/bin/python" in call
        )
        assert call.endswith(" -m synrank_jax.train --distributed --config a b.yaml")


# What systemd makes of the words of a command. It is not run here; these are the results of
# replace_env_argv in the libsystemd-shared of systemd 252, with HOME=/root and A unset.
EXPANDED = {
    "$$": "$",
    "$$HOME": "$HOME",
    "a=$${HOME}": "a=${HOME}",
    "$$$$A$$": "$$A$",
    "%h 100%": "%h 100%",
    'it\'s "$$(A)" \\$$A': 'it\'s "$(A)" \\$A',
}


def test_training_gets_its_arguments_as_they_were_given(stage: Stage):
    stage.fake("systemctl", "echo dead")
    stage.fake("sudo", 'printf "%s\\n" "$@" > "$stage/words"')
    assert stage.run(VM, *START, *EXPANDED.values()).returncode == 0
    words = (stage.folder / "words").read_text().splitlines()
    assert words[-len(EXPANDED) :] == list(EXPANDED)


def test_a_worker_reports_its_job_in_the_form_that_watch_reads(stage: Stage):
    stage.fake("systemctl", "[[ $* == *SubState* ]] && echo failed || echo 75")
    golden = (Path(__file__).parent / "goldens" / "tpu_status.txt").read_text().splitlines()[-1]
    question = shlex.split(golden)[-1].removeprefix("--command=")
    assert stage.run("bash", "-c", question).stdout == f"job failed 75 {socket.gethostname()}\n"


def test_installing_twice_mounts_once(stage: Stage):
    for program in ("python3", "curl", "sudo"):
        stage.fake(program)
    stage.fake("gcsfuse", 'touch "$stage/mounted"')
    stage.fake("mountpoint", "[[ -e $stage/mounted ]]")
    stage.fake("uv")
    (stage.folder / ".local").mkdir()
    (stage.folder / ".local" / "bin").symlink_to(stage.folder / "bin")
    for _ in range(2):
        done = stage.run(VM, "install", "my-bucket")
        assert done.returncode == 0, done.stdout
    mounts = [call for call in stage.calls() if call.startswith("gcsfuse")]
    assert mounts == [
        "gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 my-bucket /mnt/my-bucket"
    ]
    assert any(
        "--constraints requirements.lock --editable .[tpu]" in call for call in stage.calls()
    )
