"""Lists with real labels for configs/experiments/nfcorpus_real.yaml, as a BEIR-layout folder.

    python benchmarks/make_nfcorpus_lists.py --shared FOLDER --output runs/data/nfcorpus-real

1,000 NFCorpus train queries, none of them in nfcorpus-synthetic or with the text of a dev or test
query; each with two of its judged
documents (grade 3: all train judgements are "relevant") and two random documents that are not
judged for it (grade 0). exclude.tsv names its other judged documents. All draws are by the SHA-256
of the ids, so everyone gets the same lists.
"""

import argparse
import hashlib
import heapq
import json
from pathlib import Path

from synrank_jax.cli import run_command
from synrank_jax.data import beir
from synrank_jax.errors import UserError
from synrank_jax.files import write_text

QUERIES = 1000
PER_GRADE = 2


def main(argv: list[str] | None = None) -> None:
    """Write corpus.jsonl, queries.jsonl, qrels/train.tsv and exclude.tsv."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True, help="folder of the collections")
    parser.add_argument("--output", type=Path, default=Path("runs/data/nfcorpus-real"))
    args = parser.parse_args(argv)
    source = args.shared / "nfcorpus"
    if not source.is_dir():
        raise UserError(f"--shared {args.shared}: holds no folder nfcorpus")
    corpus = {doc_id: text for doc_id, text in beir.read_corpus(source).items() if text}
    queries, qrels = beir.read_queries(source), beir.read_qrels(source, "train")
    synthetic = beir.read_queries(args.shared / "nfcorpus-synthetic")
    # In the official split four train queries have the text of a dev query, and four of a test one.
    held_out = {queries[i] for split in ("dev", "test") for i in beir.read_qrels(source, split)}
    usable = [
        query_id
        for query_id, judged in qrels.items()
        if query_id not in synthetic
        and queries[query_id] not in held_out
        and len(judged.keys() & corpus.keys()) >= PER_GRADE
    ]
    grades = {}
    for query_id in drawn(usable, QUERIES, "query"):
        judged = qrels[query_id].keys()
        grades[query_id] = {
            **dict.fromkeys(drawn(judged & corpus.keys(), PER_GRADE, query_id), 3),
            **dict.fromkeys(drawn(corpus.keys() - judged, PER_GRADE, query_id), 0),
        }
    documents = sorted({doc_id for judged in grades.values() for doc_id in judged})
    (args.output / "qrels").mkdir(parents=True, exist_ok=True)
    write_text(
        args.output / "corpus.jsonl",
        "".join(row({"_id": i, "title": "", "text": corpus[i]}) for i in documents),
    )
    write_text(
        args.output / "queries.jsonl",
        "".join(row({"_id": i, "text": queries[i]}) for i in grades),
    )
    # The other judged documents are no negatives where they stand in other lists.
    barred = [
        f"{q}\t{d}\n"
        for q, own in grades.items()
        for d in sorted(qrels[q].keys() & set(documents) - own.keys())
    ]
    write_text(args.output / "exclude.tsv", "query-id\tcorpus-id\n" + "".join(barred))
    pairs = [f"{q}\t{d}\t{g}\n" for q, judged in grades.items() for d, g in judged.items()]
    write_text(args.output / "qrels" / "train.tsv", "query-id\tcorpus-id\tscore\n" + "".join(pairs))
    print(f"{len(grades)} lists, {len(documents)} documents: {args.output}")


def drawn(ids, count: int, salt: str) -> list[str]:
    """`count` of the ids, by the hash of salt and id."""
    return heapq.nsmallest(
        count, ids, key=lambda i: hashlib.sha256(f"{salt}\t{i}".encode()).digest()
    )


def row(values: dict[str, str]) -> str:
    """One JSON line."""
    return json.dumps(values, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    run_command(main)
