"""TREC run files, and the two shapes everything in this package speaks."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from synrank_jax.errors import UserError
from synrank_jax.files import write_text

RUN_FILE = "run.trec"
Run = dict[str, dict[str, float]]
"""{query_id: {doc_id: score}}, higher is better."""
Qrels = dict[str, dict[str, int]]
"""{query_id: {doc_id: grade}}; an absent document is not judged and counts as 0."""


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Document ids, best first, as trec_eval ranks them.

    It holds scores in float32, and of documents whose scores are then equal the one with the larger
    id (as strings) comes first.
    """
    rounded = np.fromiter(scores.values(), np.float32, len(scores)).tolist()
    return [doc_id for _, doc_id in sorted(zip(rounded, scores, strict=True), reverse=True)]


def write_run(path: Path, run: Run, tag: str) -> None:
    """Write `qid Q0 docid rank score tag`, best first, ranks from 1.

    Ties are ordered as `ranked` orders them, so that the ranks in the file are those that the
    metrics were computed from. Every score is read back exactly.

    Raises:
        UserError: an id has white space in it, which this format cannot hold.
    """
    require_trec_ids(run, "query")
    tag = "-".join(tag.split())
    lines = []
    for query_id, scores in run.items():
        require_trec_ids(scores, "document")
        lines += [
            f"{query_id} Q0 {doc_id} {rank} {float(scores[doc_id])!r} {tag}\n"
            for rank, doc_id in enumerate(ranked(scores), start=1)
        ]
    write_text(path, "".join(lines))


def read_run(path: Path) -> Run:
    """Read a TREC run file. Ranks are ignored and so is what follows the tag, as in trec_eval.

    Raises:
        UserError: the file cannot be read; or names the line that lacks a field, has no finite
            score, or repeats a document, which trec_eval refuses too.
    """
    run: Run = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                _add_line(run, line.rstrip("\n"), f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TREC run file ({error})") from error
    return run


def _add_line(run: Run, line: str, place: str) -> None:
    fields = line.split()
    if len(fields) < 6:
        raise UserError(f"{place}: expected qid Q0 docid rank score tag, got {line!r}")
    query_id, _, doc_id, _, score = fields[:5]
    scores = run.setdefault(query_id, {})
    if doc_id in scores:
        raise UserError(f"{place}: document {doc_id!r} twice for query {query_id!r}")
    scores[doc_id] = _finite(score, place)


def require_trec_ids(ids: Iterable[str], what: str) -> None:
    """Refuse ids that are empty or have white space in them.

    Raises:
        UserError: names the first such id.
    """
    for identifier in ids:
        if len(identifier.split()) != 1 or identifier.strip() != identifier:
            raise UserError(
                f"{what} id {identifier!r}: TREC run files need ids without white space; rename it"
            )


def _finite(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{place}: score {text!r} is not a finite number")
    return value
