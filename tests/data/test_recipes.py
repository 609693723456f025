"""The four reference recipes (configs/recipes), on five queries: lists worked out by hand."""

import json
from pathlib import Path

import pytest

from synrank_jax.config_file import load_config
from synrank_jax.data.contexts import Mixture
from synrank_jax.data.sources import Cache
from synrank_jax.data.survey import Plan, write_plan

RECIPES = Path(__file__).parents[2] / "configs" / "recipes"

JUDGED = [("q1", "r1", 1), ("q2", "r2", 1), ("q2", "r3", 1), ("q3", "r4", 0), ("q4", "r5", 1)]
# Scores are ranks. r1, the judged passage of q1, is among its BM25 results.
BM25 = {"q1": ["b1", "r1", "b2"], "q2": ["b1", "b3"], "q3": ["b1", "b2"], "q4": ["b2"]}
SYNTHETIC = [
    (q, f"{q}_l_{level}_d_0", level) for q in ("q1", "q2", "q3", "q5") for level in range(4)
]


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """Lists of a recipe: query id -> {document id: grade}; and what is known besides."""
    real, synthetic = tmp_path / "data" / "msmarco", tmp_path / "data" / "synthetic"
    write(real / "queries.jsonl", *({"_id": f"q{i}", "text": f"query {i}"} for i in range(1, 6)))
    documents = ("r1", "r2", "r3", "r4", "r5", "b1", "b2", "b3")
    write(real / "corpus.jsonl", *({"_id": doc, "text": f"text {doc}"} for doc in documents))
    write(synthetic / "corpus.jsonl", *({"_id": d, "text": f"text {d}"} for _, d, _ in SYNTHETIC))
    for folder, pairs in ((real, JUDGED), (synthetic, SYNTHETIC)):
        rows = ["\t".join(map(str, pair)) for pair in pairs]
        write(folder / "qrels" / "train.tsv", "query-id\tcorpus-id\tscore", *rows)
    grouped = [{"qid": q, "docid": d, "score": [1, 2, 3][: len(d)]} for q, d in BM25.items()]
    write(tmp_path / "data" / "bm25.jsonl", *grouped)
    monkeypatch.chdir(tmp_path)

    def make(recipe):
        data = load_config(RECIPES / f"{recipe}.yaml").data
        cache = Cache(tmp_path / "cache" / recipe)
        mixture = Mixture(data, cache)
        plan = Plan(cache.get("plan", "", lambda new: write_plan(new, mixture)), mixture)
        made = [mixture.context(mixture.query(entry), 0) for entry in plan.entries.tolist()]
        known = {c.query_id: {mixture.documents.id(n) for n in c.excluded} for c in made}
        return {c.query_id: {p.doc_id: p.grade for p in c.passages} for c in made}, known, plan

    return make


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{line}\n" for line in text), "utf-8")


def levels(query):
    return {f"{query}_l_{level}_d_0": level for level in range(4)}


def test_real_binary(lists):
    made, known, plan = lists("real_binary")
    assert made == {
        "q1": {"r1": 3, "b1": 0, "b2": 0},  # r1 is no negative, though BM25 found it
        "q2": {"r3": 3, "b1": 0, "b3": 0},  # r3 or r2, drawn
        # q3 has no relevant passage, q5 nothing at all
        "q4": {"r5": 3, "b2": 0},  # short
    }
    assert known == {"q1": set(), "q2": {"r2"}, "q4": set()}
    assert plan.tally.conflicts == 1
    assert plan.tally.queries == 4


def test_synthetic_binary(lists):
    made, known, _ = lists("synthetic_binary")
    assert list(made) == ["q1", "q2", "q3", "q5"]
    for query, listed in made.items():
        level = 3 if f"{query}_l_3_d_0" in listed else 2  # drawn
        positive, other = f"{query}_l_{level}_d_0", f"{query}_l_{5 - level}_d_0"
        assert listed == {positive: 3, f"{query}_l_1_d_0": 0, f"{query}_l_0_d_0": 0}
        assert known[query] == {other}


def test_synthetic_multilevel(lists):
    made, known, _ = lists("synthetic_multilevel")
    assert made == {query: levels(query) for query in ("q1", "q2", "q3", "q5")}
    assert not any(known.values())


def test_synthetic_and_real(lists):
    made, known, plan = lists("synthetic_and_real")
    assert made == {
        "q1": {"r1": 3, "b1": 1, "b2": 1} | levels("q1"),
        "q2": {"r3": 3, "b1": 1, "b3": 1} | levels("q2"),  # r3 or r2, drawn
        "q3": {"b1": 1, "b2": 1} | levels("q3"),  # r4 is judged, but not relevant
        "q4": {"r5": 3, "b2": 1},
        "q5": levels("q5"),
    }
    assert known == {"q1": set(), "q2": {"r2"}, "q3": {"r4"}, "q4": set(), "q5": set()}
    assert list(made) == ["q1", "q2", "q3", "q4", "q5"]  # as the first source has them
    assert plan.tally.sizes == {2: 1, 4: 1, 6: 1, 7: 2}
    assert plan.tally.grades == {0: 4, 1: 4 + 7, 2: 4, 3: 4 + 3}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_small_and_valid(path):
    assert len(path.read_text().splitlines()) < 20
    config = load_config(path)
    assert config.data.sources[0].path.startswith("data/")
