"""Each rule by hand."""

import pytest

from synrank_jax.config_generation import RulesConfig
from synrank_jax.errors import UserError
from synrank_jax.generation.answers import Slot, UnreadableError, Written
from synrank_jax.generation.backend import Failure
from synrank_jax.generation.ngrams import WordHashes, jaccard, shingles, words
from synrank_jax.generation.validation import Rules

SLOTS = [Slot(1, 1), Slot(0, 1)]
A = "the harbour was quiet before the boats came in"
B = "nine gardens behind the mill were sold in spring"


def broken(
    *texts: str, query: str = "why", before=(), examples=(), **rules
) -> UnreadableError | None:
    config = RulesConfig(**{"min_words": 3, "max_words": 12} | rules)
    slots = SLOTS[: len(texts)]
    passages = [Written("", text) for text in texts]
    try:
        Rules(config).check(query, slots, passages, before, examples)
    except UnreadableError as error:
        return error
    return None


def test_good_passages_pass():
    assert broken(A, B) is None


@pytest.mark.parametrize(
    ("words", "failure"), [(2, Failure.TOO_SHORT), (3, None), (12, None), (13, Failure.TOO_LONG)]
)
def test_lengths_are_inclusive(words: int, failure: Failure | None):
    error = broken(A, " ".join(f"w{n}" for n in range(words)))
    assert (error.failure if error else None) == failure
    if error:
        assert error.message.startswith(f"grade 0, passage 1: {words} words")


def test_scripts_without_spaces_have_words_too():
    text = "港は静かだった"  # Japanese: the harbour was quiet
    assert broken(text, min_words=7) is None
    assert broken(text, min_words=8).message == "grade 1, passage 1: 7 words, rules.min_words 8"


def triples(text: str):
    return shingles(WordHashes().of(words(text)))


def test_shares_of_common_triples_by_hand():
    # Triples of the first: abc bcd cde; of the second: abc bcd cdx: two of four in common.
    assert jaccard(triples("a b c d e"), triples("A, b c; d x")) == 2 / 4
    assert jaccard(triples("a b"), triples("A b.")) == 1.0
    assert jaccard(triples(""), triples("")) == 0.0


def test_near_duplicates_from_the_threshold_on():
    texts = ("a b c d e", "a b c d x")
    assert broken(*texts, near_duplicate=0.51) is None
    error = broken(*texts, near_duplicate=0.5)
    assert error.failure == Failure.DUPLICATE
    assert error.message == "grade 0, passage 1: 50% the same as grade 1, passage 1"


def test_copies_of_what_was_accepted_or_shown_before():
    assert "a passage of the list" in broken(A, before=[A.upper()]).message
    assert "an example of the prompt" in broken(A, examples=[B, A]).message
    assert broken(A, before=[B], examples=[B]) is None


def test_a_copy_of_the_query():
    error = broken("What is a Harbour?", query="what is a harbour")
    assert (error.failure, error.message) == (Failure.DUPLICATE, "grade 1, passage 1: is the query")


def test_refusals_in_the_place_of_passages():
    no = "I'm sorry, I can't write that"
    assert broken(no, no + " either").failure == Failure.REFUSED
    assert broken(no, B) is None  # one may be a passage about somebody who is sorry


GERMAN = "Der Hafen war am Morgen noch ganz still, bevor die Boote kamen"


def test_every_passage_must_be_in_the_language():
    rules = {"language_code": "en", "max_words": 20}
    assert broken(A, B, **rules) is None
    error = broken(A, GERMAN, **rules)
    assert error.failure == Failure.LANGUAGE
    assert error.message == "grade 0, passage 1: recognised as de, not en"
    assert broken(GERMAN, language_code="de", max_words=20) is None


def test_an_unknown_language_is_told():
    with pytest.raises(UserError, match=r"rules.language_code 'xx'.*\bde\b.*\ben\b"):
        broken(A, language_code="xx")
