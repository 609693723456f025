"""Streams of texts to embeddings, whatever computes them: sorting, padding, overlap, counts."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from synrank_jax.contract import EncodingContract
from synrank_jax.data.tokenize import pad, padded_length, tokenize_texts

Side = Literal["query", "passage"]
Embeddings = NDArray[np.float32]
Rows = list[NDArray[np.int32]]
T = TypeVar("T")
R = TypeVar("R")

# Batches that wait on the devices while the oldest is fetched.
IN_FLIGHT = 2


@dataclass
class EncodingCounts:
    """What was encoded so far. slots: tokens and padding; tokenize_s: seconds of tokenising."""

    texts: int = 0
    tokens: int = 0
    slots: int = 0
    tokenize_s: float = 0.0


class WindowEncoder(ABC):
    """Embeds windows of texts batch by batch.

    Args:
        contract: prompts and lengths.
        tokenizer: of the contract.
        batch_size: texts of full length per batch; of shorter ones as many more.
        multiple: batches are padded to a multiple of so many tokens.
        devices: the number of texts in a batch is a multiple of it; None: any number of texts will
            do, else there are few sizes.
    """

    def __init__(
        self,
        contract: EncodingContract,
        tokenizer: Tokenizer,
        batch_size: int,
        multiple: int,
        devices: int | None,
    ) -> None:
        self.contract = contract
        self.counts = EncodingCounts()
        self._tokenizer = tokenizer
        self._batch_size, self._multiple, self._devices = batch_size, multiple, devices

    @abstractmethod
    def _start(self, input_ids: NDArray[np.int32], attention_mask: NDArray[np.bool_]) -> Any:
        """Begin to embed [B, T] tokens; without waiting, where the device allows it."""

    @abstractmethod
    def _finish(self, started: Any) -> Embeddings:
        """Wait for what `_start` began: [B, D] float32."""

    def timings(self) -> dict[str, float]:
        """Texts, tokens and slots (tokens and padding) so far, and seconds of tokenising."""
        return asdict(self.counts)

    def encode(self, texts: Sequence[str], side: Side) -> Embeddings:
        """Embeddings [len(texts), D] float32 in the order given; at least one text."""
        return next(self.encode_windows([texts], side))

    def encode_windows(
        self,
        windows: Iterable[Sequence[str]],
        side: Side,
        on_texts: Callable[[int], object] = lambda texts: None,
    ) -> Iterator[Embeddings]:
        """Embeddings [n, D] float32 of each window of texts, in the order given.

        A window is sorted by length, so that its batches pad little. The next one is tokenised
        while the devices compute, and they do not wait for results to be fetched.

        Args:
            windows: lists of at least one text.
            side: whose prompt and length hold.
            on_texts: called with the number of texts that were just encoded.
        """
        yield from self.encode_tokens(
            _one_ahead(lambda texts: self.tokenize(texts, side), windows), side, on_texts
        )

    def tokenize(self, texts: Sequence[str], side: Side) -> Rows:
        """Token ids of each text, cut to its side's length."""
        began = perf_counter()
        of_query = side == "query"
        prompt = self.contract.query_prompt if of_query else self.contract.passage_prompt
        rows = tokenize_texts(self._tokenizer, list(texts), prompt, self._limit(side))
        self.counts.tokenize_s += perf_counter() - began
        return rows

    def encode_tokens(
        self,
        windows: Iterable[Rows],
        side: Side,
        on_texts: Callable[[int], object] = lambda texts: None,
    ) -> Iterator[Embeddings]:
        """`encode_windows` of windows that were tokenised before."""
        computing: deque[tuple[_Window, NDArray[np.int64], Any]] = deque()

        def fetched() -> Embeddings | None:
            window, texts, started = computing.popleft()
            whole = window.add(texts, self._finish(started)[: len(texts)])
            on_texts(len(texts))
            return whole

        for rows in windows:
            window = _Window(len(rows))
            for texts, ids, mask in self._batches(rows, self._limit(side)):
                computing.append((window, texts, self._start(ids, mask)))
                if len(computing) > IN_FLIGHT and (whole := fetched()) is not None:
                    yield whole
        while computing:
            if (whole := fetched()) is not None:
                yield whole

    def _limit(self, side: Side) -> int:
        return self.contract.query_length if side == "query" else self.contract.passage_length

    def _batches(
        self, rows: Rows, limit: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_]]]:
        """Places of texts and their tokens, longest first: too little memory shows at once."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        order = np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(order):
            width = padded_length(int(lengths[order[start]]), limit, self._multiple)
            size = self._texts_at_once(width, limit, len(order) - start)
            texts = order[start : start + size]
            # A last, smaller batch is filled up, so that it needs no compilation of its own.
            filler = [rows[0][:1]] * (size - len(texts))
            ids, mask = pad([*(rows[i] for i in texts), *filler], width)
            self.counts.texts += len(texts)
            self.counts.tokens += int(lengths[texts].sum())
            self.counts.slots += ids.size
            yield texts, ids, mask
            start += size

    def _texts_at_once(self, width: int, limit: int, left: int) -> int:
        """Texts of a batch: about as many tokens whatever the width."""
        size = max(self._batch_size * limit // width, 1)
        if self._devices is None:
            return min(size, left)
        while size // 2 >= max(left, self._devices):
            size //= 2
        return -(-size // self._devices) * self._devices


class _Window:
    """Embeddings of a window of texts, as they come."""

    def __init__(self, texts: int) -> None:
        self._left = texts
        self._embeddings: Embeddings | None = None

    def add(self, texts: NDArray[np.int64], embeddings: Embeddings) -> Embeddings | None:
        """All embeddings of the window with the last of them, None before."""
        if self._embeddings is None:
            self._embeddings = np.empty((self._left, embeddings.shape[1]), np.float32)
        self._embeddings[texts] = embeddings
        self._left -= len(texts)
        return None if self._left else self._embeddings


def _one_ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map`, with the next item under way in another thread."""
    with ThreadPoolExecutor(1) as pool:
        coming: deque[Future[R]] = deque()
        for item in items:
            coming.append(pool.submit(function, item))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
