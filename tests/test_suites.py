"""Suites: the shipped files, finding collections, averages, going on, comparing."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from test_evaluate import (
    DOCUMENTS,
    Q1,
    Q2,
    QRELS,
    QUERIES,
    ROUNDING,
    FakeEncoder,
    write_jsonl,
    write_qrels,
)

from synrank_jax import evaluate, suites
from synrank_jax.config import EvaluationConfig
from synrank_jax.config_file import load_section
from synrank_jax.config_suite import CollectionConfig, SuiteConfig
from synrank_jax.errors import UserError
from synrank_jax.retrieval.metrics import parse_measures
from synrank_jax.retrieval.suite import SuiteResult, averages, compare, suite_table

SUITES = Path(__file__).parents[1] / "configs" / "suites"
SETTINGS = EvaluationConfig(path="unused", top_k=10)
FORUMS = [
    *("android", "english", "gaming", "gis", "mathematica", "physics"),
    *("programmers", "stats", "tex", "unix", "webmasters", "wordpress"),
]


def shipped(name: str) -> SuiteConfig:
    return load_section(SuiteConfig, SUITES / f"{name}.yaml")


@pytest.mark.parametrize("file", sorted(SUITES.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_suite_is_pinned_and_says_what_to_expect(file):
    suite = load_section(SuiteConfig, file)
    for entry in suite.collections:
        assert len(entry.path.partition("@")[2]) == 40 or entry.path.startswith("bundled:")
        assert entry.queries
        assert entry.documents
        parse_measures(suite.metrics_of(entry))


def test_beir_averages_over_14_with_12_forums_as_one():
    suite = shipped("beir")
    assert set(suite.units()) == {
        *("trec-covid", "nfcorpus", "nq", "hotpotqa", "fiqa", "arguana", "webis-touche2020"),
        *("cqadupstack", "quora", "dbpedia-entity", "scidocs", "fever", "climate-fever"),
        "scifact",
    }
    forums = suite.units()["cqadupstack"]
    assert [entry.name for entry in forums] == [f"cqadupstack/{forum}" for forum in FORUMS]
    assert sum(entry.queries or 0 for entry in forums) == 13_145
    assert sum(entry.documents or 0 for entry in forums) == 457_199
    own = {entry.name for entry in suite.collections if entry.exclude_self_match}
    assert own == {"arguana", "quora"}
    (left,) = (entry for entry in suite.collections if not entry.average)
    assert (left.name, left.split, left.queries) == ("msmarco", "dev", 6980)


def test_nanobeir_has_13_sets():
    suite = shipped("nanobeir")
    assert len(suite.units()) == len(suite.collections) == 13
    assert sum(entry.queries or 0 for entry in suite.collections) == 12 * 50 + 49


def test_deep_learning_tracks_count_grades_from_2_but_for_ndcg():
    suite = shipped("msmarco")
    found = {entry.name: (entry.queries, suite.metrics_of(entry)) for entry in suite.collections}
    measures = ("nDCG@10", "AP(rel=2)", "RR(rel=2)", "R(rel=2)@100", "R(rel=2)@1000")
    assert found["trec-dl-2019"] == (43, measures)
    assert found["trec-dl-2020"] == (54, measures)
    assert found["dev-small"][0] == 6980
    assert not suite.units()


def suite_of(*entries: dict[str, object], **values: object) -> SuiteConfig:
    return SuiteConfig.model_validate(
        {"name": "few", "metrics": ["nDCG@10", "AP"], "collections": entries, **values}
    )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "a"}, {"name": "a"}], "'a' is the name of two collections"),
        ([{"name": "a"}, {"name": "b", "group": "a"}], "'a' is the name of two"),
        (
            [{"name": "a", "group": "g"}, {"name": "b", "group": "g", "average": False}],
            "b has other `average` or `metrics` than the rest of group g",
        ),
        ([{"name": "../a"}], "should match pattern"),
        ([{"name": "a", "folder": "/tmp"}], "should match pattern"),
    ],
)
def test_a_suite_that_contradicts_itself_is_refused(entries, message):
    with pytest.raises(ValidationError, match=message):
        suite_of(*({"path": "x", **entry} for entry in entries))


GROUPED = [
    {"name": "a", "path": "x"},
    {"name": "g/1", "path": "x", "group": "g"},
    {"name": "g/2", "path": "x", "group": "g"},
    {"name": "b", "path": "x", "average": False},
    {"name": "c", "path": "x"},
]


def test_a_group_counts_as_one_in_the_average():
    metrics = {"a": {"AP": 0.1, "RR": 1.0}, "g/1": {"AP": 0.2}, "g/2": {"AP": 0.6}}
    metrics |= {"b": {"AP": 0.9}, "c": {"AP": 0.3}}
    groups, average = averages(suite_of(*GROUPED), metrics)
    assert groups == {"g": {"AP": pytest.approx((0.2 + 0.6) / 2, abs=ROUNDING)}}
    assert average is not None
    assert average.metrics == {"AP": pytest.approx((0.1 + 0.4 + 0.3) / 3, abs=ROUNDING)}
    assert (average.over, average.label()) == (("a", "g", "c"), "mean over 3")


def test_an_average_names_what_it_lacks():
    metrics = {"a": {"AP": 0.1}, "g/1": {"AP": 0.2}, "b": {"AP": 0.9}}
    groups, average = averages(suite_of(*GROUPED), metrics)
    assert groups == {}
    assert average is not None
    assert average.metrics == {"AP": 0.1}
    assert average.label() == "mean over 1 of 3 (missing: g with 1 of 2, c)"
    assert averages(suite_of(*GROUPED), {"b": {"AP": 0.9}}) == ({}, None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two local collections: one as in test_evaluate, one without q2's judgements."""
    monkeypatch.chdir(tmp_path)
    for name, qrels in (("both", QRELS), ("one", [row for row in QRELS if row[0] == "q1"])):
        place = tmp_path / "collections" / name
        (place / "qrels").mkdir(parents=True)
        texts = {doc_id: f"{x} {y}" for doc_id, (x, y) in DOCUMENTS.items()}
        write_jsonl(place / "corpus.jsonl", [{"_id": i, "text": t} for i, t in texts.items()])
        write_jsonl(place / "queries.jsonl", [{"_id": i, "text": t} for i, t in QUERIES.items()])
        write_qrels(place, qrels)
    return tmp_path / "collections"


