"""Prepared lists to batches: which lists a step sees is a pure function of (seed, step).

Row r of step s stands at position s * global_batch_size + r of an endless sequence of epochs, each
a permutation of all lists that only (seed, epoch) decide; batches run across the border of two
epochs. Starting at step k therefore continues the stream exactly, on any number of hosts. Grain
reads ahead in background threads.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from numpy.typing import NDArray

from synrank_jax.data.examples import TokenizedLists, decode_lists
from synrank_jax.data.manifest import read_manifest, read_sizes, shard_paths, verify_shards
from synrank_jax.data.packing import RowShape, RowShapes, needs, pack
from synrank_jax.data.records import TFRecordSource
from synrank_jax.errors import UserError
from synrank_jax.types import Batch, PackedTexts

# Shapes are chosen for so many lists from the first step on: an epoch or more of most sets and all
# of a small run, in half a second.
SAMPLED_LISTS = 2**19
SAMPLED_EPOCHS = 64
CHUNK = 2**15
# Decoding holds the interpreter lock for a third of its time. On two cores a second thread made
# reading a quarter slower (benchmarks/data.py), so it would only take time from training.
READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


class PreparedLists:
    """The lists of a prepared folder."""

    def __init__(self, folder: Path) -> None:
        """Open and verify the folder.

        Raises:
            UserError: the folder is not prepared or damaged (`verify_shards`).
        """
        self.folder = folder.expanduser()
        self.manifest = read_manifest(self.folder)
        verify_shards(self.manifest, self.folder)
        self._sizes = read_sizes(self.manifest, self.folder)
        self._records = TFRecordSource(shard_paths(self.manifest, self.folder))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all lists in order; the same however they are cut into shards."""
        return self.manifest.lists_sha256

    def lengths(self, indices: NDArray[np.int64]) -> NDArray[np.int32]:
        """Tokens [..., 1 + L] of the query and the passages of records, 0 where there is none."""
        lengths: NDArray[np.int32] = self._sizes[indices, 1:]
        return lengths

    def most_excluded(self) -> int:
        """The largest number of excluded documents of a record."""
        return int(self._sizes[:, 0].max())

    def __len__(self) -> int:
        """Lists of one draw, which are the lists of an epoch."""
        return self.manifest.lists

    def read(self, indices: Sequence[int]) -> TokenizedLists:
        """Records of all draws by number, in the order of `indices`.

        Raises:
            UserError: a record is damaged; names shard and byte offset.
            IndexError: no such record.
        """
        return decode_lists([self._records[index] for index in indices])


def batches(
    lists: PreparedLists,
    *,
    seed: int,
    global_batch_size: int,
    pool_size: int,
    start_step: int = 0,
    rows: int = 1,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """The endless stream of this host's batches, read ahead by background threads.

    Args:
        lists: The prepared set.
        seed: Seeds the order.
        global_batch_size: Queries per step over all hosts: N pools of Q = `pool_size` queries.
        pool_size: Divides `global_batch_size`.
        start_step: Step of the first batch.
        rows: Packed rows R of a pool over all hosts, such as the number of devices; divides
            `pool_size`.
        shard_index: This host's number.
        shard_count: Number of hosts; divides `rows`. Host h reads queries
            [h Q / count, (h + 1) Q / count) of every pool, and all hosts give a step one shape.

    Returns:
        Iterator of `Batch` [N, Q / shard_count, ...]. Shapes are those of `RowShapes`.

    Raises:
        UserError: the sizes do not divide.
    """
    if global_batch_size % pool_size:
        raise UserError(
            f"train.pool_size: {pool_size} does not divide global_batch_size {global_batch_size}"
        )
    if pool_size % rows or rows % shard_count:
        raise UserError(
            f"train.pool_size: {pool_size} queries do not divide into {rows} rows over "
            f"{shard_count} hosts"
        )
    pools = _Pools(global_batch_size // pool_size, pool_size, rows, shard_index, shard_count)
    steps = _Steps(lists, seed, pools)
    return iter(grain.MapDataset.source(steps)[start_step:].to_iter_dataset(READ_OPTIONS))


def longest_rows(
    lists: PreparedLists, *, seed: int, global_batch_size: int, pool_size: int, rows: int
) -> RowShape:
    """The largest shape that `batches` of the same arguments gives its rows."""
    pools = _Pools(global_batch_size // pool_size, pool_size, rows, 0, 1)
    return _Steps(lists, seed, pools).shapes.longest()


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, lists: int) -> NDArray[np.int64]:
    """The permutation [lists] of an epoch, a pure function of its arguments.

    Sorting a counter-based generator's raw bits keeps it the same in every NumPy version, which
    promises that for bit generators but not for `Generator.permutation`. (Grain's index shuffle
    took 190 us per list in a set of 137, longer than reading the list.)
    """
    bits = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)).random_raw(lists)
    order = np.argsort(bits, kind="stable")
    order.flags.writeable = False  # shared by all callers
    return order


