"""Graded lists and evaluation collections as an audit reads them, one after the other."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from synrank_jax.data import beir
from synrank_jax.data.lines import existing_file, identifier, member, read_objects
from synrank_jax.errors import UserError
from synrank_jax.files import file_sha256
from synrank_jax.generation.audit.contamination import Target
from synrank_jax.generation.audit.findings import Finding, Kind
from synrank_jax.generation.lists import Passage, RankingContext, context_of
from synrank_jax.generation.output import LISTS_FILE
from synrank_jax.hub import collection_folder

TRAIN = "train"


@dataclass(frozen=True)
class Lists:
    """Lists to audit or to filter."""

    files: tuple[Path, ...]
    split: str | None
    read: Callable[[], Iterator[RankingContext | Finding]]
    """Every list in order; a finding in place of one that is none."""

    def sha256(self) -> str:
        """Hash of all that is read."""
        digest = hashlib.sha256((self.split or "").encode())
        for file in self.files:
            digest.update(file_sha256(file).encode())
        return digest.hexdigest()


def open_lists(path: str, split: str, option: str) -> Lists:
    """The lists of a folder: its lists.jsonl, else each judged query with its documents.

    Raises:
        UserError: the folder has neither.
    """
    folder = collection_folder(path, option)
    if (file := existing_file(folder, LISTS_FILE)) is not None:
        return Lists((file,), None, lambda: _parsed(file))
    parts = [existing_file(folder, name) for name in (beir.CORPUS_FILE, beir.QUERIES_FILE)]
    files = [part for part in parts if part is not None]
    if len(files) < 2:
        raise UserError(
            f"{option} {path}: has neither {LISTS_FILE} nor {beir.CORPUS_FILE}, "
            f"{beir.QUERIES_FILE} and qrels/SPLIT.tsv; give a folder that generate wrote, or one "
            "in BEIR layout"
        )
    qrels = beir.qrels_file(folder, split)
    judged = beir.read_qrels(folder, split)  # says which splits there are
    return Lists((*files, qrels), split, lambda: _joined(folder, judged))


def _parsed(file: Path) -> Iterator[RankingContext | Finding]:
    for number, (place, record) in enumerate(read_objects(file)):
        try:
            yield context_of(record)
        except ValueError as error:
            query_id = str(record.get("query_id", ""))
            yield _unreadable(number, query_id, f"line {place.line}: {error}")


def _unreadable(number: int, query_id: str, why: str) -> Finding:
    printable = query_id.encode(errors="replace").decode()  # half of a surrogate pair is no text
    return Finding(Kind.SCHEMA, number, printable, None, why.encode(errors="replace").decode())


def _joined(
    folder: Path, qrels: Mapping[str, Mapping[str, int]]
) -> Iterator[RankingContext | Finding]:
    queries = beir.read_queries(folder)
    wanted = {doc_id for judged in qrels.values() for doc_id in judged}
    texts = {target.text_id: target for target in documents(folder, "") if target.text_id in wanted}
    for number, (query_id, judged) in enumerate(qrels.items()):
        unknown = [doc_id for doc_id in judged if doc_id not in texts]
        if query_id not in queries:
            yield _unreadable(number, query_id, f"the query is not in {beir.QUERIES_FILE}")
        elif unknown:
            why = f"document {unknown[0]} is not in {beir.CORPUS_FILE}"
            yield _unreadable(number, query_id, why)
        else:
            passages = [
                Passage(doc_id, grade, texts[doc_id].text, texts[doc_id].title)
                for doc_id, grade in judged.items()
            ]
            passages.sort(key=lambda passage: -passage.grade)
            yield RankingContext(query_id, queries[query_id], tuple(passages), {})


def documents(folder: Path, where: str) -> Iterator[Target]:
    """The documents of a BEIR-layout folder, title and text apart."""
    file = existing_file(folder, beir.CORPUS_FILE) or folder / beir.CORPUS_FILE
    for place, record in read_objects(file, beir.PARTS):
        beir.document_text(record, place)  # sees that title and text are texts
        doc_id = identifier(member(record, "_id", place), "_id", place)
        yield Target(where, doc_id, record.get("title") or "", record["text"])


def evaluation_queries(folder: Path, where: str) -> Iterator[Target]:
    """The queries that are not judged in the split train alone."""
    queries = beir.read_queries(folder)
    names = {file.name.split(".tsv")[0] for file in (folder / "qrels").glob("*.tsv*")} - {TRAIN}
    judged = {query_id for name in sorted(names) for query_id in beir.read_qrels(folder, name)}
    for query_id, text in queries.items():
        if query_id in judged or not names:
            yield Target(where, query_id, "", text)


def examples(path: str) -> Iterator[Target]:
    file = Path(path).expanduser()
    for row in _parsed(file):
        if isinstance(row, Finding):
            raise UserError(f"--examples {file}: {row.why}")
        for passage in row.passages:
            yield Target(file.name, passage.doc_id, passage.title, passage.text)
