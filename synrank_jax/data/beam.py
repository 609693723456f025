"""The shards of a prepared folder, written by an Apache Beam pipeline instead of local processes.

The pipeline maps `shards.write_shard` over the shard numbers. Its workers need this package, with
its extra `beam`, and data.prepared under the same path, on a file system that they share with this
machine; the job that travels to them holds no text. What one machine does for all shards together,
ingesting the sources before and hashing the lists after, stays here.
"""

import os
from collections.abc import Sequence
from typing import Any

from synrank_jax.data.manifest import Manifest
from synrank_jax.data.prepared import finish, start
from synrank_jax.data.shards import Job, finished, write_shard
from synrank_jax.errors import UserError


def write_with_beam(job: Job, runner: str, options: Sequence[str] = ()) -> Manifest:
    """As `prepared.write_prepared`, and the same bytes, with a Beam runner.

    Args:
        job: Of `make_job`; its folder is absolute.
        runner: Beam's name of the runner (`DirectRunner`, `FlinkRunner`, ...), or a class path.
        options: Beam's own command line, such as `--parallelism=8`.

    Raises:
        UserError: Beam is not installed, or the pipeline fails; bad input; a shard is not to be
            seen here afterwards; the folder cannot be written, or the disk is full.
    """
    beam, pipeline_options = _import_beam()
    done = start(job)
    todo = [shard for shard in range(job.recipe.data.shards) if shard not in done]
    if todo:
        try:
            pipeline = beam.Pipeline(runner, pipeline_options(list(options)))
            # The shuffle lets a runner spread the shards over its workers.
            shards = pipeline | "shard numbers" >> beam.Create(todo) | "spread" >> beam.Reshuffle()
            shards | "write" >> beam.Map(_write, job)
            pipeline.run().wait_until_finish()
        except Exception as error:  # of any type, with a worker's traceback as its text
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"--runner {runner}: {reason[-1]}") from error
    for shard in todo:
        stamp = finished(job, shard)
        if stamp is None:
            raise UserError(
                f"data.prepared {job.folder}: the pipeline has ended, but shard {shard} is not "
                "here; the workers must see this folder under the same path"
            )
        done[shard] = stamp
    return finish(job, done)


def _write(shard: int, job: Job) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    write_shard(job, shard)


def _import_beam() -> tuple[Any, Any]:
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            "--runner: Apache Beam is not installed; it needs older releases than "
            "requirements.lock has, so make it an environment of its own: python -m venv "
            ".venv-beam && .venv-beam/bin/pip install 'synrank-jax[beam]'"
        ) from error
    return apache_beam, PipelineOptions
