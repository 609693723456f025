"""Source formats: what each reads, and errors with file and line."""

import gzip
import json
import sys
from types import SimpleNamespace

import pytest

from synrank_jax.config import SourceConfig
from synrank_jax.data import columns
from synrank_jax.data.formats import open_reader
from synrank_jax.errors import UserError


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{line}\n" for line in text), "utf-8")
    return path


def read(path, **values):
    """Queries, documents and pairs of a source, without places."""
    reader = open_reader(SourceConfig(path=str(path), **values))
    return (
        {text.id: text.text for text in reader.queries.rows()},
        {text.id: text.text for text in reader.documents.rows()},
        [tuple(pair[1:]) for pair in reader.pairs.rows()],
    )


QUERIES = {"1": "first query", "q2": "second query"}
DOCUMENTS = {"7": "one two", "d8": "Head three"}
PAIRS = [("1", "7", 3.0), ("1", "d8", 0.5), ("q2", "d8", -1.0)]


@pytest.fixture
def beir_folder(tmp_path):
    folder = tmp_path / "beir"
    write(folder / "queries.jsonl", *({"_id": i, "text": text} for i, text in QUERIES.items()))
    write(
        folder / "corpus.jsonl",
        {"_id": 7, "text": "one two"},
        {"_id": "d8", "title": "Head", "text": "three"},
    )
    rows = ["\t".join(map(str, pair)) for pair in PAIRS]
    write(folder / "qrels" / "train.tsv", "query-id\tcorpus-id\tscore", *rows)
    return folder


def test_beir_scores_may_be_any_number(beir_folder):
    assert read(beir_folder) == (QUERIES, DOCUMENTS, PAIRS)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv"])
def test_files_may_be_compressed(beir_folder, name):
    path = beir_folder / name
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match=r"has .* and .*\.gz; keep one of them"):
        read(beir_folder)
    path.unlink()
    assert read(beir_folder) == (QUERIES, DOCUMENTS, PAIRS)


def test_a_compressed_file_that_is_cut_off_is_refused(beir_folder):
    path = beir_folder / "corpus.jsonl"
    packed = gzip.compress(path.read_bytes() * 1000)
    path.unlink()
    (beir_folder / "corpus.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match=r"corpus\.jsonl\.gz: cannot be read after line \d+ "):
        read(beir_folder)
    (beir_folder / "corpus.jsonl.gz").write_bytes(b"plain text\n")
    with pytest.raises(UserError, match=r"cannot be read after line 0 \(Not a gzipped file"):
        read(beir_folder)


@pytest.fixture
def packed(beir_folder):
    """The corpus of `beir_folder`, to be written as zstd instead: its path and content."""
    path = beir_folder / "corpus.jsonl"
    content = path.read_bytes()
    path.unlink()
    return beir_folder / "corpus.jsonl.zst", content


def test_zstd_is_read_through_all_its_frames_and_refused_where_it_is_cut_off(beir_folder, packed):
    path, content = packed
    zstd = pytest.importorskip("backports.zstd")
    frames = [zstd.compress(line) for line in content.splitlines(keepends=True)]
    path.write_bytes(b"".join(frames))
    assert read(beir_folder) == (QUERIES, DOCUMENTS, PAIRS)
    for broken in (b"".join(frames)[:-5], frames[0] + b"junk", b""):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"corpus\.jsonl\.zst: cannot be read after line"):
            read(beir_folder)


def test_without_a_package_for_zstd_the_file_is_refused(beir_folder, packed, monkeypatch):
    packed[0].write_bytes(b"")
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    with pytest.raises(UserError, match=r"needs the package backports\.zstd; install it"):
        read(beir_folder)


def test_a_byte_order_mark_is_no_part_of_the_first_line(beir_folder):
    for name in ("corpus.jsonl", "qrels/train.tsv"):
        path = beir_folder / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(beir_folder) == (QUERIES, DOCUMENTS, PAIRS)


