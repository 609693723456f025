import random
from collections.abc import Sequence

import pytest
from planted_lists import clean_lists, with_text, words_of

from synrank_jax.generation.audit.contamination import NEAR_EQUAL, Evaluation, NearEqual, Target
from synrank_jax.generation.audit.findings import Finding, Kind
from synrank_jax.generation.lists import RankingContext
from synrank_jax.generation.ngrams import WordHashes, words

ABSTRACT = "the lift of slender delta wings grows faster than the angle of attack above ten degrees"
DOCUMENTS = [
    Target("trec", "d1", "", ABSTRACT),
    Target("trec", "d2", "Heat transfer at the nose of a blunt body", "a text of its own"),
]
QUERIES = [Target("trec", "t1", "", "how fast does the lift of a delta wing grow")]


def compared(
    context: RankingContext,
    documents: Sequence[Target] = DOCUMENTS,
    queries: Sequence[Target] = QUERIES,
) -> tuple[list[Finding], Evaluation]:
    hasher = WordHashes()
    evaluation = Evaluation(documents, queries, hasher, Kind.CONTAMINATION)
    texts = [words(passage.full_text()) for passage in context.passages]
    hashes = [hasher.of(text) for text in texts]
    findings = list(evaluation.passage_findings(0, context, texts, hashes))
    return [*findings, *evaluation.query_findings(0, context, words(context.query))], evaluation


def test_a_retold_stretch_is_reported_with_its_words() -> None:
    nine = " ".join(ABSTRACT.split()[2:11])
    text = f"{words_of(random.Random(1), 20)} {nine.upper()}, {words_of(random.Random(2), 20)}"
    (finding,), evaluation = compared(with_text(clean_lists(1)[0], 2, text))
    assert (finding.kind, finding.doc_id) == (Kind.CONTAMINATION, "q0_l_1")
    assert finding.evidence["other_document_id"] == "d1"
    assert (finding.evidence["runs"], finding.evidence["longest"]) == (2, 9)
    assert finding.evidence["words"] == nine
    assert evaluation.single_runs == 0


@pytest.mark.parametrize(
    ("stretch", "single"),
    [
        (" ".join(ABSTRACT.split()[2:10]), 1),  # eight words: one run
        (" ".join(ABSTRACT.split()[2:9]), 0),
        ("0 58 95 ci 0 34 0 99 p 0 01", 0),  # a statistic
    ],
    ids=["single-run", "too-short", "numbers"],
)
def test_too_little_is_counted_but_not_reported(stretch: str, single: int) -> None:
    documents = [*DOCUMENTS, Target("trec", "d3", "", "0 58 95 ci 0 34 0 99 p 0 01")]
    text = f"{words_of(random.Random(1), 20)} {stretch} {words_of(random.Random(2), 20)}"
    findings, evaluation = compared(with_text(clean_lists(1)[0], 0, text), documents)
    assert findings == []
    assert evaluation.single_runs == single


def test_a_phrase_of_many_documents_is_stock() -> None:
    context = with_text(clean_lists(1)[0], 0, f"{ABSTRACT} and more")
    documents = [Target("trec", f"d{number}", "", ABSTRACT) for number in range(3)]
    assert len(compared(context, documents[:2])[0]) == 1
    assert compared(context, documents)[0] == []


def test_nearly_equal_title_is_reported_and_a_short_one_is_not() -> None:
    own = clean_lists(1)[0]
    title = "Heat Transfer at a Nose of a Blunt Body"  # one of nine words is missing
    (finding,), _ = compared(with_text(own, 1, own.passages[1].text, title))
    assert finding.why == "the title is nearly that of document d2 of trec"
    assert finding.evidence["title_jaccard"] == round(8 / 9, 4)
    short = [Target("trec", "d1", "Introduction", "text")]
    assert compared(with_text(own, 1, own.passages[1].text, "Introduction"), short)[0] == []


def test_nearly_equal_query_is_reported_for_the_list() -> None:
    own = clean_lists(1)[0]
    asked = RankingContext("q0", "How fast does the lift of a delta wing grow?", own.passages, {})
    (finding,), _ = compared(asked)
    assert (finding.kind, finding.doc_id) == (Kind.EVALUATION_QUERY, None)
    assert finding.evidence["other_id"] == "t1"
    other = RankingContext("q0", "how fast does the drag of a wing fall", own.passages, {})
    assert compared(other)[0] == []


def test_a_passage_that_contains_a_test_query_is_reported() -> None:
    text = f"{words_of(random.Random(1), 20)} {QUERIES[0].text} {words_of(random.Random(2), 20)}"
    (finding,), _ = compared(with_text(clean_lists(1)[0], 0, text))
    assert finding.evidence["other_query_id"] == "t1"


def test_clean_lists_share_nothing() -> None:
    for context in clean_lists(50):
        findings, evaluation = compared(context)
        assert findings == []
        assert evaluation.single_runs == 0


def test_near_equal_sets_are_those_of_brute_force() -> None:
    rng = random.Random(3)
    vocabulary = [words_of(rng, 1) for _ in range(30)]
    known = [rng.sample(vocabulary, rng.randint(1, 8)) for _ in range(150)]
    index = NearEqual(known)
    hits = 0
    for _ in range(300):
        asked = set(rng.choice(known)) ^ set(rng.sample(vocabulary, rng.randint(0, 2)))
        shares = [len(asked & set(k)) / len(asked | set(k)) if asked else 0 for k in known]
        best = index.best(sorted(asked))
        if max(shares) < NEAR_EQUAL:
            assert best is None
        else:
            hits += 1
            assert best == (shares.index(max(shares)), max(shares))
    assert 50 < hits < 300
