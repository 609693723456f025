"""Each rule by hand."""

from functools import cache

import pytest

from synrank_jax.config_generation import RulesConfig
from synrank_jax.errors import UserError
from synrank_jax.generation.answers import Slot, UnreadableError, Written
from synrank_jax.generation.backend import Failure
from synrank_jax.generation.ngrams import WordHashes, jaccard, shingles, words
from synrank_jax.generation.validation import Rules

SLOTS = [Slot(1, 1), Slot(0, 1), Slot(0, 2)]
A = "the harbour was quiet before the boats came in"
B = "nine gardens behind the mill were sold in spring"
GERMAN = "Der Hafen war am Morgen noch ganz still, bevor die Boote kamen"


@cache  # a language model takes a second to load
def rules_of(**rules) -> Rules:
    return Rules(RulesConfig(**{"min_words": 3, "max_words": 12} | rules))


def broken(
    *texts: str, query: str = "why", before=(), examples=(), **rules
) -> UnreadableError | None:
    slots = SLOTS[: len(texts)]
    passages = [Written("", text) for text in texts]
    try:
        rules_of(**rules).check(query, slots, passages, before, examples)
    except UnreadableError as error:
        return error
    return None


def test_good_passages_pass():
    assert broken(A, B) is None


@pytest.mark.parametrize(
    ("count", "failure", "rule"),
    [
        (2, Failure.TOO_SHORT, "min_words 3"),
        (3, None, ""),
        (12, None, ""),
        (13, Failure.TOO_LONG, "max_words 12"),
    ],
)
def test_lengths_are_inclusive(count: int, failure: Failure | None, rule: str):
    error = broken(A, " ".join(f"w{n}" for n in range(count)))
    assert (error.failure if error else None) == failure
    if error:
        assert error.message == f"grade 0, passage 1: {count} words, rules.{rule}"


def test_words_are_counted_as_the_audit_counts_them():
    assert broken(A, "港は朝まで静かだった") is None  # written without spaces
    assert broken(A, "- - - - one two").message.startswith("grade 0, passage 1: 2 words")


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
    said = "grade 1, passage 1: 100% the same as"
    for shown, what in (
        ({"before": [B, A.upper()]}, "a passage of the list"),
        ({"examples": [B, A]}, "an example of the prompt"),
    ):
        error = broken(A, **shown)
        assert (error.failure, error.message) == (Failure.DUPLICATE, f"{said} {what}")
    assert broken(A, before=[B], examples=[B]) is None


def test_what_one_query_was_shown_is_not_held_against_the_next():
    rules = Rules(RulesConfig(min_words=3, max_words=12))
    rules.check("why", SLOTS[:1], [Written("", A)], [], [B])
    rules.check("why", SLOTS[:1], [Written("", B)], [], [])
    with pytest.raises(UnreadableError, match="an example of the prompt"):
        rules.check("why", SLOTS[:1], [Written("", B)], [], [B])


def test_the_first_broken_rule_is_told():
    error = broken("too short", A, A, query="too short")
    assert error.failure == Failure.TOO_SHORT
    german = {"language_code": "en", "max_words": 20}
    assert broken(GERMAN, GERMAN, **german).failure == Failure.DUPLICATE


def test_a_copy_of_the_query():
    error = broken("What is a Harbour?", query="what is a harbour")
    assert (error.failure, error.message) == (Failure.DUPLICATE, "grade 1, passage 1: is the query")
    assert broken("What is a Harbour?", query="what is a harbour for") is None


def test_refusals_in_the_place_of_passages():
    no = "I'm sorry, I can't write that"
    error = broken(no, no + " either")
    assert (error.failure, error.message) == (Failure.REFUSED, no)
    assert broken(no, B) is None  # one may be a passage about somebody who is sorry


def test_every_passage_must_be_in_the_language():
    rules = {"language_code": "en", "max_words": 20}
    assert broken(A, B, **rules) is None
    error = broken(A, GERMAN, **rules)
    assert error.failure == Failure.LANGUAGE
    assert error.message == "grade 0, passage 1: recognised as de, not en"
    assert broken(GERMAN, language_code="de", max_words=20) is None
    error = broken(GERMAN, A, language_code="de", max_words=20)
    assert error.message == "grade 0, passage 1: recognised as en, not de"


def test_an_unknown_language_is_told():
    with pytest.raises(UserError, match=r"rules.language_code 'xx'.*\bde\b.*\ben\b"):
        broken(A, language_code="xx")
