"""Time, memory and accuracy of the losses on this machine.

    python benchmarks/losses.py [--rounds 15] [--threads 1] [--accuracy]

The Gaussian loss, value and gradient, against the reference formula (general eigenvalues of A A^T
in torch float64), then every loss on 64 lists of 8. Contenders take turns within a round, so load
from elsewhere hits all of them; the tables give medians. --threads 1 keeps BLAS (LAPACK's SVD) and
torch on one thread: on a busy machine their threads wait for each other. --accuracy compares the
solvers of the nuclear norm with an SVD in float64 instead.
"""

import argparse
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from machine import console, interleaved, print_machine
from rich.table import Table

L = 4
TEMPERATURE, TARGET_TEMPERATURE = 1.0, 1.0
QUERIES_WITH_REFERENCE, QUERIES_ALONE = (16, 64, 256), (1024,)
LISTS, LIST_SIZE = 64, 8
LEVELS = (-1.0, 0.0, 1.0, 2.0, 3.0)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="of BLAS and torch; XLA keeps its own")
    parser.add_argument("--accuracy", action="store_true")
    args = parser.parse_args()
    if args.threads:  # before jax loads SciPy, whose OpenBLAS XLA calls on CPU
        os.environ["OPENBLAS_NUM_THREADS"] = str(args.threads)
    print_machine("jax", "jaxlib", "ott-jax", "numpy", "scipy", "torch")
    console.print(f"threads of BLAS and torch: {args.threads or 'their defaults'}")
    if args.accuracy:
        accuracy_table()
        return
    gaussian_table(args.rounds, args.threads)
    losses_table(args.rounds)


def pool(queries: int, kind: str = "random") -> tuple[np.ndarray, np.ndarray]:
    """(cosine scores [Q, Q L] of random or of grade-following embeddings, grades [Q, L])."""
    rng = np.random.default_rng(0)
    labels = rng.permuted(np.tile([3.0, 2, 1, 0], (queries, 1)), axis=1)
    query = rng.normal(size=(queries, 384))
    passage = rng.normal(size=(queries, L, 384))
    if kind == "aligned":
        passage += 0.35 * (1 + labels[..., None]) / 2 * query[:, None]
    query /= np.linalg.norm(query, axis=-1, keepdims=True)
    passage /= np.linalg.norm(passage, axis=-1, keepdims=True)
    return query @ passage.reshape(queries * L, -1).T, labels


def reference(scores: np.ndarray, labels: np.ndarray) -> Callable[[], tuple[float, np.ndarray]]:
    """The reference formula: sum of sqrt(eigenvalues of A A^T + 1e-15), value and gradient."""
    import torch

    queries, count = scores.shape

    def run() -> tuple[float, np.ndarray]:
        leaf = torch.tensor(scores, dtype=torch.float32, requires_grad=True)
        grades = torch.block_diag(*torch.tensor(labels, dtype=torch.float32)[:, None])
        p = torch.softmax(leaf.double() / TEMPERATURE, dim=1)
        t = torch.softmax(grades.double() / TARGET_TEMPERATURE, dim=1)
        mean_p, mean_t, f = p.mean(0), t.mean(0), 1 / (queries - 1)
        E_p, E_t = p - mean_p, t - mean_t
        A = f * E_p @ E_t.T
        norm = torch.sqrt(torch.linalg.eigvals(A @ A.T) + 1e-15).real.sum()
        spread = f * (E_p**2).sum() + f * (E_t**2).sum()
        value = ((mean_p - mean_t) ** 2).sum() + spread - 2 * norm
        value.backward()
        assert leaf.grad is not None
        return value.item(), leaf.grad.numpy()

    assert count == queries * L
    return run


def ours(scores: np.ndarray, labels: np.ndarray, form: str, solver: str) -> tuple[Any, Any]:
    """(call that returns value and gradient, its compiled program) in float32."""
    import jax
    import jax.numpy as jnp

    from synrank_jax.losses.gaussian import gaussian_wasserstein
    from synrank_jax.losses.pool import pool_labels
    from synrank_jax.losses.pooled_target import PoolLists

    def loss(scores: Any, labels: Any, where: Any, ids: Any) -> Any:
        lists = PoolLists(labels, where, ids, 0.0) if form == "lists" else None
        pooled = pool_labels(labels, where, ids, in_batch_grade=0.0, in_batch_level=-1.0)
        return gaussian_wasserstein(
            scores,
            *pooled,
            temperature=TEMPERATURE,
            target_temperature=TARGET_TEMPERATURE,
            solver=solver,  # type: ignore[arg-type]
            lists=lists,
        )

    arrays = (
        jnp.asarray(scores, jnp.float32),
        jnp.asarray(labels, jnp.float32),
        jnp.ones(labels.shape, bool),
        jnp.arange(labels.size, dtype=jnp.int32).reshape(labels.shape),
    )
    executable = jax.jit(jax.value_and_grad(loss)).lower(*arrays).compile()
    return lambda: jax.block_until_ready(executable(*arrays)), executable


