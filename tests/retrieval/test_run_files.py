from pathlib import Path

import numpy as np
import pytest

from synrank_jax.errors import UserError
from synrank_jax.retrieval.files import read_run, require_trec_ids, write_run, write_text


def test_every_float32_score_comes_back_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, size=2_000, dtype=np.uint32)
    scores = bits.view(np.float32)
    scores = scores[np.isfinite(scores)]
    run = {"q1": {f"d{i}": float(score) for i, score in enumerate(scores)}, "q2": {"d": -0.0}}
    write_run(tmp_path / "run.trec", run, "model")
    assert read_run(tmp_path / "run.trec") == run


def test_lines_are_trec_with_ranks_from_one_and_ties_as_trec_eval_orders_them(
    tmp_path: Path,
) -> None:
    run = {"q": {"a": 0.5, "c": 1.0, "b": 0.5}}
    write_run(tmp_path / "run.trec", run, "my model")
    assert (tmp_path / "run.trec").read_text() == (
        "q Q0 c 1 1.0 my-model\nq Q0 b 2 0.5 my-model\nq Q0 a 3 0.5 my-model\n"
    )


def test_fields_after_the_tag_and_the_order_of_lines_do_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "run.trec"
    file.write_text("q\tQ0\ta\t2\t 0.5\ttag more junk\nr Q0 a 1 2 tag\nq Q0 b 1 1e0 tag\n")
    assert read_run(file) == {"q": {"a": 0.5, "b": 1.0}, "r": {"a": 2.0}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 a 1 0.5", "run.trec:2: expected qid Q0 docid rank score tag"),
        ("q Q0 a 1 high tag", "run.trec:2: score 'high' is not a finite number"),
        ("q Q0 a 1 nan tag", "run.trec:2: score 'nan' is not a finite number"),
        ("q Q0 first 1 0.5 tag", "run.trec:2: document 'first' twice for query 'q'"),
    ],
)
def test_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "run.trec").write_text(f"q Q0 first 1 0.5 tag\n{line}\n")
    with pytest.raises(UserError, match=message):
        read_run(tmp_path / "run.trec")


@pytest.mark.parametrize("identifier", ["two words", " padded", "tab\t", ""])
def test_id_that_the_format_cannot_hold_is_refused(tmp_path: Path, identifier: str) -> None:
    with pytest.raises(UserError, match="white space"):
        require_trec_ids([identifier], "document")
    with pytest.raises(UserError, match="white space"):
        write_run(tmp_path / "run.trec", {"q": {identifier: 1.0}}, "tag")
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "new \ud800")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
