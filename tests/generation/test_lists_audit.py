import html
import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audit_commands import (
    HOSTILE,
    audit,
    evaluation_collection,
    folder_of,
    judge_config,
    no_backend,
    parsed,
    planted,
    rows,
    run_filter,
)
from planted_lists import GRADES, clean_lists, with_text, words_of, write_collection, write_jsonl

from synrank_jax import generate, lists_audit
from synrank_jax.errors import UserError
from synrank_jax.generation.audit.checks import Sample
from synrank_jax.generation.audit.findings import Kind
from synrank_jax.generation.audit.summary import ListsAudit
from synrank_jax.generation.backend import Answer, Request
from synrank_jax.generation.lists import RankingContext


@pytest.fixture
def example_file(tmp_path: Path) -> Path:
    text = "the example of the prompt goes on for eleven words at least"
    example = with_text(clean_lists(1)[0], 0, text)
    one = replace(example, passages=example.passages[:1])
    return write_jsonl(tmp_path / "examples.jsonl", [one])


EXPECTED = {
    Kind.SCHEMA: [0],
    Kind.LENGTH: [1],
    Kind.TASK_TALK: [2],
    Kind.QUERY_COPY: [3],
    Kind.DUPLICATE: [4],
    Kind.CROSS_DUPLICATE: [20],
    Kind.CONTAMINATION: [6],
    Kind.EVALUATION_QUERY: [7],
    Kind.EXAMPLE_COPY: [8],
}


def test_each_planted_fault_is_found_once_and_nothing_else(
    tmp_path: Path, example_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path, planted())
    options = ["--against", str(evaluation_collection(tmp_path)), "--examples", str(example_file)]
    report = audit(folder, *options)
    findings = rows(folder / "audit" / "findings.jsonl")
    found: dict[str, list[int]] = {}
    for finding in findings:
        found.setdefault(finding["kind"], []).append(finding["number"])
    assert found == EXPECTED
    assert {kind: f.lists for kind, f in report.found.items()} == dict.fromkeys(EXPECTED, 1)
    assert (report.lists, report.passages) == (60, 238)
    assert report.shapes[0].passages == dict.fromkeys(GRADES, 1)
    assert ListsAudit.model_validate_json((folder / "audit" / "audit.json").read_text()) == report
    printed = capsys.readouterr().out
    assert "warning: contamination: 1 of 60 lists (1.7%)" in printed
    assert sorted(path.name for path in (folder / "audit").iterdir()) == [
        "audit.html",
        "audit.json",
        "findings.jsonl",
        "regrades.jsonl",
    ]
    before = {p.name: p.read_bytes() for p in (folder / "audit").iterdir()}
    audit(folder, *options)
    assert {p.name: p.read_bytes() for p in (folder / "audit").iterdir()} == before


def test_clean_lists_have_no_findings_and_no_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = audit(
        folder_of(tmp_path, clean_lists(150)), "--against", str(evaluation_collection(tmp_path))
    )
    assert {kind: f.findings for kind, f in report.found.items() if f.findings} == {}
    assert report.warnings() == ()
    assert "no warnings" in capsys.readouterr().out


def test_hostile_text_is_verbatim_in_json_and_dead_in_html(tmp_path: Path) -> None:
    contexts = clean_lists(10)
    # Wherever text is shown: id, query, title, passage, copied passage, opening.
    for number in (1, 2, 3):
        text = f"{HOSTILE} {contexts[number].passages[0].text}"
        contexts[number] = with_text(contexts[number], 1, text, HOSTILE)
        contexts[number] = with_text(contexts[number], 2, text, HOSTILE)
        contexts[number] = replace(contexts[number], query_id=f"<b>{number}", query=HOSTILE)
    folder = folder_of(tmp_path, contexts)
    audit(folder)
    findings = rows(folder / "audit" / "findings.jsonl")
    quoted = [f["evidence"]["text"] for f in findings if f["kind"] == "duplicate"]
    assert len(quoted) == 3
    assert all(text.startswith(HOSTILE) for text in quoted)
    page = (folder / "audit" / "audit.html").read_text()
    tags = set(re.findall(r"<\s*/?\s*([a-zA-Z]+)", page))
    own = "html head meta title style body h table thead tbody tr th td p ul li code span img"
    assert tags <= {*own.split(), "article", "div"}
    assert not re.search(r"<[^>]*\bon\w+\s*=", page)
    assert "default-src 'none'" in page
    assert html.escape("<script>alert(1)</script> & <img") in page
    assert "[U+001B][2J[U+0007] [U+202E]txet" in page
    assert not set(page) & {"\x1b", "\x07", "\u202e"}
    assert not re.search(r'(?:src|href)="(?!data:)', page)


