"""The source formats: each opens a configured source as streams of texts and of scored pairs.

| format | pairs, under `path` | score |
|---|---|---|
| beir | qrels/SPLIT.tsv: query-id, corpus-id, score, with a header | as written |
| grouped | JSONL {qid, docid: [...], score: [...]}: the file, or qrels/SPLIT.jsonl | as written |
| tevatron | JSONL {query_id, query, positive_passages, negative_passages} | 1, 0 |
| msmarco | qrels.SPLIT.tsv: query, 0, passage, score; or a file of triples | as written; 1, 0 |
| mteb | parquet or JSONL with columns query-id, corpus-id, score (`columns`) | as written |
| lists | JSONL {query_id, query, passages: [{id, text, grade}]} | the grade |
| crops | every document of the corpus with itself | 1 |

Texts are what the folder holds of corpus.jsonl and queries.jsonl (BEIR), collection.tsv and
queries.SPLIT.tsv (MS MARCO) or the parquet folders corpus and queries (MTEB); what it lacks comes
from the folder `corpus`. tevatron (passages {docid, title, text}), lists and triples of texts bring
their own.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from synrank_jax.config import SourceConfig
from synrank_jax.data import beir, columns
from synrank_jax.data.lines import (
    Place,
    existing_file,
    identifier,
    member,
    read_lines,
    read_objects,
    read_table,
    score,
    string,
)
from synrank_jax.data.streams import Pair, Reader, Stream, Text
from synrank_jax.errors import UserError
from synrank_jax.hub import collection_folder

# MS MARCO's own name for files of ids; triples.*.tsv holds the texts.
ID_TRIPLES = "qidpidtriples"


def open_reader(source: SourceConfig) -> Reader:
    """The streams of a source; files are looked up, but not read.

    Raises:
        UserError: a folder or file is missing.
    """
    return FORMATS[source.format](source)


def _beir(source: SourceConfig) -> Reader:
    if columns.on_hub(source.path):
        return Reader(*_texts(source), columns.hub_pairs(source.path, source.split))
    folder = collection_folder(source.path, "data.sources.path")
    pairs = beir.judgements(folder, source.split)
    return Reader(*_texts(source), pairs, beir.excluded(folder))


def _mteb(source: SourceConfig) -> Reader:
    if columns.on_hub(source.path):
        return Reader(*_texts(source), columns.hub_pairs(source.path, source.split))
    folder = collection_folder(source.path, "data.sources.path")
    return Reader(*_texts(source), columns.pairs(folder, source.split))


def _grouped(source: SourceConfig) -> Reader:
    file = _jsonl(source, "qrels")

    def rows() -> Iterator[Pair]:
        for place, record in read_objects(file):
            query_id = identifier(member(record, "qid", place), "qid", place)
            doc_ids, scores = (_array(record, name, place) for name in ("docid", "score"))
            if len(doc_ids) != len(scores):
                raise UserError(
                    f"{place}: docid has {len(doc_ids)} entries, score has {len(scores)}; give "
                    "every document one score"
                )
            for doc_id, value in zip(doc_ids, scores, strict=True):
                doc = identifier(doc_id, "docid", place)
                yield Pair(place, query_id, doc, score(value, "score", place))

    return Reader(*_texts(source), Stream("grouped", (file,), rows))


def _tevatron(source: SourceConfig) -> Reader:
    def passages(record: dict[str, Any], place: Place) -> Iterator[tuple[str, str, float]]:
        for name, value in (("positive_passages", 1.0), ("negative_passages", 0.0)):
            for passage in _array(record, name, place):
                doc_id = identifier(member(passage, "docid", place), "docid", place)
                yield doc_id, beir.document_text(passage, place), value

    return _inline(source, passages)


def _lists(source: SourceConfig) -> Reader:
    def passages(record: dict[str, Any], place: Place) -> Iterator[tuple[str, str, float]]:
        for passage in _array(record, "passages", place):
            doc_id = identifier(member(passage, "id", place), "id", place)
            grade = score(member(passage, "grade", place), "grade", place)
            yield doc_id, beir.document_text(passage, place), grade

    return _inline(source, passages)


def _inline(
    source: SourceConfig,
    passages: Callable[[dict[str, Any], Place], Iterator[tuple[str, str, float]]],
) -> Reader:
    """A JSONL file whose every line is a query with the (id, text, score) of its passages."""
    file = _jsonl(source, ".")

    def records() -> Iterator[tuple[Place, dict[str, Any], str]]:
        for place, record in read_objects(file):
            yield place, record, identifier(member(record, "query_id", place), "query_id", place)

    def queries() -> Iterator[Text]:
        for place, record, query_id in records():
            yield Text(
                place, query_id, string(member(record, "query", place), "query", place).strip()
            )

    def documents() -> Iterator[Text]:
        for place, record, _ in records():
            for doc_id, text, _ in passages(record, place):
                yield Text(place, doc_id, text)

    def pairs() -> Iterator[Pair]:
        for place, record, query_id in records():
            for doc_id, _, value in passages(record, place):
                yield Pair(place, query_id, doc_id, value)

    return Reader(
        Stream(f"{source.format} documents", (file,), documents),
        Stream(f"{source.format} queries", (file,), queries),
        Stream(f"{source.format} pairs", (file,), pairs),
    )


def _msmarco(source: SourceConfig) -> Reader:
    path = Path(source.path).expanduser()
    if not path.is_file():
        folder = collection_folder(source.path, "data.sources.path")
        return Reader(*_texts(source), trec_qrels(folder, source.split))
    if source.corpus or path.name.startswith(ID_TRIPLES):
        corpus = source.corpus or str(path.parent)
        texts = _texts(source.model_copy(update={"corpus": corpus}))
        return Reader(*texts, _triples(path, str))
    return Reader(*_triple_texts(path), _triples(path, _text_id))


def trec_qrels_file(folder: Path, split: str) -> Path:
    """Where the judgements of a split of MS MARCO are, or would be."""
    name = f"qrels.{split}.tsv"
    return existing_file(folder, name) or folder / name


def trec_qrels(folder: Path, split: str) -> Stream[Pair]:
    """The judgements of a split of MS MARCO."""
    path = trec_qrels_file(folder, split)

    def rows() -> Iterator[Pair]:
        for line, text in read_lines(path, "an MS MARCO folder has qrels.SPLIT.tsv"):
            cells, place = text.split(), Place(path, line)
            if len(cells) != 4:
                raise UserError(
                    f"{place}: expected 4 columns (query, 0, passage, score), got {text[:200]!r}"
                )
            yield Pair(place, cells[0], cells[2], score(cells[3], "score", place))

    return Stream("msmarco qrels", (path,), rows)


TRIPLE = ("query", "positive", "negative")


def _triples(path: Path, id_of: Callable[[str], str]) -> Stream[Pair]:
    def rows() -> Iterator[Pair]:
        before: tuple[str, str] | None = None
        for place, (query, positive, negative) in read_table(path, TRIPLE, header=False):
            if (query, positive) != before:  # written once for each of its negatives
                yield Pair(place, id_of(query), id_of(positive), 1.0)
            yield Pair(place, id_of(query), id_of(negative), 0.0)
            before = (query, positive)

    return Stream(f"msmarco triples {id_of.__name__}", (path,), rows)


def _triple_texts(path: Path) -> tuple[Stream[Text], Stream[Text]]:
    def texts(*places: int) -> Callable[[], Iterator[Text]]:
        def rows() -> Iterator[Text]:
            for place, cells in read_table(path, TRIPLE, header=False):
                if all(map(str.isdecimal, cells)):
                    raise UserError(
                        f"{place}: these are ids, not texts; give corpus: the folder of their texts"
                    )
                for cell in (cells[index] for index in places):
                    yield Text(place, _text_id(cell), cell.strip())

        return rows

    return (
        Stream("msmarco triples' passages", (path,), texts(1, 2)),
        Stream("msmarco triples' queries", (path,), texts(0)),
    )


def _text_id(text: str) -> str:
    """Id of a text that comes without one."""
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def _crops(source: SourceConfig) -> Reader:
    return Reader(_find("documents", _documents_in, source), None, None)


def _texts(source: SourceConfig) -> tuple[Stream[Text], Stream[Text]]:
    return _find("documents", _documents_in, source), queries_of(source)


def queries_of(source: SourceConfig, field: str = "data.sources.path") -> Stream[Text]:
    """The queries of a folder or of the hub; `field` names the path in errors."""
    return _find("queries", _queries_in, source, field)


def _find(
    what: str,
    look: Callable[[Path, str], Stream[Text] | None],
    source: SourceConfig,
    field: str = "data.sources.path",
) -> Stream[Text]:
    """The source's own texts, or those of `corpus`."""
    places = {field: source.path, "data.sources.corpus": source.corpus}
    given = {field: place for field, place in places.items() if place is not None}
    for field, place in given.items():
        if columns.on_hub(place):
            return columns.hub_texts(place, "corpus" if what == "documents" else what)
        if Path(place).expanduser().is_file():
            continue
        if (stream := look(collection_folder(place, field), source.split)) is not None:
            return stream
    corpus = "corpus: " if field == "data.sources.path" else ""
    raise UserError(
        f"{field}: no {what} in {' or '.join(given.values())}; give {corpus}a folder "
        f"with {beir.CORPUS_FILE} and {beir.QUERIES_FILE}, collection.tsv and queries.SPLIT.tsv, "
        "or the parquet folders corpus and queries"
    )