def test_grouped_lines_are_pairs_with_the_texts_of_another_folder(beir_folder, tmp_path):
    file = write(
        tmp_path / "bm25.jsonl",
        {"qid": 1, "docid": ["7", "d8"], "score": [3, 0.5]},
        {"qid": "q2", "docid": ["d8"], "score": [-1]},
    )
    expected = (QUERIES, DOCUMENTS, PAIRS)
    assert read(file, format="grouped", corpus=str(beir_folder)) == expected
    write(beir_folder / "qrels" / "mined.jsonl", file.read_text().rstrip())
    assert read(beir_folder, format="grouped", split="mined") == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"qid": 1, "docid": ["a"], "score": [1, 2]}, "docid has 1 entries, score has 2"),
        ({"qid": 1, "docid": "a", "score": [1]}, "docid must be a list, got 'a'"),
        ({"qid": 1, "docid": ["a"]}, "has no 'score'; what it has is: qid, docid"),
        ({"docid": ["a"], "score": [1]}, "has no 'qid'; what it has is: docid, score"),
        ({"qid": 1, "docid": [""], "score": [1]}, "docid must be a non-empty string, got ''"),
        ({"qid": 1, "docid": ["a"], "score": ["x"]}, "score must be a finite number, got 'x'"),
        ('{"qid": 1, "docid": ["a"], "score": [NaN]}', "score must be a finite number, got nan"),
        ({"qid": 1, "docid": ["a"], "score": [True]}, "score must be a finite number, got True"),
        ('{"qid": 1', "not valid JSON"),
    ],
)
def test_a_bad_grouped_line_is_named(beir_folder, tmp_path, line, message):
    good = {"qid": 1, "docid": ["7"], "score": [3]}
    file = write(tmp_path / "bm25.jsonl", good, line)
    with pytest.raises(UserError) as error:
        read(file, format="grouped", corpus=str(beir_folder))
    assert str(error.value).startswith(f"{file}:2: ")
    assert message in str(error.value)


def test_tevatron_positives_score_1_and_negatives_0(tmp_path):
    line = {
        "query_id": "1",
        "query": "first query",
        "positive_passages": [{"docid": 7, "title": "", "text": "one two"}],
        "negative_passages": [{"docid": "d8", "title": "Head", "text": "three"}],
    }
    file = write(tmp_path / "data" / "train.jsonl", line)
    expected = ({"1": "first query"}, DOCUMENTS, [("1", "7", 1.0), ("1", "d8", 0.0)])
    assert read(file, format="tevatron") == expected
    assert read(file.parent, format="tevatron") == expected
    with pytest.raises(UserError, match=r"has no dev\.jsonl; .* JSONL files there: train\.jsonl"):
        read(file.parent, format="tevatron", split="dev")
    del line["negative_passages"]
    write(file, line)
    with pytest.raises(UserError, match=r"train\.jsonl:1: has no .negative_passages.;"):
        read(file, format="tevatron")


def test_lists_carry_their_grades(tmp_path):
    passages = [{"id": "7", "text": "one two", "grade": 3}, {"id": "d8", "text": "x", "grade": 0}]
    line = {"query_id": 1, "query": " first query ", "passages": passages}
    file = write(tmp_path / "lists.jsonl", line)
    expected = ({"1": "first query"}, {"7": "one two", "d8": "x"}, [("1", "7", 3), ("1", "d8", 0)])
    assert read(file, format="lists") == expected
    write(file, line, {**line, "passages": ["text"]})
    with pytest.raises(UserError, match=r"lists\.jsonl:2: expected an object with id, got 'text'"):
        read(file, format="lists")
    write(file, {**line, "passages": [{"id": "7", "text": "x"}]})
    with pytest.raises(
        UserError, match=r"lists\.jsonl:1: has no 'grade'; what it has is: id, text"
    ):
        read(file, format="lists")


@pytest.fixture
def msmarco(tmp_path):
    folder = tmp_path / "msmarco"
    write(folder / "collection.tsv", "7\tone two", "8\tthree")
    write(folder / "queries.train.tsv", "1\tfirst query", "2\tsecond query")
    write(folder / "qrels.train.tsv", "1\t0\t7\t1", "2 0 8 1")
    return folder


MSMARCO_TEXTS = ({"1": "first query", "2": "second query"}, {"7": "one two", "8": "three"})


def test_msmarco_files(msmarco):
    assert read(msmarco, format="msmarco") == (*MSMARCO_TEXTS, [("1", "7", 1.0), ("2", "8", 1.0)])
    grouped = write(msmarco / "bm25.jsonl", {"qid": "1", "docid": ["8"], "score": [1]})
    assert read(grouped, format="grouped", corpus=str(msmarco))[2] == [("1", "8", 1.0)]
    with pytest.raises(UserError, match=r"no queries in .*; give corpus: a folder with"):
        read(msmarco, format="msmarco", split="dev")


