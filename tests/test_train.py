"""Training end to end on a tiny model: resume, refusals, and what is written."""

import gzip
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path

import jax
import numpy as np
import pytest

from synrank_jax import prepare, tracking, train
from synrank_jax.cli import EXIT_INTERRUPTED, EXIT_PREEMPTED
from synrank_jax.config import Config, MeshConfig
from synrank_jax.config_file import to_yaml
from synrank_jax.config_loss import LOSS_NAMES
from synrank_jax.contract import CONTRACT_FILE
from synrank_jax.data import packing
from synrank_jax.data.pipeline import PreparedLists, batches
from synrank_jax.engine.checkpoint import load_trained
from synrank_jax.engine.encoding import checkpoint_encoder
from synrank_jax.engine.profiling import PROFILE
from synrank_jax.engine.runfolder import CHECKPOINTS
from synrank_jax.engine.updates import BadUpdateError
from synrank_jax.errors import UserError
from synrank_jax.files import locked
from synrank_jax.optim import learning_rate_schedule
from synrank_jax.tracking import read_metrics

# What a record holds beside the clock.
EXACT = ("step", "loss", "grad_norm", "samples", "tokens", "learning_rate")


class Stopped(Exception):
    """Ends a run between two steps."""


def stop_at(last: int) -> Callable[[int], None]:
    def stop(step: int) -> None:
        if step == last:
            raise Stopped

    return stop


