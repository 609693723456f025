"""Exact search of a corpus on disk against FAISS in memory; its memory; approximate indexes.

    python benchmarks/search.py [--part exact memory approximate] [--documents 1000000] [--rounds 3]

exact: 1,000 queries, the best 100 of documents of 384 dimensions: faiss-cpu's IndexFlatIP, filled
before the clock starts, against our search of the store on disk (reading it included) and the one
in JAX. memory: peak anonymous memory of a process above what it had before the search, for three
sizes. approximate: indexes by factory string on a tenth of the documents: time to build and to
search, recall against exact search. The vectors are random around 1,000 centres, of unit length.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from machine import console, interleaved, print_machine
from rich.table import Table

from synrank_jax.contract import EncodingContract
from synrank_jax.retrieval.ann import AnnSearch, recall_audit
from synrank_jax.retrieval.embeddings import EmbeddingStore, StoreKey
from synrank_jax.retrieval.search import ArrayVectors, load_faiss, search

DIMENSION, QUERIES, K = 384, 1000, 100
INDEXES = ("HNSW32;efSearch=128", "IVF1024,Flat;nprobe=32", "IVF1024,SQ8;nprobe=32")
CONTRACT = EncodingContract(
    pooling="mean",
    normalize=True,
    similarity="dot",
    query_prompt="",
    passage_prompt="",
    query_length=256,
    passage_length=256,
    tokenizer_sha256="",
)


def vectors(rows: int, seed: int) -> np.ndarray:
    """Rows [N, D] of unit length around common centres."""
    centres = np.random.default_rng(0).standard_normal((1000, DIMENSION), np.float32)
    rng = np.random.default_rng(seed)
    values = centres[rng.integers(0, 1000, rows)]
    values += 0.7 * rng.standard_normal((rows, DIMENSION), np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def open_store(folder: Path, documents: int) -> EmbeddingStore:
    """A store of so many rows, filled if it is not."""
    key = StoreKey(
        contract=CONTRACT,
        weights_sha256="",
        backend="jax",
        texts_sha256="",
        texts=documents,
        dtype="float32",
    )
    store = EmbeddingStore(folder / str(documents), key)
    for shard in store.missing():
        store.write(shard, vectors(len(store.rows(shard)), shard + 1), [])
    return store


def exact_table(folder: Path, documents: int, rounds: int) -> None:
    """Seconds of each side, and whether they found the same."""
    from synrank_jax.engine.search import search as search_in_jax

    faiss = load_faiss()
    store, queries = open_store(folder, documents), vectors(QUERIES, 0)
    index = faiss.IndexFlatIP(DIMENSION)
    for block in store.blocks(2**16):
        index.add(block)
    sides = {
        "faiss-cpu IndexFlatIP, in memory": lambda: index.search(queries, K),
        "ours, from disk": lambda: search(queries, store, K),
        "ours in JAX, from disk": lambda: search_in_jax(queries, store, K),
    }
    seconds = interleaved(sides, rounds)
    peer, *_ = seconds
    rows = sides[peer]()[1]
    title = f"{QUERIES:,} queries, best {K} of {documents:,} x {DIMENSION}, {rounds} rounds"
    table = Table(title=title)
    for name in ("side", "seconds", "FAISS' by it", "same rows"):
        table.add_column(name, justify="right")
    for side, run in sides.items():
        same = (run()[1] == rows).mean()
        ratio = seconds[peer] / seconds[side]
        table.add_row(side, f"{seconds[side]:.2f}", f"{ratio:.2f}", f"{same:.4%}")
    console.print(table)


def anonymous_mb() -> float:
    """Anonymous memory of this process, MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1e3


def peak_mb(folder: Path, documents: int) -> float:
    """Peak of a search above what there was before, MB, sampled every 5 ms."""
    store, queries = open_store(folder, documents), vectors(QUERIES, 0)
    search(queries[:10], ArrayVectors(queries), K)  # the libraries' own memory
    before = peak = anonymous_mb()
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous_mb())

    sampler = threading.Thread(target=sample)
    sampler.start()
    search(queries, store, K)
    done.set()
    sampler.join()
    return peak - before


def memory_table(folder: Path, documents: int) -> None:
    """Peak memory for a quarter, all and twice the documents."""
    table = Table(title="peak anonymous memory of a search, above the start")
    for name in ("documents", "MB on disk", "MB"):
        table.add_column(name, justify="right")
    for count in (documents // 4, documents, 2 * documents):
        store = open_store(folder, count)
        command = [sys.executable, __file__, "--folder", str(folder), "--documents", str(count)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        table.add_row(f"{count:,}", f"{store.nbytes() / 1e6:,.0f}", f"{float(told):.0f}")
    console.print(table)


def approximate_table(folder: Path, documents: int) -> None:
    """Time and recall of indexes."""
    store, queries = open_store(folder, documents), vectors(QUERIES, 0)
    table = Table(title=f"approximate indexes, {documents:,} documents, once each")
    for name in ("index", "build s", "search s", "recall@10", f"recall@{K}"):
        table.add_column(name, justify="right")
    for spec in INDEXES:
        how = AnnSearch(spec)
        began = time.perf_counter()
        index = how.build(store)
        built = time.perf_counter()
        found = how.search(index, queries, K)
        ended = time.perf_counter()
        recall = recall_audit(queries, store, found, [10, K])
        table.add_row(
            spec,
            f"{built - began:.1f}",
            f"{ended - built:.2f}",
            f"{recall[10]:.4f}",
            f"{recall[K]:.4f}",
        )
    console.print(table)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("exact", "memory", "approximate")
    parser.add_argument("--part", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        print(peak_mb(args.folder, args.documents))
        return
    print_machine("jax", "numpy", "faiss-cpu")
    with tempfile.TemporaryDirectory() as folder:
        if "exact" in args.part:
            exact_table(Path(folder), args.documents, args.rounds)
        if "memory" in args.part:
            memory_table(Path(folder), args.documents)
        if "approximate" in args.part:
            approximate_table(Path(folder), args.documents // 10)


if __name__ == "__main__":
    main()
