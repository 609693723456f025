import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from audit_commands import (
    audit,
    evaluation_collection,
    folder_of,
    judge_config,
    parsed,
    planted,
    rows,
    run_filter,
)
from planted_lists import GRADES, clean_lists, with_text, write_jsonl

from synrank_jax import lists_audit
from synrank_jax.config_generation import BackendConfig
from synrank_jax.data import beir
from synrank_jax.errors import UserError
from synrank_jax.generation.audit.findings import Kind
from synrank_jax.generation.backend import Answer, Backend, Request
from synrank_jax.generation.lists import RankingContext


def test_filter_drops_lists_with_a_written_reason_and_can_run_again(tmp_path: Path) -> None:
    contexts = planted()
    folder, new = folder_of(tmp_path, contexts), tmp_path / "new"
    against = ["--against", str(evaluation_collection(tmp_path))]
    audit(folder, *against)
    assert run_filter(folder, new, "--drop", "contamination,cross-duplicate") == 58
    left = [c.record() for n, c in enumerate(contexts) if n not in (6, 20)]
    assert rows(new / "lists.jsonl") == left
    assert list(beir.read_queries(new)) == [row["query_id"] for row in left]
    assert beir.read_qrels(new, "train")["q1"] == {f"q1_l_{grade}": grade for grade in GRADES}
    assert beir.read_corpus(new)["q9_l_1"] == contexts[9].passages[2].text
    dropped = {row["query_id"]: row for row in rows(new / "dropped.jsonl")}
    assert dropped.keys() == {"q6", "q20"}
    assert dropped["q6"]["what"] == "list dropped"
    assert dropped["q6"]["doc_id"] == "q6_l_2"
    assert dropped["q6"]["why"].startswith("contamination: 2 runs of 8 words")
    assert dropped["q6"]["evidence"]["other_document_id"] == "d1"
    before = {p: p.read_bytes() for p in new.rglob("*") if p.is_file()}
    assert run_filter(folder, new, "--drop", "cross-duplicate,contamination") == 58
    assert {p: p.read_bytes() for p in new.rglob("*") if p.is_file()} == before
    with pytest.raises(UserError, match="holds the lists of another filter"):
        run_filter(folder, new, "--drop", "length")
    assert {p: p.read_bytes() for p in new.rglob("*") if p.is_file()} == before
    assert audit(new, *against).found[Kind.CONTAMINATION].lists == 0


def test_filter_that_fails_leaves_no_lists(tmp_path: Path) -> None:
    contexts = [with_text(context, 0, "short") for context in clean_lists(20)]
    folder, new = folder_of(tmp_path, contexts), tmp_path / "new"
    audit(folder)
    with pytest.raises(UserError, match="not one of 20 lists is left"):
        run_filter(folder, new, "--drop", "length")
    assert [path.name for path in new.rglob("*") if path.is_file()] == ["filter.json"]


class Judge:
    """Swaps the two best levels, and finds everything of the list of q2 irrelevant."""

    width = 2

    async def check(self) -> bool:
        return True

    async def answer(self, request: Request) -> Answer:
        content = request.messages[1]["content"]
        (grade,) = (int(mark) for mark in re.findall(r"mark(\d)", content))
        grade = 0 if "listtwo" in content else {3: 2, 2: 3}.get(grade, grade)
        return Answer(json.dumps({"grade": grade}))

    async def close(self) -> None:
        pass


def marked(count: int) -> list[RankingContext]:
    """Lists whose passages name their grade, and that of q2 itself."""
    contexts = clean_lists(count)
    for number, context in enumerate(contexts):
        for place, passage in enumerate(context.passages):
            text = f"{passage.text} mark{passage.grade}" + " listtwo" * (number == 2)
            contexts[number] = with_text(contexts[number], place, text)
    return contexts


