"""Values and gradients against the reference's numbers and against NumPy."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy_losses
import pytest
from loss_cases import LEVELS, UNEVEN, keywords

from synrank_jax.losses import LOSSES
from synrank_jax.losses.pool import PoolLabels, pool_labels

ORACLE = Path(__file__).parents[1] / "oracles" / "loss" / "oracle.npz"
KEYS = {"gaussian_wasserstein": "ws2", "listnet_kl": "kl", "infonce": "infonce"}
CASES = {
    (case.rsplit("/", 1)[0], name)
    for case in np.load(ORACLE).files
    for name, key in KEYS.items()
    if case.endswith(f"/{key}")
}

# The reference adds 1e-15 under a square root, our value does not: up to 6e-7 at Q = 16.
VALUE_ATOL = {"float64": 1e-6, "float32": 1e-5}
# Float32 values of the size of 50 carry rounding beyond 1e-5.
VALUE_RTOL = {"float64": 0.0, "float32": 1e-6}
GRADIENT_RTOL = {"float64": 1e-5, "float32": 1e-4}
# There float32 logits / 0.02 are of the size of 100: p itself is 1e-5 off.
GRADIENT_RTOL_SHARP = {"float64": 1e-5, "float32": 5e-3}
GRADIENT_ATOL = 1e-8
# The gradient is 0 as a difference of terms of size 0.1: what is left is float32 rounding, 6.5e-9
# where this was written, up to 2.7e-8 over 200 such pools.
GRADIENT_ATOL_PERFECT = 3e-8
# NumPy against us in float64; the [P, P] matrix roots of the Gaussian cost 1e-8.
NUMPY_ATOL = {"gaussian_wasserstein": 1e-7}
NUMPY_ATOL_OTHERS = 1e-10


LIST_SIZE = 7  # of the longest lists in the oracle


@cache
def oracle():
    return dict(np.load(ORACLE))


@jax.jit
def values_and_grads(scores, pooled, temperature):
    """Of all reference losses at once, {name: (value, gradient)}."""

    def value_and_grad(name, target_where):
        def loss(scores):
            masks = pooled.where, target_where
            temperatures = {"temperature": temperature, "target_temperature": 1.0}
            return LOSSES[name](scores, pooled.labels, *masks, **temperatures)

        return jax.value_and_grad(loss)(scores)

    # The oracle's InfoNCE has column i L as the positive, whatever its grade.
    Q, P = scores.shape
    first = jnp.arange(P) == P // Q * jnp.arange(Q)[:, None]
    return {
        name: value_and_grad(name, first if name == "infonce" else pooled.target_where)
        for name in KEYS
    }


@jax.jit
def pool_at_grade_0(labels, where):
    """The reference's expansion of graded lists: in-batch passages count as grade 0."""
    ids = jnp.where(where, jnp.arange(labels.size, dtype=jnp.int32).reshape(labels.shape), -1)
    return pool_labels(labels, where, ids, in_batch_grade=0.0, in_batch_level=-1.0)


def reference_run(scores, labels, temperature, dtype):
    """Our {name: (value, gradient [Q, Q, LIST_SIZE])}; lists are padded to LIST_SIZE.

    Padding saves compilations and puts the masks to work.
    """
    Q, P = scores.shape
    L = P // Q

    def padded(array):
        lists = array.reshape(Q, -1, L)
        return np.pad(lists, ((0, 0), (0, 0), (0, LIST_SIZE - L))).reshape(Q, -1)

    with jax.enable_x64(dtype == "float64"):
        grades = jnp.asarray(padded(labels), dtype)
        where = jnp.asarray(padded(np.ones_like(labels, bool)))
        graded_lists = labels.shape[1] == L
        pooled = pool_at_grade_0(grades, where) if graded_lists else (grades, where, where)
        results = values_and_grads(
            jnp.asarray(padded(scores), dtype), PoolLabels(*pooled), temperature
        )
    return {
        name: (value, np.asarray(gradient).reshape(Q, Q, LIST_SIZE))
        for name, (value, gradient) in results.items()
    }


@cache
def oracle_run(case, dtype):
    temperature = 1.0 if case.startswith("sp_") else float(case.rsplit("_t", 1)[1])
    scores, labels = oracle()[f"{case}/logits"], oracle()[f"{case}/labels"]
    return reference_run(scores, labels, temperature, dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("case", "name"), sorted(CASES))
def test_agrees_with_the_reference(case, name, dtype):
    value, gradient = oracle_run(case, dtype)[name]
    assert value.dtype == gradient.dtype == dtype
    expected = oracle()[f"{case}/{KEYS[name]}"]
    np.testing.assert_allclose(value, expected, rtol=VALUE_RTOL[dtype], atol=VALUE_ATOL[dtype])
    if case.startswith("sp_identical_logit_rows"):
        return  # the gradient is not unique there
    expected = oracle()[f"{case}/{KEYS[name]}_grad"]
    Q, L = len(expected), expected.shape[1] // len(expected)
    assert not gradient[..., L:].any()
    rtol = GRADIENT_RTOL_SHARP[dtype] if "_dot_" in case else GRADIENT_RTOL[dtype]
    perfect_float32 = case.startswith("sp_perfect") and dtype == "float32"
    atol = GRADIENT_ATOL_PERFECT if perfect_float32 else GRADIENT_ATOL
    error = np.linalg.norm(gradient[..., :L] - expected.reshape(Q, Q, L))
    assert error <= rtol * np.linalg.norm(expected) + atol


def test_the_oracle_covers_each_reference_loss():
    assert {name for _, name in CASES} == set(KEYS)
    assert len({case for case, _ in CASES}) == 24


SQUARE = [[1, 0, 0.5, -0.5], [0.2, 0.1, 2, 0.3]]


