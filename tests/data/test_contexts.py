"""From sources to ranking contexts: the plain collection, and several sources for one query."""

import json
import pickle

import numpy as np
import pytest

from synrank_jax.config import DataConfig
from synrank_jax.data import sources as sources_module
from synrank_jax.data.contexts import Mixture
from synrank_jax.data.sources import Cache, source_sha256
from synrank_jax.data.survey import Plan, write_plan
from synrank_jax.errors import UserError


def data_of(*folders, **values):
    sources = tuple({"path": str(folder)} for folder in folders)
    return DataConfig(**({"sources": sources, "prepared": "unused"} | values))


@pytest.fixture
def opened(tmp_path):
    """Opens the sources of a configuration and plans its lists."""

    def open_(data):
        cache = Cache(tmp_path / "cache")
        mixture = Mixture(data, cache)
        plan = cache.get("plan", repr(data), lambda folder: write_plan(folder, mixture))
        return mixture, Plan(plan, mixture)

    return open_


@pytest.fixture
def contexts(opened):
    """All lists of a configuration: query id -> [(document id, grade)], in order."""

    def lists(data, draw=0):
        mixture, plan = opened(data)
        made = (mixture.context(mixture.query(e), draw) for e in plan.entries.tolist())
        return {c.query_id: [(p.doc_id, p.grade) for p in c.passages] for c in made}

    return lists


def test_lists_follow_the_query_file_and_are_sorted_by_grade_then_id(opened, collection):
    mixture, plan = opened(data_of(collection()))
    made = [mixture.context(mixture.query(entry), 0) for entry in plan.entries.tolist()]
    assert [(c.query_id, c.query, [p[:3] for p in c.passages]) for c in made] == [
        ("q2", "second query", [("d4", "four", 1)]),
        ("q1", "first query", [("d1", "one", 3), ("d3", "three", 3), ("d2", "two", 0)]),
    ]
    assert [context.excluded for context in made] == [frozenset(), frozenset()]
    assert plan.tally.excluded_pairs == 0


def test_excluded_pairs_never_enter_a_list_and_are_counted(opened, collection):
    folder = collection(exclude=[("q1", "d1"), ("q2", "d4"), ("q2", "d1"), ("q1", "gone")])
    mixture, plan = opened(data_of(folder))
    (entry,) = plan.entries.tolist()
    context = mixture.context(mixture.query(entry), 0)
    assert [p.doc_id for p in context.passages] == ["d3", "d2"]
    assert {mixture.documents.id(number) for number in context.excluded} == {"d1"}
    assert plan.tally.excluded_pairs == 2
    missing = plan.tally.sources[0].missing["document in exclude.tsv"]
    assert (missing.count, missing.examples) == (1, ("gone",))


def test_exclusions_of_one_source_hold_for_all(contexts, collection):
    barring = collection("a", qrels=[("q1", "d1", "3")], exclude=[("q1", "d3")])
    other = collection("b", qrels=[("q1", "d3", "2"), ("q1", "d2", "0")])
    assert contexts(data_of(barring, other)) == {"q1": [("d1", 3), ("d2", 0)]}
    # Also where the barring source has no judgement of the query.
    silent = collection("c", qrels=[("q2", "d1", "3")], exclude=[("q1", "d3")])
    expected = {"q2": [("d1", 3)], "q1": [("d2", 0)]}
    assert contexts(data_of(silent, other)) == expected


def test_a_query_subset_keeps_only_its_queries(contexts, collection, tmp_path):
    subset = tmp_path / "subset.txt"
    subset.write_text("q1\n")
    source = {"path": str(collection()), "queries": str(subset)}
    assert list(contexts(data_of(sources=(source,)))) == ["q1"]


def test_sources_follow_one_another(contexts, collection):
    other = collection("other", {"x": "another"}, {"d9": "nine"}, [("x", "d9", "2")])
    assert list(contexts(data_of(other, collection()))) == ["x", "q2", "q1"]


