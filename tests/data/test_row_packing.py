"""Rows hold every token once, in few shapes and with little padding."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synrank_jax.data.packing import RowShape, RowShapes, needs, pack
from synrank_jax.data.pipeline import PreparedLists, batches
from synrank_jax.prepare import main as prepare_command

# The bound on the share of token slots that hold none.
PADDING = 0.05


def tokens_of(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All texts' tokens, every one different, and where each text starts."""
    return np.arange(1, 1 + lengths.sum()), (np.cumsum(lengths) - lengths.ravel()).reshape(
        lengths.shape
    )


def test_a_row_by_hand():
    lengths = np.array([[2, 3, 0]])
    tokens, starts = tokens_of(lengths)
    packed = pack(tokens, starts, lengths, RowShape(7, (1, 2, 3)))
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 0, 1, 2, 0, 0]]
    assert packed.segment_ids.tolist() == [[1, 1, 2, 2, 2, -1, -1]]
    assert [block.tolist() for block in packed.blocks] == [[[[-1]]], [[[0, 1]]], [[[2, 3, 4]]]]
    assert packed.places.tolist() == [[1, 2, 0]]
    assert {array.dtype for array in (*packed[:3], *packed.blocks, packed.places)} == {
        np.dtype(np.int32)
    }


@given(
    st.integers(1, 3).flatmap(
        lambda rows: st.integers(1, 12).flatmap(
            lambda count: st.lists(
                st.lists(st.integers(0, 40), min_size=count, max_size=count),
                min_size=rows,
                max_size=rows,
            )
        )
    )
)
def test_every_text_is_found_in_its_row_and_in_its_block(values: list[list[int]]):
    lengths = np.array(values)
    tokens, starts = tokens_of(lengths)
    shape = RowShapes(needs(lengths), limit=40).of(needs(lengths).max(axis=0))
    packed = pack(tokens, starts, lengths, shape)
    assert packed.input_ids.shape == (len(lengths), shape.tokens)
    for row, text in np.ndindex(lengths.shape):
        expected = tokens[starts[row, text] :][: lengths[row, text]].tolist()
        segment = packed.places[row, text]
        at = packed.segment_ids[row] == segment
        assert packed.input_ids[row][at].tolist() == expected
        assert packed.positions[row][at].tolist() == list(range(len(expected)))
        of_row = [text for block in packed.blocks for text in block[row]]
        places = of_row[segment]
        assert packed.input_ids[row][places[places >= 0]].tolist() == expected
        assert (places[len(expected) :] == -1).all()
    assert (packed.segment_ids >= 0).sum() == lengths.sum()
    assert not packed.input_ids[packed.segment_ids < 0].any()


def test_few_shapes_cover_a_run_and_a_longer_step_gets_the_next():
    rng = np.random.default_rng(0)
    sample = needs(rng.integers(5, 120, size=(2000, 80)))
    shapes = RowShapes(sample, limit=128)
    used = {shapes.of(need) for need in sample}
    assert 1 < len(used) <= 4
    assert len({shape.widths for shape in used}) == 1
    for need in sample:
        shape = shapes.of(need)
        assert (np.array([shape.tokens, *shape.widths]) >= need).all()
    most = sample.max(axis=0)
    longer = shapes.of(np.array([int(most[0] * 1.05), *most[1:]]))
    assert most[0] * 1.05 <= longer.tokens <= most[0] * 1.10
    wider = shapes.of(np.array([most[0], 128, *most[2:]]))
    assert wider.widths[0] == 128
    assert wider.tokens == shapes.of(most).tokens


def test_widths_are_multiples_of_32_but_never_beyond_the_limit():
    shapes = RowShapes(np.array([[100, 0, 31, 33, 70, 80]]), limit=80)
    assert shapes.of(np.array([100, 0, 0, 0, 0, 0])).widths == (32, 32, 64, 80, 80)


@pytest.mark.parametrize(
    ("collection", "queries"),
    [
        ("cranfield-synthetic", 16),
        pytest.param("nfcorpus-synthetic", 16, marks=pytest.mark.slow),
        pytest.param("nfcorpus", 16, marks=pytest.mark.slow),
        pytest.param("nfcorpus", 64, marks=pytest.mark.slow),
    ],
)
def test_hardly_any_slot_is_padding(
    request: pytest.FixtureRequest, tmp_path: Path, collection: str, queries: int
):
    source = f"bundled:{collection}"
    if collection != "cranfield-synthetic":
        source = str(request.getfixturevalue("shared_data") / collection)
    quickstart = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    config = tmp_path / "config.yaml"
    config.write_text(
        f"extends: {quickstart}\n"
        "encoding: {query_length: 256, passage_length: 256}\n"
        f"data: {{sources: [{{path: '{source}', take: {{first_k: 4}}}}], prepared: {tmp_path}}}\n"
    )
    prepare_command(["--config", str(config)])
    lists = PreparedLists(tmp_path)
    stream = batches(lists, seed=0, global_batch_size=queries, pool_size=queries)
    steps = list(itertools.islice(stream, 3 * len(lists) // queries))
    slots = sum(batch.texts.segment_ids.size for batch in steps)
    tokens = sum(np.count_nonzero(batch.texts.segment_ids >= 0) for batch in steps)
    assert 1 - tokens / slots <= PADDING
    assert len({compiled_shapes(batch) for batch in steps}) <= 4


def compiled_shapes(batch) -> tuple:
    """What XLA compiles for."""
    return tuple(array.shape for array in (*batch.texts[:3], *batch.texts.blocks))
