"""Ranking contexts as files: lists JSONL, and the BEIR layout that all other commands read."""

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from synrank_jax.files import atomic_write, make_folder
from synrank_jax.generation.lists import RankingContext

LISTS_FILE = "lists.jsonl"
SPLIT = "train"


def write_lists(folder: Path, contexts: Iterable[RankingContext]) -> int:
    """Write lists.jsonl, corpus.jsonl, queries.jsonl and qrels/train.tsv; returns the number.

    All four appear when the last list is written, lists.jsonl at the very end. A document that
    occurs in two lists is written twice, with the same text, which the readers accept.

    Raises:
        UserError: the folder cannot be written; whatever `contexts` raises.
    """
    make_folder(folder / "qrels", "output")
    count = 0
    with ExitStack() as files:  # closed, and so renamed, in reverse order
        lists = files.enter_context(atomic_write(folder / LISTS_FILE))
        qrels = files.enter_context(atomic_write(folder / "qrels" / f"{SPLIT}.tsv"))
        queries = files.enter_context(atomic_write(folder / "queries.jsonl"))
        corpus = files.enter_context(atomic_write(folder / "corpus.jsonl"))
        qrels.write(b"query-id\tcorpus-id\tscore\n")
        for context in contexts:
            count += 1
            lists.write(json_line(context.record()))
            queries.write(json_line({"_id": context.query_id, "text": context.query}))
            for passage in context.passages:
                corpus.write(
                    json_line({"_id": passage.doc_id, "title": passage.title, "text": passage.text})
                )
                row = f"{context.query_id}\t{passage.doc_id}\t{passage.grade}\n"
                qrels.write(row.encode())
    return count


def json_line(record: dict[str, Any]) -> bytes:
    """A record as one line of UTF-8, texts as they are."""
    return f"{json.dumps(record, ensure_ascii=False)}\n".encode()
