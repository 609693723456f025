import jax
import numpy as np
import pytest

from synrank_jax.config import MeshConfig
from synrank_jax.engine import search as accelerator
from synrank_jax.errors import UserError
from synrank_jax.parallel.mesh import make_mesh
from synrank_jax.retrieval.search import ArrayVectors, Embeddings, search

# float32 sums of 32 products in another order.
SUM_ORDER = 1e-5
MESHES = {
    "1 device": make_mesh(MeshConfig(), jax.devices()[:1]),
    "8 devices": make_mesh(MeshConfig()),
    "4 x 2 devices": make_mesh(MeshConfig(fsdp=2)),
}


@pytest.fixture(params=MESHES.values(), ids=MESHES.keys())
def mesh(request: pytest.FixtureRequest) -> jax.sharding.Mesh:
    return request.param


def normal(rows: int, seed: int) -> Embeddings:
    return np.random.default_rng(seed).standard_normal((rows, 32)).astype(np.float32)


def whole(rows: int, seed: int) -> Embeddings:
    """Small whole numbers: sums are exact in any order, and most scores occur many times."""
    return np.random.default_rng(seed).integers(-2, 3, (rows, 4)).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 500, 512])
def test_finds_what_faiss_finds(
    rows: int, mesh: jax.sharding.Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "MAX_ROWS", 16)
    queries, passages = normal(7, seed=0), ArrayVectors(normal(rows, seed=1))
    expected_scores, expected = search(queries, passages, 50)
    scores, found = accelerator.search(queries, passages, 50, mesh)
    assert (scores.dtype, found.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=SUM_ORDER)


@pytest.mark.parametrize("k", [1, 10, 130, 1000])
def test_equal_scores_are_ordered_by_row_at_the_boundary_too(
    k: int, mesh: jax.sharding.Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "MAX_ROWS", 8)
    queries, distinct = whole(9, seed=0), whole(100, seed=1)
    passages = ArrayVectors(np.concatenate([distinct, distinct, distinct[:33]]))
    scores, rows = accelerator.search(queries, passages, k, mesh)
    products = queries @ passages.array.T
    expected = np.argsort(-products, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(products, expected, axis=1))


def test_filling_of_the_last_block_is_never_found(mesh: jax.sharding.Mesh) -> None:
    """Rows of zeros would be best where all products are negative."""
    queries, passages = np.ones((2, 4), np.float32), -np.ones((13, 4), np.float32)
    scores, rows = accelerator.search(queries, ArrayVectors(passages), 20, mesh)
    np.testing.assert_array_equal(rows, np.tile(np.arange(13), (2, 1)))
    assert (scores == -4).all()


def test_one_compilation_serves_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "MAX_ROWS", 16)
    steps = []
    make_step = accelerator.make_step

    def kept(*arguments):
        steps.append(make_step(*arguments))
        return steps[-1]

    monkeypatch.setattr(accelerator, "make_step", kept)
    accelerator.search(normal(3, seed=0), ArrayVectors(normal(1000, seed=1)), 5)
    assert [step._cache_size() for step in steps] == [1]


@pytest.mark.parametrize(
    ("queries", "rows"), [(1, 16384), (1000, 16384), (7000, 8192), (10**6, 128)]
)
def test_scores_of_many_queries_stay_within_the_devices_memory(queries: int, rows: int) -> None:
    assert accelerator._rows_at_once(queries) == rows


def test_broken_row_is_named_by_its_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "MAX_ROWS", 2)
    passages = normal(40, seed=1)
    passages[37, 3] = np.inf
    with pytest.raises(UserError, match=r"1 of passage embeddings 32 to 39 .*\[37\]"):
        accelerator.search(normal(3, seed=0), ArrayVectors(passages), 2)


def test_bad_input_is_refused() -> None:
    queries = normal(3, seed=0)
    with pytest.raises(UserError, match="corpus is empty"):
        accelerator.search(queries, ArrayVectors(normal(0, seed=1)), 2)
    with pytest.raises(UserError, match="32 dimensions and passages 4"):
        accelerator.search(queries, ArrayVectors(whole(5, seed=1)), 2)
    huge = np.full((2, 8), 3e38, np.float32)
    with pytest.raises(UserError, match="overflow"):
        accelerator.search(huge, ArrayVectors(huge), 2)
