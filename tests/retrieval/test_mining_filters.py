import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synrank_jax.errors import UserError
from synrank_jax.retrieval import bm25
from synrank_jax.retrieval.files import read_run, write_run
from synrank_jax.retrieval.metrics import means, per_query
from synrank_jax.retrieval.mining import Mined, Reason, Rules, mine_query, run_rankings

# bm25s scores in float32.
FLOAT32 = 1e-6
# Published figures have three digits.
REFERENCE = {"nfcorpus": 0.318, "scifact": 0.676}
THIRD_DIGIT = 0.0005
# Rules, share of hidden relevant documents, share of the queries left: the docstring of Rules.
DOCUMENTED = {
    "no rule": (Rules(), 0.118, 1.0),
    "max_relative": (Rules(max_relative=0.95), 0.111, 0.71),
    "skip_top 10": (Rules(skip_top=10), 0.069, 0.84),
    "skip_top 30": (Rules(skip_top=30), 0.041, 0.75),
}

# Ranks 1 to 8. Relevant are d2 (score 8) and d6 (4), d4 is judged 0.
SCORES = {"d1": 9.0, "d2": 8.0, "d3": 7.0, "d4": 6.0, "d5": 5.0, "d6": 4.0, "d7": 3.0, "d8": 2.0}
JUDGED = {"d2": 1, "d6": 2, "d4": 0, "d9": 1}
TEXTS = {doc_id: f"text of {doc_id}" for doc_id in SCORES}


def mined(
    scores: dict[str, float] = SCORES,
    judged: dict[str, int] = JUDGED,
    excluded: frozenset[str] = frozenset(),
    texts: Mapping[str, str | int] = TEXTS,
    query_id: str = "q",
    **rules: Any,
) -> Mined:
    return mine_query(query_id, scores, judged, excluded, texts, Rules(**rules))


def kept(**arguments: Any) -> str:
    return " ".join(doc_id for doc_id, _ in mined(**arguments).documents)


def test_what_is_judged_is_removed_whatever_its_grade_and_the_rest_is_best_first() -> None:
    result = mined(scores=dict(reversed(SCORES.items())))
    assert result == Mined(
        [("d1", 9.0), ("d3", 7.0), ("d5", 5.0), ("d7", 3.0), ("d8", 2.0)],
        Counter({Reason.JUDGED: 3}),
        None,
    )


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"depth": 5}, "d1 d3 d5"),  # ranks count judged documents
        ({"skip_top": 2, "depth": 7}, "d3 d5 d7"),
        ({"per_query": 2}, "d1 d3"),
        ({"min_score": 5.0}, "d1 d3 d5"),  # inclusive
        ({"max_score": 5.0}, "d7 d8"),  # exclusive
        # The highest positive has score 8.
        ({"margin": 0.0}, "d3 d5 d7 d8"),
        ({"margin": 3.0}, "d5 d7 d8"),
        ({"max_relative": 0.625}, "d5 d7 d8"),
        ({"max_relative": 0.5}, "d7 d8"),
        ({"max_relative": 0.5, "margin": 6.0}, "d8"),
        # Only d6, with score 4, is of grade 2.
        ({"margin": 0.0, "positive_grade": 2}, "d7 d8"),
        ({"max_score": 8.0, "min_score": 3.0, "skip_top": 1, "per_query": 2}, "d3 d5"),
    ],
)
def test_each_rule_keeps_what_it_says(rules: dict[str, Any], expected: str) -> None:
    assert kept(**rules) == expected


def test_relative_to_a_positive_below_zero_the_kept_scores_still_lie_below_it() -> None:
    # Half of -4 is -2, above it; what must be kept is up to -4 - 2.
    scores = {"near": -3.0, "positive": -4.0, "bound": -6.0, "far": -7.0}
    texts = {doc_id: doc_id for doc_id in scores}
    judged = {"positive": 1}
    assert kept(scores=scores, judged=judged, texts=texts, max_relative=0.5) == "bound far"


def test_without_a_ranked_positive_there_is_nothing_to_be_below() -> None:
    result = mined(judged={"d9": 1, "d1": 0}, margin=0.0)
    assert result.documents == []
    assert result.none_because == Reason.NO_POSITIVE
    assert result.removed == {Reason.JUDGED: 1, Reason.NO_POSITIVE: 7}
    assert kept(judged={"d9": 1, "d1": 0}, max_score=4.0) == "d7 d8"


def test_excluded_pairs_and_asked_for_self_matches_are_removed() -> None:
    assert kept(excluded=frozenset({"d1", "d7"})) == "d3 d5 d8"
    # Equal ids mean nothing where queries and documents are both just numbered.
    assert kept(query_id="d3") == "d1 d3 d5 d7 d8"
    assert kept(query_id="d3", exclude_self_match=True) == "d1 d5 d7 d8"


