"""The lists that the tests of the data package prepare."""

from typing import NamedTuple

DOCUMENTS = 11


class Passage(NamedTuple):
    doc_id: str
    text: str
    grade: int


class ExampleList(NamedTuple):
    query_id: str
    query: str
    passages: tuple[Passage, ...]
    excluded: tuple[str, ...] = ()


def make_contexts(count: int) -> list[ExampleList]:
    """Lists of 1 to 4 passages of 3 to 72 words, over documents that recur between lists."""
    return [_context(i) for i in range(count)]


def _context(i: int) -> ExampleList:
    documents = [(i + j) % DOCUMENTS for j in range(1 + i % 4)]
    passages = tuple(
        Passage(f"doc-{d}", " ".join(f"w{d}" for _ in range(3 + 7 * d % 73)), 3 - j)
        for j, d in enumerate(documents)
    )
    return ExampleList(f"q{i}", f"w{i} w{i + 1}", passages)
