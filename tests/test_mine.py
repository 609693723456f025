import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from synrank_jax import mine
from synrank_jax.config import SourceConfig
from synrank_jax.data import beir
from synrank_jax.data.formats import open_reader
from synrank_jax.errors import UserError
from synrank_jax.hub import collection_folder
from synrank_jax.retrieval.files import write_run

TEXTS = {"d1": "one", "d2": "two", "d3": "three", "d4": "four", "d5": "", "dü": "five"}
RUN = {
    "q1": {"d1": 0.9, "d2": 0.8, "d3": 0.7, "d4": 0.6, "d5": 0.5, "dü": 0.25},
    "q2": {"d4": 0.75, "d3": 0.5},
    "q4": {"d1": 1.0},  # not judged
}


def write_jsonl(path: Path, texts: dict[str, str]) -> None:
    rows = [json.dumps({"_id": key, "text": text}) for key, text in texts.items()]
    path.write_text("\n".join(rows) + "\n")


def write_pairs(path: Path, *pairs: tuple[str, str]) -> Path:
    path.write_text("\n".join(["query-id\tcorpus-id", *map("\t".join, pairs)]) + "\n")
    return path


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    write_jsonl(folder / "corpus.jsonl", TEXTS)
    write_jsonl(folder / "queries.jsonl", {f"q{i}": f"question {i}" for i in (1, 2, 3, 4)})
    (folder / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td3\t0\nq2\td4\t2\nq3\td1\t1\n"
    )
    write_pairs(folder / "exclude.tsv", ("q1", "d2"))
    write_run(tmp_path / "run.trec", RUN, "model")
    return folder


def command(collection: Path, *options: str) -> Path:
    """Mine from the run of the fixture; returns the output file."""
    output = collection.parent / "new" / "hard.jsonl"
    run = ["--run", str(collection.parent / "run.trec")]
    mine.main(["--collection", str(collection), *run, "--output", str(output), *options])
    return output


def mined(collection: Path, *options: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in command(collection, *options).read_text().splitlines()]


def test_command_writes_one_line_per_query_best_first_and_sums_up(
    collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = command(collection)
    assert output.read_text() == (
        '{"qid": "q1", "docid": ["d4", "dü"], "score": [0.6, 0.25]}\n'
        '{"qid": "q2", "docid": ["d3"], "score": [0.5]}\n'
    )
    assert [path.name for path in output.parent.iterdir()] == ["hard.jsonl"]
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "queries 2 of 3" in printed
    assert "queries without any nothing in the ranking: 1" in printed  # q3
    assert "hard negatives 3" in printed
    assert "per query 0 to 2, median 1 (10 %: 0, 90 %: 2)" in printed
    assert "documents removed judged: 3 excluded pair: 1 empty text: 1" in printed
    assert "ranked, but not to mine 1 queries" in printed  # q4
    assert f"written: {output}" in printed


def test_the_data_mixture_reads_it(collection: Path) -> None:
    source = SourceConfig(path=str(command(collection)), format="grouped", corpus=str(collection))
    pairs = [(pair.query_id, pair.doc_id, pair.score) for pair in open_reader(source).pairs.rows()]
    assert pairs == [("q1", "d4", 0.6), ("q1", "dü", 0.25), ("q2", "d3", 0.5)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--max-relative 0.66", {"q1": ["dü"]}),  # up to 0.594 for q1, 0.495 for q2
        ("--margin 0.25", {"q1": ["d4", "dü"], "q2": ["d3"]}),
        ("--min-score 0.55", {"q1": ["d4"]}),
        ("--max-score 0.6 --per-query 1", {"q1": ["dü"], "q2": ["d3"]}),
        ("--depth 4 --skip-top 1", {"q1": ["d4"], "q2": ["d3"]}),
        ("--margin 0 --positive-grade 2", {"q2": ["d3"]}),
    ],
)
def test_options_reach_the_rules(
    collection: Path, options: str, expected: dict[str, list[str]]
) -> None:
    rows = mined(collection, *options.split())
    assert {row["qid"]: row["docid"] for row in rows} == expected


