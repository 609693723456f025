"""From sources to ranking contexts."""

import pytest

from synrank_jax.config import DataConfig
from synrank_jax.data.contexts import Passage, RankingContext, read_contexts, source_sha256
from synrank_jax.errors import UserError


def data_of(*folders, **values):
    sources = tuple({"path": str(folder)} for folder in folders)
    return DataConfig(**({"sources": sources, "prepared": "unused"} | values))


def test_lists_follow_the_query_file_and_are_sorted_by_grade_then_id(collection):
    contexts = read_contexts(data_of(collection()))
    assert contexts.lists == [
        RankingContext("q2", "second query", (Passage("d4", "four", 1),)),
        RankingContext(
            "q1",
            "first query",
            (Passage("d1", "one", 3), Passage("d3", "three", 3), Passage("d2", "two", 0)),
        ),
    ]
    assert contexts.excluded_pairs == 0


def test_excluded_pairs_never_enter_a_list_and_are_counted(collection):
    folder = collection(exclude=[("q1", "d1"), ("q2", "d4"), ("q2", "d1")])
    contexts = read_contexts(data_of(folder))
    assert [(c.query_id, [p.doc_id for p in c.passages]) for c in contexts.lists] == [
        ("q1", ["d3", "d2"])
    ]
    assert contexts.excluded_pairs == 2
    assert contexts.lists[0].excluded == ("d1",)


def test_a_query_subset_keeps_only_its_queries(collection, tmp_path):
    subset = tmp_path / "subset.txt"
    subset.write_text("q1\n")
    source = {"path": str(collection()), "queries": str(subset)}
    contexts = read_contexts(data_of(sources=(source,)))
    assert [context.query_id for context in contexts.lists] == ["q1"]


def test_sources_follow_one_another(collection):
    other = collection("other", {"x": "another"}, {"d9": "nine"}, [("x", "d9", "2")])
    contexts = read_contexts(data_of(other, collection()))
    assert [context.query_id for context in contexts.lists] == ["x", "q2", "q1"]


@pytest.mark.parametrize(
    ("parts", "where", "message"),
    [
        ({"qrels": [("q1", "d1", "1"), ("q9", "d1", "1")]}, "qrels/train.tsv:3", "query 'q9' is"),
        ({"qrels": [("q1", "d1", "1"), ("q1", "d9", "1")]}, "qrels/train.tsv:3", "document 'd9'"),
        ({"qrels": [("q1", "d1", "4")]}, "qrels/train.tsv:2", "grade 4 is not one of data.grades"),
        ({"queries": {"q1": " ", "q2": "x"}}, "queries.jsonl:1", "the query 'q1' of a training"),
        (
            {"corpus": {"d4": "x", "d1": "", "d2": "y", "d3": "z"}},
            "corpus.jsonl:2",
            "the passage 'd1' of a training list is empty",
        ),
        ({"queries": {}, "qrels": []}, "data.sources", "no list is left"),
        ({"exclude": [("q1", d) for d in ("d1", "d2", "d3")] + [("q2", "d4")]}, "", "no list is"),
    ],
)
def test_bad_input_is_refused_with_its_place(collection, parts, where, message):
    with pytest.raises(UserError) as error:
        read_contexts(data_of(collection(**parts)))
    assert where in str(error.value)
    assert message in str(error.value)


def test_an_empty_document_outside_the_lists_is_allowed(collection):
    corpus = {"d1": "one", "d2": "two", "d3": "three", "d4": "four", "d5": ""}
    assert len(read_contexts(data_of(collection(corpus=corpus))).lists) == 2


def test_a_list_longer_than_list_size_is_refused(collection):
    with pytest.raises(UserError, match=r"train\.tsv:2: the list of query 'q1' has 3 passages, "):
        read_contexts(data_of(collection(), list_size=2))


def test_a_subset_naming_an_unknown_query_is_refused(collection, tmp_path):
    subset = tmp_path / "subset.txt"
    subset.write_text("q1\nq7\n")
    source = {"path": str(collection()), "queries": str(subset)}
    with pytest.raises(UserError, match=r"subset\.txt:2: query 'q7' is not in .* \(1: q7 unknown"):
        read_contexts(data_of(sources=(source,)))


def test_a_query_in_two_sources_is_refused(collection):
    with pytest.raises(UserError, match="query 'q2' is in two sources"):
        read_contexts(data_of(collection(), collection("again")))


def test_one_document_id_with_two_texts_is_refused(collection):
    other = collection("other", {"x": "another"}, {"d1": "not one"}, [("x", "d1", "2")])
    with pytest.raises(UserError, match="document 'd1' has different texts"):
        read_contexts(data_of(collection(), other))


def test_the_source_hash_depends_on_content_only(collection):
    first, same = collection("a"), collection("b")
    assert hash_of(first) == hash_of(same)
    for name in ("queries.jsonl", "corpus.jsonl", "qrels/train.tsv"):
        before = hash_of(same)
        with (same / name).open("a") as file:
            file.write("\n")
        assert hash_of(same) != before
    assert hash_of(first) != hash_of(collection("c", exclude=[]))


def hash_of(folder):
    return source_sha256(data_of(folder).sources[0])
