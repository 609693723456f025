"""Hard negatives from a run file or from BM25, as grouped JSONL that a data mixture reads.

    python -m synrank_jax.mine --collection FOLDER --bm25 --output hard.jsonl
    python -m synrank_jax.mine --collection FOLDER --run runs/zero-shot/run.trec --output hard.jsonl

Mined are the judged queries of --split. Of the ranks --skip-top + 1 to --depth, judged documents
(whatever their grade), excluded pairs, empty documents and copies of a relevant document's text are
removed, then what the other options ask for. One line per query, best first:

    {"qid": "q1", "docid": ["d3", "d7"], "score": [9.5, 8.1]}

`evaluate` writes run files (run.trec) of any model: score the split to mine with
--set evaluation.split=train. Other run files (qid Q0 docid rank score tag) do as well.
"""

import argparse
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from synrank_jax.cli import run_command
from synrank_jax.data import beir
from synrank_jax.data.lines import read_lines, read_table
from synrank_jax.errors import UserError
from synrank_jax.files import atomic_write
from synrank_jax.hub import collection_folder
from synrank_jax.retrieval.bm25 import Bm25, load_bm25s
from synrank_jax.retrieval.files import Qrels
from synrank_jax.retrieval.mining import (
    Mined,
    Rankings,
    Reason,
    Rules,
    Summary,
    mine_query,
    run_rankings,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collection:
    """The queries that hard negatives are mined for, and where the documents are."""

    folder: Path
    queries: dict[str, str]
    """All of them, mined or not."""
    qrels: Qrels
    """Of the queries to mine."""
    excluded: dict[str, set[str]]
    """{query_id: doc_ids that exclusion lists name for it}."""


def read_collection(
    path: str, split: str, subset: str | None, exclude_files: Sequence[str]
) -> Collection:
    """Read a BEIR-layout folder, all but its documents, and check that its files fit together.

    Raises:
        UserError: a file is missing or broken, a judgement or the subset names an unknown query, or
            no query is left.
    """
    folder = collection_folder(path, "--collection")
    queries, qrels = beir.read_queries(folder), beir.read_qrels(folder, split)
    judgements = beir.qrels_file(folder, split)
    _require_queries(qrels, queries, judgements)
    if subset is not None:
        file = Path(subset).expanduser()
        wanted = beir.read_query_subset(file)
        _require_queries(sorted(wanted), queries, file)
        if without := wanted - qrels.keys():
            logger.warning(
                "%s: %d queries have no judgements in %s", file, len(without), judgements
            )
        qrels = {query_id: judged for query_id, judged in qrels.items() if query_id in wanted}
    if not qrels:
        raise UserError(f"{judgements}: no judged query to mine for; check --split and --queries")
    excluded: dict[str, set[str]] = {}
    for query_id, doc_id in beir.read_exclude(folder):
        excluded.setdefault(query_id, set()).add(doc_id)
    for name in exclude_files:
        rows = read_table(Path(name).expanduser(), beir.EXCLUDE_HEADER, header=True)
        pairs = [(query_id, doc_id) for _, (query_id, doc_id) in rows]
        for query_id, doc_id in pairs:
            excluded.setdefault(query_id, set()).add(doc_id)
        if not any(query_id in qrels for query_id, _ in pairs):
            logger.warning(
                "--exclude %s: none of its %d pairs is of a query to mine", name, len(pairs)
            )
    return Collection(folder, queries, qrels, excluded)


def _require_queries(ids: Iterable[str], queries: Container[str], file: Path) -> None:
    unknown = [query_id for query_id in ids if query_id not in queries]
    if unknown:
        lines = (line for line, text in read_lines(file) if text.split("\t")[0] == unknown[0])
        raise UserError(
            f"{file}:{next(lines)}: query {unknown[0]!r} is not in {beir.QUERIES_FILE} "
            f"({len(unknown)} such queries); add it there or remove it here"
        )


def bm25_rankings(texts: dict[str, str], collection: Collection, depth: int) -> Rankings:
    """BM25 rankings of the queries to mine, with the scores of all judged documents that match.

    Raises:
        UserError: bm25s is missing, or no document has a word.
    """
    index = Bm25(texts)
    for query_id, judged in collection.qrels.items():
        yield query_id, index.search(collection.queries[query_id], depth, also=judged)


def text_marks(folder: Path) -> dict[str, int]:
    """{doc_id: a hash of its text, 0 for an empty one}, in a third of the memory of passages.

    Raises:
        UserError: the corpus is missing, has a malformed line, or one id with two texts.
    """
    marks: dict[str, int] = {}
    for place, doc_id, text in beir.documents(folder).rows():
        mark = hash(text) if text else 0
        if marks.setdefault(doc_id, mark) != mark:
            raise UserError(
                f"{place}: id {doc_id!r} is written twice, with different texts; keep one"
            )
    return marks


def mine(
    rankings: Rankings,
    documents: Mapping[str, str | int],
    collection: Collection,
    rules: Rules,
    output: Path,
) -> Summary:
    """Write the hard negatives of every query that has some; `output` appears when it is whole.

    Raises:
        UserError: of `rankings`; no query has any; `output` cannot be written.
    """
    summary = Summary()
    columns = (TextColumn("mining"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress, atomic_write(output) as file:
        task = progress.add_task("", total=len(collection.qrels))
        for query_id, scores in rankings:
            if query_id not in collection.qrels:
                summary.not_asked += 1
                continue
            judged = collection.qrels[query_id]
            excluded = collection.excluded.get(query_id, set())
            mined = mine_query(query_id, scores, judged, excluded, documents, rules)
            summary.add(query_id, mined)
            if mined.documents:
                doc_ids, values = zip(*mined.documents, strict=True)
                record = {"qid": query_id, "docid": doc_ids, "score": values}
                file.write(f"{json.dumps(record, ensure_ascii=False)}\n".encode())
            progress.advance(task)
        for query_id in collection.qrels.keys() - summary.kept.keys():
            summary.add(query_id, Mined([], Counter(), Reason.NOT_RANKED))
        if not any(summary.kept.values()):
            reasons = ", ".join(_counts(summary.none_because))
            raise UserError(
                f"--output {output}: none of {len(summary.kept)} queries has a hard negative left "
                f"({reasons}); loosen that rule, raise --depth or check that the run is of --split "
                "(nothing was written)"
            )
    return summary


def _counts(counter: Counter[Reason]) -> list[str]:
    return [f"{reason}: {count:,}" for reason, count in counter.most_common()]


def summary_table(summary: Summary) -> Table:
    """Queries, hard negatives per query, and what was removed why."""
    kept = np.array(list(summary.kept.values()))
    low, tenth, median, ninth, high = np.percentile(kept, (0, 10, 50, 90, 100), method="nearest")
    table = Table(title="hard negatives", show_header=False)
    rows = {
        "queries": f"{np.count_nonzero(kept):,} of {kept.size:,}",
        "queries without any": "\n".join(_counts(summary.none_because)) or "none",
        "hard negatives": f"{kept.sum():,}",
        "per query": f"{low} to {high}, median {median} (10 %: {tenth}, 90 %: {ninth})",
        "documents removed": "\n".join(_counts(summary.removed)) or "none",
        "ranked, but not to mine": f"{summary.not_asked:,} queries",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    args = _parser().parse_args(argv)
    rules = Rules(**{name: getattr(args, name) for name in Rules.__dataclass_fields__})
    output = Path(args.output).expanduser()
    if args.bm25:
        load_bm25s()  # better missing now than after reading the corpus
    collection = read_collection(args.collection, args.split, args.queries, args.exclude)
    documents: Mapping[str, str | int]
    if args.bm25:
        documents = texts = beir.read_corpus(collection.folder)
        rankings = bm25_rankings(texts, collection, rules.depth)
    else:
        documents, run = text_marks(collection.folder), Path(args.run).expanduser()
        rankings = run_rankings(read_lines(run), run, collection.queries, documents)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error})") from error
    Console().print(summary_table(mine(rankings, documents, collection, rules, output)))
    print(f"written: {output}")


def _number(
    kind: Callable[[str], float], low: float, high: float = math.inf
) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high or not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text}: must be from {low:g} to {high:g}")
        return value

    parse.__name__ = kind.__name__  # argparse shows it
    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m synrank_jax.mine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--collection", metavar="FOLDER", required=True, help="BEIR-layout folder or bundled:NAME")
    add("--split", default="train", help="which judgements: qrels/SPLIT.tsv (default: train)")
    add("--queries", metavar="FILE", help="mine only these queries, one id per line")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", metavar="FILE", help="TREC run file, such as evaluate's run.trec")
    which.add_argument("--bm25", action="store_true", help="rank with BM25 (English)")
    add("--output", metavar="FILE.jsonl", required=True, help="replaced if it exists")
    count, any_score = _number(int, 1), _number(float, -math.inf)
    add("--depth", type=count, default=100, metavar="K", help="ranks considered (default: 100)")
    add("--skip-top", type=_number(int, 0), default=0, metavar="N", help="skip the first N ranks")
    add("--per-query", type=count, metavar="N", help="keep the N best (default: all)")
    add("--min-score", type=any_score, metavar="S", help="keep scores of at least S")
    add("--max-score", type=any_score, metavar="S", help="keep scores below S")
    add(
        "--margin",
        type=_number(float, 0),
        metavar="M",
        help="keep scores at least M below the positive's, the best-ranked relevant document",
    )
    add(
        "--max-relative",
        type=_number(float, 0, 1),
        metavar="R",
        help="keep scores of at most R times the positive's, for example 0.95",
    )
    add(
        "--positive-grade",
        type=_number(int, 0),
        default=1,
        metavar="G",
        help="lowest grade of a relevant document (default: 1)",
    )
    add(
        "--exclude",
        metavar="FILE.tsv",
        nargs="+",
        default=[],
        help="(query-id, corpus-id) pairs to remove, beside those of the collection's exclude.tsv",
    )
    add(
        "--exclude-self-match",
        action="store_true",
        help="remove a document whose id is the query's (ArguAna, Quora)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
