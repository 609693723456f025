"""Writing and verifying a prepared folder."""

import itertools
import json
import os
import pickle
from collections import Counter

import pytest
from example_contexts import make_contexts

from synrank_jax.data import manifest as manifest_module
from synrank_jax.data import shards as shards_module
from synrank_jax.data.examples import decode_ids, decode_lists
from synrank_jax.data.manifest import (
    Recipe,
    read_manifest,
    read_sizes,
    shard_paths,
    verify_shards,
)
from synrank_jax.data.prepared import finish, start, write_prepared
from synrank_jax.data.records import TFRecordSource
from synrank_jax.data.shards import write_shard
from synrank_jax.errors import UserError


def records_of(folder, manifest):
    source = TFRecordSource(shard_paths(manifest, folder))
    return [source[index] for index in range(len(source))]


def test_record_i_is_list_i(prepare):
    folder, manifest = prepare()
    contexts = make_contexts(23)
    records = records_of(folder, manifest)
    for record, context in zip(records, contexts, strict=True):
        doc_ids = [passage.doc_id for passage in context.passages]
        assert decode_ids(record) == (context.query_id, doc_ids)
        assert decode_lists([record]).grades.tolist() == [p.grade for p in context.passages]
        words = [len(p.text.split()) for p in context.passages]
        assert decode_lists([record]).passage_lengths.tolist() == [n + 2 for n in words]
        assert decode_lists([record]).query_tokens[:2].tolist() == [1, 502]  # [CLS] and the prompt


def test_equal_documents_have_equal_numbers_over_all_shards(prepare):
    folder, manifest = prepare()
    pairs = set()
    for record in records_of(folder, manifest):
        pairs |= set(
            zip(decode_ids(record)[1], decode_lists([record]).passage_numbers.tolist(), strict=True)
        )
    assert (
        len(pairs) == len({doc for doc, _ in pairs}) == len({number for _, number in pairs}) == 11
    )
    assert manifest.documents == 11


def test_the_manifest_counts_what_was_written(prepare):
    folder, manifest = prepare()
    contexts = make_contexts(23)
    passages = [passage for context in contexts for passage in context.passages]
    assert manifest == read_manifest(folder)
    assert manifest.lists == 23
    assert manifest.grade_counts == Counter(passage.grade for passage in passages)
    assert manifest.size_counts == {1: 6, 2: 6, 3: 6, 4: 5}
    assert manifest.query_tokens.model_dump() == {
        "texts": 23,
        "tokens": 23 * 5,
        "longest": 5,
        "truncated": 0,
    }
    lengths = [len(passage.text.split()) + 2 for passage in passages]
    assert manifest.passage_tokens.model_dump() == {
        "texts": len(passages),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "truncated": 0,
    }
    sizes = [[len(p.text.split()) + 2 for p in context.passages] for context in contexts]
    assert read_sizes(manifest, folder).tolist() == [
        [0, 5, *of_list, *[0] * (4 - len(of_list))] for of_list in sizes
    ]
    assert [shard.name for shard in manifest.shards] == [
        f"lists-train.tfrecord-0000{i}-of-00003" for i in range(3)
    ]
    assert sorted(shard.records for shard in manifest.shards) == [7, 8, 8]


def test_preparing_twice_gives_the_same_bytes_and_other_shards_the_same_lists(prepare):
    first, manifest = prepare(name="a")
    second, _ = prepare(name="b")
    assert contents(first) == contents(second)
    for shards in (1, 30):
        folder, other = prepare(name=f"c{shards}", shards=shards)
        assert other.lists_sha256 == manifest.lists_sha256
        assert records_of(folder, other) == records_of(first, manifest)


def test_preparing_again_removes_our_old_files_and_no_others(prepare):
    folder, _ = prepare(shards=3)
    (folder / "notes.txt").write_text("mine")
    (folder / ".lists-train.tfrecord-00000-of-00003.1.tmp").write_text("left by a killed run")
    prepare(shards=1)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".ingest",
        "dataset_info.json",
        "features.json",
        "lists-train.sizes.npy",
        "lists-train.tfrecord-00000-of-00001",
        "manifest.json",
        "notes.txt",
    ]


