"""Preparing with Apache Beam, in the environment that `make test-interop` makes for it."""

import pickle

import pytest

from synrank_jax.data.beam import write_with_beam
from synrank_jax.data.shards import finished, write_shard
from synrank_jax.errors import UserError

pytest.importorskip("apache_beam", reason="Apache Beam is not installed: make test-interop")

# Beam's alias of it, DirectRunner, downloads another runner first where it can.
LOCAL = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
# Beside its tokenizer: paths and settings, but no texts.
SMALL_BYTES = 10_000


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("options", [(), PROCESSES], ids=["threads", "processes"])
def test_beam_writes_the_same_bytes(prepared, options):
    expected = contents(prepared("local"))
    assert len(expected) == 4 + 4  # shards; sizes, manifest and the two files of TFDS
    folder = prepared(f"beam{len(options)}", "--runner", LOCAL, "--", *options)
    assert contents(folder) == expected


def test_draws_of_a_mixture_are_the_same(prepared_mixture):
    expected = contents(prepared_mixture("local-mixture"))
    assert len(expected) == 7 + 4
    assert contents(prepared_mixture("beam-mixture", "--runner", LOCAL)) == expected


def test_beam_goes_on_at_the_missing_shards(prepared, planned):
    job = planned("cut-off")
    for shard in (0, 2):
        write_shard(job, shard)
    written = {path: path.stat().st_mtime_ns for path in job.folder.glob("*.tfrecord-*")}
    assert len(written) == 2
    expected = contents(prepared("whole"))
    write_with_beam(job, LOCAL)
    assert all(path.stat().st_mtime_ns == at for path, at in written.items())
    assert contents(job.folder) == expected


def test_what_travels_to_the_workers_is_small(planned):
    job = planned("small")
    assert len(pickle.dumps(job._replace(tokenizer=None))) < SMALL_BYTES
    assert write_shard(pickle.loads(pickle.dumps(job)), 1) == finished(job, 1)


@pytest.mark.parametrize("options", [(), PROCESSES], ids=["threads", "processes"])
def test_what_a_worker_refuses_is_one_message(planned, tmp_path, options):
    job = planned("refused")._replace(folder=tmp_path / "gone")
    with pytest.raises(UserError) as error:
        write_with_beam(job, LOCAL, options)
    assert str(error.value).startswith(f"--runner {LOCAL}: ")
    assert "cannot be written (No such file or directory)" in str(error.value)
    assert "\n" not in str(error.value)


def test_shards_written_elsewhere_are_missed(planned, tmp_path, monkeypatch):
    job = planned("missed")
    monkeypatch.setattr("synrank_jax.data.beam.write_shard", lambda job, shard: None)
    with pytest.raises(UserError, match="shard 0 is not here; the workers must see this folder"):
        write_with_beam(job, LOCAL)


def test_an_unknown_runner_is_refused_with_those_there_are(planned):
    with pytest.raises(UserError, match=r"--runner FlinkRuner: .*FlinkRunner"):
        write_with_beam(planned("unknown"), "FlinkRuner")
