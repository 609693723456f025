"""report.html, report.json and the plots; the page in a browser where there is one."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from test_comparison_table import result

from synrank_jax.config import EvaluationConfig
from synrank_jax.errors import UserError
from synrank_jax.retrieval.baselines import Baseline
from synrank_jax.retrieval.report_page.facts import Facts, ReportInput, facts_of
from synrank_jax.retrieval.report_page.plots import plots
from synrank_jax.retrieval.report_page.write import write_report
from synrank_jax.retrieval.summary import summarise

HOSTILE = (
    "<script>document.body.innerHTML=''</script> \u202egnp.exe `rm -rf` $\\frac{1$ & \"quoted\" "
    "<img src=https://example.org/x.png onerror=alert(1)> \x1b[31m " + "unbroken" * 25
)
TABLES = {"table", "thead", "tbody", "tr", "th", "td"}
TEXTS = {"h1", "h2", "p", "ul", "li", "div", "span", "code", "article", "b", "i", "img"}
OWN_TAGS = {"html", "head", "meta", "title", "style", "body"} | TABLES | TEXTS
BLUE, SURFACE = (0x2B, 0x6C, 0xB0), (0xF5, 0xF7, 0xFA)
# Of a colour of a plot that is shown smaller than it is.
SCALED = 30
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


def given(text: str = "wing flutter", baselines: bool = True) -> ReportInput:
    """Twenty queries over which the model is a little better than the baseline."""
    rng = np.random.default_rng(0)
    docs = [f"d{i}" for i in range(30)]
    queries = {f"q{i}": f"{text} {' w' * (i % 6)}" for i in range(20)}
    qrels = {q: {d: int(g) for d, g in zip(docs, rng.integers(0, 3, 12), strict=False)}
             for q in queries}  # fmt: skip

    def run(noise: float) -> dict[str, dict[str, float]]:
        return {
            q: {d: qrels[q].get(d, 0) + float(rng.normal(0, noise)) for d in docs} for q in queries
        }

    def values() -> dict[str, dict[str, float]]:
        return {"nDCG@10": {q: float(v) for q, v in zip(queries, rng.random(20), strict=True)}}

    mine = values()
    scored = result(
        mine["nDCG@10"],
        label=text,
        model=text,
        evaluation=EvaluationConfig(path=text, metrics=("nDCG@10",)),
        timings={"encode_s": 2.0, "documents_encoded": 30.0, "other_s": 1.0},
    )
    found = [
        Baseline(f"{text} 1", text, values(), run(2.0)),
        Baseline(f"{text} 2", text, mine, None),
    ]
    return ReportInput(
        result=scored,
        run=run(0.7),
        qrels=qrels,
        queries=queries,
        text_of=lambda doc_id: f"{doc_id} {text}",
        baselines=found if baselines else [],
        summaries=summarise(mine, found if baselines else []),
        history=[{"step": step, "loss": 1 / step, "text": text} for step in range(1, 30)],
    )


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += attrs


def test_report_is_three_things_with_the_same_figures(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "old.png").write_text("of an earlier evaluation")
    write_report(tmp_path, given())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "plots",
        "report.html",
        "report.json",
    ]
    names = ["calibration", "differences", "length", "queries", "scores", "training"]
    assert sorted(path.stem for path in (tmp_path / "plots").iterdir()) == names
    facts = Facts.model_validate_json((tmp_path / "report.json").read_text())
    (summary,) = facts.summaries
    page = (tmp_path / "report.html").read_text()
    for shown in (
        f"{summary.mean:.4f}",
        f"{summary.comparisons[0].difference:+.4f}",
        f"{summary.comparisons[0].detectable:.4f}",
        f"{facts.scores.in_order:.1%}",
        f"{facts.scores.separations[-1].within:.3f}",
        "equal to wing flutter 2 on every query",
        'documents per second</td><td class="number">15.0',
        "<code>other_s</code>",
        "d3 wing flutter",
    ):
        assert shown in page
    assert facts.judged_at_10.keys() == {"wing flutter", "wing flutter 1"}
    assert len(facts.outcomes.best) + len(facts.outcomes.worst) == 20


def test_without_baselines_and_training_their_parts_are_left_out(tmp_path: Path) -> None:
    write_report(tmp_path, replace(given(baselines=False), history=()))
    names = ["calibration", "length", "queries", "scores"]
    assert sorted(path.stem for path in (tmp_path / "plots").iterdir()) == names
    page = (tmp_path / "report.html").read_text()
    assert "Best queries" in page
    for absent in ("p Holm", "Largest wins", "<h2>Training", "in the other list"):
        assert absent not in page


def test_query_without_a_ranking_and_without_scores_is_reported(tmp_path: Path) -> None:
    write_report(tmp_path, replace(given(), run={}))
    page = (tmp_path / "report.html").read_text()
    assert "Nothing: no query has scored documents of different grades." in page
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["judged_at_10"]["wing flutter"] == 0


def test_hostile_texts_are_shown_and_never_markup(tmp_path: Path) -> None:
    write_report(tmp_path, given(HOSTILE))
    page = (tmp_path / "report.html").read_text()
    tags = Tags(page)
    assert tags.names <= OWN_TAGS
    assert {name for name, _ in tags.attributes} <= {
        *("lang", "charset", "http-equiv", "content", "name", "class", "alt", "src")
    }
    sources = [value or "" for name, value in tags.attributes if name == "src"]
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "&lt;script&gt;document.body" in page
    assert "[U+202E]gnp.exe `rm -rf`" in page
    assert "\u202e" not in page
    assert "\x1b" not in page


def test_labels_in_plots_are_no_formulas_and_of_characters_that_the_font_has() -> None:
    """matplotlib would fail at the formula, and warn of the glyph that it lacks."""
    assert plots(facts_of(given("$\\frac{1$ \u6f22\x07")))["differences"].startswith(b"\x89PNG")


def test_report_that_cannot_be_written_says_so_and_leaves_no_page(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("of an earlier evaluation")
    (tmp_path / "plots").write_text("a file")
    with pytest.raises(UserError, match="plots: cannot be written"):
        write_report(tmp_path, given())
    assert not (tmp_path / "report.html").exists()


def pixels(picture: Path) -> np.ndarray:
    """[height, width, 3] of 0 to 255."""
    return np.round(imread(picture)[..., :3] * 255).astype(int)


def count(image: np.ndarray, color: tuple[int, int, int], within: int = 0) -> int:
    return int(np.all(np.abs(image - color) <= within, axis=-1).sum())


def screenshot(page: Path, width: int) -> np.ndarray:
    picture = page.with_suffix(".png")
    subprocess.run(
        [
            str(BROWSER),
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            f"--user-data-dir={page.parent / 'profile'}",
            f"--window-size={width},10000",
            f"--screenshot={picture}",
            page.as_uri(),
        ],
        check=True,
        timeout=120,
        capture_output=True,
    )
    return pixels(picture)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize("text", ["wing flutter", HOSTILE], ids=["plain", "hostile"])
@pytest.mark.parametrize(("width", "margin"), [(1280, 80), (500, 12)])
def test_page_is_whole_in_a_browser(tmp_path: Path, text: str, width: int, margin: int) -> None:
    """The policy lets style and plots through, no script runs, nothing is wider than the page.

    Blue is the plots' only, the surface colour the style's only; a margin that is white from top to
    bottom is one that nothing sticks out into.
    """
    write_report(tmp_path, given(text))
    image = screenshot(tmp_path / "report.html", width)
    assert image.shape[1] == width
    assert count(image, BLUE, SCALED) > 500
    assert count(image, SURFACE) > 10_000
    assert np.all(image[:, -margin:] == 255)
    assert np.all(image[:, :margin] == 255)
    with_ink = np.any(image != 255, axis=(1, 2))
    assert np.flatnonzero(with_ink).max() > 3_000
    # The control: where the policy does not let the plots through, their colour is not there.
    blocked = tmp_path / "blocked.html"
    blocked.write_text((tmp_path / "report.html").read_text().replace("img-src data:", ""))
    assert count(screenshot(blocked, width), BLUE, SCALED) == 0


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_page_prints(tmp_path: Path) -> None:
    write_report(tmp_path, given())
    printed = tmp_path / "page.pdf"
    subprocess.run(
        [
            str(BROWSER),
            *("--headless", "--no-sandbox", "--disable-gpu"),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--print-to-pdf={printed}",
            (tmp_path / "report.html").as_uri(),
        ],
        check=True,
        timeout=120,
        capture_output=True,
    )
    content = printed.read_bytes()
    pages = len(re.findall(rb"/Type /Page\b", content))
    assert 5 <= pages <= 20
    assert content.count(b"/Subtype /Image") >= 6