BOTH = {"name": "both", "path": "hub:owner/both", "queries": 2, "documents": 5}
ONE = {"name": "two/one", "folder": "one", "path": "hub:owner/one", "exclude_self_match": True}
GONE = {"name": "gone", "path": "hub:owner/gone"}


class CountingEncoder(FakeEncoder):
    prompts: list[str]
    texts = 0

    def timings(self):
        return {"texts": self.texts}

    def encode(self, texts, side):
        if side == "query":
            self.prompts.append(self.contract.query_prompt)
        self.texts += len(texts)
        return super().encode(texts, side)


def run(suite, folder, output, encoder=None, **options):
    encoder = encoder or CountingEncoder()
    encoder.prompts = []
    read, missing = suites.read_suite(suite, SETTINGS, folder, skip_missing=True)
    result = suites.run_suite(
        suite, read, encoder, "torch", output, label="m", model="m", missing=missing, **options
    )
    return result, encoder


@pytest.fixture
def no_network(monkeypatch):
    def unreachable(path, split, cache):
        raise UserError(f"{path}: the hub could not give this dataset")

    monkeypatch.setattr(suites, "downloaded_folder", unreachable)


def test_all_missing_collections_are_named_before_anything_is_read(folder, no_network):
    suite = suite_of(GONE, BOTH, {**GONE, "name": "lost", "folder": "elsewhere"})
    (folder / "both" / "corpus.jsonl").write_text("broken")
    with pytest.raises(UserError) as error:
        suites.read_suite(suite, SETTINGS, folder, skip_missing=False)
    first, *lines = str(error.value).splitlines()
    assert "2 of 3 collections cannot be had" in first
    assert "--collections FOLDER" in first
    assert "--skip-missing" in first
    assert lines == [
        "  FOLDER/gone: hub:owner/gone: the hub could not give this dataset",
        "  FOLDER/elsewhere: hub:owner/gone: the hub could not give this dataset",
    ]


def test_a_local_folder_without_the_split_is_missing(folder):
    with pytest.raises(UserError, match=r"FOLDER/both: .*both: has no qrels/dev\.tsv"):
        suites.read_suite(suite_of({**BOTH, "split": "dev"}), SETTINGS, folder, False)


