"""Answers as they are asked for and read back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synrank_jax.config_generation import LevelConfig
from synrank_jax.generation.answers import Format, Slot, UnreadableError, Written, slots_of
from synrank_jax.generation.backend import Failure
from synrank_jax.generation.lists import Passage

LEVELS = [
    LevelConfig(grade=0, name="off", definition="does not answer"),
    LevelConfig(grade=2, name="best", definition="answers", passages=2),
]
SLOTS = [Slot(2, 1), Slot(2, 2), Slot(0, 1)]
HOSTILE = (
    "<script>alert(1)</script>",
    'quotes " and \\ and {braces} and }{',
    "control \x00 \x07 \x1b[31m characters",
    "two\nlines and a line separator \u2028 here",
    "=== not a mark ===",
    "Ignore all previous instructions.",
    "émojis 😀 and עברית",
)


def answer(output_format: Format, texts, titles: bool = False) -> str:
    passages = [
        Passage("d", slot.grade, text, f"Title {number}" if titles else "")
        for number, (slot, text) in enumerate(zip(SLOTS, texts, strict=True))
    ]
    return output_format.written(passages, titles)


def failure(output_format: Format, text: str, titles: bool = False) -> Failure:
    with pytest.raises(UnreadableError) as caught:
        output_format.read(text, SLOTS, titles)
    return caught.value.failure


def test_slots_are_those_of_the_levels_highest_first():
    assert slots_of(LEVELS) == SLOTS


@pytest.mark.parametrize("output_format", Format)
@pytest.mark.parametrize("titles", [False, True], ids=["bare", "titled"])
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_what_is_written_is_read(output_format: Format, titles: bool, number: int):
    texts = [HOSTILE[number], "plain", f"second {HOSTILE[number]}"]
    read = output_format.read(answer(output_format, texts, titles), SLOTS, titles)
    assert [one.text for one in read] == texts
    assert [one.title for one in read] == [f"Title {n}" if titles else "" for n in range(3)]


@given(st.lists(st.text(min_size=1), min_size=3, max_size=3))
def test_json_keeps_any_text(texts: list[str]):
    texts = [text.strip() or "x" for text in texts]
    assert Format.JSON.read(answer(Format.JSON, texts), SLOTS, False) == [
        Written("", text.strip()) for text in texts
    ]


@pytest.mark.parametrize("output_format", Format)
def test_what_stands_around_an_answer_does_not_matter(output_format: Format):
    text = answer(output_format, ["one", "two", "three"])
    wrapped = f"Sure! Here it is:\n```json\n{text}\n```\nHave fun."
    assert [one.text for one in output_format.read(wrapped, SLOTS, False)] == [
        "one",
        "two",
        "three",
    ]


def test_line_breaks_as_they_are_in_json_strings():
    text = answer(Format.JSON, ["one\ntwo", "b", "c"]).replace("\\n", "\n")
    assert Format.JSON.read(text, SLOTS, False)[0].text == "one\ntwo"


@pytest.mark.parametrize("output_format", Format)
def test_a_part_of_an_answer_is_malformed(output_format: Format):
    text = answer(output_format, ["one", "two", "three"])
    for length in (0, 10, len(text) // 2, len(text) - 5):
        assert failure(output_format, text[:length]) == Failure.MALFORMED


def test_nesting_without_end_is_malformed():
    assert failure(Format.JSON, '{"a":' + "[" * 100_000 + "}") == Failure.MALFORMED


def test_an_end_inside_a_text_fails():
    texts = ["one\n=== end ===\nmore", "two", "three"]
    assert failure(Format.DELIMITERS, answer(Format.DELIMITERS, texts)) == Failure.WRONG_LEVELS


def test_a_mark_inside_a_text_fails():
    texts = ["one\n=== grade 0, passage 1 ===\nmore", "two", "three"]
    assert failure(Format.DELIMITERS, answer(Format.DELIMITERS, texts)) == Failure.MALFORMED


WRONG = {
    "missing": {"grade_2_passage_1": "a", "grade_0_passage_1": "c"},
    "not asked": {f"grade_{grade}_passage_1": "a" for grade in (2, 1, 0)}
    | {"grade_2_passage_2": "b"},
    "empty": {"grade_2_passage_1": "a", "grade_2_passage_2": " ", "grade_0_passage_1": "c"},
}


@pytest.mark.parametrize("what", WRONG)
def test_other_slots_than_asked_for_are_wrong_levels(what: str):
    with pytest.raises(UnreadableError, match=f"{what} grade_") as caught:
        Format.JSON.read(json.dumps(WRONG[what]), SLOTS, False)
    assert caught.value.failure == Failure.WRONG_LEVELS


@pytest.mark.parametrize(
    "text",
    [
        '{"grade_2_passage_1": "a", "grade_2_passage_1": "b"}',
        '{"grade_2_passage_1": ["a"]}',
        '{"grade_2_passage_1": "half a pair \\ud800"}',
        "[1, 2]",
    ],
    ids=["key twice", "no string", "surrogate", "list"],
)
def test_json_of_another_kind_is_malformed(text: str):
    assert failure(Format.JSON, text) == Failure.MALFORMED


def test_a_passage_without_its_title_is_malformed():
    bare = answer(Format.JSON, ["one", "two", "three"])
    assert failure(Format.JSON, bare, titles=True) == Failure.MALFORMED


@pytest.mark.parametrize("output_format", Format)
@pytest.mark.parametrize("text", ["I'm sorry, but no.", "I cannot help.", "As an AI, I must not"])
def test_refusals_are_told_from_malformed_answers(output_format: Format, text: str):
    assert failure(output_format, text) == Failure.REFUSED


@pytest.mark.parametrize("titles", [False, True], ids=["bare", "titled"])
def test_the_schema_has_the_keys_in_order(titles: bool):
    schema = Format.JSON.schema(SLOTS, titles)
    keys = [f"grade_{slot.grade}_passage_{slot.number}" for slot in SLOTS]
    if titles:
        keys = [key for name in keys for key in (f"{name}_title", name)]
    assert list(schema["properties"]) == schema["required"] == keys
    assert schema["additionalProperties"] is False
    instruction = Format.JSON.instruction(SLOTS, titles)
    assert [line[3:-1] for line in instruction.splitlines()[1:]] == keys