def test_what_several_sources_have_for_a_query_is_one_list(contexts, collection):
    first = collection("a", qrels=[("q1", "d1", "3")])
    # Its queries are in another order and other rows, as are its documents.
    second = collection(
        "b",
        queries={"q3": "third", "q1": "first query"},
        corpus={"x": "ex", "d2": "two"},
        qrels=[("q3", "x", "1"), ("q1", "x", "0"), ("q1", "d2", "1")],
    )
    third = collection(
        "c", queries={"q3": "third"}, corpus={"d2": "two"}, qrels=[("q3", "d2", "2")]
    )
    lists = {"q1": [("d1", 3), ("d2", 1), ("x", 0)], "q3": [("d2", 2), ("x", 1)]}
    assert contexts(data_of(first, second, third)) == lists
    both = data_of(first, second, missing_queries="intersection")
    assert contexts(both) == {"q1": lists["q1"]}


def test_a_document_has_one_number_whatever_table_it_comes_from(opened, collection):
    first = collection("a", corpus={"d1": "one", "d2": "two"}, qrels=[("q1", "d2", "3")])
    second = collection("b", corpus={"x": "ex", "d2": "two"}, qrels=[("q2", "d2", "1")])
    third = collection("c", corpus={"d2": "two", "x": "ex"}, qrels=[("q2", "x", "0")])
    mixture, plan = opened(data_of(first, second, third))
    assert mixture.documents.numbers(2, np.array([0, 1])).tolist() == [1, 2]
    made = [mixture.context(mixture.query(entry), 0) for entry in plan.entries.tolist()]
    numbers = {(p.doc_id, p.number) for context in made for p in context.passages}
    assert numbers == {("d2", 1), ("x", 2)}
    assert plan.numbers[[1, 2]].tolist() == [0, 1]  # dense, in order of appearance
    assert [mixture.documents.id(number) for number in (0, 1, 2)] == ["d1", "d2", "x"]


def test_a_pickled_mixture_is_small_and_makes_the_same_lists(opened, collection):
    corpus = {f"d{i}": f"text {i} " * 1000 for i in range(200)}
    other = collection("b", corpus=corpus, qrels=[("q1", "d5", "1")])
    mixture, plan = opened(data_of(collection(corpus=corpus), other))
    pickled = pickle.dumps(mixture)
    assert len(pickled) < 10_000
    query = plan.entries.tolist()[0]
    copy = pickle.loads(pickled)
    assert copy.context(copy.query(query), 0) == mixture.context(mixture.query(query), 0)


@pytest.mark.parametrize(
    ("parts", "where", "message"),
    [
        ({"qrels": [("q1", "d1", "1"), ("q9", "d1", "1")]}, "qrels/train.tsv:3", "query 'q9' is"),
        ({"qrels": [("q1", "d1", "1"), ("q1", "d9", "1")]}, "qrels/train.tsv:3", "document 'd9'"),
        ({"qrels": [("q1", "d1", "4")]}, "qrels/train.tsv:2", "grade 4 is not one of data.grades"),
        ({"qrels": [("q1", "d1", "0.5")]}, "qrels/train.tsv:2", "score 0.5 is no grade"),
        (
            {"qrels": [("q1", "d1", "1"), ("q1", "d1", "2")]},
            "qrels/train.tsv:3",
            "query 'q1', document 'd1': two grades for one document: 1 in data.sources.0 and 2 in",
        ),
        ({"queries": {"q1": " ", "q2": "x"}}, "queries.jsonl:1", "query 'q1' is empty"),
        (
            {"corpus": {"d4": "x", "d1": "", "d2": "y", "d3": "z"}},
            "corpus.jsonl:2",
            "the passage 'd1' of a training list is empty",
        ),
        ({"queries": {}, "qrels": []}, "data.sources", "no list is left"),
        ({"exclude": [("q1", d) for d in ("d1", "d2", "d3")] + [("q2", "d4")]}, "", "no list is"),
    ],
)
def test_bad_input_is_refused_with_its_place(opened, collection, parts, where, message):
    with pytest.raises(UserError) as error:
        opened(data_of(collection(**parts)))
    assert where in str(error.value)
    assert message in str(error.value)


