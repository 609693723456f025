"""Words, runs of words, and what two texts have in common: duplicates and contamination."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Chinese characters and Japanese kana are written without spaces: each counts as a word.
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
# Words remembered; beyond them the table starts again, so that memory stays flat.
_REMEMBERED = 1_000_000
SHINGLE = 3
"""Words in a row that near-duplicates are measured with."""

Hashes = NDArray[np.uint64]


def words(text: str) -> list[str]:
    """The words in order, in lower case and Unicode's compatibility form, without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class WordHashes(dict[str, int]):
    """64-bit hashes of words, the same in every process and on every machine."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _REMEMBERED:
            self.clear()
        value = self[word] = _hash64(word.encode())
        return value

    def of(self, text: Sequence[str]) -> Hashes:
        """[T] for T words."""
        return np.fromiter(map(self.__getitem__, text), np.uint64, len(text))


def _hash64(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def ngrams(hashes: Hashes, n: int) -> Hashes:
    """[max(T - n + 1, 0)] hashes of all runs of `n` words, in order."""
    count = max(len(hashes) - n + 1, 0)
    total = np.zeros(count, np.uint64)
    for shift in range(n):
        total = total * _MULTIPLIER + hashes[shift : shift + count]  # modulo 2^64
    return total


def whole(hashes: Hashes) -> int:
    """Hash of the whole text: equal for texts of equal words."""
    return _hash64(hashes.tobytes()) if len(hashes) else 0


def shingles(hashes: Hashes) -> Hashes:
    """The set of word triples, ascending; a shorter text is one shingle, an empty one has none."""
    return np.unique(ngrams(hashes, min(SHINGLE, len(hashes))))[: len(hashes)]


def jaccard(left: Hashes, right: Hashes) -> float:
    """Common share of two ascending sets; 0 if both are empty."""
    common = np.intersect1d(left, right, assume_unique=True).size
    return common / max(left.size + right.size - common, 1)
