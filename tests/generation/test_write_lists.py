import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from planted_lists import clean_lists, with_text

from synrank_jax.config import SourceConfig
from synrank_jax.data import beir
from synrank_jax.data.formats import open_reader
from synrank_jax.errors import UserError
from synrank_jax.generation.lists import RankingContext, context_of
from synrank_jax.generation.output import write_lists

HOSTILE = 'a\u2028b\x00\x1b[2J </script> "quoted" \\ \t \r\n end \U0001f600'


def test_both_layouts_hold_the_same_lists(tmp_path: Path) -> None:
    contexts = clean_lists(4)
    contexts[1] = with_text(contexts[1], 2, HOSTILE, "Title")
    contexts[2] = replace(contexts[2], query=HOSTILE, origin={"prompt_hash": "ab", "seed": 3})
    assert write_lists(tmp_path / "new" / "lists", contexts) == 4
    folder = tmp_path / "new" / "lists"
    # Cut at \n only: a text may hold other line ends.
    lines = (folder / "lists.jsonl").read_bytes().split(b"\n")[:-1]
    assert [context_of(json.loads(line)) for line in lines] == contexts

    inline = open_reader(SourceConfig(path=str(folder / "lists.jsonl"), format="lists"))
    joined = open_reader(SourceConfig(path=str(folder), format="beir"))
    assert inline.queries is not None
    assert joined.queries is not None
    assert inline.pairs is not None
    assert joined.pairs is not None
    for left, right in ((inline.documents, joined.documents), (inline.queries, joined.queries)):
        assert [(row.id, row.text) for row in left.rows()] == [
            (row.id, row.text) for row in right.rows()
        ]
    pairs = [
        [(pair.query_id, pair.doc_id, pair.score) for pair in reader.pairs.rows()]
        for reader in (inline, joined)
        if reader.pairs
    ]
    assert pairs[0] == pairs[1]
    assert beir.read_corpus(folder)["q1_l_1"] == f"Title {HOSTILE}"
    assert sorted(path.name for path in folder.rglob("*")) == [
        "corpus.jsonl",
        "lists.jsonl",
        "qrels",
        "queries.jsonl",
        "train.tsv",
    ]


def test_a_document_of_two_lists_is_accepted_by_the_readers(tmp_path: Path) -> None:
    first, second = clean_lists(2)
    second = replace(second, passages=(first.passages[0], *second.passages[1:]))
    write_lists(tmp_path, [first, second])
    assert len(beir.read_corpus(tmp_path)) == 7
    assert beir.read_qrels(tmp_path, "train")["q1"]["q0_l_3"] == 3


def test_nothing_is_seen_before_the_last_list_and_the_earlier_files_stay(tmp_path: Path) -> None:
    write_lists(tmp_path, clean_lists(2))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(before) == 4

    def broken() -> Iterator[RankingContext]:
        yield from clean_lists(3)
        assert {p: p.read_bytes() for p in before} == before
        raise UserError("the source ends here")

    with pytest.raises(UserError, match="ends here"):
        write_lists(tmp_path, broken())
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/qrels: cannot be written \(Not a directory\)"):
        write_lists(tmp_path / "file", clean_lists(1))
