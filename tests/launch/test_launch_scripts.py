"""What the launchers print, refuse and fill in. `python tests/launch/test_launch_scripts.py`
rewrites the goldens.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from launch_stage import LAUNCH, ROOT, Stage

GOLDENS = Path(__file__).parent / "goldens"
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch")])
IN_BUCKET = ("--bucket", "my-bucket", "--output", "runs/first")
TRAIN = ("--config", "configs/quickstart.yaml", "--set", "model.path=/mnt/my bucket/a 'b' $HOME")
TPU = (
    *("--project", "my-project", "--zone", "us-west4-a", "--accelerator-type", "v5litepod-8"),
    *IN_BUCKET,
)
GKE = ("--image", "my-images/synrank:1", "--topology", "v6e:4x4")

DRY_RUNS = {
    **{
        f"tpu_{command}": ("tpu.sh", command, *TPU, "--dry-run", "--", *TRAIN)
        for command in ("create", "install", "run", "tail", "status", "watch", "delete", "up")
    },
    "tpu_create_reserved": (
        *("tpu.sh", "create", *TPU, "--tier", "reserved", "--accelerator-type", "v6e-64"),
        *("--name", "mine", "--dry-run"),
    ),
    "tpu_create_on_demand": (
        *("tpu.sh", "create", *TPU, "--tier", "on-demand", "--accelerator-type", "v4-8"),
        *("--runtime-version", "tpu-ubuntu2204-base", "--dry-run"),
    ),
    "gke_apply": ("gke/gke.sh", "apply", *GKE, *IN_BUCKET, "--dry-run", "--", *TRAIN),
    **{
        f"gke_{command}": ("gke/gke.sh", command, "--dry-run")
        for command in ("tail", "status", "delete")
    },
    "slurm": ("slurm.sbatch", "--dry-run", *TRAIN),
    "local": (
        *("local.py", "--processes", "2", "--devices-per-process", "4", "--restarts", "1"),
        *("--dry-run", "--", *TRAIN),
    ),
    "worker": ("worker.sh", "--dry-run", "--", "python", "-m", "synrank_jax.train", *TRAIN),
}


def launched(script: str) -> tuple[str | Path, ...]:
    return (sys.executable, LAUNCH / script) if script.endswith(".py") else (LAUNCH / script,)


def dry_run(stage: Stage, name: str) -> str:
    script, *arguments = DRY_RUNS[name]
    for program in ("gcloud", "kubectl", "srun", "scontrol", "squeue", "git", "tar", "curl"):
        stage.fake(program)
    done = stage.run(*launched(script), *arguments, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout
    return done.stdout.replace(sys.executable, "python")


@pytest.mark.parametrize("name", DRY_RUNS)
def test_a_dry_run_prints_the_commands_and_runs_none(stage: Stage, name: str):
    assert dry_run(stage, name) == (GOLDENS / f"{name}.txt").read_text()
    assert stage.calls() == []


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).parent / "shellcheck"
    subprocess.run(
        [shellcheck, "--severity=style", "--external-sources", "--source-path=SCRIPTDIR", *SCRIPTS],
        check=True,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_stops_at_the_first_error_and_is_documented(stage: Stage, script: Path):
    if script.name == "common.sh":  # sourced by the others
        return
    assert "\nset -euo pipefail\n" in script.read_text()
    shown = stage.run(script, "--help")
    assert shown.returncode == 0
    assert f"launch/{script.relative_to(LAUNCH)} " in shown.stdout
    assert "set -e" not in shown.stdout
    assert "SBATCH" not in shown.stdout


def test_what_a_dry_run_prints_is_read_back_by_a_shell_as_the_same_words(stage: Stage):
    stage.fake("srun", 'printf "<%s>\\n" "$@"')
    shown = stage.run(LAUNCH / "slurm.sbatch", "--dry-run", *TRAIN).stdout.splitlines()[0]
    assert stage.run("bash", "-c", shown).stdout.splitlines()[-4:] == [f"<{it}>" for it in TRAIN]


REFUSED = {
    "no project": (("tpu.sh", "create", *TPU, "--project", ""), "--project is missing"),
    "project": (("tpu.sh", "create", *TPU, "--project", "My_Project"), "--project 'My_Project'"),
    "zone": (("tpu.sh", "create", *TPU, "--zone", "us-west4"), "--zone 'us-west4'"),
    "name": (("tpu.sh", "delete", *TPU, "--name", "a; rm -rf b"), "--name 'a; rm -rf b'"),
    "accelerator": (
        ("tpu.sh", "up", *TPU, "--accelerator-type", "v5e:2x4"),
        "--accelerator-type 'v5e:2x4' is not valid, for example v5litepod-8",
    ),
    "runtime": (("tpu.sh", "create", *TPU, "--runtime-version", "a b"), "--runtime-version 'a b'"),
    "tier": (("tpu.sh", "create", *TPU, "--tier", "cheap"), "spot, on-demand or reserved"),
    "bucket": (("tpu.sh", "install", *TPU, "--bucket", "gs://b"), "--bucket 'gs://b'"),
    "output": (("tpu.sh", "run", *TPU, "--output", "../x"), "--output '../x'"),
    "restarts": (("tpu.sh", "run", *TPU, "--restarts", "many"), "--restarts 'many'"),
    "no config": (("tpu.sh", "run", *TPU), "give the training arguments after --"),
    "config": (
        ("tpu.sh", "up", *TPU, "--", "--config", "configs/none.yaml"),
        "--config 'configs/none.yaml': no such file",
    ),
    "newline": (
        ("tpu.sh", "run", *TPU, "--", *TRAIN, "--set", "a=\nb"),
        "a training argument holds a control character",
    ),
    "command": (("tpu.sh", "destroy"), "unknown command 'destroy'"),
    "option": (("tpu.sh", "up", "--spot"), "unknown option '--spot'"),
    "no value": (("tpu.sh", "up", "--zone"), "--zone needs a value"),
    "gke image": (("gke/gke.sh", "apply", *GKE, "--image", "A b"), "--image 'A b'"),
    "gke topology": (
        ("gke/gke.sh", "apply", *GKE, "--topology", "v5p:4x4"),
        "--topology 'v5p:4x4' is not valid, for example v5e:4x4",
    ),
    "gke name": (("gke/gke.sh", "delete", "--name", "x" * 41), "--name 'xxx"),
    "slurm": (("slurm.sbatch", *TRAIN), "sbatch --gpus-per-node=N"),
    "slurm config": (("slurm.sbatch", "--dry-run"), "give the training arguments"),
    "local processes": (
        ("local.py", "--processes", "0", "--", *TRAIN),
        "--processes 0: must be at least 1",
    ),
    "local restarts": (
        ("local.py", "--processes", "2", "--restarts", "-1", "--", *TRAIN),
        "--restarts -1: must be at least 0",
    ),
    "worker": (("worker.sh", "--restarts", "-1", "--", "true"), "--restarts '-1'"),
    "worker command": (("worker.sh",), "give the training command after --"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_values_are_refused_with_one_message_before_anything_runs(stage: Stage, name: str):
    (script, *arguments), message = REFUSED[name]
    for program in ("gcloud", "kubectl", "srun"):
        stage.fake(program)
    done = stage.run(*launched(script), *arguments, PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert message in done.stdout
    assert done.stdout.startswith("error: ")
    assert done.stdout.count("\n") == 1
    assert stage.calls() == []


def test_options_may_come_from_the_environment(stage: Stage):
    names = ("PROJECT_ID", "ZONE", "ACCELERATOR_TYPE")
    values = dict(zip(names, ("my-project", "us-west4-a", "v5litepod-8"), strict=True))
    done = stage.run(LAUNCH / "tpu.sh", "create", "--dry-run", **values)
    assert done.stdout == (GOLDENS / "tpu_create.txt").read_text()


def manifest(stage: Stage, *arguments: str) -> dict:
    """What kubectl is given on its standard input."""
    stage.fake("kubectl", 'cat > "$stage/manifest"')
    done = stage.run(LAUNCH / "gke/gke.sh", "apply", *arguments, "--", *TRAIN, "--set", "x=$(A) \\")
    assert done.returncode == 0, done.stdout
    assert stage.calls() == ["kubectl apply --filename=-"]
    return yaml.safe_load((stage.folder / "manifest").read_text())


def test_the_jobset_restarts_on_75_and_76_only_and_leaves_time_to_save(stage: Stage):
    jobset = manifest(stage, *GKE, *IN_BUCKET, "--name", "mine", "--restarts", "7")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"] == {"name": "mine", "namespace": "default"}
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])

    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0
    disruption, codes = job["podFailurePolicy"]["rules"]
    assert disruption == {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget"}]}
    assert codes["action"] == "FailJob"
    assert codes["onExitCodes"] == {
        **{"containerName": "train", "operator": "NotIn", "values": [75, 76]}
    }

    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy needs it
    assert pod["terminationGracePeriodSeconds"] >= 120
    (container,) = pod["containers"]
    assert container["command"][:4] == ["launch/worker.sh", "--restarts", "0", "--"]
    folder = "train.output=/mnt/my-bucket/runs/first"
    # $$( is how Kubernetes writes $(.
    assert container["args"] == [*TRAIN, "--set", "x=$$(A) \\", "--set", folder]
    assert container["volumeMounts"] == [{"name": "bucket", "mountPath": "/mnt/my-bucket"}]
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"


@pytest.mark.parametrize(
    ("topology", "accelerator", "hosts", "chips"),
    [
        ("v5e:1x1", "tpu-v5-lite-podslice", 1, 1),
        ("v5e:2x4", "tpu-v5-lite-podslice", 2, 4),
        ("v6e:8x8", "tpu-v6e-slice", 16, 4),
        ("v5p:2x2x4", "tpu-v5p-slice", 4, 4),
        ("v4:2x2x1", "tpu-v4-podslice", 1, 4),
    ],
)
def test_the_jobset_has_a_pod_for_each_host_of_the_slice(
    stage: Stage, topology: str, accelerator: str, hosts: int, chips: int
):
    jobset = manifest(stage, *GKE, *IN_BUCKET, "--topology", topology)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == hosts
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
    }
    assert pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": chips}}


def slurm(stage: Stage, code: int, state: str = "RUNNING", **extra: str) -> list[str]:
    """Run a copy of the batch script, as SLURM does, with a step that ends with `code`."""
    copy = stage.folder / "slurm_script"
    shutil.copy(LAUNCH / "slurm.sbatch", copy)
    stage.fake("srun", f"exit {code}")
    stage.fake("squeue", f"echo {state}")
    stage.fake("scontrol")
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "17", "SLURM_GPUS_ON_NODE": "4"}
    done = stage.run(copy, *TRAIN, **job, **extra)
    assert done.returncode == code
    return stage.calls()


@pytest.mark.parametrize("code", [75, 76])
def test_a_slurm_job_that_asks_for_it_is_queued_again(stage: Stage, code: int):
    step, *_, last = slurm(stage, code)
    assert " env JAX_LOCAL_DEVICE_IDS=0,1,2,3 .venv/bin/python -m synrank_jax.train " in step
    assert last == "scontrol requeue 17"


@pytest.mark.parametrize(
    ("code", "state", "restarted"),
    [
        *((code, "RUNNING", 0) for code in (0, 1, 2, 130, 137)),
        (75, "CANCELLED", 0),
        (75, "RUNNING", 20),
    ],
)
def test_any_other_slurm_job_is_not(stage: Stage, code: int, state: str, restarted: int):
    calls = slurm(stage, code, state, SLURM_RESTART_COUNT=str(restarted))
    assert [call for call in calls if call.startswith("scontrol")] == []


def test_the_image_holds_what_exists_runs_as_nobody_special_and_keeps_no_secret():
    text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and line[0] != "#"]
    steps = [(word, rest) for word, rest in lines if word.isupper()]
    (base,) = (rest for word, rest in steps if word == "FROM")
    assert re.fullmatch(r"python:3\.1[123]-slim-\w+", base)
    assert [rest for word, rest in steps if word == "USER"][-1] not in ("root", "0")
    (install,) = (rest for _, rest in steps if rest.startswith("pip install"))
    assert "--constraint requirements.lock" in install
    assert '".[${EXTRA}]"' in install
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cuda", "tpu"} <= extras["optional-dependencies"].keys()
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().split("\n") if line[:1] == "!"
    }
    copied = [rest.split()[:-1] for word, rest in steps if word == "COPY"]
    assert {name for names in copied for name in names} == kept
    assert all((ROOT / name).exists() for name in kept)
    assert not re.search(r"TOKEN|SECRET|PASSWORD|API_KEY|https?://\S+@", text, re.IGNORECASE)


if __name__ == "__main__":
    import tempfile

    for golden in DRY_RUNS:
        with tempfile.TemporaryDirectory() as folder:
            (GOLDENS / f"{golden}.txt").write_text(dry_run(Stage(Path(folder)), golden))
