import numpy as np
import pytest

from synrank_jax.generation.ngrams import WordHashes, jaccard, ngrams, shingles, whole, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Mach-number, 0.7!", ["the", "mach", "number", "0", "7"]),
        ("ﬁne ｆｌｏｗ STRASSE straße", ["fine", "flow", "strasse", "strasse"]),
        ("日本 wind 風洞", ["日", "本", "wind", "風", "洞"]),
        ("snake_case <b>", ["snake", "case", "b"]),
        (" \x00\u202e ", []),
    ],
    ids=["punctuation", "compatibility", "unspaced", "underscore", "none"],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_hashes_are_the_same_in_every_process() -> None:
    # blake2b of "flow" in 8 bytes, little-endian: Python's own hash() differs between processes.
    assert WordHashes()["flow"] == 3854834912244953113


def test_equal_runs_have_equal_hashes_and_order_matters() -> None:
    hasher = WordHashes()
    left = ngrams(hasher.of(["a", "b", "c", "a", "b", "d"]), 2)
    assert left.shape == (5,)
    assert left[0] == left[3]
    assert len(set(left.tolist())) == 4
    assert ngrams(hasher.of(["b", "a"]), 2)[0] != left[0]
    assert ngrams(hasher.of(["a"]), 2).shape == (0,)
    assert whole(hasher.of(["a", "b"])) != whole(hasher.of(["b", "a"])) != 0
    assert whole(hasher.of([])) == 0


def test_jaccard_is_that_of_the_sets_of_triples() -> None:
    hasher = WordHashes()

    def of(text: str) -> np.ndarray:
        return shingles(hasher.of(text.split()))

    # abc bcd cde against abc bcd cdx: 2 of 4
    assert jaccard(of("a b c d e"), of("a b c d x")) == 2 / 4
    assert jaccard(of("a b"), of("a b")) == 1
    assert jaccard(of("a b"), of("a b c")) == 0
    assert jaccard(of(""), of("")) == 0
