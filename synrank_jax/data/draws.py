"""Random draws as pure functions of their keys, the same in every process and NumPy version."""

import hashlib

import numpy as np
from numpy.typing import NDArray

# Crops as in Contriever's training (Izacard et al. 2022, section 3 and the released settings
# ratio_min, ratio_max and prob_augmentation), over words instead of word pieces.
SHORTEST, LONGEST = 0.1, 0.5
DELETION = 0.1


def raw_bits(*key: str | int, size: int) -> NDArray[np.uint64]:
    """`size` random uint64 that only `key` decides."""
    text = "\x1f".join(map(str, key))
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    bits: NDArray[np.uint64] = np.random.Philox(key=np.frombuffer(digest, "<u8")).random_raw(size)
    return bits


def sample(population: int, count: int, *key: str | int) -> list[int]:
    """`count` different numbers below `population`, ascending; all where there are no more."""
    if population <= count:
        return list(range(population))
    # Raw bits are promised to stay the same; Generator.choice is not.
    order = np.argsort(raw_bits(*key, size=population), kind="stable")
    return sorted(order[:count].tolist())


def crop(text: str, *key: str | int) -> str:
    """A random contiguous part of a text, some of whose words are then deleted.

    Its length is uniform between `SHORTEST` and `LONGEST` of the text's words, at least one; each
    word is deleted with probability `DELETION`, but one is always left. Words end up separated by
    single spaces; a text without words gives an empty one.
    """
    words = text.split()
    uniform = (raw_bits(*key, size=2 + len(words)) >> np.uint64(11)) * 2.0**-53
    length = max(1, int(len(words) * (SHORTEST + (LONGEST - SHORTEST) * uniform[0])))
    start = int((len(words) - length + 1) * uniform[1])
    part = words[start : start + length]
    kept = [word for word, u in zip(part, uniform[2:], strict=False) if u >= DELETION]
    return " ".join(kept or part[:1])
