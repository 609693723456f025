import random
from itertools import count

import pytest
from planted_lists import clean_lists, with_text, words_of

from synrank_jax.generation.audit.duplicates import NEAR, Signatures, Verifier, within_list
from synrank_jax.generation.audit.findings import Finding, Kind
from synrank_jax.generation.lists import RankingContext
from synrank_jax.generation.ngrams import WordHashes, words


def across(contexts: list[RankingContext]) -> list[Finding]:
    """The findings of both readings."""
    hasher, signatures, passage = WordHashes(), Signatures(), count()
    hashes = [[hasher.of(words(p.full_text())) for p in context.passages] for context in contexts]
    for number, texts in enumerate(hashes):
        signatures.add(number, texts)
    verifier = Verifier(signatures.candidates())
    return [
        finding
        for number, (context, texts) in enumerate(zip(contexts, hashes, strict=True))
        for at, text in enumerate(texts)
        for finding in verifier.check(next(passage), number, context, at, text)
    ]


def triples(text: str) -> set[tuple[str, ...]]:
    parts = text.split()
    return {tuple(parts[at : at + 3]) for at in range(len(parts) - 2)}


def brute_force(contexts: list[RankingContext]) -> dict[str, float]:
    """{doc_id: highest Jaccard similarity to a passage of an earlier list} from NEAR on."""
    found, earlier = {}, list[set[tuple[str, ...]]]()
    for context in contexts:
        own = {passage.doc_id: triples(passage.text) for passage in context.passages}
        for doc_id, mine in own.items():
            share = max((len(mine & e) / len(mine | e) for e in earlier), default=0)
            if share >= NEAR:
                found[doc_id] = share
        earlier += own.values()
    return found


def test_minhash_finds_what_brute_force_finds() -> None:
    rng = random.Random(1)
    contexts = clean_lists(75)  # 300 passages
    for number in range(5, 75):  # copies of earlier passages with 0 to 6 words changed
        source = contexts[rng.randrange(number)].passages[rng.randrange(4)].text.split()
        for _ in range(number % 7):
            source[rng.randrange(len(source))] = "changed"
        contexts[number] = with_text(contexts[number], rng.randrange(4), " ".join(source))
    expected = brute_force(contexts)
    assert 20 < len(expected) < 65  # some of the copies are below the limit
    found = {f.doc_id: f.evidence["jaccard"] for f in across(contexts)}
    assert found == {key: pytest.approx(value, abs=1e-4) for key, value in expected.items()}
    assert across(contexts) == across(contexts)


def test_the_later_of_two_copies_is_reported_with_both_texts() -> None:
    contexts = clean_lists(3)
    contexts[2] = with_text(contexts[2], 1, contexts[0].passages[3].text.upper() + "!")
    (finding,) = across(contexts)
    assert (finding.kind, finding.number, finding.doc_id) == (Kind.CROSS_DUPLICATE, 2, "q2_l_2")
    assert finding.evidence["other_doc_id"] == "q0_l_0"
    assert finding.evidence["other_query_id"] == "q0"
    assert finding.evidence["jaccard"] == 1
    assert finding.evidence["text"] == finding.evidence["other_text"].upper() + "!"


def test_empty_passages_and_one_document_of_two_queries_are_no_duplicates() -> None:
    first, second = clean_lists(2)
    shared = first.passages[0]
    second = RankingContext("q1", second.query, (shared, *second.passages[1:]), {})
    assert across([with_text(first, 2, ""), with_text(second, 3, "?!")]) == []


def test_many_copies_of_a_template_make_few_candidates() -> None:
    rng = random.Random(2)
    template = words_of(rng, 40)
    signatures, hasher, size = Signatures(), WordHashes(), 400
    for number in range(size):
        signatures.add(number, [hasher.of(f"{template} {words_of(rng, 3)}".split())])
    candidates = signatures.candidates()
    assert len(candidates) == size - 1
    # All pairs would be 80,000.
    assert sum(map(len, candidates.values())) < 30 * size


def test_within_a_list_a_passage_is_reported_once() -> None:
    context = clean_lists(1)[0]
    text = context.passages[0].text
    context = with_text(with_text(context, 1, text), 3, text + " more")
    hasher = WordHashes()
    hashes = [hasher.of(words(passage.text)) for passage in context.passages]
    findings = list(within_list(0, context, hashes))
    assert [finding.doc_id for finding in findings] == ["q0_l_2", "q0_l_0"]
    assert findings[0].evidence["jaccard"] == 1
    n = len(triples(text))
    assert findings[1].evidence["jaccard"] == pytest.approx(n / (n + 1), abs=1e-4)


def test_clean_lists_have_none() -> None:
    assert across(clean_lists(100)) == []