def prepared(config: Config, tmp_path: Path) -> Path:
    """Prepare the lists; the path of the configuration as a file."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    prepare.main(["--config", str(path)])
    return path


def changed(config: Config, section: str, **values) -> Config:
    part = getattr(config, section).model_copy(update=values)
    return config.model_copy(update={section: part})


def stream(run: Path) -> list[tuple]:
    return [tuple(record[name] for name in EXACT) for record in read_metrics(run)]


def assert_same_weights(one: Path, other: Path) -> None:
    left, right = load_trained(one).params, load_trained(other).params
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_six_steps_equal_three_and_three_bit_for_bit(tiny_config: Config, tmp_path: Path):
    prepared(tiny_config, tmp_path)
    whole = train.run(tiny_config)
    other = changed(tiny_config, "train", output=str(tmp_path / "parts"), save_every=3)

    with pytest.raises(Stopped):
        train.run(other, on_step=stop_at(4))
    assert [record["step"] for record in read_metrics(tmp_path / "parts")] == [1, 2, 3, 4]
    resumed = train.run(other)
    assert stream(whole.folder) == stream(resumed.folder)
    assert_same_weights(whole.folder, resumed.folder)


def test_a_finished_run_is_left_alone(tiny_config: Config, tmp_path: Path):
    prepared(tiny_config, tmp_path)
    config = changed(tiny_config, "train", tensorboard=True)

    def contents() -> dict[Path, bytes]:
        files = (path for path in (tmp_path / "run").rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files if path.name != "lock"}

    train.run(config)
    before = contents()
    train.run(config)
    assert contents() == before


@pytest.mark.slow
def test_resuming_on_another_mesh_continues_the_run(tiny_config: Config, tmp_path: Path):
    prepared(tiny_config, tmp_path)
    whole = train.run(tiny_config)
    with pytest.raises(Stopped):
        train.run(changed(tiny_config, "train", output=str(tmp_path / "moved")), on_step=stop_at(4))
    moved = changed(tiny_config, "train", output=str(tmp_path / "moved"))
    resumed = train.run(moved.model_copy(update={"mesh": MeshConfig(data=2, fsdp=4)}))
    for record, expected in zip(stream(resumed.folder), stream(whole.folder), strict=True):
        # Rounding of another order of sums, carried through two Adam steps of a float32 model.
        assert record[1:3] == pytest.approx(expected[1:3], rel=1e-4)
        assert (record[0], record[3:]) == (expected[0], expected[3:])


@pytest.mark.slow
def test_after_the_first_step_of_every_shape_nothing_is_compiled(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(packing, "TOKEN_MULTIPLE", 1)  # so that tiny rows differ
    steps = 24
    config = changed(tiny_config, "train", steps=steps, epochs=None, save_every=None)
    prepared(config, tmp_path)
    size = config.train.global_batch_size
    stream = batches(
        PreparedLists(Path(config.data.prepared)),
        seed=config.train.seed,
        global_batch_size=size,
        pool_size=config.pool_size(),
        rows=jax.device_count(),
    )
    shapes = [
        tuple(leaf.shape for leaf in jax.tree.leaves(batch)) for batch in islice(stream, steps)
    ]
    traced: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: traced.append(event) if "trace" in event else None
    )
    of_step = []

    def count(step: int) -> None:
        of_step.append(len(traced))
        traced.clear()

    train.run(config, on_step=count)
    first = [shape not in shapes[:step] for step, shape in enumerate(shapes)]
    assert 1 < sum(first) <= 4
    for step in range(steps - 1):  # after the last one the checkpoint is written
        assert (of_step[step] > 0) == first[step], (step, of_step)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_resumes(
    tiny_config: Config, tmp_path: Path, number: signal.Signals
):
    prepared(tiny_config, tmp_path)
    config = changed(tiny_config, "train", save_every=None)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as left:
        train.run(config, on_step=lambda step: step == 2 and signal.raise_signal(number))
    assert (
        left.value.code == {signal.SIGTERM: EXIT_PREEMPTED, signal.SIGINT: EXIT_INTERRUPTED}[number]
    )
    assert signal.getsignal(number) == before
    # The signal came after step 2 was over: step 3 is finished and saved.
    assert load_trained(tmp_path / "run").step == 3
    train.run(config)
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_training_lowers_the_loss(tiny_config: Config, tmp_path: Path):
    prepared(tiny_config, tmp_path)
    longer = changed(tiny_config, "train", steps=20, save_every=None)
    losses = [record["loss"] for record in read_metrics(train.run(longer).folder)]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(
            {"gaussian_wasserstein": 1.0, "gaussian_paired": 1.0, "in_batch_grade": 0.0},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "gaussian_wasserstein": 1.0,
                "gaussian_group_size": 4,
                "gaussian_solver": "newton_schulz",
            },
            marks=pytest.mark.slow,
        ),
        {"infonce": 1.0, "sinkhorn": 1.0, "sinkhorn_cost": "embedding", "scope": "list"},
        pytest.param(
            {
                "wasserstein": 0.5,
                "wasserstein_order": 2,
                "grade_positions": (-4.0, 0.0, 1.0, 2.0, 4.0),
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(dict.fromkeys(LOSS_NAMES, 1.0), marks=pytest.mark.slow),
    ],
    ids=["gaussian", "groups", "list", "positions", "all"],
)
def test_losses_train_in_pools(tiny_config: Config, tmp_path: Path, loss: dict):
    prepared(tiny_config, tmp_path)
    config = changed(tiny_config, "loss", **{"wasserstein": 0.0, **loss})
    config = changed(config, "model", compute_dtype="bfloat16")  # the losses stay float32
    config = changed(config, "train", steps=2, global_batch_size=16, pool_size=8)
    record = read_metrics(train.run(config).folder)[-1]
    assert np.isfinite(record["loss"])
    assert record["grad_norm"] > 0
    assert record["lists"] == 16
    assert set(config.loss.weights()) <= record.keys()
    if "gaussian_wasserstein" in loss:
        assert -1 <= record["alignment"] <= 1
    if config.loss.scope == "pool":
        assert 0 < record["own_list_target_mass"] <= 1


@pytest.mark.slow
def test_a_learnable_temperature_is_trained_logged_saved_and_resumed(
    tiny_config: Config, tmp_path: Path
):
    prepared(tiny_config, tmp_path)
    config = changed(tiny_config, "loss", learn_temperature=True, temperature=0.2)
    with pytest.raises(Stopped):
        train.run(config, on_step=stop_at(5))
    run = train.run(config).folder
    logged = [record["temperature"] for record in read_metrics(run)]
    assert logged[0] == pytest.approx(0.2, rel=1e-6)
    # Adam's updates are about the learning rate, 1e-3, in the logarithm.
    assert all(1e-5 < abs(np.log(b / a)) < 3e-3 for a, b in pairwise(logged))
    trained = load_trained(run)
    assert trained.temperature != pytest.approx(logged[-1], rel=1e-6)
    assert trained.temperature == pytest.approx(logged[-1], rel=3e-3)
    checkpoint_encoder(run, batch_size=2).encode(["bal"], "query")  # it is no weight of the encoder


@pytest.mark.slow
def test_without_learning_the_temperature_is_that_of_the_configuration(
    tiny_config: Config, tmp_path: Path
):
    prepared(tiny_config, tmp_path)
    run = train.run(tiny_config).folder
    assert load_trained(run).temperature == tiny_config.loss.temperature
    assert "temperature" not in read_metrics(run)[-1]


def test_run_folder_holds_config_contract_and_checkpoints(tiny_config: Config, tmp_path: Path):
    prepared(tiny_config, tmp_path)
    folder = train.run(tiny_config).folder
    trained = load_trained(folder)
    assert trained.config == tiny_config
    assert trained.step == 6
    assert (folder / "config.yaml").read_text() == to_yaml(tiny_config)
    stored = json.loads((folder / CONTRACT_FILE).read_text())
    assert stored == trained.contract.model_dump()
    assert sorted(path.name for path in (folder / CHECKPOINTS).iterdir()) == ["4", "6"]


def test_a_profile_traces_its_steps_and_records_hold_the_rates(
    tiny_config: Config, tmp_path: Path, capsys
):
    if "libtpu" in Path("/proc/self/maps").read_text():
        pytest.skip("another test has loaded libtpu, with which JAX' profiler crashes without TPU")
    path = prepared(tiny_config, tmp_path)
    windows = ["--set", "train.log_every=3", "--set", "train.save_every=3"]
    train.main(["--config", str(path), *windows, "--profile", "4:2"])
    (trace,) = (tmp_path / "run" / PROFILE).rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    traced = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert traced == ["4", "5"]
    out = capsys.readouterr().out
    assert str(tmp_path / "run" / PROFILE) in out.replace("\n", "")
    assert "mfu is relative to the measured float32 matmul rate of 1 x cpu" in out
    records = read_metrics(tmp_path / "run")
    assert all(record["mfu"] > 0 and record["host_peak_bytes"] > 0 for record in records)
    assert records[0]["compile_s"] > 0
    assert len({record["lists_per_s"] for record in records}) == 2  # of two windows


def test_profiling_beyond_the_run_is_refused_before_anything_is_written(
    tiny_config: Config, tmp_path: Path
):
    path = prepared(tiny_config, tmp_path)
    with pytest.raises(UserError, match=r"--profile 6:2.*has 6 steps"):
        train.main(["--config", str(path), "--profile", "6:2"])
    assert not (tmp_path / "run").exists()


def test_a_missing_wandb_is_refused_before_anything_is_written(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prepared(tiny_config, tmp_path)
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb is not installed"):
        train.run(changed(tiny_config, "train", wandb_project="ranking"))
    assert not (tmp_path / "run").exists()


def test_dry_run_compiles_and_writes_nothing(tiny_config: Config, tmp_path: Path, capsys):
    path = prepared(tiny_config, tmp_path)
    train.main(["--config", str(path), "--dry-run"])
    assert "MiB temporaries" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_resuming_under_another_configuration_names_the_fields(tiny_config: Config, tmp_path: Path):
    prepared(tiny_config, tmp_path)
    train.run(changed(tiny_config, "train", steps=6))
    other = changed(changed(tiny_config, "loss", temperature=0.1), "train", seed=7, log_every=3)
    with pytest.raises(UserError) as caught:
        train.run(other)
    message = str(caught.value)
    assert "loss.temperature: 0.05 there, 0.1 now" in message
    assert "train.seed: 0 there, 7 now" in message
    assert "log_every" not in message


def test_resuming_on_other_lists_is_refused(tiny_config: Config, tmp_path: Path):
    path = prepared(tiny_config, tmp_path)
    train.run(tiny_config)
    subset = tmp_path / "subset.txt"
    subset.write_text("".join(f"q{number}\n" for number in range(12)))
    sources = f"[{{path: {tiny_config.data.sources[0].path}, queries: {subset}}}]"
    prepare.main(["--config", str(path), "--overwrite", "--set", f"data.sources={sources}"])
    with pytest.raises(UserError, match="prepared again with other content"):
        train.run(tiny_config)


def test_a_run_folder_in_use_is_refused(tiny_config: Config, tmp_path: Path):
    prepared(tiny_config, tmp_path)
    with (
        locked(tmp_path / "run", "train.output"),
        pytest.raises(UserError, match=r"in use by process \d+"),
    ):
        train.run(tiny_config)


def test_a_non_finite_loss_stops_and_names_the_window(tiny_config: Config, tmp_path: Path):
    prepared(tiny_config, tmp_path)
    wild = changed(tiny_config, "optimizer", learning_rate=1e30, clip_norm=None)
    wild = changed(wild, "train", log_every=4, save_every=None)
    with pytest.raises(BadUpdateError, match=r"step \d \(window 1 to 4\).*checkpoint"):
        train.run(wild)
    assert not list((tmp_path / "run" / CHECKPOINTS).iterdir())


def test_spikes_are_left_out_within_the_budget(tiny_config: Config, tmp_path: Path):
    prepared(tiny_config, tmp_path)
    # Steady losses, of which some are a little above their mean.
    config = changed(tiny_config, "optimizer", learning_rate=1e-9)
    config = changed(config, "train", steps=40, save_every=None, log_every=8, spike_factor=1.01)
    with pytest.raises(BadUpdateError, match=r"is a spike.*1 bad updates so far.*skip_updates 0"):
        train.run(config)
    # Nothing of the window was saved, so that the run may go on with another budget.
    finished = train.run(changed(config, "train", skip_updates=8))
    records = read_metrics(finished.folder)
    assert [record["step"] for record in records] == list(range(1, 41))
    counts = [record["skipped_updates"] for record in records]
    rate = learning_rate_schedule(config.optimizer, 40)
    assert not any(counts[:32])
    assert 0 < counts[-1] <= 8
    for record, (before, after) in zip(records[1:], pairwise(counts), strict=True):
        assert (record["loss"] > 1.01 * record["loss_mean"]) == (after > before) or after == 0
        # Updates left out do not advance the schedule.
        assert record["learning_rate"] == pytest.approx(float(rate(record["step"] - 1 - before)))


def test_a_run_folder_that_cannot_be_written_is_refused(tiny_config: Config, tmp_path: Path):
    prepared(tiny_config, tmp_path)
    (tmp_path / "file").write_text("")
    config = changed(tiny_config, "train", output=str(tmp_path / "file" / "run"))
    with pytest.raises(UserError, match=r"train.output .*cannot be written"):
        train.run(config)


def test_a_full_disk_is_refused_before_anything_is_compiled(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prepared(tiny_config, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2, 1, 1000))
    with pytest.raises(UserError, match=r"0\.00 GiB free, a checkpoint needs"):
        train.run(tiny_config)


def test_a_damaged_checkpoint_is_passed_over(
    tiny_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    prepared(tiny_config, tmp_path)
    with pytest.raises(Stopped):
        train.run(tiny_config, on_step=stop_at(5))
    before = stream(tmp_path / "run")
    checkpoint = tmp_path / "run" / CHECKPOINTS / "4"
    (checkpoint / "optimizer" / "manifest.ocdbt").unlink()
    resumed = train.run(tiny_config)
    assert f"{checkpoint} is damaged and not used" in caplog.text
    assert stream(resumed.folder)[:5] == before


def test_the_options_of_several_hosts_are_checked(tmp_path: Path):
    config = ["--config", "configs/quickstart.yaml"]
    with pytest.raises(UserError, match="--process-count and --process-index missing"):
        train.main([*config, "--coordinator", "127.0.0.1:1"])
    explicit = ["--coordinator", "127.0.0.1:1", "--process-count", "2", "--process-index", "1"]
    with pytest.raises(UserError, match="give one of them"):
        train.main([*config, "--distributed", *explicit])


def test_shards_of_another_contract_are_refused(tiny_config: Config, tmp_path: Path):
    prepared(tiny_config, tmp_path)
    other = changed(tiny_config, "encoding", passage_length=24)
    with pytest.raises(UserError, match=r"passage_length: 32 in .*lists.*24 in this configuration"):
        train.run(other)


def test_shards_of_another_tokenizer_are_refused(tiny_config: Config, tmp_path: Path):
    prepared(tiny_config, tmp_path)
    other = tmp_path / "model"
    shutil.copytree(tiny_config.model.path, other)
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["vocab"]["extra"] = len(content["model"]["vocab"])
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer_sha256: '\w+' in .*lists"):
        train.run(changed(tiny_config, "model", path=str(other)))


def test_weights_broken_by_the_last_update_are_not_saved(tiny_config: Config, tmp_path: Path):
    prepared(tiny_config, tmp_path)
    wild = changed(tiny_config, "optimizer", learning_rate=3e38, clip_norm=None)
    with pytest.raises(BadUpdateError, match="param_norm"):
        train.run(changed(wild, "train", steps=1, save_every=1))
    assert not list((tmp_path / "run" / CHECKPOINTS).iterdir())


def test_a_batch_the_devices_do_not_divide_is_refused(tiny_config: Config, tmp_path: Path):
    prepared(tiny_config, tmp_path)
    with pytest.raises(UserError, match=r"12 is not divisible by the 8 devices.*8 or 16"):
        train.run(changed(tiny_config, "train", global_batch_size=12))


def test_a_damaged_shard_is_named(tiny_config: Config, tmp_path: Path):
    prepared(tiny_config, tmp_path)
    (shard,) = (tmp_path / "lists").glob("*.tfrecord-*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=shard.name):
        train.run(tiny_config)


@pytest.mark.slow
def test_mixed_precision_keeps_weights_and_loss_in_float32(tiny_config: Config, tmp_path: Path):
    prepared(tiny_config, tmp_path)
    config = changed(tiny_config, "model", compute_dtype="bfloat16")
    finished = train.run(config)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(finished.state.params)}
    assert dtypes == {np.dtype("float32")}
    # Scores are differences of bfloat16 hidden states: 8 bits of mantissa over two layers.
    exact = train.run(changed(tiny_config, "train", output=str(tmp_path / "exact")))
    first, exact_first = read_metrics(finished.folder)[0], read_metrics(exact.folder)[0]
    assert first["loss"] == pytest.approx(exact_first["loss"], rel=0.05)
    assert first["loss"] != exact_first["loss"]


@pytest.mark.slow
def test_kill_9_three_times_equals_an_uninterrupted_run(tiny_config: Config, tmp_path: Path):
    config = changed(tiny_config, "train", save_every=1)
    path = prepared(config, tmp_path)
    whole = train.run(changed(config, "train", output=str(tmp_path / "whole")))
    killed = (
        "import os, signal, sys\n"
        "from synrank_jax import train\n"
        "from synrank_jax.config_file import load_config\n"
        "kill = lambda step: step == int(sys.argv[2]) and os.kill(os.getpid(), signal.SIGKILL)\n"
        "train.run(load_config(sys.argv[1]), on_step=kill)\n"
    )
    for step in (1, 3, 4):
        command = [sys.executable, "-c", killed, str(path), str(step)]
        assert subprocess.run(command, check=False).returncode == -9
    command = [sys.executable, "-m", "synrank_jax.train", "--config", str(path)]
    subprocess.run(command, check=True)
    assert stream(whole.folder) == stream(tmp_path / "run")
    assert_same_weights(whole.folder, tmp_path / "run")