def _documents_in(folder: Path, split: str) -> Stream[Text] | None:
    if existing_file(folder, beir.CORPUS_FILE):
        return beir.documents(folder)
    if file := existing_file(folder, "collection.tsv"):
        return _columns_of_two(file)
    return columns.texts(folder, "corpus")


def _queries_in(folder: Path, split: str) -> Stream[Text] | None:
    if existing_file(folder, beir.QUERIES_FILE):
        return beir.queries(folder)
    if file := existing_file(folder, f"queries.{split}.tsv"):
        return _columns_of_two(file)
    return columns.texts(folder, "queries")


def _columns_of_two(path: Path) -> Stream[Text]:
    def rows() -> Iterator[Text]:
        for place, (text_id, text) in read_table(path, ("id", "text"), header=False):
            yield Text(place, text_id, text.strip())

    return Stream("msmarco texts", (path,), rows)


def _jsonl(source: SourceConfig, within: str) -> Path:
    """The file `path`, or SPLIT.jsonl within the folder `path`."""
    path = Path(source.path).expanduser()
    if path.is_file():
        return path
    if path.suffix and not path.exists():
        raise UserError(f"data.sources.path {source.path!r}: no such file")
    folder = collection_folder(source.path, "data.sources.path") / within
    name = f"{source.split}.jsonl"
    file = existing_file(folder, name)
    if file is None:
        there = sorted(path.name for path in folder.glob("*.jsonl*")) or ["none"]
        raise UserError(
            f"data.sources.path {source.path}: has no {Path(within) / name}; correct split, or "
            f"give the file as path. JSONL files there: {', '.join(there)}"
        )
    return file


def _array(record: dict[str, Any], name: str, place: Place) -> list[Any]:
    value = member(record, name, place)
    if not isinstance(value, list):
        raise UserError(f"{place}: {name} must be a list, got {value!r}")
    return value


FORMATS: dict[str, Callable[[SourceConfig], Reader]] = {
    "beir": _beir,
    "grouped": _grouped,
    "tevatron": _tevatron,
    "msmarco": _msmarco,
    "mteb": _mteb,
    "lists": _lists,
    "crops": _crops,
}