def gaussian_table(rounds: int, threads: int | None) -> None:
    """Value and gradient of the Gaussian loss, ours against the reference formula."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    table = Table(title=f"Gaussian loss, value and gradient, L = {L} (ms, median)")
    columns = "Q|reference, float64|lists, svd|ratio|lists, newton_schulz|full target, svd|ratio"
    for column in (*columns.split("|"), "MiB (lists, svd)", "value difference"):
        table.add_column(column, justify="right")
    for queries in (*QUERIES_WITH_REFERENCE, *QUERIES_ALONE):
        scores, labels = pool(queries)
        programs = {
            (form, solver): ours(scores, labels, form, solver)
            for form, solver in (("lists", "svd"), ("lists", "newton_schulz"), ("dense", "svd"))
        }
        contenders: dict[Any, Callable[[], Any]] = {key: run for key, (run, _) in programs.items()}
        if queries in QUERIES_WITH_REFERENCE:
            contenders["reference"] = reference(scores, labels)
        ms = {
            key: 1e3 * seconds
            for key, seconds in interleaved(contenders, rounds if queries < 256 else 5).items()
        }
        memory = programs["lists", "svd"][1].memory_analysis()
        best = ms["lists", "svd"]
        compared = "reference" in ms
        difference = 0.0
        if compared:
            expected = contenders["reference"]()[0]
            difference = abs(expected - float(contenders["lists", "svd"]()[0]))
        table.add_row(
            str(queries),
            f"{ms['reference']:.2f}" if compared else "-",
            f"{best:.2f}",
            f"{ms['reference'] / best:.1f}" if compared else "-",
            f"{ms['lists', 'newton_schulz']:.2f}",
            f"{ms['dense', 'svd']:.2f}",
            f"{ms['reference'] / ms['dense', 'svd']:.1f}" if compared else "-",
            f"{(memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20:.1f}",
            f"{difference:.0e}" if compared else "-",
        )
    console.print(table)
    print_share_of_a_step(QUERIES_ALONE[-1], best / 1e3)


def print_share_of_a_step(queries: int, seconds: float) -> None:
    """The loss beside the encoder's work: BERT-base, queries of 64 and passages of 256 tokens."""
    import jax
    import jax.numpy as jnp

    hidden, layers = 768, 12
    flops = 0.0
    for rows, tokens in ((queries, 64), (queries * L, 256)):
        per_token = layers * 2 * (12 * hidden**2 + 2 * tokens * hidden)
        flops += 3 * rows * tokens * per_token  # forward, and twice that backward
    # The two products of 21 Newton-Schulz steps, and A twice: once backward.
    loss_flops = 21 * 2 * 2 * queries**3 + 2 * 2 * queries**2 * L
    matrix = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(lambda matrix: matrix @ matrix)
    timed = interleaved({"product": lambda: jax.block_until_ready(product(matrix))}, 5)
    rate = 2 * 2048**3 / timed["product"]
    console.print(
        f"A step of BERT-base with Q = {queries}, L = {L}: {flops:.2g} FLOPs, {flops / rate:.0f} s "
        f"at the {rate / 1e9:.0f} GFLOP/s of a matrix product here. The loss by svd takes "
        f"{seconds / (flops / rate):.3%} of that time, newton_schulz {loss_flops / flops:.3%} of "
        "the FLOPs."
    )