def test_skipped_collections_are_recorded_and_the_average_says_so(folder, no_network, tmp_path):
    suite = suite_of(BOTH, ONE, GONE)
    result, _ = run(suite, folder, tmp_path / "out")
    assert SuiteResult.read(tmp_path / "out" / "suite.json") == result
    assert list(result.missing) == ["gone"]
    both, one = result.collections
    assert both.metrics["nDCG@10"] == pytest.approx((Q1 + Q2) / 2, abs=ROUNDING)
    assert (both.queries, both.unjudged_queries, both.documents) == (2, 1, 5)  # q3
    assert (one.queries, one.unjudged_queries, one.exclude_self_match) == (1, 2, True)
    assert one.metrics["nDCG@10"] == pytest.approx(Q1, abs=ROUNDING)  # q2 is not averaged in
    assert result.average is not None
    assert result.average.metrics["nDCG@10"] == pytest.approx(((Q1 + Q2) / 2 + Q1) / 2)
    table = suite_table(suite, result)
    assert "average: mean over 2 of 3 (missing: gone)" in table
    assert "missing: gone: hub:owner/gone: the hub" in table
    assert "two/one*" in table
    for name in ("both", "two/one"):
        assert (tmp_path / "out" / name / "run.trec").is_file()


def test_finished_collections_are_not_run_again(folder, tmp_path, capsys):
    suite, output = suite_of(BOTH, ONE), tmp_path / "out"
    first, encoder = run(suite, folder, output)
    assert len(encoder.prompts) == 2
    again, encoder = run(suite, folder, output)
    assert (again, encoder.prompts) == (first, [])
    assert "both: evaluated before" in capsys.readouterr().out
    (output / "both" / "run.trec").unlink()
    assert len(run(suite, folder, output)[1].prompts) == 1
    # Other judgements, other settings, another model: each is run.
    write_qrels(folder / "both", [*QRELS, ("q2", "d1", 1)])
    assert len(run(suite, folder, output)[1].prompts) == 1
    other = suite_of(BOTH, {**ONE, "metrics": ["AP"]})
    assert len(run(other, folder, output)[1].prompts) == 1
    model = CountingEncoder()
    model.weights_sha256 = "1" * 64
    assert len(run(other, folder, output, model)[1].prompts) == 2


def test_prompts_of_a_collection_are_used_there_alone_and_recorded(folder, tmp_path):
    suite = suite_of({**BOTH, "query_prompt": "find: "}, ONE)
    result, encoder = run(suite, folder, tmp_path / "out")
    assert encoder.contract.query_prompt == ""
    assert [scores.query_prompt for scores in result.collections] == ["find: ", ""]
    stored = json.loads((tmp_path / "out" / "both" / "metrics.json").read_text())
    assert stored["contract"]["query_prompt"] == "find: "


def test_timings_are_of_one_collection(folder, tmp_path):
    run(suite_of(BOTH, ONE), folder, tmp_path / "out")
    files = [tmp_path / "out" / name / "metrics.json" for name in ("both", "two/one")]
    timings = [json.loads(file.read_text())["timings"] for file in files]
    # The second has the documents of the first, which are encoded already.
    assert [each["texts"] for each in timings] == [5 + 2, 1]


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"queries": 6980}, r"has 2 judged queries, but the suite says 6,980"),
        ({"documents": 6}, r"has 5 documents, but the suite says 6"),
    ],
)
def test_another_split_or_edition_is_refused(folder, expected, message):
    with pytest.raises(UserError, match=rf"collection both: .* split 'test', {message}"):
        suites.read_suite(suite_of({**BOTH, **expected}), SETTINGS, folder, False)


def test_grade_1_is_not_relevant_at_threshold_2(folder, tmp_path):
    measures = ["nDCG@10", "AP(rel=2)", "RR(rel=2)", "R(rel=2)@100"]
    result, _ = run(suite_of({**BOTH, "metrics": measures}), folder, tmp_path / "out")
    # q1 has its grade 2 at rank 4; q2 has only a grade 1.
    expected = {"nDCG@10": (Q1 + Q2) / 2, "AP(rel=2)": 1 / 4 / 2, "RR(rel=2)": 1 / 4 / 2}
    expected["R(rel=2)@100"] = 1 / 2
    assert result.collections[0].metrics == pytest.approx(expected, abs=ROUNDING)


