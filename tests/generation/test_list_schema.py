import pytest
from planted_lists import clean_lists, with_text

from synrank_jax.generation.audit.findings import Finding, Kind
from synrank_jax.generation.audit.schema import schema_findings, text_findings
from synrank_jax.generation.lists import RankingContext
from synrank_jax.generation.ngrams import words

FILLER = (
    " of wings that were measured in three tunnels over many years and later compared with what "
    "was seen in flight by others"
)


def found(context: RankingContext) -> list[Finding]:
    texts = [words(passage.full_text()) for passage in context.passages]
    return [
        *schema_findings(0, context),
        *text_findings(0, context, texts, words(context.query)),
    ]


@pytest.mark.parametrize(
    "opening",
    [
        "Sure! A study",
        "Certainly, here\u2019s a passage",
        "Here is a highly relevant passage: a study",
        "I'm sorry, but I cannot write that, a study",
        "As an AI language model I know a study",
        "**Passage 2:** A study",
        "[Grade 3] A study",
        "Relevance: 0. A study",
        "Perfectly relevant: a study",
        "Irrelevant passage: a study",
    ],
)
def test_talk_about_the_task_is_found(opening: str) -> None:
    (finding,) = found(with_text(clean_lists(1)[0], 1, opening + FILLER))
    assert (finding.kind, finding.doc_id) == (Kind.TASK_TALK, "q0_l_2")


@pytest.mark.parametrize(
    "opening",
    [
        "Of course, no study",
        "Here is the text of a treaty",
        "I'm sorry to hear this, a study",
        "Grade 3 tumours in a study",
        "Level 2 models in a study",
        "Passage of the bill led to a study",
        "Relevant work is a study",
        "Sure footing in a study",
    ],
)
def test_ordinary_openings_pass(opening: str) -> None:
    assert found(with_text(clean_lists(1)[0], 1, opening + FILLER)) == []


def test_a_short_query_within_a_passage_is_no_copy_but_a_passage_that_is_the_query_is() -> None:
    own = clean_lists(1)[0]
    context = RankingContext("q0", "wing flutter", own.passages, {})
    assert found(with_text(context, 0, f"on wing flutter: {own.passages[0].text}")) == []
    kinds = {finding.kind for finding in found(with_text(context, 0, "Wing flutter?"))}
    assert kinds == {Kind.QUERY_COPY, Kind.LENGTH}


def test_what_makes_a_list_useless_is_named() -> None:
    own = clean_lists(1, grades=(1, 1))[0]
    twice = RankingContext("q0", " ", (own.passages[0], own.passages[0]), {})
    assert [(f.kind, f.doc_id, f.why) for f in found(twice)] == [
        (Kind.SCHEMA, None, "the query is empty"),
        (Kind.SCHEMA, "q0_l_1", "the id stands 2 times in the list"),
        (Kind.SCHEMA, None, "all passages have the same grade: there is nothing to rank"),
    ]
    (empty,) = found(with_text(clean_lists(1)[0], 2, " \n"))
    assert (empty.doc_id, empty.why) == ("q0_l_1", "the passage is empty")