def test_empty_documents_and_copies_of_a_relevant_text_are_removed() -> None:
    texts = TEXTS | {"d1": "", "d3": TEXTS["d2"], "d7": TEXTS["d4"]}
    assert kept(texts=texts) == "d5 d7 d8"  # a copy of what is judged 0 is as good as any
    marks = {doc_id: hash(text) if text else 0 for doc_id, text in texts.items()}
    assert mined(texts=marks) == mined(texts=texts)
    assert mined(texts=texts).removed == {
        Reason.JUDGED: 3,
        Reason.EMPTY: 1,
        Reason.SAME_TEXT: 1,
    }


def test_ties_are_ranked_as_in_run_files(tmp_path: Path) -> None:
    scores = {"a": 1.0, "c": 1.0, "b": 1.0, "d": 2.0}
    write_run(tmp_path / "run.trec", {"q": scores}, "tag")
    in_file = [line.split()[2] for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert kept(scores=scores, judged={}, texts=dict.fromkeys(scores, "x")).split() == in_file


@pytest.mark.parametrize(
    ("scores", "rules", "reason"),
    [
        ({}, {}, Reason.NOT_RANKED),
        ({"d1": 1.0}, {"skip_top": 1}, Reason.SKIPPED),
        ({"d2": 2.0, "d4": 2.0}, {"min_score": 2.0}, Reason.JUDGED),
        ({"d2": 2.0, "d4": 2.0, "d1": 1.0}, {"min_score": 2.0}, Reason.MIN_SCORE),
    ],
)
def test_a_query_without_any_says_why(
    scores: dict[str, float], rules: dict[str, Any], reason: Reason
) -> None:
    assert mined(scores=scores, **rules).none_because == reason


@given(
    scores=st.dictionaries(st.sampled_from(sorted(SCORES)), st.integers(-5, 5).map(float)),
    judged=st.dictionaries(st.sampled_from(sorted(SCORES)), st.integers(0, 2)),
    skip_top=st.integers(0, 3),
    per_query=st.none() | st.integers(1, 3),
    margin=st.none() | st.integers(0, 3).map(float),
    max_relative=st.none() | st.sampled_from([0.0, 0.5, 1.0]),
)
def test_every_rank_in_range_is_kept_or_counted_and_no_kept_one_is_above_the_positive(
    scores: dict[str, float], judged: dict[str, int], skip_top: int, **rules: Any
) -> None:
    result = mined(scores=scores, judged=judged, skip_top=skip_top, depth=6, **rules)
    in_range = max(0, min(6, len(scores)) - skip_top)
    assert len(result.documents) + result.removed.total() == in_range
    assert (result.none_because is None) == bool(result.documents)
    values = [score for _, score in result.documents]
    assert values == sorted(values, reverse=True)
    if values and (rules["margin"] is not None or rules["max_relative"] is not None):
        assert values[0] <= max(scores[d] for d, grade in judged.items() if grade and d in scores)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"depth": 5, "skip_top": 5}, "--skip-top 5: leaves nothing of --depth 5"),
        ({"min_score": 2.0, "max_score": 2.0}, "--min-score 2: is not below --max-score 2"),
    ],
)
def test_rules_that_keep_nothing_are_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rules(**rules)


# --- run files --------------------------------------------------------------------------------

KNOWN_QUERIES, KNOWN_DOCUMENTS = {"q", "r"}, {"a", "b", "c"}


def test_rankings_come_one_query_at_a_time_as_read_run_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "run.trec"
    file.write_text("r Q0 b 1 -1.5 t\nr\tQ0 a 2\t2e0 tag junk\nq Q0 c 1 0.1 t")
    lines = enumerate(file.read_text().splitlines(), start=1)
    rankings = list(run_rankings(lines, file, KNOWN_QUERIES, KNOWN_DOCUMENTS))
    assert rankings == [("r", {"b": -1.5, "a": 2.0}), ("q", {"c": 0.1})]
    assert dict(rankings) == read_run(file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 b 1 0.5", r"run\.trec:2: expected qid Q0 docid rank score tag, got 'q Q0 b 1 0.5'"),
        ("q Q0 b 1 nan t", r"run\.trec:2: score 'nan' is not a finite number"),
        ("q Q0 a 1 0.5 t", r"run\.trec:2: document 'a' twice for query 'q'"),
        ("q Q0 x 1 0.5 t", r"run\.trec:2: document 'x' is not in the corpus"),
        ("s Q0 a 1 0.5 t", r"run\.trec:2: query 's' is not in the collection"),
        ("r Q0 a 1 0.5 t\nq Q0 b 1 0.5 t", r"run\.trec:3: query 'q' comes back .* sort -s -k1,1"),
    ],
)
def test_broken_line_is_named(line: str, message: str) -> None:
    lines = enumerate(["q Q0 a 1 0.5 t", *line.split("\n")], start=1)
    with pytest.raises(UserError, match=message):
        list(run_rankings(lines, Path("run.trec"), KNOWN_QUERIES, KNOWN_DOCUMENTS))


# --- BM25 -------------------------------------------------------------------------------------

