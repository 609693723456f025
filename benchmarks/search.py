"""Search in a million documents on disk: time against faiss-cpu's flat index, memory, recall.

    python benchmarks/search.py [--part speed|memory|ann|blocks] [--documents 1000000]

Embeddings are drawn around common centres, of unit length, 384 dimensions and written to a
temporary folder (1.5 GB per million). `speed` has plain `faiss.IndexFlatIP` hold them in memory,
filled before the clock runs, and ours read them from disk; `memory` measures processes of their
own. The BLAS inside faiss-cpu takes processors that are newer than it for very old ones;
OPENBLAS_CORETYPE=SkylakeX (or Haswell, Zen) before the command lifts that for all contenders.
"""

import argparse
import functools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from machine import console, interleaved, print_machine

from synrank_jax.retrieval import search as exact
from synrank_jax.retrieval.ann import AnnSearch, recall_audit
from synrank_jax.retrieval.search import ArrayVectors, Embeddings, search

DIMENSION, QUERIES, TOP = 384, 1000, 100
CENTRES, NOISE = 1000, 1.0
MEMORY_DOCUMENTS = (250_000, 1_000_000, 2_000_000)
ANN_DOCUMENTS = 200_000
SPECS = (
    *("IVF1024,PQ96;nprobe=16", "IVF1024,PQ96;nprobe=64", "IVF1024,SQ8;nprobe=64"),
    *("HNSW32;efSearch=128", "HNSW32;efSearch=512"),
)
WRITTEN_AT_ONCE = 65_536


def embeddings(rows: int, seed: int) -> Embeddings:
    centres = np.random.default_rng(0).standard_normal((CENTRES, DIMENSION), np.float32)
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((rows, DIMENSION), np.float32) * np.float32(NOISE)
    drawn += centres[rng.integers(0, CENTRES, rows)]
    return exact.unit_length(drawn)


def written(folder: Path, documents: int) -> Path:
    """A file of so many documents."""
    path = folder / f"{documents}.npy"
    shape = (documents, DIMENSION)
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, documents, WRITTEN_AT_ONCE):
        stop = min(start + WRITTEN_AT_ONCE, documents)
        file[start:stop] = embeddings(stop - start, seed=1 + start)
    file.flush()
    return path


def mapped(path: Path) -> ArrayVectors:
    return ArrayVectors(np.load(path, mmap_mode="r"))


def speed(folder: Path, documents: int, rounds: int) -> None:
    from synrank_jax.engine.search import search as search_in_jax

    passages, queries = mapped(written(folder, documents)), embeddings(QUERIES, seed=0)
    flat = faiss.IndexFlatIP(DIMENSION)
    for block in passages.blocks(WRITTEN_AT_ONCE):
        flat.add(block)
    _, expected = flat.search(queries, TOP)
    ours: dict[str, Callable[..., Any]] = {"ours": search, "ours in JAX": search_in_jax}
    for name, find in ours.items():
        same = (find(queries, passages, TOP)[1] == expected).mean()
        console.print(f"{name}: {same:.3%} of the ranks hold the document of faiss-cpu flat")
    medians = interleaved(
        {
            "faiss-cpu flat": lambda: flat.search(queries, TOP),
            **{
                name: functools.partial(find, queries, passages, TOP) for name, find in ours.items()
            },
        },
        rounds,
    )
    for name, seconds in medians.items():
        ratio = medians["faiss-cpu flat"] / seconds
        console.print(
            f"{name}: {documents:,} documents, {QUERIES:,} queries, top {TOP}: "
            f"{seconds:.1f} s, {ratio:.2f}x faiss-cpu flat"
        )


def memory(folder: Path) -> None:
    for documents in MEMORY_DOCUMENTS:
        path = written(folder, documents)
        for name in ("ours", "jax"):
            command = [sys.executable, __file__, "--measure", name, str(path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            console.print(f"{name}: {documents:,} documents: {done.stdout.strip()}")
        path.unlink()


def measure(name: str, path: Path) -> None:
    """Print by how much anonymous memory grows while this process searches."""
    find: Callable[..., Any] = search
    if name == "jax":
        from synrank_jax.engine.search import search as find
    queries = embeddings(QUERIES, seed=0)
    find(queries, ArrayVectors(queries), TOP)  # libraries and threads
    before, peak, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    find(queries, mapped(path), TOP)
    done.set()
    watcher.join()
    print(f"{(peak - before) / 2**20:.0f} MiB of anonymous memory above {before / 2**20:.0f} MiB")


def anonymous() -> int:
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon")
    )
    return int(line.split()[1]) * 1024


def ann(folder: Path) -> None:
    passages, queries = mapped(written(folder, ANN_DOCUMENTS)), embeddings(QUERIES, seed=0)
    _, exact_s = timed(lambda: search(queries, passages, TOP))
    console.print(f"exact: {ANN_DOCUMENTS:,} documents, {QUERIES:,} queries: {exact_s:.1f} s")
    built: dict[str, tuple[Any, float]] = {}
    for spec in SPECS:
        how, (factory, _, parameters) = AnnSearch(spec), spec.partition(";")
        if factory not in built:
            built[factory] = timed(lambda how=how: how.build(passages))
        index, build_s = built[factory]
        faiss.ParameterSpace().set_index_parameters(index, parameters)
        found, seconds = timed(lambda how=how, index=index: how.search(index, queries, TOP))
        recall = recall_audit(queries, passages, found, [10, TOP])
        shares = ", ".join(f"recall@{k} {share:.3f}" for k, share in recall.items())
        console.print(f"{spec}: built in {build_s:.0f} s, searched in {seconds:.2f} s, {shares}")


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def blocks(rounds: int) -> None:
    """How long our search takes with blocks and tiles of other sizes."""
    passages, queries = ArrayVectors(embeddings(131_072, seed=1)), embeddings(QUERIES, seed=0)

    def sized(rows: int, tile: int) -> None:
        exact.BLOCK_ROWS, exact.QUERY_TILE = rows, tile
        search(queries, passages, TOP)

    sizes = [(rows, 1024) for rows in (1024, 4096, 16_384)] + [(4096, 256)]
    runs = {f"{rows} x {tile}": functools.partial(sized, rows, tile) for rows, tile in sizes}
    for name, seconds in interleaved(runs, rounds).items():
        console.print(f"blocks of {name} queries: {seconds:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("speed", "memory", "ann", "blocks"))
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure[0], Path(arguments.measure[1]))
        return
    print_machine("faiss-cpu", "numpy", "jax")
    parts: dict[str, Callable[[Path], None]] = {
        "speed": lambda folder: speed(folder, arguments.documents, arguments.rounds),
        "memory": memory,
        "ann": ann,
        "blocks": lambda folder: blocks(arguments.rounds),
    }
    for name, run in parts.items():
        if arguments.part in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                run(Path(folder))


if __name__ == "__main__":
    main()
