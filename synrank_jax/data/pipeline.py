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
from typing import NamedTuple

import grain
import numpy as np
from numpy.typing import NDArray

from synrank_jax.contract import EncodingContract
from synrank_jax.data.examples import TokenizedLists, decode_lists
from synrank_jax.data.manifest import read_manifest, read_sizes, shard_paths, verify_shards
from synrank_jax.data.records import TFRecordSource
from synrank_jax.data.tokenize import pad_flat, padded_length
from synrank_jax.errors import UserError
from synrank_jax.types import Batch, Tokens

EXCLUDED_MULTIPLE = 8
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
        self.sizes = read_sizes(self.manifest, self.folder)
        self._records = TFRecordSource(shard_paths(self.manifest, self.folder))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all lists in order; the same however they are cut into shards."""
        return self.manifest.lists_sha256

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
        shard_index: This host's number.
        shard_count: Number of hosts. Host h reads queries [h Q / count, (h + 1) Q / count) of
            every pool, and all hosts pad a step to the same shape.

    Returns:
        Iterator of `Batch` [N, Q / shard_count, ...]; token lengths T are the step's longest text
        rounded up (`padded_length`).

    Raises:
        UserError: the sizes do not divide.
    """
    if global_batch_size % pool_size:
        raise UserError(
            f"train.pool_size: {pool_size} does not divide global_batch_size {global_batch_size}"
        )
    if pool_size % shard_count:
        raise UserError(
            f"train.pool_size: {pool_size} queries do not divide over {shard_count} hosts"
        )
    rows = pool_size // shard_count
    own = slice(shard_index * rows, (shard_index + 1) * rows)
    steps = _Steps(lists, seed, (global_batch_size // pool_size, pool_size), own)
    return iter(grain.MapDataset.source(steps)[start_step:].to_iter_dataset(READ_OPTIONS))


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


def batch_statistics(batch: Batch) -> dict[str, float]:
    """Sizes of a host batch of NumPy arrays.

    Returns:
        `lists`; `passages` that are not masked; real `tokens`; and `padding_share` of all token
        slots, those of masked passages included.
    """
    masks = (batch.query.attention_mask, batch.passage.attention_mask)
    tokens = sum(int(np.count_nonzero(mask)) for mask in masks)
    return {
        "lists": batch.sample_ids.size,
        "passages": int(np.count_nonzero(batch.where)),
        "tokens": tokens,
        "padding_share": 1 - tokens / sum(mask.size for mask in masks),
    }


class _Steps:
    """Step number -> this host's batch, as a grain source. Pure, hence safe in threads."""

    def __init__(self, lists: PreparedLists, seed: int, pools: tuple[int, int], own: slice) -> None:
        self._lists = lists
        self._seed = seed
        self._pools = pools  # N, Q over all hosts
        self._own = own  # this host's queries of every pool

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> Batch:
        manifest = self._lists.manifest
        step_ids = self._step_ids(step)
        # The whole step decides the shape: every host must choose the same one.
        *longest, excluded = self._lists.sizes[step_ids].max(axis=0).tolist()
        sample_ids = step_ids.reshape(self._pools)[:, self._own]
        rows = self._lists.read(sample_ids.ravel().tolist())
        shape = _Shape(
            manifest.data.list_size, *_padded(longest, manifest.contract), _rounded(excluded)
        )
        return _collate(rows, sample_ids, shape)

    def _step_ids(self, step: int) -> NDArray[np.int64]:
        """Record numbers [N Q] of a step over all hosts; epoch e reads draw e % draws."""
        size = self._pools[0] * self._pools[1]
        epochs, places = np.divmod(np.arange(step * size, (step + 1) * size), len(self._lists))
        count, draws = len(self._lists), self._lists.manifest.data.draws
        parts = [
            epoch_order(self._seed, epoch, count)[places[epochs == epoch]] + epoch % draws * count
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
        ]
        return np.concatenate(parts)


class _Shape(NamedTuple):
    """Sizes that all hosts give the arrays of a step."""

    list_size: int
    query_length: int
    passage_length: int
    excluded: int


def _rounded(excluded: int) -> int:
    """A multiple of `EXCLUDED_MULTIPLE`, so that XLA compiles few shapes; 0 stays 0."""
    return -(-excluded // EXCLUDED_MULTIPLE) * EXCLUDED_MULTIPLE


def _padded(longest: list[int], contract: EncodingContract) -> tuple[int, int]:
    query, passage = longest
    return (
        padded_length(query, contract.query_length),
        padded_length(passage, contract.passage_length),
    )


def _spread(
    flat: NDArray[np.int32], counts: NDArray[np.int64], fill: int, width: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Values written one after the other as rows [B, width], and where they have values."""
    where = np.arange(width) < counts[:, None]
    filled = np.full(where.shape, fill, np.int32)
    filled[where] = flat
    return filled, where


def _collate(lists: TokenizedLists, sample_ids: NDArray[np.int64], sizes: _Shape) -> Batch:
    """One batch of B = N Q lists, without a Python loop over passages or tokens."""
    list_size, query_length, passage_length, width = sizes
    grades, where = _spread(lists.grades, lists.list_sizes, 0, list_size)
    passage_lengths, _ = _spread(lists.passage_lengths, lists.list_sizes, 0, list_size)
    passage_ids, _ = _spread(lists.passage_numbers, lists.list_sizes, -1, list_size)
    excluded_ids, _ = _spread(lists.excluded_numbers, lists.excluded_counts, -1, width)

    query = pad_flat(lists.query_tokens, lists.query_lengths, query_length)
    passage = pad_flat(lists.passage_tokens, passage_lengths.ravel(), passage_length)
    shape = sample_ids.shape
    return Batch(
        query=Tokens(*(array.reshape(*shape, query_length) for array in query)),
        passage=Tokens(*(array.reshape(*shape, list_size, passage_length) for array in passage)),
        labels=grades.astype(np.float32).reshape(*shape, list_size),
        where=where.reshape(*shape, list_size),
        passage_ids=passage_ids.reshape(*shape, list_size),
        excluded_ids=excluded_ids.reshape(*shape, width),
        sample_ids=sample_ids.astype(np.int32),
    )
