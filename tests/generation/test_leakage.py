import random

import pytest
from planted_lists import clean_lists, with_text, words_of

from synrank_jax.generation.audit import leakage
from synrank_jax.generation.audit.leakage import LENGTH, OPENING, OVERLAP, Leakage
from synrank_jax.generation.lists import RankingContext


def measured(contexts: list[RankingContext], overlap: list[list[float]] | None = None) -> Leakage:
    found = leakage.measure(contexts, overlap)
    assert found is not None
    return found


def test_clean_lists_are_within_chance() -> None:
    rng = random.Random(5)
    contexts = clean_lists(200)
    found = measured(contexts, [[rng.random() for _ in c.passages] for c in contexts])
    for name in (LENGTH, OVERLAP):
        concordance = found.features[name].concordance
        assert concordance is not None
        assert not concordance.beyond()
        assert concordance.chance == pytest.approx(0.5, abs=0.02)
    for feature in found.features.values():
        assert not feature.accuracy.beyond()
        assert feature.accuracy.chance == pytest.approx(0.25, abs=0.03)  # four equal grades
    assert found.openings == ()


def test_length_that_gives_the_grade_away_is_seen() -> None:
    rng = random.Random(1)
    contexts = clean_lists(60)
    for number, context in enumerate(contexts):
        for place, passage in enumerate(context.passages):
            text = words_of(rng, 30 + 10 * passage.grade + rng.randint(0, 5))
            contexts[number] = with_text(contexts[number], place, text)
    found = measured(contexts)
    length = found.features[LENGTH]
    assert found.best == LENGTH
    assert length.concordance is not None
    assert length.concordance.value == 1
    assert length.concordance.beyond()
    assert length.accuracy.value == 1
    assert length.accuracy.high < 0.4
    assert length.percentiles[3][0] > length.percentiles[2][-1]


def test_a_shorter_better_passage_is_as_telling() -> None:
    contexts = [with_text(context, 0, "only three words") for context in clean_lists(60)]
    length = measured(contexts).features[LENGTH]
    assert length.concordance is not None
    # Three of six pairs are lost; the other three are at chance.
    assert length.concordance.value == pytest.approx(0.25, abs=0.08)
    assert length.accuracy.value > length.accuracy.high


def test_concordance_by_hand() -> None:
    first, second = clean_lists(2, grades=(2, 1, 0))
    for place, text in enumerate(("a b c", "a b", "a b")):
        first = with_text(first, place, text)  # 2 over 1 and 0: won; 1 and 0: tie
    for place, text in enumerate(("a", "a b", "a b c")):
        second = with_text(second, place, text)  # all lost
    concordance = measured([first, second]).features[LENGTH].concordance
    assert concordance is not None
    assert concordance.value == ((1 + 1 + 0.5) / 3 + 0) / 2


def test_boilerplate_openings_are_seen_and_counted_by_grade() -> None:
    contexts = clean_lists(40)
    for number, context in enumerate(contexts):
        text = context.passages[3].text
        contexts[number] = with_text(context, 3, f"In other news, {text}")
    found = measured(contexts)
    assert found.features[OPENING].accuracy.beyond()
    assert found.best == OPENING
    assert [(o.words, o.lists, o.passages) for o in found.openings] == [
        ("in other news", 40, {0: 40})
    ]


def test_overlap_that_orders_every_list_is_seen() -> None:
    contexts = clean_lists(30)
    scores = [[10.0 * p.grade + number for p in c.passages] for number, c in enumerate(contexts)]
    overlap = measured(contexts, scores).features[OVERLAP]
    assert overlap.concordance is not None
    assert overlap.concordance.value == 1
    assert overlap.accuracy.value == 1


def test_lists_without_two_grades_are_left_out() -> None:
    clean, flat = clean_lists(5), clean_lists(3, grades=(1, 1))
    found = measured([*flat, *clean], [[1.0, 2.0]] * 3 + [[4.0, 3.0, 2.0, 1.0]] * 5)
    assert (found.lists, found.passages) == (5, 20)
    overlap = found.features[OVERLAP].concordance
    assert overlap is not None
    assert overlap.value == 1
    assert leakage.measure(flat, None) is None