def test_msmarco_triples_of_ids_score_1_and_0(msmarco):
    file = write(msmarco / "qidpidtriples.train.tsv", "1\t7\t8", "1\t7\t8", "2\t8\t7")
    pairs = [("1", "7", 1.0), ("1", "8", 0.0), ("1", "8", 0.0), ("2", "8", 1.0), ("2", "7", 0.0)]
    assert read(file, format="msmarco") == (*MSMARCO_TEXTS, pairs)


def test_triples_of_ids_under_another_name_need_the_folder_of_their_texts(msmarco):
    file = write(msmarco / "mine.tsv", "1\t7\t8")
    with pytest.raises(UserError, match=r"mine\.tsv:1: these are ids, not texts; give corpus"):
        read(file, format="msmarco")
    assert read(file, format="msmarco", corpus=str(msmarco))[2] == [("1", "7", 1), ("1", "8", 0)]


def test_msmarco_triples_of_texts_are_their_own_collection(tmp_path):
    file = write(tmp_path / "triples.train.small.tsv", "query\tyes\tno", "query\tyes\tmaybe")
    queries, documents, pairs = read(file, format="msmarco")
    assert list(queries.values()) == ["query"]
    assert set(documents.values()) == {"yes", "no", "maybe"}
    assert [(queries[q], documents[d], s) for q, d, s in pairs] == [
        ("query", "yes", 1.0),
        ("query", "no", 0.0),
        ("query", "maybe", 0.0),
    ]


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("collection.tsv", "9", "expected 2 filled columns separated by tabs (id, text), got '9'"),
        ("queries.train.tsv", "9\ta\tb", "expected 2 filled columns"),
        ("qrels.train.tsv", "1\t7\t1", "expected 4 columns (query, 0, passage, score)"),
        ("qrels.train.tsv", "1\t0\t7\tyes", "score must be a finite number, got 'yes'"),
    ],
)
def test_a_bad_msmarco_line_is_named(msmarco, name, line, message):
    with (msmarco / name).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError) as error:
        read(msmarco, format="msmarco")
    assert str(error.value).startswith(f"{msmarco / name}:3: ")
    assert message in str(error.value)


PARTS = {
    "corpus": [{"_id": "7", "title": "", "text": "one two"},
               {"_id": "d8", "title": "Head", "text": "three"}],
    "queries": [{"_id": key, "text": text} for key, text in QUERIES.items()],
    "qrels": [{"query-id": q, "corpus-id": d, "score": s} for q, d, s in PAIRS],
}  # fmt: skip


def write_parquet(folder):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table
    splits = {"corpus": "corpus", "queries": "queries", "qrels": "train"}
    for part, rows in PARTS.items():
        (folder / part).mkdir(parents=True)
        # Two files, the second of which starts anew.
        for number, share in enumerate((rows[:1], rows[1:])):
            path = folder / part / f"{splits[part]}-0000{number}-of-00002.parquet"
            parquet.write_table(table.from_pylist(share), path)
    return folder


def test_mteb_parquet_files(tmp_path):
    folder = write_parquet(tmp_path / "mteb")
    assert read(folder, format="mteb") == (QUERIES, DOCUMENTS, PAIRS)
    with pytest.raises(UserError, match=r"has no judgements of split 'dev': neither qrels/dev"):
        read(folder, format="mteb", split="dev")


def test_mteb_jsonl_files(tmp_path):
    for part, name in (("corpus", "corpus"), ("queries", "queries"), ("qrels", "qrels/train")):
        write(tmp_path / f"{name}.jsonl", *PARTS[part])
    assert read(tmp_path, format="mteb") == (QUERIES, DOCUMENTS, PAIRS)


def test_a_broken_parquet_file_is_named(tmp_path):
    folder = write_parquet(tmp_path / "mteb")
    path = folder / "corpus" / "corpus-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"corpus-00001-of-00002\.parquet: cannot be read after"):
        read(folder, format="mteb")


