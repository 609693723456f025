"""Random draws and crops: pure functions, of the stated distribution."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from synrank_jax.data.draws import DELETION, LONGEST, SHORTEST, crop, raw_bits, sample


def test_draws_never_change():
    # Pinned: a change would silently give a seed other lists.
    assert raw_bits(0, 1, "q", size=2).tolist() == [15270216095361444697, 10054816954283166114]
    assert sample(10, 3, 0, 0, 0, "q") == [0, 2, 9]
    assert crop(" ".join(map(str, range(40))), 0, 0, "d", "query") == "35 37 38 39"


def test_keys_are_not_mixed_up_where_their_parts_join():
    assert raw_bits(1, "1", size=1).tolist() != raw_bits("11", size=1).tolist()
    assert raw_bits(1, 11, size=1).tolist() != raw_bits(11, 1, size=1).tolist()


@given(st.integers(0, 30), st.integers(1, 10), st.integers())
def test_a_sample_is_of_different_numbers(population, count, key):
    drawn = sample(population, count, key)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == min(population, count)
    assert set(drawn) <= set(range(population))


@given(st.integers(1, 80), st.integers())
def test_a_crop_is_a_part_of_the_text_with_words_left_out(length, key):
    words = [f"w{i}" for i in range(length)]
    places = [words.index(word) for word in crop(" ".join(words), key).split()]
    assert places
    assert places == sorted(set(places))
    assert len(places) <= max(1, int(length * LONGEST))


def test_a_crop_has_the_stated_lengths_and_deletions():
    # Uniform in [.1, .5], less a tenth deleted: mean .27 of the text. 4,000 crops, each with a
    # standard deviation below .11 of the text: 5 sigma are .009 of it.
    words = [f"w{i}" for i in range(1000)]
    text = " ".join(words)
    crops = [crop(text, key).split() for key in range(4000)]
    mean = np.mean([len(part) for part in crops]) / 1000
    assert abs(mean - (SHORTEST + LONGEST) / 2 * (1 - DELETION)) < 0.009
    # Crops lie everywhere: the middle of the crop is uniform, so its mean is that of the text.
    middle = np.mean([words.index(part[len(part) // 2]) for part in crops]) / 1000
    assert abs(middle - 0.5) < 0.02


def test_two_crops_of_a_document_are_independent():
    text = " ".join(f"w{i}" for i in range(100))
    sides = {side: [crop(text, 0, 0, d, side) for d in range(200)] for side in ("query", "passage")}
    starts = [[int(c.split()[0][1:]) for c in crops] for crops in sides.values()]
    # 200 pairs: the correlation of independent ones has a standard deviation of .07; 4 sigma.
    assert abs(np.corrcoef(*starts)[0, 1]) < 0.28


def test_a_text_without_words_gives_an_empty_crop():
    assert crop("  ", 0) == ""