class _Pools(NamedTuple):
    """How a step is cut: N pools of Q queries in R rows, and which of them this host has."""

    pools: int
    queries: int
    rows: int
    shard_index: int
    shard_count: int

    def own(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """This host's [N, Q / hosts] of a step's ids [N Q]."""
        share = self.queries // self.shard_count
        own = slice(self.shard_index * share, (self.shard_index + 1) * share)
        return ids.reshape(self.pools, self.queries)[:, own]


class _Steps:
    """Step number -> this host's batch, as a grain source. Pure, hence safe in threads."""

    def __init__(self, lists: PreparedLists, seed: int, pools: _Pools) -> None:
        self._lists = lists
        self._seed = seed
        self._pools = pools
        contract = lists.manifest.contract
        longest = max(contract.query_length, contract.passage_length)
        self._list_size = lists.manifest.data.list_size
        self._excluded = lists.most_excluded()
        self.shapes = RowShapes(self._sampled_needs(), longest)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> Batch:
        ids = self._ids(step, 1)
        # The whole step decides the shapes: every host must choose the same ones.
        shape = self.shapes.of(self._needs(ids)[0])
        own = self._pools.own(ids)
        rows = self._pools.rows // self._pools.shard_count * self._pools.pools
        lists = self._lists.read(own.ravel().tolist())
        return _collate(lists, own, rows, shape, self._list_size, self._excluded)

    def _ids(self, first: int, steps: int) -> NDArray[np.int64]:
        """Record numbers [steps, N Q] over all hosts; epoch e reads draw e % draws."""
        size, lists = self._pools.pools * self._pools.queries, len(self._lists)
        place, end = first * size, (first + steps) * size
        parts = []
        while place < end:
            epoch, start = divmod(place, lists)
            part = epoch_order(self._seed, epoch, lists)[start : start + end - place]
            parts.append(part + epoch % self._lists.manifest.data.draws * lists)
            place += len(part)
        return np.concatenate(parts).reshape(steps, size)

    def _needs(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """[steps, 1 + G]: what the largest row of steps with these ids [steps, N Q] needs."""
        rows = self._pools.pools * self._pools.rows
        lengths = self._lists.lengths(ids).reshape(len(ids), rows, -1)
        of_steps: NDArray[np.int64] = needs(lengths).max(axis=1)
        return of_steps

    def _sampled_needs(self) -> NDArray[np.int64]:
        """What the first steps need, whatever step this run starts at."""
        size = self._pools.pools * self._pools.queries
        sampled = min(SAMPLED_LISTS, SAMPLED_EPOCHS * len(self._lists))
        steps, chunk = max(sampled // size, 1), max(CHUNK // size, 1)
        firsts = range(0, steps, chunk)
        return np.concatenate([self._needs(self._ids(first, chunk)) for first in firsts])


def _spread(
    flat: NDArray[np.int32], counts: NDArray[np.int64], fill: int, width: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Values written one after the other as rows [B, width], and where they have values."""
    where = np.arange(width) < counts[:, None]
    filled = np.full(where.shape, fill, np.int32)
    filled[where] = flat
    return filled, where


def _collate(
    lists: TokenizedLists,
    sample_ids: NDArray[np.int64],
    rows: int,
    shape: RowShape,
    list_size: int,
    excluded: int,
) -> Batch:
    """One batch of B = N Q lists, without a Python loop over passages or tokens."""
    grades, where = _spread(lists.grades, lists.list_sizes, 0, list_size)
    passage_lengths, _ = _spread(lists.passage_lengths, lists.list_sizes, 0, list_size)
    passage_ids, _ = _spread(lists.passage_numbers, lists.list_sizes, -1, list_size)
    excluded_ids, _ = _spread(lists.excluded_numbers, lists.excluded_counts, -1, excluded)
    starts = np.column_stack(
        [
            _starts(lists.query_lengths),
            len(lists.query_tokens) + _starts(passage_lengths.ravel()).reshape(-1, list_size),
        ]
    )
    packed = pack(
        np.concatenate([lists.query_tokens, lists.passage_tokens]),
        starts.reshape(rows, -1),
        np.column_stack([lists.query_lengths, passage_lengths]).reshape(rows, -1),
        shape,
    )
    pools, queries = sample_ids.shape

    def by_row(array: NDArray[Any]) -> NDArray[Any]:
        return array.reshape(pools, rows // pools, *array.shape[1:])

    return Batch(
        texts=PackedTexts(
            input_ids=by_row(packed.input_ids),
            positions=by_row(packed.positions),
            segment_ids=by_row(packed.segment_ids),
            blocks=tuple(map(by_row, packed.blocks)),
            places=by_row(packed.places),
        ),
        labels=grades.astype(np.float32).reshape(pools, queries, list_size),
        where=where.reshape(pools, queries, list_size),
        passage_ids=passage_ids.reshape(pools, queries, list_size),
        excluded_ids=excluded_ids.reshape(pools, queries, excluded),
        sample_ids=sample_ids.astype(np.int32),
    )


def _starts(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    starts: NDArray[np.int64] = np.cumsum(lengths, dtype=np.int64) - lengths
    return starts