def test_a_hub_dataset_is_streamed(tmp_path):
    # `datasets` reads a local folder as it reads one on the hub, which tests must not reach.
    pytest.importorskip("datasets")
    folder = write_parquet(tmp_path / "hub")
    write(
        folder / "README.md",
        "---",
        "configs:",
        *(
            f"- {{config_name: {config}, data_files: [{{split: {split}, path: '{config}/*'}}]}}"
            for config, split in (("corpus", "corpus"), ("queries", "queries"), ("qrels", "train"))
        ),
        "---",
    )
    for name in ("beir", "mteb"):
        assert read(f"hub:{folder}", format=name) == (QUERIES, DOCUMENTS, PAIRS)
    # As BeIR/name and BeIR/name-qrels.
    (folder / "qrels").rename(tmp_path / "hub-qrels")
    readme = (folder / "README.md").read_text()
    lines = [line for line in readme.splitlines() if "qrels" not in line]
    write(folder / "README.md", *lines)
    assert read(f"hub:{folder}") == (QUERIES, DOCUMENTS, PAIRS)
    (tmp_path / "hub-qrels").rename(folder / "qrels")
    (folder / "README.md").write_text(readme)
    with pytest.raises(UserError, match=r"configuration 'qrels' has no split 'dev'; .* train"):
        read(f"hub:{folder}", format="mteb", split="dev")
    before = open_reader(SourceConfig(path=f"hub:{folder}")).sha256()
    (folder / "queries" / "queries-00001-of-00002.parquet").unlink()
    assert open_reader(SourceConfig(path=f"hub:{folder}")).sha256() != before


@pytest.fixture
def hub(monkeypatch):
    """A hub with one dataset, whose branch main moves on after every question."""
    streams = {part: iter(rows) for part, rows in PARTS.items()}
    asked = []

    def info(repo, revision):
        asked.append(revision)
        return SimpleNamespace(sha=f"{len(asked):040x}")

    def load(repo, config, split, revision, streaming):
        assert streaming
        asked.append(revision)
        return streams[config]

    fake = SimpleNamespace(
        get_dataset_config_names=lambda repo, revision: list(PARTS),
        get_dataset_split_names=lambda repo, config, revision: ["train"],
        load_dataset=load,
    )
    monkeypatch.setattr("huggingface_hub.dataset_info", info)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    columns._hub_commit.cache_clear()
    yield SimpleNamespace(streams=streams, asked=asked)
    columns._hub_commit.cache_clear()


def test_a_hub_dataset_is_read_at_one_commit_and_a_row_at_a_time(hub):
    reader = open_reader(SourceConfig(path="hub:owner/name"))
    first = next(reader.documents.rows())
    assert (first.id, str(first.place)) == ("7", "hub:owner/name/corpus/train:1")
    assert next(hub.streams["corpus"])["_id"] == "d8"  # not read ahead
    assert len(list(reader.queries.rows())) == 2
    assert hub.asked == [None, f"{1:040x}", f"{1:040x}"]
    assert open_reader(SourceConfig(path="hub:owner/name")).sha256() == reader.sha256()


def test_a_hub_dataset_named_with_its_commit_is_not_asked_for_it(hub):
    reader = open_reader(SourceConfig(path=f"hub:owner/name@{'ab' * 20}"))
    assert len(list(reader.pairs.rows())) == 3
    assert hub.asked == ["ab" * 20]


def test_a_hub_dataset_that_breaks_off_is_one_message(hub):
    def rows():
        yield PARTS["corpus"][0]
        raise ConnectionResetError("gone")

    hub.streams["corpus"] = rows()
    reader = open_reader(SourceConfig(path="hub:owner/name"))
    with pytest.raises(UserError, match=r"owner/name: the hub could not .*ResetError: gone"):
        list(reader.documents.rows())


def test_a_hub_dataset_out_of_reach_is_one_message():
    pytest.importorskip("datasets")
    with pytest.raises(UserError, match="hub:no/such: the hub could not give this dataset"):
        read("hub:no/such")


def test_a_source_without_texts_says_where_they_may_come_from(tmp_path, beir_folder):
    file = write(tmp_path / "bm25.jsonl", {"qid": "1", "docid": ["7"], "score": [1]})
    with pytest.raises(UserError, match=r"no documents in .*bm25\.jsonl; give corpus: a folder"):
        read(file, format="grouped")
    with pytest.raises(UserError, match=r"data\.sources\.corpus 'nowhere': no such folder"):
        read(file, format="grouped", corpus="nowhere")
    with pytest.raises(UserError, match=r"bm25\.jsonl': a file, but this must be a folder"):
        read(file)
    with pytest.raises(UserError, match=r"nowhere\.jsonl': no such file"):
        read("nowhere.jsonl", format="grouped")
    # Documents of its own, queries of another folder.
    (beir_folder / "queries.jsonl").rename(tmp_path / "queries.jsonl")
    assert read(beir_folder, corpus=str(tmp_path)) == (QUERIES, DOCUMENTS, PAIRS)


def test_crops_need_documents_alone(beir_folder):
    reader = open_reader(SourceConfig(path=str(beir_folder), format="crops"))
    assert {text.id: text.text for text in reader.documents.rows()} == DOCUMENTS
    assert reader.queries is None
    assert reader.pairs is None
