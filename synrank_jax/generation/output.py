"""Lists on disk: as lists JSONL, which keeps everything, and in BEIR layout."""

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from synrank_jax.errors import UserError
from synrank_jax.files import atomic_write
from synrank_jax.generation.lists import RankingContext

LISTS_FILE = "lists.jsonl"
SPLIT = "train"


def write_lists(folder: Path, contexts: Iterable[RankingContext]) -> int:
    """Write lists.jsonl, corpus.jsonl, queries.jsonl and qrels/train.tsv, one list at a time.

    Returns:
        The number of lists.

    Raises:
        UserError: the folder cannot be written; what was there before is still there.
    """
    try:
        (folder / "qrels").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    count = 0
    with ExitStack() as files:
        # The last opened is renamed first: lists.jsonl, which the others follow from, last.
        names = (LISTS_FILE, "corpus.jsonl", "queries.jsonl", f"qrels/{SPLIT}.tsv")
        lists, corpus, queries, qrels = (
            files.enter_context(atomic_write(folder / name)) for name in names
        )
        qrels.write(b"query-id\tcorpus-id\tscore\n")
        for context in contexts:
            _write_line(lists, context.record())
            _write_line(queries, {"_id": context.query_id, "text": context.query})
            for passage in context.passages:
                title = {"title": passage.title} if passage.title else {}
                _write_line(corpus, {"_id": passage.doc_id, **title, "text": passage.text})
                line = f"{context.query_id}\t{passage.doc_id}\t{passage.grade}\n"
                qrels.write(line.encode())
            count += 1
    return count


def _write_line(file: IO[bytes], record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
