"""Reading: order, resuming, hosts, padding and masking."""

import itertools
import pickle

import numpy as np
import pytest
from example_contexts import make_contexts

from synrank_jax.data import manifest as manifest_module
from synrank_jax.data.pipeline import PreparedLists, batches, epoch_order
from synrank_jax.errors import UserError

LISTS = 23


@pytest.fixture
def lists(prepare):
    return PreparedLists(prepare(LISTS)[0])


def stream(lists, steps, **options):
    options = {"seed": 3, "global_batch_size": 8, "pool_size": 4, "rows": 4} | options
    return list(itertools.islice(batches(lists, **options), steps))


def leaves(batch):
    return [*batch.texts[:3], *batch.texts.blocks, batch.texts.places, *batch[1:]]


def text_tokens(batch, pool, row, text, texts_per_list=5):
    """Token ids of text number `text` (0: the query) of a list, found as the model finds it."""
    rows = batch.texts.places.shape[1]
    lists = batch.sample_ids.shape[1] // rows
    at = (pool, row // lists)
    segment = batch.texts.places[at][row % lists * texts_per_list + text]
    return batch.texts.input_ids[at][batch.texts.segment_ids[at] == segment].tolist()


def assert_equal(left, right):
    for a, b in zip(leaves(left), leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def test_excluded_documents_reach_the_batch_by_number_and_hosts_agree_on_the_width(prepare):
    contexts = make_contexts(8)
    others = tuple(p.doc_id for p in contexts[2].passages)
    contexts[5] = contexts[5]._replace(excluded=(*others, "of-no-list"))
    lists = PreparedLists(prepare(contexts)[0])
    (batch,) = stream(lists, 1)
    numbers = lists.read([2]).passage_numbers.tolist()
    width = len(numbers)
    assert batch.excluded_ids.shape == (2, 4, width)
    for sample, excluded in zip(
        batch.sample_ids.ravel(), batch.excluded_ids.reshape(8, width), strict=True
    ):
        assert excluded.tolist() == (numbers if sample == 5 else [-1] * width)
    for host in range(2):
        (part,) = stream(lists, 1, shard_index=host, shard_count=2)
        rows = slice(2 * host, 2 * host + 2)
        np.testing.assert_array_equal(part.excluded_ids, batch.excluded_ids[:, rows])


def test_an_epoch_order_is_a_permutation_that_seed_and_epoch_change():
    orders = [epoch_order(seed, epoch, 50).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(map(tuple, orders))) == 4


def test_an_epoch_order_never_changes():
    # Pinned: a change would silently reorder the data of every resumed run.
    assert epoch_order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]


def test_every_place_of_a_list_is_equally_likely():
    # 4,000 permutations of 4: each of the 16 counts is binomial(4000, 1/4), sigma 27; 5 sigma.
    places = np.array([epoch_order(seed, 0, 4) for seed in range(4000)])
    counts = np.array([np.bincount(column, minlength=4) for column in places.T])
    assert np.abs(counts - 1000).max() < 5 * 27.4


def test_every_epoch_sees_every_list_once_though_batches_cross_its_border(lists):
    ids = np.concatenate([batch.sample_ids.ravel() for batch in stream(lists, LISTS)])
    epochs = ids.reshape(8, LISTS)  # 23 steps of 8 lists are 8 epochs of 23
    assert all(sorted(epoch) == list(range(LISTS)) for epoch in epochs.tolist())
    assert len(set(map(tuple, epochs.tolist()))) == 8


def test_epoch_e_reads_draw_e_modulo_the_draws(prepare):
    lists = PreparedLists(prepare(LISTS, draws=2, take={"random_k": 1})[0])
    assert len(lists) == LISTS
    ids = np.concatenate([batch.sample_ids.ravel() for batch in stream(lists, LISTS)])
    epochs = ids.reshape(8, LISTS)
    for epoch, samples in enumerate(epochs):
        assert sorted(samples) == [epoch % 2 * LISTS + i for i in range(LISTS)]


def test_a_batch_larger_than_the_set_spans_epochs(lists):
    (batch,) = stream(lists, 1, global_batch_size=64, pool_size=64, rows=1)
    assert np.bincount(batch.sample_ids.ravel()).tolist() in [
        [3 if i in late else 2 for i in range(LISTS)]
        for late in [set(epoch_order(3, 2, LISTS)[: 64 - 2 * LISTS].tolist())]
    ]


def test_the_stream_depends_on_the_seed_alone(lists):
    for left, right in zip(stream(lists, 6), stream(lists, 6), strict=True):
        assert_equal(left, right)
    assert (
        stream(lists, 1)[0].sample_ids.tolist() != stream(lists, 1, seed=4)[0].sample_ids.tolist()
    )


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_starting_at_a_step_continues_the_stream(lists, step):
    for left, right in zip(
        stream(lists, 9)[step:], stream(lists, 9 - step, start_step=step), strict=True
    ):
        assert_equal(left, right)


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_hosts_rows_together_are_the_one_host_batch(lists, hosts):
    parts = [stream(lists, 5, shard_index=h, shard_count=hosts) for h in range(hosts)]
    for whole, *shares in zip(stream(lists, 5), *parts, strict=True):
        for expected, *pieces in zip(leaves(whole), *map(leaves, shares), strict=True):
            assert pieces[0].shape[1] == 4 // hosts  # of 4 queries in 4 rows
            np.testing.assert_array_equal(np.concatenate(pieces, axis=1), expected)


@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_stopping_on_some_hosts_and_resuming_on_others_reads_the_same(lists, before, after):
    """Every step has its lists, and where the number of hosts is equal every host its own order."""

    def on(hosts, first, steps):
        streams = [
            stream(lists, steps, start_step=first, shard_index=host, shard_count=hosts)
            for host in range(hosts)
        ]
        return [
            [batch.sample_ids.tolist() for batch in of_step]
            for of_step in zip(*streams, strict=True)
        ]

    whole = on(before, 0, 7)
    for stop in range(1, 7):
        resumed = on(before, 0, stop) + on(after, stop, 7 - stop)
        for step, expected in zip(resumed, whole, strict=True):
            assert sorted(np.ravel(step)) == sorted(np.ravel(expected))
        if before == after:
            assert resumed == whole


def test_a_host_reads_only_its_own_records(lists, monkeypatch):
    read = []
    read_lists = PreparedLists.read
    monkeypatch.setattr(
        PreparedLists, "read", lambda self, ids: read.extend(ids) or read_lists(self, ids)
    )
    source = batches(
        lists, seed=3, global_batch_size=8, pool_size=4, rows=4, shard_index=1, shard_count=2
    )
    batch = next(source)
    source.close()
    assert (
        batch.sample_ids.ravel().tolist() == stream(lists, 1)[0].sample_ids[:, 2:].ravel().tolist()
    )
    assert set(batch.sample_ids.ravel().tolist()) <= set(read)
    assert len(read) % 4 == 0  # whole steps of 2 pools x 2 rows, read ahead


def test_every_row_holds_its_list(lists, word_tokenizer, contract):
    contexts = make_contexts(LISTS)
    for batch in stream(lists, 3):
        assert batch.labels.dtype == np.float32
        assert {batch.passage_ids.dtype, batch.sample_ids.dtype} == {np.dtype(np.int32)}
        for pool, row in np.ndindex(batch.sample_ids.shape):
            context = contexts[batch.sample_ids[pool, row]]
            n = len(context.passages)
            at = (pool, row)
            assert batch.where[at].tolist() == [True] * n + [False] * (4 - n)
            assert batch.labels[at].tolist() == [p.grade for p in context.passages] + [0] * (4 - n)
            expected = word_tokenizer.encode(contract.query_prompt + context.query).ids
            assert text_tokens(batch, pool, row, 0) == expected
            for place, passage in enumerate(context.passages):
                expected = word_tokenizer.encode(passage.text).ids
                assert text_tokens(batch, pool, row, 1 + place) == expected
            for place in range(n, 4):
                assert text_tokens(batch, pool, row, 1 + place) == []


def test_a_short_list_is_masked_and_never_filled_by_repetition(lists):
    for batch in stream(lists, 3):
        absent = ~batch.where
        assert absent.any()
        assert (batch.passage_ids[absent] == -1).all()
        assert (batch.labels[absent] == 0).all()
        assert (batch.passage_ids[batch.where] >= 0).all()


def test_passage_ids_are_equal_exactly_for_equal_documents(lists):
    contexts = make_contexts(LISTS)
    for batch in stream(lists, 3):
        documents = [
            passage.doc_id
            for sample in batch.sample_ids.ravel()
            for passage in contexts[sample].passages
        ]
        numbers = batch.passage_ids[batch.where].tolist()
        pairs = set(zip(documents, numbers, strict=True))
        assert len(set(documents)) < len(documents)
        assert len(pairs) == len(set(documents)) == len(set(numbers))


def test_a_step_has_the_same_shape_whatever_step_the_run_starts_at(lists):
    options = {"global_batch_size": 2, "pool_size": 2, "rows": 1}
    for left, right in zip(
        stream(lists, 9, **options)[7:], stream(lists, 2, start_step=7, **options), strict=True
    ):
        assert [a.shape for a in leaves(left)] == [a.shape for a in leaves(right)]


def test_rows_hold_the_lists_of_their_pool_in_order(lists):
    """However many rows, the texts of list i of a pool are in row i // (Q / R)."""
    one, two = (stream(lists, 3, rows=rows) for rows in (1, 2))
    for narrow, wide in zip(one, two, strict=True):
        assert narrow.texts.places.shape == (2, 1, 20)
        assert wide.texts.places.shape == (2, 2, 10)
        for pool, row, text in np.ndindex(2, 4, 5):
            assert text_tokens(narrow, pool, row, text) == text_tokens(wide, pool, row, text)


def test_prepared_lists_can_be_pickled(lists):
    copy = pickle.loads(pickle.dumps(lists))
    assert len(copy) == LISTS
    assert_equal(stream(copy, 1)[0], stream(lists, 1)[0])


def test_sizes_that_do_not_divide_are_refused(lists):
    with pytest.raises(UserError, match=r"train\.pool_size: 3 does not divide global_batch_size 8"):
        batches(lists, seed=0, global_batch_size=8, pool_size=3)
    with pytest.raises(UserError, match="4 queries do not divide into 4 rows over 3 hosts"):
        batches(lists, seed=0, global_batch_size=8, pool_size=4, rows=4, shard_count=3)


def test_a_record_damaged_after_opening_stops_the_stream_with_shard_and_offset(
    prepare, monkeypatch
):
    folder, manifest = prepare(LISTS, shards=1)
    path = folder / manifest.shards[0].name
    damaged = bytearray(path.read_bytes())
    damaged[20] ^= 4
    path.write_bytes(damaged)
    monkeypatch.setattr(manifest_module, "CHECKSUM_LIMIT_BYTES", 0)
    lists = PreparedLists(folder)
    with pytest.raises(UserError, match=f"{path.name}: byte 0: the record's checksum"):
        stream(lists, 5)


def test_a_damaged_set_is_refused_at_opening(prepare):
    folder, manifest = prepare()
    path = folder / manifest.shards[2].name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=f"{path.name}: byte "):
        PreparedLists(folder)
