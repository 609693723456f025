"""Collections of the hub as BEIR-layout folders, downloaded once.

A folder has corpus.jsonl and queries.jsonl, and appears when both are whole; qrels/SPLIT.tsv of
each split that was asked for follow. provenance.json and qrels/SPLIT.json say which commit they
come from, with hashes and counts.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synrank_jax.config import SourceConfig
from synrank_jax.data import beir, columns
from synrank_jax.data.formats import open_reader
from synrank_jax.data.sources import appearing
from synrank_jax.data.streams import Pair, Reader, Stream, Text
from synrank_jax.errors import UserError
from synrank_jax.files import atomic_write, file_sha256, make_folder, write_text

PROVENANCE_FILE = "provenance.json"


def downloaded_folder(path: str, split: str, cache: Path) -> Path:
    """The folder of a hub dataset with the judgements of a split; what is missing is downloaded.

    A path without a revision stays at the commit of its first download.

    Args:
        path: `hub:owner/name` or `hub:owner/name@revision`.
        split: which judgements.
        cache: folder of the downloaded collections.

    Raises:
        UserError: the hub cannot be reached or has no such dataset or split, a judgement is not a
            whole number, or the cache cannot be written.
    """
    folder = cache / re.sub(r"[^\w.@-]+", "--", path.removeprefix(columns.HUB)).strip("-")
    if not folder.is_dir():
        _write_texts(folder, path)
    record = folder / "qrels" / f"{split}.json"
    if not record.is_file():
        reader = _open(columns.pinned(resolved_path(folder)), split)
        assert reader.pairs is not None
        make_folder(record.parent, "collection")
        with atomic_write(folder / "qrels" / f"{split}.tsv") as file:
            file.write(("\t".join(beir.QRELS_HEADER) + "\n").encode())
            count = sum(bool(file.write(line)) for line in _judgements(reader.pairs))
        origin = {"origin": reader.pairs.origin, "judgements": count}
        _write_record(record, {**origin, "sha256": file_sha256(record.with_suffix(".tsv"))})
    return folder


def resolved_path(folder: Path) -> str:
    """The hub dataset, with its commit, that a downloaded folder was made from."""
    return str(json.loads((folder / PROVENANCE_FILE).read_text("utf-8"))["path"])


def _open(path: str, split: str) -> Reader:
    return open_reader(SourceConfig(path=path, format="mteb", split=split))


def _write_texts(folder: Path, path: str) -> None:
    path = columns.pinned(path)
    streams = {
        beir.CORPUS_FILE: columns.hub_texts(path, "corpus"),
        beir.QUERIES_FILE: columns.hub_texts(path, "queries"),
    }
    with appearing(folder) as temporary:
        files = {}
        for name, stream in streams.items():
            count = _write_jsonl(temporary / name, stream)
            files[name] = {"rows": count, "sha256": file_sha256(temporary / name)}
        origin = streams[beir.CORPUS_FILE].origin
        _write_record(temporary / PROVENANCE_FILE, {"path": path, "origin": origin, "files": files})


def _write_jsonl(path: Path, stream: Stream[Text]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for text in stream.rows():
            # The title stands before the text already.
            record = {"_id": text.id, "text": text.text}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def _judgements(pairs: Stream[Pair]) -> Iterator[bytes]:
    for pair in pairs.rows():
        if pair.score != int(pair.score):
            raise UserError(
                f"{pair.place}: score {pair.score:g} is not a whole number; grades are 0, 1, 2, ..."
            )
        yield f"{pair.query_id}\t{pair.doc_id}\t{int(pair.score)}\n".encode()


def _write_record(path: Path, record: dict[str, Any]) -> None:
    write_text(path, json.dumps(record, indent=2) + "\n")
