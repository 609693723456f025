"""From the mixture to a prepared folder: shards by a pool of processes, sizes and the manifest.

The unit of work is a shard (`shards.write_shard`). The manifest is made from the shards' stamps,
last, so a preparation that was cut off goes on at the missing shards.
"""

import hashlib
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from synrank_jax.data.contexts import Mixture
from synrank_jax.data.manifest import MANIFEST_FILE, Manifest, Recipe, TokenCounts
from synrank_jax.data.records import TFRecordSource
from synrank_jax.data.shards import Job, ShardStamp, finished, stamp_file, write_shard, write_sizes
from synrank_jax.data.sources import Cache
from synrank_jax.data.survey import Plan, write_plan
from synrank_jax.data.tfds_metadata import FEATURES_FILE, INFO_FILE, write_tfds_metadata
from synrank_jax.errors import UserError
from synrank_jax.files import atomic_write

INGEST_FOLDER = ".ingest"
SIZES_NAME = "lists-train.sizes.npy"
# Everything this module ever writes into the folder but the ingested sources, temporary files of a
# killed run included.
DESCRIPTIONS = (MANIFEST_FILE, INFO_FILE, FEATURES_FILE)
OUR_FILES = (
    *(*DESCRIPTIONS, "lists-train.*"),
    *(f".{name}.*.tmp" for name in (*DESCRIPTIONS, "lists-train")),
)


def make_job(recipe: Recipe, tokenizer: Tokenizer, folder: Path) -> Job:
    """Ingest the sources under `folder` and survey the lists.

    Args:
        recipe: Of the configuration.
        tokenizer: The tokenizer of the contract (`contract.load_tokenizer`).
        folder: data.prepared; made if missing.

    Raises:
        UserError: bad input; the folder cannot be written, or the disk is full.
    """
    _make_folder(folder)
    cache = Cache(folder / INGEST_FOLDER)
    mixture = Mixture(recipe.data, cache)
    plan = cache.get("plan", recipe.lists_fingerprint(), lambda new: write_plan(new, mixture))
    cache.prune()
    return Job(recipe, tokenizer, mixture, plan, folder)


def write_prepared(
    job: Job,
    *,
    workers: int = 1,
    on_progress: Callable[[int], object] = lambda lists: None,
) -> Manifest:
    """Write the shards that are not there yet, the sizes and, last, the manifest.

    Our files of other recipes in the folder are removed first. Record d * lists + i of the shards,
    taken in order, is draw d of the plan's entry i; equal input gives equal bytes.

    Args:
        job: Of `make_job`.
        workers: Processes, each with one thread; 1: this process, with the tokenizer's threads.
        on_progress: Called with the number of lists just written or found.

    Raises:
        UserError: bad input; the folder cannot be written, or the disk is full.
    """
    done = start(job)
    on_progress(sum(stamp.shard.records for stamp in done.values()))
    todo = [shard for shard in range(job.recipe.data.shards) if shard not in done]
    if min(workers, len(todo)) > 1:
        for shard, stamp in _in_processes(job, todo, workers):
            done[shard] = stamp
            on_progress(stamp.shard.records)
    else:
        for shard in todo:
            done[shard] = write_shard(job, shard, on_progress)
    return finish(job, done)


def start(job: Job) -> dict[int, ShardStamp]:
    """Remove our files of other recipes; the shards that are finished stay and are returned.

    Raises:
        UserError: the folder cannot be written.
    """
    shards = range(job.recipe.data.shards)
    done = {shard: stamp for shard in shards if (stamp := finished(job, shard))}
    _clear(job, done)
    return done


def _in_processes(job: Job, shards: list[int], workers: int) -> Iterator[tuple[int, ShardStamp]]:
    """Shards and their stamps, as they are finished by a pool of processes."""
    # Not forked from here, where the tokenizer or JAX may have started threads, but from a server
    # process that has done the imports, once for all workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(min(workers, len(shards)), context, _start_worker, (job,))
    try:
        futures = {pool.submit(_work, shard): shard for shard in shards}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process ended before its shard was written, perhaps killed for memory; run "
            "prepare again to go on, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_JOB: list[Job] = []  # of a worker process


def _start_worker(job: Job) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _JOB[:] = [job]


def _work(shard: int) -> ShardStamp:
    return write_shard(_JOB[0], shard)


def finish(job: Job, done: Mapping[int, ShardStamp]) -> Manifest:
    """Write the sizes, the descriptions and the manifest of all shards, and remove the stamps.

    Raises:
        UserError: a shard is damaged; the folder cannot be written, or the disk is full.
    """
    folder, stamps = job.folder, [done[shard] for shard in sorted(done)]
    parts = [np.load(folder / stamp.sizes.name, allow_pickle=False) for stamp in stamps]
    plan = Plan(job.plan, job.mixture)
    manifest = Manifest(
        **dict(job.recipe),
        lists=len(plan.entries),
        lists_sha256=_lists_sha256([folder / stamp.shard.name for stamp in stamps]),
        documents=plan.tally.documents,
        grade_counts=_sum(stamp.grade_counts for stamp in stamps),
        size_counts=_sum(stamp.size_counts for stamp in stamps),
        query_tokens=_total(stamp.query_tokens for stamp in stamps),
        passage_tokens=_total(stamp.passage_tokens for stamp in stamps),
        sizes=write_sizes(folder, SIZES_NAME, np.concatenate(parts)),
        shards=tuple(stamp.shard for stamp in stamps),
    )
    write_tfds_metadata(folder, manifest.shards)
    with atomic_write(folder / MANIFEST_FILE) as file:
        file.write(manifest.model_dump_json(indent=2).encode() + b"\n")
    for shard, stamp in done.items():
        (folder / stamp.sizes.name).unlink()
        stamp_file(job, shard).unlink()
    return manifest


def _lists_sha256(shards: list[Path]) -> str:
    """Hash of all records in order; reads the shards once more, so it also checks them."""
    digest = hashlib.sha256()
    for path in shards:
        records = TFRecordSource([path])
        for index in range(len(records)):
            digest.update(records[index])
    return digest.hexdigest()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, error) from error


def _clear(job: Job, done: dict[int, ShardStamp]) -> None:
    """Remove what earlier preparations wrote, the manifest first, but not the finished shards."""
    kept = {
        name
        for shard, stamp in done.items()
        for name in (
            stamp.shard.name,
            stamp.sizes.name,
            stamp_file(job, shard).name,
        )
    }
    try:
        for pattern in OUR_FILES:
            for path in sorted(job.folder.glob(pattern)):
                if path.name not in kept:
                    path.unlink()
    except OSError as error:
        raise _not_writable(job.folder, error) from error


def _not_writable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"data.prepared {folder}: cannot be written ({error.strerror}); choose another folder"
    )


def _total(counts: Iterable[TokenCounts]) -> TokenCounts:
    total = TokenCounts(texts=0, tokens=0, longest=0, truncated=0)
    for count in counts:
        total = total.plus(count)
    return total


def _sum(counts: Iterable[dict[int, int]]) -> dict[int, int]:
    total: Counter[int] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