def interrupted_at(monkeypatch, record):
    """Makes preparing end at that record as if by Ctrl-C."""
    written = itertools.count()
    encode = shards_module.encode_list

    def interrupted(**values):
        if next(written) == record:
            raise KeyboardInterrupt
        return encode(**values)

    monkeypatch.setattr(shards_module, "encode_list", interrupted)


def test_an_interrupted_preparation_leaves_no_manifest(prepare, monkeypatch):
    folder, _ = prepare()
    with monkeypatch.context() as patch:
        interrupted_at(patch, 10)  # in the second shard
        with pytest.raises(KeyboardInterrupt):
            prepare(seed=1)
    assert len(list(folder.glob("*.tfrecord-*"))) == 1
    assert not (folder / "manifest.json").exists()
    assert not list(folder.glob("*.tmp"))
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read .*synrank_jax\.prepare"):
        read_manifest(folder)


@pytest.mark.parametrize("damage", ["none", "shard", "stamp", "recipe"])
def test_preparing_again_goes_on_at_the_missing_shards(prepare, monkeypatch, damage):
    whole, _ = prepare(name="whole", shards=4)
    folder = whole.with_name("prepared")
    with monkeypatch.context() as patch:
        interrupted_at(patch, 12)  # in the third shard
        with pytest.raises(KeyboardInterrupt):
            prepare(shards=4)
    first, second = sorted(folder.glob("*.tfrecord-*"))
    if damage == "shard":
        first.write_bytes(first.read_bytes()[:-1])
    if damage == "stamp":
        (folder / "lists-train.stamp-00000-of-00004.json").write_text("{")
    if damage == "recipe":
        for stamp in folder.glob("*.stamp-*"):
            stamp.write_text(stamp.read_text().replace('"recipe_sha256":"', '"recipe_sha256":"0'))
    kept = {first, second} - ({first} if damage in ("shard", "stamp") else set())
    kept = set() if damage == "recipe" else kept
    before = {path: path.stat().st_mtime_ns for path in (first, second)}
    prepare(shards=4)
    unchanged = {path for path in (first, second) if path.stat().st_mtime_ns == before[path]}
    assert unchanged == kept
    assert contents(folder) == contents(whole)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_processes_write_what_one_process_writes(prepare):
    take = {"take": {"random_k": 2}}
    one, manifest = prepare(name="one", shards=5, draws=2, **take)
    several, _ = prepare(name="several", shards=5, draws=2, workers=2, **take)
    assert contents(one) == contents(several)
    assert manifest.lists == 23
    assert sum(shard.records for shard in manifest.shards) == 46


def test_what_a_worker_refuses_is_one_message(job, tmp_path):
    planned = job()._replace(folder=tmp_path / "gone")
    with pytest.raises(UserError, match=r"gone/lists-train\..*: cannot be written \(No such file"):
        write_prepared(planned, workers=2)