def test_broken_records_are_findings_and_broken_json_is_an_error(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, clean_lists(30))
    good = clean_lists(31)[30].record()
    broken: list[dict[str, Any]] = [
        {key: value for key, value in good.items() if key != "query"},
        good | {"passages": []},
        good | {"passages": [{"id": "a", "text": "t", "grade": 1.5}]},
        good | {"passages": [{"id": "a", "text": "\ud800", "grade": 1}]},
        good | {"query_id": "a\tb"},
        good | {"query_id": "q3"},
    ]
    with (folder / "lists.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in broken)
    report = audit(folder)
    assert report.found[Kind.SCHEMA].lists == 6
    reasons = [finding["why"] for finding in rows(folder / "audit" / "findings.jsonl")]
    for expected in (
        "line 31: query: None is not a text",
        "line 32: passages: not a list",
        "line 33: passage 1: grade 1.5 is not an integer",
        "line 34: passage 1: text: has half of a surrogate pair",
        r"line 35: query_id: 'a\tb' has a tab",
        "an earlier list has the same query id",
    ):
        assert any(reason.startswith(expected) for reason in reasons), expected
    run_filter(folder, tmp_path / "new", "--drop", "length")
    left = rows(tmp_path / "new" / "lists.jsonl")
    assert [row["query_id"] for row in left] == [*(f"q{n}" for n in range(30)), "q3"]
    assert len(rows(tmp_path / "new" / "dropped.jsonl")) == 5  # unreadable, whatever is asked
    with (folder / "lists.jsonl").open("a") as file:
        file.write("{nothing\n")
    with pytest.raises(UserError, match=r"lists\.jsonl:37: not valid JSON"):
        audit(folder)


def test_the_sample_depends_on_query_ids_alone() -> None:
    contexts = clean_lists(40)

    def chosen(order: Sequence[RankingContext]) -> list[str]:
        sample = Sample(7)
        for number, context in enumerate(order):
            sample.add(number, context)
        assert [order[number] for number, _ in sample.lists()] == [c for _, c in sample.lists()]
        return [context.query_id for _, context in sample.lists()]

    assert len(chosen(contexts)) == 7
    assert chosen(contexts[::-1]) == chosen(contexts)[::-1]
    kept = [query_id for query_id in chosen(contexts) if int(query_id[1:]) < 30]
    assert set(kept) <= set(chosen(contexts[:30]))
    assert 0 < len(kept) < 7
    assert len(chosen(contexts[:3])) == 3


def test_a_beir_folder_is_audited_by_its_judged_documents(tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    documents = {f"d{n}": ("A title", words_of(random.Random(n), 40)) for n in range(9)}
    write_collection(folder, documents, {"t1": "one query", "t2": "another query"}, "dev")
    with (folder / "qrels" / "dev.tsv").open("a") as file:
        file.write("t1\td5\t3\nt2\tgone\t1\n")
    report = audit(folder, "--split", "dev", "--output", str(tmp_path / "out"))
    assert (report.lists, report.passages, report.split) == (2, 2, "dev")
    (finding,) = rows(tmp_path / "out" / "findings.jsonl")
    assert finding["why"] == "document gone is not in corpus.jsonl"
    options = ["--drop", "schema", "--findings", str(tmp_path / "out")]
    assert run_filter(folder, tmp_path / "new", *options) == 1
    (left,) = rows(tmp_path / "new" / "lists.jsonl")
    assert [(p["id"], p["title"], p["grade"]) for p in left["passages"]] == [
        ("d5", "A title", 3),
        ("d0", "A title", 1),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--audit", "nowhere"], "--audit 'nowhere': no such folder"),
        (["--audit", "bundled:nothing"], "no such bundled collection; there are"),
        (["--audit", "EMPTY"], r"has neither lists\.jsonl nor corpus\.jsonl"),
        (["--audit", "LISTS", "--against", "EMPTY"], r"--against .*: has no corpus\.jsonl"),
        (["--audit", "LISTS", "--against", "nowhere"], "--against 'nowhere': no such folder"),
        (["--audit", "LISTS", "--examples", "nowhere.jsonl"], r"nowhere\.jsonl: cannot be read"),
        (["--audit", "LISTS", "--judge", "nowhere.yaml"], r"nowhere\.yaml: cannot be read"),
        (["--audit", "LISTS", "--encoder", "./nowhere"], r"--encoder \./nowhere: .*no such folder"),
        (["--audit", "BLANK"], r"lists\.jsonl: has no list"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_message_and_writes_no_figures(
    tmp_path: Path, options: list[str], message: str
) -> None:
    folders = {"LISTS": folder_of(tmp_path, clean_lists(3)), "EMPTY": tmp_path / "empty"}
    folders["EMPTY"].mkdir()
    folders["BLANK"] = write_jsonl(tmp_path / "blank" / "lists.jsonl", []).parent
    given = [str(folders.get(option, option)) for option in options]
    with pytest.raises(UserError, match=message):
        lists_audit.audit(parsed(*given), no_backend)
    assert not list(tmp_path.rglob("audit.json"))


class Unused:
    """A judge that is there, but must not be asked."""

    width = 1

    async def check(self) -> bool:
        return True

    async def answer(self, request: Request) -> Answer:
        raise AssertionError("asked before the levels were compared")

    async def close(self) -> None:
        pass


def test_judge_needs_the_levels_of_the_lists(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, clean_lists(3))
    levels = [{"grade": grade, "name": f"n{grade}", "definition": "d"} for grade in (1, 0)]
    config = judge_config(tmp_path, levels=levels)
    with pytest.raises(UserError, match=r"grades \[0, 1\], but passage 'q0_l_3' has grade 3"):
        audit(folder, "--judge", config, open_backend=lambda config: Unused())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give one of --config, --audit and --filter"),
        (["--audit", "a", "--filter", "b"], "give one of --config, --audit and --filter"),
        (["--config", "a.yaml", "--output", "b"], "--set output=FOLDER"),
    ],
    ids=["none", "two", "output"],
)
def test_options_that_do_not_fit(options: list, said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        generate.main(options)
    assert said in capsys.readouterr().err
