"""Hub collections as BEIR-layout folders: what is written, once, and from which commit."""

import json
import sys
from types import SimpleNamespace

import pytest

from synrank_jax.data import beir, columns
from synrank_jax.data.collections import downloaded_folder, resolved_path
from synrank_jax.errors import UserError
from synrank_jax.files import file_sha256

CORPUS = [
    {"_id": "d1", "title": None, "text": "one"},
    {"_id": "d2", "title": "Two", "text": "2\u20282\ttwo"},
    {"_id": "d1", "title": "", "text": "one"},
]
QUERIES = [{"_id": "q1", "text": "first"}, {"_id": "q2", "text": "second"}]


def judgement(query_id, doc_id, score):
    return {"query-id": query_id, "corpus-id": doc_id, "score": score}


QRELS = {
    "test": [judgement("q1", "d1", 2.0), judgement("q1", "d2", "-1"), judgement("q2", "d2", 1)],
    "dev": [judgement("q2", "d1", 1)],
    "real": [judgement("q1", "d1", 0.5)],
}


@pytest.fixture
def hub(monkeypatch):
    """A hub with one dataset, whose commit is 1, 2, ... at every question; counts what it gives."""
    given = []

    def info(repo, revision):
        given.append(f"commit of {revision}")
        return SimpleNamespace(sha=f"{len(given):040x}")

    def load(repo, config, split, revision, streaming):
        given.append(f"{config} {split} {int(revision, 16)}")
        if fake.broken == config:
            raise ConnectionError("cut off")
        return iter({"corpus": CORPUS, "queries": QUERIES, "default": QRELS.get(split)}[config])

    parts = {"corpus": ["corpus"], "queries": ["queries"], "default": list(QRELS)}
    fake = SimpleNamespace(
        get_dataset_config_names=lambda repo, revision: list(parts),
        get_dataset_split_names=lambda repo, config, revision: parts[config],
        load_dataset=load,
        given=given,
        broken=None,
    )
    monkeypatch.setattr("huggingface_hub.dataset_info", info)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    columns._hub_commit.cache_clear()
    yield fake
    columns._hub_commit.cache_clear()


def test_a_hub_dataset_becomes_a_beir_folder(hub, tmp_path):
    folder = downloaded_folder("hub:owner/name", "test", tmp_path)
    assert beir.read_corpus(folder) == {"d1": "one", "d2": "Two 2\u20282\ttwo"}
    assert beir.read_queries(folder) == {"q1": "first", "q2": "second"}
    assert beir.read_qrels(folder, "test") == {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1}}
    record = json.loads((folder / "provenance.json").read_text())
    assert record["path"] == resolved_path(folder) == f"hub:owner/name@{1:040x}"
    assert record["files"]["corpus.jsonl"] == {
        "rows": 3,
        "sha256": file_sha256(folder / "corpus.jsonl"),
    }
    judged = json.loads((folder / "qrels" / "test.json").read_text())
    assert judged == {
        "origin": f"owner/name {1:040x}",
        "judgements": 3,
        "sha256": file_sha256(folder / "qrels" / "test.tsv"),
    }


def test_nothing_is_downloaded_twice_and_another_split_is_of_the_same_commit(hub, tmp_path):
    folder = downloaded_folder("hub:owner/name", "test", tmp_path)
    before = list(hub.given)
    assert downloaded_folder("hub:owner/name", "test", tmp_path) == folder
    assert hub.given == before
    columns._hub_commit.cache_clear()  # as in another process
    assert downloaded_folder("hub:owner/name", "dev", tmp_path) == folder
    assert hub.given == [*before, f"commit of {1:040x}", "default dev 1"]
    assert beir.read_qrels(folder, "dev") == {"q2": {"d1": 1}}


def test_revisions_have_folders_of_their_own(hub, tmp_path):
    at = [f"hub:owner/name@{number:040x}" for number in (7, 8)]
    folders = {downloaded_folder(path, "test", tmp_path) for path in at}
    assert len(folders) == 2
    assert sorted(map(resolved_path, folders)) == at


def test_without_a_network_a_pinned_dataset_fails_at_the_first_question(hub, tmp_path, monkeypatch):
    def unreachable(repo, revision):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.dataset_info", unreachable)
    with pytest.raises(UserError, match=r"hub:owner/name: .* no network"):
        downloaded_folder(f"hub:owner/name@{7:040x}", "test", tmp_path)
    assert hub.given == []  # `datasets` would try many times


@pytest.mark.parametrize("part", ["corpus", "queries", "default"])
def test_a_download_that_breaks_off_leaves_nothing_that_is_taken_for_whole(hub, tmp_path, part):
    hub.broken = part
    with pytest.raises(UserError, match=r"hub:owner/name: .* \(ConnectionError: cut off\)"):
        downloaded_folder("hub:owner/name", "test", tmp_path)
    assert not list(tmp_path.rglob("*.tsv"))
    assert len(list(tmp_path.glob("*"))) == (part == "default")
    hub.broken = None
    folder = downloaded_folder("hub:owner/name", "test", tmp_path)
    assert len(beir.read_qrels(folder, "test")) == 2


def test_a_score_that_is_no_grade_is_refused(hub, tmp_path):
    with pytest.raises(UserError, match=r"name/default/real:1: score 0\.5 is not a whole number"):
        downloaded_folder("hub:owner/name", "real", tmp_path)
