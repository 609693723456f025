"""What a stand-in for an encoder has beside `encode`."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from synrank_jax.contract import EncodingContract

CONTRACT = EncodingContract(
    pooling="mean",
    normalize=False,
    similarity="dot",
    query_prompt="",
    passage_prompt="",
    query_length=8,
    passage_length=8,
    tokenizer_sha256="0" * 64,
)


class StandInEncoder:
    """To be given `encode` and a contract; two that embed differently need their own hash."""

    weights_sha256 = "0" * 64

    def encode(self, texts: Sequence[str], side: str) -> NDArray[np.float32]:
        raise NotImplementedError

    def timings(self) -> dict[str, float]:
        return {}

    def encode_windows(
        self,
        windows: Iterable[Sequence[str]],
        side: str,
        on_texts: Callable[[int], object] = lambda texts: None,
    ) -> Iterator[NDArray[np.float32]]:
        return (self.encode(texts, side) for texts in windows)