def scored_queries(values):
    metrics = {"AP": sum(values) / len(values)}
    per_query = {"AP": {f"q{number}": value for number, value in enumerate(values)}}
    return SimpleNamespace(
        metrics=metrics, per_query=per_query, evaluation=SimpleNamespace(metrics=("AP", "RR"))
    )


def test_p_values_are_corrected_for_the_number_of_collections():
    results = {"six": scored_queries([0.5] * 6), "four": scored_queries([0.5] * 4)}
    results["new"] = scored_queries([1.0])
    baselines = {"six": scored_queries([0.1] * 6), "four": scored_queries([0.7] * 4)}
    found = compare("base", results, baselines).collections
    # All queries differ to one side: 2 of 2^n sign patterns are as far from 0.
    assert {name: (row.p, row.p_holm) for name, row in found.items()} == {
        "six": (2 / 2**6, 2 * 2 / 2**6),
        "four": (2 / 2**4, 2 / 2**4),
    }
    assert (found["four"].mean, found["four"].baseline) == (0.5, 0.7)


def test_a_baseline_is_compared_per_collection(folder, tmp_path, caplog):
    run(suite_of(BOTH), folder, tmp_path / "base")
    swapped = CountingEncoder(
        CountingEncoder().contract.model_copy(update={"similarity": "cosine"})
    )
    baseline = tmp_path / "base" / "suite.json"
    suite = suite_of(BOTH, ONE)
    result, _ = run(suite, folder, tmp_path / "out", swapped, baselines=[baseline])
    (comparison,) = result.comparisons
    assert list(comparison.collections) == ["both"]
    row = comparison.collections["both"]
    assert row.baseline == pytest.approx((Q1 + Q2) / 2, abs=ROUNDING)
    assert row.mean == result.collections[0].metrics["nDCG@10"] != row.baseline
    assert row.p == 1.0  # one query is better, one worse
    assert "has no two/one to compare with" in caplog.text
    assert "p (Holm)" in suite_table(suite, result)
    write_qrels(folder / "both", [*QRELS, ("q2", "d1", 1)])
    with pytest.raises(UserError, match="same queries, but other documents, judgements"):
        run(suite, folder, tmp_path / "out", swapped, baselines=[baseline])


def test_the_command_evaluates_a_suite_from_the_hub_once(folder, tmp_path, monkeypatch, capsys):
    asked = []

    def download(path, split, cache):
        asked.append((path, split, cache))
        target = cache / "both"
        if not target.exists():
            shutil.copytree(folder / "both", target)
            (target / "provenance.json").write_text(json.dumps({"path": f"{path}@commit"}))
        return target

    monkeypatch.setattr(suites, "downloaded_folder", download)
    monkeypatch.setattr(evaluate, "named_encoder", lambda model, batch: FakeEncoder())
    file = tmp_path / "suite.yaml"
    entry = {"name": "both", "path": "hub:owner/both"}
    file.write_text(json.dumps({"name": "few", "metrics": ["nDCG@10"], "collections": [entry]}))
    evaluate.main(["--suite", str(file), "--model", "some/model", "--output", "out"])
    assert asked == [("hub:owner/both", "test", Path("runs/cache/collections"))]
    result = SuiteResult.read(Path("out/suite.json"))
    assert result.collections[0].source == "hub:owner/both@commit"
    assert (result.label, result.model) == ("some/model", "some/model")
    assert f"{(Q1 + Q2) / 2:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "local"], "--suite needs --model, or --config"),
        (["--suite", "local", "--model", "m", "--baseline", "x"], "--baseline is of a single"),
        (["--config", "x", "--skip-missing"], "--skip-missing goes with --suite"),
        ([], "give --config FILE.yaml, or --suite"),
    ],
    ids=["no-model", "baseline", "no-suite", "nothing"],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    options = [str(SUITES / "local.yaml") if option == "local" else option for option in options]
    with pytest.raises(UserError, match=message):
        evaluate.main(options)


def test_names_of_collections_are_safe_folders():
    with pytest.raises(ValidationError):
        CollectionConfig(name="a/../../b", path="x")
