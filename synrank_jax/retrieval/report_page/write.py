"""report.html, report.json and the plots, written into the folder of an evaluation."""

from pathlib import Path

from synrank_jax.files import atomic_write, make_folder, write_text
from synrank_jax.retrieval.report_page.facts import ReportInput, facts_of
from synrank_jax.retrieval.report_page.page import report_html
from synrank_jax.retrieval.report_page.plots import plots

PAGE_FILE = "report.html"
FACTS_FILE = "report.json"
PLOTS_FOLDER = "plots"


def write_report(folder: Path, given: ReportInput) -> None:
    """Write the report; report.html appears when everything else is there.

    Raises:
        UserError: matplotlib is missing, or the folder cannot be written to.
    """
    remove_report(folder)
    facts = facts_of(given)
    images = plots(facts)
    make_folder(folder / PLOTS_FOLDER, "--output")
    for name, content in images.items():
        with atomic_write(folder / PLOTS_FOLDER / f"{name}.png") as file:
            file.write(content)
    write_text(folder / FACTS_FILE, facts.model_dump_json(indent=2) + "\n")
    write_text(folder / PAGE_FILE, report_html(facts, given.result, images))


def remove_report(folder: Path) -> None:
    """Remove what `write_report` wrote, so that no report stands beside other figures."""
    for path in (folder / PAGE_FILE, folder / FACTS_FILE, *(folder / PLOTS_FOLDER).glob("*.png")):
        path.unlink(missing_ok=True)