def losses_table(rounds: int) -> None:
    """Every loss on lists alone and, where it says pool, on the pool of as many lists."""
    import jax
    import jax.numpy as jnp

    from synrank_jax.losses import LOSSES
    from synrank_jax.losses.pool import pool_labels

    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, 4, (LISTS, LIST_SIZE)), jnp.float32)
    where = jnp.ones((LISTS, LIST_SIZE), bool)
    ids = jnp.arange(labels.size, dtype=jnp.int32).reshape(labels.shape)
    arguments = {
        "list": (labels, where, where),
        "pool": pool_labels(labels, where, ids, in_batch_grade=None, in_batch_level=-1.0),
    }
    keywords: dict[str, dict[str, Any]] = {
        "wasserstein": {"levels": LEVELS},
        "sinkhorn": {"levels": LEVELS, "epsilon": 0.5},
        "soft_rank": {"levels": LEVELS},
        "infonce_sampled": {
            "positive_grade": 2.0,
            "keys": jax.random.split(jax.random.key(0), LISTS),
        },
    }
    contenders: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, loss in LOSSES.items():
        for scope, rest in arguments.items():
            bound = functools.partial(
                loss, temperature=0.1, target_temperature=0.5, **keywords.get(name, {})
            )
            scores = jnp.asarray(rng.normal(size=rest[0].shape), jnp.float32)
            program = jax.jit(jax.value_and_grad(bound)).lower(scores, *rest).compile()
            contenders[name, scope] = lambda program=program, scores=scores, rest=rest: (
                jax.block_until_ready(program(scores, *rest))
            )
    seconds = interleaved(contenders, rounds)
    table = Table(
        title=f"Value and gradient, {LISTS} lists of {LIST_SIZE} (ms, median); pool: {LISTS} x "
        f"{LISTS * LIST_SIZE}"
    )
    for column in ("loss", "list", "pool"):
        table.add_column(column, justify="right")
    for name in LOSSES:
        table.add_row(name, *(f"{1e3 * seconds[name, scope]:.2f}" for scope in arguments))
    console.print(table)


def accuracy_table() -> None:
    """Relative gradient errors by the polar factor, from one and the same A rounded to float32."""
    import jax
    import jax.numpy as jnp
    from ott.math.matrix_square_root import sqrtm

    from synrank_jax.losses.nuclear_norm import nuclear_norm, polar_factor

    def by_sqrtm(A: Any, ridge: float) -> Any:
        # Scaled, null space (all ones, on the left) removed, regularised.
        X = A / jnp.linalg.norm(A)
        gram = X @ X.T + ridge * jnp.eye(len(X)) + 1 / len(X)
        return sqrtm(gram)[1] @ X

    solvers: dict[str, Callable[[Any], Any]] = {
        "svd": jax.jit(jax.grad(functools.partial(nuclear_norm, floor=0.0, solver="svd"))),
        "newton_schulz": jax.jit(functools.partial(polar_factor, floor=0.0)),
    }
    for ridge in (1e-6, 1e-8, 1e-10):
        solvers[f"sqrtm {ridge:.0e}"] = jax.jit(functools.partial(by_sqrtm, ridge=ridge))
    table = Table(
        title="Gradient error by solver in float32; released: damped as there, in float64"
    )
    columns = ("Q", "scores", "tau", "s_min/s_max", "|value error|", *solvers, "released")
    for column in columns:
        table.add_column(column, justify="right")
    for queries in (16, 64, 256, 1024):
        for kind in ("random", "aligned"):
            for temperature in (1.0, 0.05):
                scores, labels = pool(queries, kind)
                A, gradient = formula(scores / temperature, labels)
                U, s, Vt = np.linalg.svd(A)
                U, s, Vt = U[:, :-1], s[:-1], Vt[:-1]  # without the structural null space
                expected = gradient(U @ Vt)
                # Products near the scale of 1e-8 are no reason to underflow.
                single = jnp.asarray(A / s[0], jnp.float32)
                factors = {name: np.asarray(f(single), np.float64) for name, f in solvers.items()}
                factors["released"] = U * (s / np.sqrt(s**2 + 1e-15)) @ Vt
                errors = [
                    np.linalg.norm(gradient(factor) - expected) / np.linalg.norm(expected)
                    for factor in factors.values()
                ]
                value_error = abs(np.sum(factors["newton_schulz"] * A) - s.sum()) / s.sum()
                cells = (queries, kind, temperature, f"{s[-1] / s[0]:.0e}", f"{value_error:.0e}")
                table.add_row(*map(str, cells), *(f"{error:.0e}" for error in errors))
    console.print(table)


def formula(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, Callable[..., np.ndarray]]:
    """A, and the gradient with respect to the logits as a function of the polar factor; float64."""
    queries = len(scores)
    grades = np.zeros(scores.shape)
    for row, list_labels in enumerate(labels):
        grades[row, row * L : (row + 1) * L] = list_labels
    p, t = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (scores, grades))
    E_p, E_t, f = p - p.mean(0), t - t.mean(0), 1 / (queries - 1)

    def gradient(factor: np.ndarray) -> np.ndarray:
        by_p = 2 * f * (E_p - factor @ E_t)
        by_p = by_p - by_p.mean(0) + 2 * (p - t).mean(0) / queries
        return p * (by_p - (by_p * p).sum(axis=1, keepdims=True))

    return f * E_p @ E_t.T, gradient


if __name__ == "__main__":
    main()