def test_all_refused_queries_are_counted(opened, collection):
    qrels = [("q1", "d1", "1"), ("q1", "d2", "9"), ("q2", "d1", "8")]
    with pytest.raises(UserError, match=r"train\.tsv:4: .*grade 8 (.|\n)*\(1 more queries are ref"):
        opened(data_of(collection(qrels=qrels)))


def test_a_judgement_written_again_counts_once(contexts, collection):
    qrels = [("q1", "d1", "1"), ("q1", "d2", "2"), ("q1", "d1", "1")]
    assert contexts(data_of(collection(qrels=qrels))) == {"q1": [("d2", 2), ("d1", 1)]}


def test_unknown_ids_are_counted_with_examples_and_may_be_left_out(opened, contexts, collection):
    unknown = [("q1", f"e{i}", "1") for i in range(5)]
    folder = collection(qrels=[*unknown, ("q9", "d1", "1"), ("q1", "d2", "2")])
    with pytest.raises(UserError) as error:
        opened(data_of(folder))
    assert "train.tsv:7: query 'q9' is not in" in str(error.value)
    assert "data.allow_missing=true" in str(error.value)
    allowed = data_of(folder, allow_missing=True)
    assert contexts(allowed) == {"q1": [("d2", 2)]}
    missing = opened(allowed)[1].tally.sources[0].missing
    assert missing["document"].count == 5
    assert missing["document"].first_place.endswith("train.tsv:2")
    assert missing["document"].examples == ("e0", "e1", "e2")
    assert missing["query"].count == 1


def test_a_source_of_which_nothing_is_left_is_refused(opened, collection):
    none = {"path": str(collection("none")), "min_score": 5}
    with pytest.raises(UserError, match=r"sources\.1 .*none: none of its 4 pairs is in a list"):
        opened(data_of(sources=({"path": str(collection())}, none)))


def test_an_empty_document_outside_the_lists_is_allowed(contexts, collection):
    corpus = {"d1": "one", "d2": "two", "d3": "three", "d4": "four", "d5": ""}
    assert len(contexts(data_of(collection(corpus=corpus)))) == 2


def test_a_list_longer_than_list_size_is_refused(opened, collection):
    with pytest.raises(UserError, match=r"train\.tsv:2: the list of query 'q1' has 3 passages, "):
        opened(data_of(collection(), list_size=2))


def test_a_subset_naming_an_unknown_query_is_refused(opened, collection, tmp_path):
    subset = tmp_path / "subset.txt"
    subset.write_text("q1\nq7\n")
    source = {"path": str(collection()), "queries": str(subset)}
    with pytest.raises(UserError, match=r"subset\.txt:2: query 'q7' is not in .* \(1: q7 unknown"):
        opened(data_of(sources=(source,)))


def test_one_query_id_with_two_texts_is_refused(opened, collection):
    first = collection("a", {"q": "one"}, qrels=[("q", "d1", "1")])
    second = collection("b", {"q": "two"}, qrels=[("q", "d2", "1")])
    with pytest.raises(UserError, match=r"a/queries\.jsonl:1 and .*b/queries\.jsonl:1: query 'q'"):
        opened(data_of(first, second))


def test_one_document_id_with_two_texts_is_refused_where_both_are_used(
    opened, contexts, collection
):
    used = collection("other", {"x": "another"}, {"d1": "not one"}, [("x", "d1", "2")])
    with pytest.raises(
        UserError,
        match=r"collection/corpus\.jsonl:1 and .*other/corpus\.jsonl:1: document 'd1' has",
    ):
        opened(data_of(collection(), used))
    corpus = {"d1": "not one", "y": "why"}
    unused = collection("unused", {"x": "another"}, corpus, [("x", "y", "2")])
    assert len(contexts(data_of(collection("again"), unused))) == 3