def test_subset_and_further_exclusions(
    collection: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subset = tmp_path / "subset.txt"
    subset.write_text("q1\nq4\n")
    assert [row["qid"] for row in mined(collection, "--queries", str(subset))] == ["q1"]
    assert "subset.txt: 1 queries have no judgements in" in caplog.text
    more = write_pairs(tmp_path / "more.tsv", ("q1", "d4"), ("q2", "d3"))
    assert [row["docid"] for row in mined(collection, "--exclude", str(more))] == [["dü"]]
    other = write_pairs(tmp_path / "other.tsv", ("x1", "d4"))
    mined(collection, "--exclude", str(other))
    assert "none of its 1 pairs is of a query to mine" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--collection", "nowhere"], "--collection 'nowhere': no such folder"),
        (["--split", "dev"], r"dev\.tsv: .* the splits of this collection are: train"),
        (["--min-score", "2"], r"none of 3 queries .* \(--min-score: 2, nothing in .*: 1\)"),
        (["--skip-top", "100"], "--skip-top 100: leaves nothing of --depth 100"),
        (["--run", "nowhere.trec"], r"nowhere\.trec: cannot be read"),
        (["--exclude", "nowhere.tsv"], r"nowhere\.tsv: cannot be read"),
    ],
)
def test_bad_input_is_one_message_and_writes_nothing(
    collection: Path, options: Sequence[str], message: str
) -> None:
    output = collection.parent / "new" / "hard.jsonl"
    with pytest.raises(UserError, match=message):
        command(collection, *options)
    assert not output.parent.exists() or list(output.parent.iterdir()) == []


def test_broken_run_leaves_the_earlier_output(collection: Path) -> None:
    output = command(collection)
    before = output.read_text()
    with (collection.parent / "run.trec").open("a") as file:
        file.write("q3 Q0 gone 1 0.5 model\n")
    with pytest.raises(UserError, match=r"run\.trec:10: document 'gone' is not in the corpus"):
        command(collection)
    assert output.read_text() == before
    assert list(output.parent.iterdir()) == [output]


def test_unknown_queries_of_judgements_and_subset_are_named(
    collection: Path, tmp_path: Path
) -> None:
    (tmp_path / "subset.txt").write_text("q1\nq8\n")
    with pytest.raises(UserError, match=r"subset\.txt:2: query 'q8' is not in queries\.jsonl"):
        command(collection, "--queries", str(tmp_path / "subset.txt"))
    (tmp_path / "subset.txt").write_text("q4\n")
    with pytest.raises(UserError, match=r"train\.tsv: no judged query to mine for"):
        command(collection, "--queries", str(tmp_path / "subset.txt"))
    with (collection / "qrels" / "train.tsv").open("a") as file:
        file.write("q9\td1\t1\n")
    with pytest.raises(UserError, match=r"train\.tsv:6: query 'q9' is not in queries\.jsonl"):
        command(collection)


def test_document_with_two_texts_is_named(collection: Path) -> None:
    with (collection / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "d1", "text": "one"}\n{"_id": "d1", "text": "other"}\n')
    with pytest.raises(UserError, match=r"corpus\.jsonl:8: id 'd1' is written twice"):
        command(collection)


@pytest.mark.parametrize(
    "options", ["--depth 0", "--skip-top -1", "--margin nan", "--max-relative 1.5", "--min-score x"]
)
def test_values_out_of_range_are_refused(
    collection: Path, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(collection, *options.split())
    assert f"argument {options.split()[0]}: " in capsys.readouterr().err


def test_bm25_mines_the_bundled_collection_without_judged_or_excluded_documents(
    tmp_path: Path,
) -> None:
    pytest.importorskip("bm25s", reason="needs the extra bm25")
    output = tmp_path / "hard.jsonl"
    options = ["--bm25", "--output", str(output), "--depth", "50", "--max-relative", "0.95"]
    mine.main(["--collection", "bundled:cranfield", *options])
    first = output.read_bytes()
    mine.main(["--collection", "bundled:cranfield", *options])
    assert output.read_bytes() == first

    folder = collection_folder("bundled:cranfield", "path")
    qrels, excluded = beir.read_qrels(folder, "train"), beir.read_exclude(folder)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) > len(qrels) / 2
    for row in rows:
        assert not qrels[row["qid"]].keys() & set(row["docid"])
        assert not excluded & {(row["qid"], doc_id) for doc_id in row["docid"]}
        assert 0 < len(set(row["docid"])) == len(row["score"]) <= 50
        assert row["score"] == sorted(row["score"], reverse=True)
