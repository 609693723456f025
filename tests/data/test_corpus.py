"""The documents of a collection on disk."""

import json
from pathlib import Path

import pytest

from synrank_jax.data.corpus import Corpus, read_corpus
from synrank_jax.errors import UserError

DOCUMENTS = [("b", "Wings", "lift"), ("a", "", "drag"), ("c", "", ""), ("b", "Wings", "lift")]


def written(folder: Path, documents: list[tuple[str, str, str]]) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"_id": i, "title": title, "text": text}) for i, title, text in documents]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return read_corpus(written(tmp_path / "tiny", DOCUMENTS), tmp_path / "texts")


def test_documents_are_found_by_position_and_by_id(corpus: Corpus) -> None:
    assert len(corpus) == 3  # a repeated line is one document
    assert list(corpus.ids) == ["b", "a", "c"]
    assert (corpus.ids[1], corpus.ids[1:]) == ("a", ["a", "c"])
    assert corpus.texts(0, 2) == ["Wings lift", "drag"]
    assert corpus.text("b") == "Wings lift"
    assert corpus.empty() == [2]
    assert corpus.unknown(["a", "x", "b", "y"]) == ["x", "y"]
    with pytest.raises(KeyError):
        corpus.text("x")


def test_negative_positions_are_refused(corpus: Corpus) -> None:
    """FAISS gives -1 where it finds nothing; it must not mean the last document."""
    with pytest.raises(IndexError):
        corpus.ids[-1]


def test_hash_changes_with_ids_texts_and_their_order(corpus: Corpus, tmp_path: Path) -> None:
    def hashed(name: str, documents: list[tuple[str, str, str]]) -> str:
        return read_corpus(written(tmp_path / name, documents), tmp_path / "texts").sha256

    assert hashed("same", DOCUMENTS) == corpus.sha256
    others = {
        hashed("swapped", [DOCUMENTS[1], DOCUMENTS[0], *DOCUMENTS[2:]]),
        hashed("moved", [("b", "", "Wings liftd"), ("a", "", "rag"), *DOCUMENTS[2:3]]),
        hashed("renamed", [("bb", "Wings", "lift"), *DOCUMENTS[1:3]]),
    }
    assert len(others | {corpus.sha256}) == 4


def test_ingested_once(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synrank_jax.data.corpus.write_texts", lambda *_: pytest.fail("again"))
    assert list(read_corpus(tmp_path / "tiny", tmp_path / "texts").ids) == ["b", "a", "c"]


def test_an_empty_corpus_and_one_id_with_two_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "corpus.jsonl").write_text("")
    with pytest.raises(UserError, match=r"corpus\.jsonl: the corpus is empty"):
        read_corpus(tmp_path / "none", tmp_path / "texts")
    two = written(tmp_path / "two", [("a", "", "lift"), ("a", "", "drag")])
    with pytest.raises(UserError, match=r"corpus\.jsonl:2: id 'a' is written twice"):
        read_corpus(two, tmp_path / "texts")