WORDS = {f"d{i}": " ".join(f"{i}w{j}" for j in range(40)) for i in range(6)} | {"e": " "}


def test_crops_make_a_query_and_its_passage_of_each_document(opened, collection):
    source = {"path": str(collection(corpus=WORDS)), "format": "crops", "grade": 3}
    mixture, plan = opened(data_of(sources=(source,), draws=2))
    made = [
        mixture.context(mixture.query(entry), draw)
        for draw in range(2)
        for entry in plan.entries.tolist()
    ]
    assert [c.query_id for c in made] == [f"crop:d{i}" for i in range(6)] * 2  # e is empty
    for context in made:
        ((doc_id, text, grade, _),) = context.passages
        assert f"crop:{doc_id}" == context.query_id
        assert grade == 3
        assert set(text.split()) | set(context.query.split()) <= set(WORDS[doc_id].split())
        assert text != context.query
    assert len({context.query for context in made}) == 12  # each draw has its own
    again = mixture.context(mixture.query(plan.entries[0].tolist()), 1)
    assert again == made[6]


def test_crops_mix_with_other_sources_of_the_same_documents(opened, collection):
    folder = str(collection(corpus=WORDS | {"d9": "nine"}, qrels=[("q1", "d1", "3")]))
    crops = {"path": folder, "format": "crops", "grade": 3}
    mixture, plan = opened(data_of(sources=({"path": folder}, crops)))
    made = [mixture.context(mixture.query(entry), 0) for entry in plan.entries.tolist()]
    assert [c.query_id for c in made] == ["q1", *(f"crop:d{i}" for i in (0, 1, 2, 3, 4, 5, 9))]
    whole, crop = made[0].passages[0], made[2].passages[0]
    assert whole.number == crop.number  # the same document: no in-batch negative of the other
    assert (whole.text, crop.doc_id) == (WORDS["d1"], "d1")
    assert made[-1].query == made[-1].passages[0].text == "nine"


def test_a_query_subset_of_crops_names_their_ids(contexts, collection, tmp_path):
    subset = tmp_path / "subset.txt"
    subset.write_text("crop:d2\n")
    source = {"path": str(collection(corpus=WORDS)), "format": "crops", "grade": 1}
    found = contexts(data_of(sources=({**source, "queries": str(subset)},)))
    assert found == {"crop:d2": [("d2", 1)]}


def test_a_changed_file_is_ingested_anew_and_the_old_table_goes(collection, tmp_path, monkeypatch):
    folder, cache_folder = collection(), tmp_path / "cache"

    def tables():
        cache = Cache(cache_folder)
        Mixture(data_of(folder), cache)
        cache.prune()
        return {path.name: path.stat().st_mtime_ns for path in cache_folder.iterdir()}

    before = tables()
    assert len(before) == 3  # documents, queries, pairs
    assert tables() == before
    with (folder / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "d5", "text": "five"}) + "\n")
    after = tables()
    assert len(after) == 3
    assert len(after.keys() & before.keys()) == 1  # the queries
    monkeypatch.setattr(sources_module, "CACHE_VERSION", 0)
    assert not tables().keys() & after.keys()  # what another version wrote is not read


def test_the_source_hash_depends_on_content_only(collection, tmp_path):
    first, same = collection("a"), collection("b")
    assert hash_of(first) == hash_of(same)
    for name in ("queries.jsonl", "corpus.jsonl", "qrels/train.tsv"):
        before = hash_of(same)
        with (same / name).open("a") as file:
            file.write("\n")
        assert hash_of(same) != before
    assert hash_of(first) != hash_of(collection("c", exclude=[]))
    subset = tmp_path / "subset.txt"
    subset.write_text("q1\n")
    assert hash_of(first) != hash_of(first, queries=str(subset))


def hash_of(folder, **values):
    return source_sha256(data_of(sources=({"path": str(folder), **values},)).sources[0])