class EndsTheProcess:
    """Unpickled, it ends the process that does so, as if the system had killed it."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_killed_worker_is_one_message(job):
    planned = job()._replace(tokenizer=EndsTheProcess())
    with pytest.raises(UserError, match="a worker process ended before its shard was written"):
        write_prepared(planned, workers=2)
    assert not (planned.folder / "manifest.json").exists()


def test_shards_may_be_written_in_any_order_by_anyone(prepare, job):
    """As an Apache Beam pipeline would: the job travels by pickle, the stamps come back."""
    expected, _ = prepare(name="expected")
    planned = job(name="mapped")
    done = start(planned)
    assert done == {}
    stamps = {k: write_shard(pickle.loads(pickle.dumps(planned)), k) for k in (2, 0, 1)}
    finish(planned, stamps)
    assert contents(planned.folder) == contents(expected)


def test_records_of_a_later_draw_follow_those_of_the_first(prepare):
    folder, manifest = prepare(draws=3, take={"random_k": 1})
    records = [decode_ids(record) for record in records_of(folder, manifest)]
    assert len(records) == 3 * manifest.lists
    queries, documents = zip(*records, strict=True)
    assert list(queries) == [f"q{i}" for i in range(23)] * 3
    drawn = [documents[i::23] for i in range(23)]
    assert all(len(listed) == 1 for listed in documents)
    assert all(len(set(map(tuple, lists))) == 1 for lists in drawn[::4])  # lists of one document
    assert len({str(draw) for draw in zip(*drawn, strict=True)}) == 3
    assert manifest.grade_counts == Counter(
        grade
        for record in records_of(folder, manifest)
        for grade in decode_lists([record]).grades.tolist()
    )


def test_every_truncation_and_bit_flip_of_any_file_is_refused_with_its_name(prepare):
    folder, manifest = prepare(lists=5, shards=2)
    verify_shards(manifest, folder)
    for stamp in (*manifest.shards, manifest.sizes):
        path = folder / stamp.name
        whole = path.read_bytes()
        for position in range(len(whole)):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << position % 8
            for damaged in (flipped, whole[:position]):
                path.write_bytes(damaged)
                with pytest.raises(UserError, match=stamp.name) as error:
                    verify_shards(manifest, folder)
                if "tfrecord" in stamp.name:
                    assert f"{path}: byte " in str(error.value)
        path.write_bytes(whole)
    verify_shards(manifest, folder)


def test_a_rewritten_shard_with_valid_checksums_is_refused(prepare):
    folder, manifest = prepare(lists=6, shards=2)
    first, second = shard_paths(manifest, folder)
    content = first.read_bytes()
    first.write_bytes(content + second.read_bytes())
    with pytest.raises(UserError, match=f"{first.name}: byte {len(content)}: the file has"):
        verify_shards(manifest, folder)


def test_a_deleted_shard_is_named(prepare):
    folder, manifest = prepare()
    (folder / manifest.shards[1].name).unlink()
    with pytest.raises(UserError, match="00001-of-00003: the file is gone"):
        verify_shards(manifest, folder)


def test_large_sets_are_verified_by_size_alone(prepare, monkeypatch):
    folder, manifest = prepare()
    path = folder / manifest.shards[0].name
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    monkeypatch.setattr(manifest_module, "CHECKSUM_LIMIT_BYTES", 0)
    verify_shards(manifest, folder)
    path.write_bytes(damaged[:-1])
    with pytest.raises(UserError, match="the file ends after"):
        verify_shards(manifest, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version: Input should be 3"),
        ({"lists": "many"}, "lists: Input should be a valid integer"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
    ],
)
def test_another_manifest_is_refused(prepare, change, message):
    folder, _ = prepare()
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        read_manifest(folder)
    path.write_text("{")
    with pytest.raises(UserError, match=r"not a manifest of schema version 3 \(the file: Invalid"):
        read_manifest(folder)


def test_recipes_differ_by_setting_and_source_content_not_by_place(prepare, contract):
    _, manifest = prepare()
    recipe = Recipe(**{name: getattr(manifest, name) for name in Recipe.model_fields})
    (source,) = recipe.data.sources

    def changed(source=source, sha256=recipe.sources_sha256[0], **values):
        data = recipe.data.model_copy(update={"sources": (source,), **values})
        return recipe.model_copy(update={"data": data, "sources_sha256": (sha256,)})

    moved = source.model_copy(update={"path": "elsewhere"})
    assert manifest.differences(changed(moved, prepared="there")) == []
    limited = source.model_copy(update={"min_score": 1.0})
    other = contract.model_copy(update={"pooling": "cls"})
    edited = changed(limited, "f" * 64, list_size=7).model_copy(update={"contract": other})
    assert manifest.differences(edited) == [
        "encoding.pooling: mean on disk, cls now",
        "data.list_size: 4 on disk, 7 now",
        "data.sources: [{}] on disk, [{'min_score': 1.0}] now",
        f"data.sources (SHA-256): ['{recipe.sources_sha256[0][:12]}'] on disk, "
        "['ffffffffffff'] now",
    ]