@pytest.mark.parametrize(
    ("scores", "labels", "temperature", "expected"),
    [
        (SQUARE, [[3, 0], [2, 1]], 1.0, 0.19601863668218117),
        (SQUARE, [[3, 0], [2, 1]], 0.5, 0.1384418833121887),
        (SQUARE[::-1], [[3, 0], [2, 1]], 1.0, 0.19601863668218117),
        (
            [
                [1.5, 0.2, 0.1, 0, -0.3, 0.4],
                [0.3, 0.3, 1.1, 0.9, 0, 0.2],
                [0, -0.1, 0.2, 0.1, 0.8, 1.2],
            ],
            [[3, 1], [2, 0], [0, 3]],
            1.0,
            0.23476763083282703,
        ),
        ([[0.1, 0.2, 0.3, 0.4]], [[3, 2, 1, 0]], 1.0, 0.28109483117791484),
    ],
)
def test_gaussian_wasserstein_golden_values(scores, labels, temperature, expected):
    results = reference_run(np.array(scores), np.array(labels), temperature, "float64")
    value, _ = results["gaussian_wasserstein"]
    assert value == pytest.approx(expected, abs=VALUE_ATOL["float64"])


def ragged_pool(in_batch_grade, dtype):
    """Scores and labels of 5 lists of 4: short lists, an empty one and a shared passage."""
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, 4, (5, 4)), dtype)
    where = np.ones((5, 4), bool)
    where[1, 2:] = where[3] = False
    ids = np.where(where, np.arange(20).reshape(5, 4), -1).astype(np.int32)
    ids[4, 0] = ids[0, 1]
    pooled = pool_labels(
        labels,
        jnp.asarray(where),
        jnp.asarray(ids),
        in_batch_grade=in_batch_grade,
        in_batch_level=-1.0,
    )
    return jnp.asarray(rng.normal(size=(5, 20)), dtype), pooled


# Sinkhorn runs to the end here; test_sinkhorn.py tests where it stops by default.
CONVERGED = {"threshold": 1e-12, "max_iterations": 20_000}
PASSAGES = np.random.default_rng(1).normal(size=(20, 6))
VARIANTS = {
    **{name: (name, keywords(name, 5, positive_grade=2.0)) for name in LOSSES},
    "wasserstein, order 2": ("wasserstein", {"levels": LEVELS, "order": 2}),
    "wasserstein, uneven": ("wasserstein", {"levels": LEVELS, "positions": UNEVEN, "order": 1}),
    "sinkhorn": ("sinkhorn", {"levels": LEVELS, "epsilon": 1.0, **CONVERGED}),
    "sinkhorn, uneven, order 2": (
        "sinkhorn",
        {"levels": LEVELS, "positions": UNEVEN, "order": 2, "epsilon": 4.0, **CONVERGED},
    ),
    "sinkhorn, embedding": (
        "sinkhorn",
        {"cost": "embedding", "passages": PASSAGES, "epsilon": 1.0, **CONVERGED},
    ),
    "soft_rank, uneven": ("soft_rank", {"levels": LEVELS, "positions": UNEVEN}),
}


@cache
def compiled(variant):
    name, options = VARIANTS[variant]

    def loss(scores, *pooled, temperature=0.3):
        temperatures = {"temperature": temperature, "target_temperature": 0.7}
        # An array of the precision under test.
        arrays = {k: jnp.asarray(v) if k == "passages" else v for k, v in options.items()}
        return LOSSES[name](scores, *pooled, **temperatures, **arrays)

    return jax.jit(loss)


@pytest.mark.parametrize("in_batch_grade", [None, 0.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_numpy(variant, in_batch_grade):
    name, options = VARIANTS[variant]
    with jax.enable_x64(True):
        scores, pooled = ragged_pool(in_batch_grade, jnp.float64)
        value = compiled(variant)(scores, *pooled)
        arrays = (np.asarray(array) for array in (scores, *pooled))
    expected = getattr(numpy_losses, name)(*arrays, 0.3, 0.7, **options)
    assert expected > 0.01
    assert value == pytest.approx(expected, abs=NUMPY_ATOL.get(name, NUMPY_ATOL_OTHERS))


# Central differences with step 1e-6 of float64 values of size 1: rounding 1e-10, curvature 1e-12.
STEP, DIFFERENCE_ATOL = 1e-6, 1e-8


@cache
def gradient_and_differences(variant):
    def both(scores, pooled):
        def along(step):
            scores_step, temperature_step = step[:-1].reshape(scores.shape), step[-1]
            return compiled(variant)(
                scores + scores_step, *pooled, temperature=0.3 + temperature_step
            )

        steps = STEP * jnp.eye(scores.size + 1)
        differences = (jax.lax.map(along, steps) - jax.lax.map(along, -steps)) / (2 * STEP)

        def loss(scores, temperature):
            return compiled(variant)(scores, *pooled, temperature=temperature)

        by_scores, by_temperature = jax.grad(loss, argnums=(0, 1))(scores, 0.3)
        return jnp.append(by_scores, by_temperature), differences

    return jax.jit(both)


@pytest.mark.parametrize("in_batch_grade", [None, 0.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_by_scores_and_temperature_equal_finite_differences(variant, in_batch_grade):
    with jax.enable_x64(True):
        scores, pooled = ragged_pool(in_batch_grade, jnp.float64)
        gradient, differences = map(np.asarray, gradient_and_differences(variant)(scores, pooled))
    assert np.linalg.norm(gradient[:-1]) > 0.005
    assert abs(gradient[-1]) > 1e-3
    np.testing.assert_allclose(gradient, differences, atol=DIFFERENCE_ATOL, rtol=1e-6)