def test_judge_regrades_and_relabels(tmp_path: Path) -> None:
    folder, new = folder_of(tmp_path, marked(12)), tmp_path / "new"
    opened = []

    def open_backend(config: BackendConfig) -> Backend:
        opened.append(config.model)
        return Judge()

    report = audit(folder, "--judge", judge_config(tmp_path), open_backend=open_backend)
    assert opened == ["judge-8b", "judge-8b"]  # seen to be there first, then used
    (agreement,) = report.agreements
    assert (agreement.by, agreement.lists, agreement.passages) == ("judge", 12, 48)
    assert agreement.tau == pytest.approx(4 / 6)  # one of six pairs is swapped; q2 has no order
    assert agreement.confusion[3] == {0: 1, 2: 11}
    assert run_filter(folder, new, "--relabel", "judge") == 11
    lists = {row["query_id"]: row for row in rows(new / "lists.jsonl")}
    assert [(p["id"], p["grade"]) for p in lists["q0"]["passages"]] == [
        ("q0_l_2", 3),
        ("q0_l_3", 2),
        ("q0_l_1", 1),
        ("q0_l_0", 0),
    ]
    assert beir.read_qrels(new, "train")["q0"]["q0_l_3"] == 2
    done = rows(new / "dropped.jsonl")
    assert {
        "query_id": "q0",
        "doc_id": "q0_l_3",
        "what": "passage relabelled 3 -> 2",
        "why": "graded again by the judge",
        "evidence": {"grade": 3, "regrade": 2},
    } in done
    (gone,) = (row for row in done if row["what"] == "list dropped")
    assert (gone["query_id"], gone["why"]) == (
        "q2",
        "relabelled, all its passages have the same grade",
    )


class FakeEncoder:
    """A passage's embedding is its last digit; queries look along it."""

    contract = SimpleNamespace(similarity="dot")

    def encode(self, texts: Sequence[str], side: str) -> Any:
        marks = [int(text[-1]) if side == "passage" else 1 for text in texts]
        return np.array([[mark, 1.0] for mark in marks], np.float32)


def test_encoder_orders_the_sample_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = clean_lists(9)
    for number, context in enumerate(contexts):
        for place, passage in enumerate(context.passages):
            mark = 3 - passage.grade if number == 4 else passage.grade
            contexts[number] = with_text(contexts[number], place, f"{passage.text} {mark}")
    monkeypatch.setattr(lists_audit, "named_encoder", lambda name, size: FakeEncoder())
    folder, new = folder_of(tmp_path, contexts), tmp_path / "new"
    report = audit(folder, "--encoder", "fake", "--sample", "9")
    (agreement,) = report.agreements
    assert agreement.tau == pytest.approx((8 - 1) / 9)
    assert agreement.reversed_lists == 1
    assert agreement.score_percentiles[3][2] == 4  # 3 * 1 + 1
    assert run_filter(folder, new, "--drop", "encoder") == 8
    assert [row["query_id"] for row in rows(new / "dropped.jsonl")] == ["q4"]


def test_a_changed_list_or_finding_needs_a_new_audit(tmp_path: Path) -> None:
    folder, new = folder_of(tmp_path, clean_lists(20)), tmp_path / "new"
    with pytest.raises(UserError, match=r"audit\.json: no readable audit .*run --audit"):
        run_filter(folder, new, "--drop", "length")
    audit(folder)
    findings = folder / "audit" / "findings.jsonl"
    before = findings.read_bytes()
    findings.write_bytes(before + b"\n")
    with pytest.raises(UserError, match=r"findings\.jsonl: is not that of audit\.json"):
        run_filter(folder, new, "--drop", "length")
    findings.write_bytes(before)
    write_jsonl(folder / "lists.jsonl", clean_lists(21))
    with pytest.raises(UserError, match="the lists are not those that were audited"):
        run_filter(folder, new, "--drop", "length")
    assert not new.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--drop", "lenght"], "--drop lenght: no such kind; there are schema, length"),
        (["--drop", "judge"], "--drop judge: the audit in .* did not look for it"),
        (["--relabel", "encoder"], "--relabel encoder: .* audit again with --encoder"),
        ([], "give --drop, --relabel or both"),
    ],
    ids=["unknown-kind", "not-looked-for", "no-grades", "nothing"],
)
def test_filters_that_cannot_be(tmp_path: Path, options: list[str], message: str) -> None:
    folder = folder_of(tmp_path, clean_lists(20))
    audit(folder)
    with pytest.raises(UserError, match=message):
        run_filter(folder, tmp_path / "new", *options)
    assert not (tmp_path / "new").exists()


def test_filter_writes_into_a_new_folder_only(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, clean_lists(20))
    audit(folder)
    with pytest.raises(UserError, match=f"--output {folder}: is not empty"):
        run_filter(folder, folder, "--drop", "length")
    with pytest.raises(UserError, match="give --output"):
        lists_audit.filter_lists(parsed("--filter", str(folder), "--drop", "length"))