CORPUS = {
    "d1": "The wing in a flow",
    "d2": "wings, wings and flows of heat",
    "d3": "Heat transfer",
    "d4": "",
    "d5": "heat transfer",
}
# Words after stop words and stemming: wing flow | wing wing flow heat | heat transfer | | as d3.
LENGTHS = {"d1": 2, "d2": 4, "d3": 2, "d4": 0, "d5": 2}


def term(documents_with: int, count: int, length: int) -> float:
    mean_length = sum(LENGTHS.values()) / len(LENGTHS)
    idf = math.log(1 + (len(CORPUS) - documents_with + 0.5) / (documents_with + 0.5))
    return idf * count / (count + 0.9 * (1 - 0.4 + 0.4 * length / mean_length))


@pytest.fixture(scope="module")
def index() -> bm25.Bm25:
    pytest.importorskip("bm25s", reason="needs the extra mine")
    return bm25.Bm25(CORPUS)


def test_bm25_is_the_formula_and_counts_a_repeated_word_of_the_query_twice(
    index: bm25.Bm25,
) -> None:
    assert index.search("the WINGS transferring, wings", 5) == pytest.approx(
        {
            "d1": 2 * term(2, 1, 2),
            "d2": 2 * term(2, 2, 4),
            "d3": term(2, 1, 2),
            "d5": term(2, 1, 2),
        },
        abs=FLOAT32,
    )


def test_bm25_cuts_at_depth_but_not_between_equals_and_adds_what_is_asked_for(
    index: bm25.Bm25,
) -> None:
    assert index.search("transfer heat", 1).keys() == {"d3", "d5"}
    # d1 has no word of the query and d9 does not exist.
    assert index.search("transfer heat", 1, also=["d2", "d1", "d9"]).keys() == {"d2", "d3", "d5"}
    assert index.search("transfer heat", 9).keys() == {"d2", "d3", "d5"}
    assert index.search("of the", 5) == index.search("unheard-of word", 5) == {}


def test_bm25_of_documents_without_words_is_refused() -> None:
    pytest.importorskip("bm25s", reason="needs the extra mine")
    with pytest.raises(UserError, match="none of the 2 documents has a word"):
        bm25.Bm25({"d1": "", "d2": "of the"})


@pytest.mark.parametrize("missing", ["bm25s", "Stemmer"])
def test_missing_bm25_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=r"pip install 'synrank-jax\[mine\]'"):
        bm25.load_bm25s()


def test_bm25_leaves_jax_and_so_the_accelerator_alone() -> None:
    pytest.importorskip("bm25s", reason="needs the extra mine")
    code = (
        "import sys, synrank_jax.mine\n"
        "assert 'bm25s' not in sys.modules, 'not lazy'\n"
        "from synrank_jax.retrieval.bm25 import Bm25\n"
        "assert Bm25({'d': 'word'}).search('word', 1).keys() == {'d'}\n"
        "assert 'jax' not in sys.modules, 'jax is loaded'\n"
        "import jax"  # and can be loaded later
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_bm25_is_the_reference_baseline(shared_data: Path, name: str) -> None:
    from synrank_jax.data import beir

    pytest.importorskip("bm25s", reason="needs the extra mine")
    folder = shared_data / name
    queries, qrels = beir.read_queries(folder), beir.read_qrels(folder, "test")
    index = bm25.Bm25(beir.read_corpus(folder))
    run = {query_id: index.search(queries[query_id], 1000) for query_id in qrels}
    ndcg = means(per_query(run, qrels, ["nDCG@10"]))["nDCG@10"]
    assert ndcg == pytest.approx(REFERENCE[name], abs=THIRD_DIGIT)


@pytest.mark.slow
def test_share_of_unjudged_relevant_documents_is_as_documented(shared_data: Path) -> None:
    from synrank_jax.data import beir

    pytest.importorskip("bm25s", reason="needs the extra mine")
    folder = shared_data / "nfcorpus"
    documents, queries = beir.read_corpus(folder), beir.read_queries(folder)
    index, rng = bm25.Bm25(documents), random.Random(0)
    found: dict[str, Counter[str]] = {name: Counter() for name in DOCUMENTED}
    for query_id, grades in beir.read_qrels(folder, "train").items():
        judged = sorted(grades)
        rng.shuffle(judged)
        hidden = set(judged[: len(judged) // 2])
        seen = {doc_id: 1 for doc_id in judged if doc_id not in hidden}
        scores = index.search(queries[query_id], 100, also=seen)
        for name, (rules, *_) in DOCUMENTED.items():
            best = mine_query(query_id, scores, seen, set(), documents, rules).documents[:20]
            hits = sum(doc_id in hidden for doc_id, _ in best)
            found[name] += Counter(queries=bool(best), documents=len(best), hidden=hits)
    for name, (_, share, queries_left) in DOCUMENTED.items():
        count = found[name]
        assert count["hidden"] / count["documents"] == pytest.approx(share, abs=THIRD_DIGIT)
        left = count["queries"] / found["no rule"]["queries"]
        assert left == pytest.approx(queries_left, abs=10 * THIRD_DIGIT)
