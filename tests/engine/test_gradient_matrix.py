"""The gradient of a pool is that of one device and one chunk, on every mesh and in every chunking.

Devices x layout x chunk x dropout x loss: each pair of values is in one of a few cells, so each
mesh is too. The first of them, which hold the most pairs, run by default, all cells in the slow
suite.
"""

import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from gradients import (
    GRADIENT_RTOL,
    LOSS_RTOL,
    OTHER_LOSSES,
    gradients,
    mesh_of,
    with_loss,
    worst_leaf,
)

from synrank_jax import prepare
from synrank_jax.config import Config
from synrank_jax.config_file import load_config, to_yaml
from synrank_jax.data.pipeline import PreparedLists, batches
from synrank_jax.parallel.mesh import rows_per_pool
from synrank_jax.types import Batch

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
POOL = 32  # 4 queries for each of 8 devices


class Cell(NamedTuple):
    """data x fsdp x tensor, queries encoded at once by a device, dropout rate, loss."""

    layout: tuple[int, int, int]
    chunk: int | None
    dropout: float
    loss: str


LAYOUTS = (
    *((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)),
    *((4, 1, 1), (1, 4, 1), (2, 2, 1), (2, 1, 2)),
    *((8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)),
)
CHUNKS = (1, 4, None)
DROPOUTS = (0.0, 0.1)
LOSSES = ("gaussian", "wasserstein", "infonce")
MATRIX = [Cell(*cell) for cell in itertools.product(LAYOUTS, CHUNKS, DROPOUTS, LOSSES)]


def pairs(cell: Cell) -> set[tuple]:
    """The pairs of (factor, value) that a cell covers; a mesh is so many devices in a layout."""
    axes = tuple(size > 1 for size in cell.layout)
    layout = "tensor" if axes[2] else axes
    factors = (math.prod(cell.layout), layout, *cell[1:])
    return set(itertools.combinations(enumerate(factors), 2))


def pairwise(cells: list[Cell]) -> list[Cell]:
    """A small part of the cells in which every pair of values occurs (greedy)."""
    left = set().union(*map(pairs, cells))
    chosen = []
    while left:
        best = max(cells, key=lambda cell: len(pairs(cell) & left))
        chosen.append(best)
        left -= pairs(best)
    return chosen


PAIRWISE = pairwise(MATRIX)
DEFAULT = PAIRWISE[:6]


def named(cell: Cell) -> str:
    return f"{'x'.join(map(str, cell.layout))}-chunk {cell.chunk}-{cell.dropout}-{cell.loss}"


def pool(lists: PreparedLists, rows: int, size: int = POOL) -> Batch:
    return next(batches(lists, seed=0, global_batch_size=size, pool_size=size, rows=rows))


REFERENCES: dict[tuple[str, float], tuple[float, dict[str, np.ndarray]]] = {}


def reference(
    config: Config, lists: PreparedLists, loss: str, dropout: float
) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradient on one device, all lists at once; computed once for all cells."""
    if (loss, dropout) not in REFERENCES:
        config = with_loss(config, loss, dropout)
        REFERENCES[loss, dropout] = gradients(config, pool(lists, 1), mesh_of(1, 1))
    return REFERENCES[loss, dropout]


def check(config: Config, lists: PreparedLists, cell: Cell) -> None:
    expected_loss, expected = reference(config, lists, cell.loss, cell.dropout)
    mesh = mesh_of(*cell.layout)
    batch = pool(lists, rows_per_pool(mesh, POOL, cell.chunk))
    loss, found = gradients(with_loss(config, cell.loss, cell.dropout), batch, mesh)
    assert loss == pytest.approx(expected_loss, rel=LOSS_RTOL)
    assert worst_leaf(found, expected) <= GRADIENT_RTOL


def test_the_first_cells_are_few_and_cover_every_pair():
    assert len(PAIRWISE) <= 40
    covered = set().union(*map(pairs, PAIRWISE))
    assert covered == set().union(*map(pairs, MATRIX))


@pytest.mark.parametrize("cell", DEFAULT, ids=named)
def test_gradient_of_one_device_and_one_chunk(
    tiny_config: Config, lists: PreparedLists, cell: Cell
):
    check(tiny_config, lists, cell)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [cell for cell in MATRIX if cell not in DEFAULT], ids=named)
def test_gradient_of_one_device_and_one_chunk_in_the_other_cells(
    tiny_config: Config, lists: PreparedLists, cell: Cell
):
    check(tiny_config, lists, cell)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["groups", *OTHER_LOSSES, "all"])
def test_gradient_of_one_device_and_one_chunk_for_every_other_loss(
    tiny_config: Config, lists: PreparedLists, loss: str
):
    check(tiny_config, lists, Cell((2, 2, 2), 4, 0.1, loss))


@pytest.mark.slow
def test_eight_devices_in_chunks_give_the_gradient_of_one_on_minilm(tmp_path: Path):
    overrides = [f"data.prepared={tmp_path / 'lists'}", f"train.output={tmp_path / 'run'}"]
    config = load_config(QUICKSTART, overrides)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    prepare.main(["--config", str(path)])
    lists = PreparedLists(Path(config.data.prepared))
    one_loss, one = gradients(config, pool(lists, 1, 16), mesh_of(1, 1))
    loss_of_eight, eight = gradients(config, pool(lists, 16, 16), mesh_of(2, 4))
    assert loss_of_eight == pytest.approx(one_loss, rel=LOSS_RTOL)
    assert worst_leaf(eight, one) <= GRADIENT_RTOL


def test_the_comparison_notices_a_swapped_grade(tiny_config: Config, lists: PreparedLists):
    _, expected = reference(tiny_config, lists, "wasserstein", 0.0)
    batch = pool(lists, 32)
    labels = batch.labels.copy()
    labels[0, 0, :2] = labels[0, 0, 1::-1]
    config = with_loss(tiny_config, "wasserstein")
    _, swapped = gradients(config, batch._replace(labels=labels), mesh_of(8, 1))
    assert worst_leaf(swapped, expected) > 100 * GRADIENT_RTOL


def test_the_comparison_notices_dropout_that_depends_on_the_chunk(
    tiny_config: Config, lists: PreparedLists
):
    """Keys of one chunk used for another, by giving its lists each other's numbers."""
    _, expected = reference(tiny_config, lists, "wasserstein", 0.1)
    batch = pool(lists, 32)
    config = with_loss(tiny_config, "wasserstein", 0.1)
    moved = batch._replace(sample_ids=np.roll(batch.sample_ids, 4, axis=1))
    _, other = gradients(config, moved, mesh_of(1, 1))
    assert worst_leaf(other, expected) > 100 * GRADIENT_RTOL
