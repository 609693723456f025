"""Graded lists of random words, in which an audit finds nothing until something is planted."""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from synrank_jax.generation.lists import Passage, RankingContext

GRADES = (3, 2, 1, 0)
SYLLABLES = ("ba", "ko", "mi", "ru", "te", "zo", "la", "pe", "ni", "su")


def words_of(rng: random.Random, count: int) -> str:
    """So many words from a thousand; two texts share no run of three but by rare chance."""
    return " ".join("".join(rng.choices(SYLLABLES, k=3)) for _ in range(count))


def clean_lists(count: int, grades: Sequence[int] = GRADES) -> list[RankingContext]:
    """Lists of one passage per grade, of 30 to 60 words whatever the grade."""
    rng = random.Random(0)
    return [
        RankingContext(
            f"q{number}",
            words_of(rng, 5),
            tuple(
                Passage(f"q{number}_l_{grade}", grade, words_of(rng, rng.randint(30, 60)))
                for grade in grades
            ),
            {},
        )
        for number in range(count)
    ]


def with_text(
    context: RankingContext, place: int, text: str, title: str | None = None
) -> RankingContext:
    """The list with another text, and title, of one passage."""
    passages = list(context.passages)
    old = passages[place]
    passages[place] = replace(old, text=text, title=old.title if title is None else title)
    return replace(context, passages=tuple(passages))


def write_jsonl(path: Path, contexts: Iterable[RankingContext]) -> Path:
    """A lists JSONL file, written without the code under test's writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(context.record(), ensure_ascii=False) + "\n" for context in contexts]
    path.write_text("".join(lines), "utf-8")
    return path


def write_collection(
    folder: Path,
    documents: dict[str, tuple[str, str]],
    queries: dict[str, str],
    split: str = "test",
) -> Path:
    """An evaluation collection: {doc_id: (title, text)} and queries judged in one split."""
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": key, "title": title, "text": text} for key, (title, text) in documents.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"_id": key, "text": text} for key, text in queries.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    judged = [f"{query_id}\t{next(iter(documents))}\t1" for query_id in queries]
    qrels = "\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n"
    (folder / "qrels" / f"{split}.tsv").write_text(qrels)
    return folder
