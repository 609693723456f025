"""An audit as one HTML file."""

from collections.abc import Mapping, Sequence
from typing import Any

from synrank_jax.generation.audit.agreement import Agreement
from synrank_jax.generation.audit.contamination import FEWEST_RUNS, RUN
from synrank_jax.generation.audit.findings import MEANING, Finding, Kind
from synrank_jax.generation.audit.leakage import Chance, Leakage
from synrank_jax.generation.audit.plots import agreement_plot, leakage_plot
from synrank_jax.generation.audit.summary import ListsAudit
from synrank_jax.html_page import image, safe, table
from synrank_jax.html_page import page as html_page

_NEEDS = {
    Kind.EXAMPLE_COPY: "--examples",
    Kind.CONTAMINATION: "--against",
    Kind.EVALUATION_QUERY: "--against",
    Kind.JUDGE: "--judge",
    Kind.ENCODER: "--encoder",
}


def page(audit: ListsAudit, examples: Mapping[Kind, Sequence[Finding]]) -> str:
    """The whole file.

    Args:
        audit: what was measured.
        examples: the findings to show of each kind.
    """
    parts = [_head(audit), _warnings(audit), _checks(audit), _shapes(audit)]
    if audit.leakage:
        parts.append(_leakage(audit.leakage))
    parts += [_agreement(agreement) for agreement in audit.agreements]
    if audit.against:
        parts.append(_contamination(audit))
    parts += [_examples(kind, found) for kind, found in examples.items() if found]
    return html_page(f"Audit of {audit.name}", parts)


def _head(audit: ListsAudit) -> str:
    split = f", split {safe(audit.split)}" if audit.split else ""
    return (
        f"<h1>Audit of {safe(audit.name)}</h1>\n"
        f'<p class="soft">{audit.lists:,} lists, {audit.passages:,} passages{split}; SHA-256 of '
        f"the lists <code>{audit.lists_sha256[:16]}</code></p>"
    )


def _warnings(audit: ListsAudit) -> str:
    warnings = audit.warnings()
    if not warnings:
        return "<h2>What stands out</h2>\n<p>Nothing.</p>"
    items = "\n".join(f"<li>{safe(warning)}</li>" for warning in warnings)
    return f"<h2>What stands out</h2>\n<ul>\n{items}\n</ul>"


def _checks(audit: ListsAudit) -> str:
    rows = []
    for kind in Kind:
        if kind in audit.found:
            count = audit.found[kind].lists
            mark = ' class="mark"' if count else ""
            shown = f"<span{mark}>{count:,}</span>"
            share = f"{count / max(audit.lists, 1):.1%}"
        else:
            shown, share = f'<span class="soft">{_NEEDS[kind]}</span>', "not checked"
        rows.append((f'<code class="kind">{kind}</code>', MEANING[kind], shown, share))
    return "<h2>Checks</h2>\n" + table(("kind", "meaning", "lists", "share"), rows, (2, 3))


def _shapes(audit: ListsAudit) -> str:
    rows = [
        (", ".join(f"{n} of grade {g}" for g, n in shape.passages.items()), f"{shape.lists:,}")
        for shape in audit.shapes
    ]
    return "<h2>Passages of a list</h2>\n" + table(("passages", "lists"), rows, (1,))


def _leakage(leakage: Leakage) -> str:
    def cells(figure: Chance | None) -> tuple[str, str]:
        if figure is None:
            return "", ""
        mark = ' class="mark"' if figure.beyond() else ""
        return (
            f"<span{mark}>{figure.value:.3f}</span>",
            f"{figure.low:.3f} to {figure.high:.3f}",
        )

    rows = [
        (safe(name), *cells(feature.concordance), *cells(feature.accuracy))
        for name, feature in leakage.features.items()
    ]
    header = ("feature", "concordance", "chance (95%)", "accuracy", "chance (95%)")
    text = (
        f"<h2>Can the grade be told without reading?</h2>\n<p>On {leakage.lists:,} lists. "
        "Concordance: share of the pairs of a list in which the passage of higher grade has more "
        "of the feature. Accuracy: share of grades that the feature alone predicts for lists it "
        "was not fitted on. Chance is measured by shuffling the feature within its lists; figures "
        "outside of it are marked. A feature is no fault because it is marked: relevant passages "
        "do share more words with the query. It is one where it tells most of the grades. Best "
        f"single feature: {safe(leakage.best)}.</p>\n"
    )
    parts = [text, table(header, rows, range(1, 5))]
    parts.append(image(leakage_plot(leakage), "features by grade and against chance"))
    if leakage.openings:
        grades = sorted({g for opening in leakage.openings for g in opening.passages}, reverse=True)
        parts.append("<h3>Most frequent openings</h3>")
        parts.append(
            table(
                ("first words", "lists", *(f"grade {grade}" for grade in grades)),
                [
                    (safe(o.words), f"{o.lists:,}", *(f"{o.passages.get(g, 0):,}" for g in grades))
                    for o in leakage.openings
                ],
                range(1, len(grades) + 2),
            )
        )
    return "\n".join(parts)


def _agreement(agreement: Agreement) -> str:
    def shown(value: float | None, form: str = ".3f") -> str:
        return "none" if value is None else f"{value:{form}}"

    margin = "" if agreement.tau_margin is None else f" ± {agreement.tau_margin:.3f}"
    failed = ", ".join(f"{safe(why)}: {n:,}" for why, n in agreement.failures.items()) or "none"
    rows = [
        ("lists", f"{agreement.lists:,}"),
        ("passages graded again", f"{agreement.passages:,}"),
        (
            "Kendall tau-b within a list, mean (1 same order, 0 chance)",
            shown(agreement.tau) + margin,
        ),
        ("lists ordered the other way round (tau below 0)", f"{agreement.reversed_lists:,}"),
        ("same grade", shown(agreement.exact, ".1%")),
        ("same grade by chance", shown(agreement.exact_by_chance, ".1%")),
        ("without a grade", failed),
    ]
    note = (
        "<p>The encoder gives scores, not grades: the grades of a list are dealt out again in the "
        "order of its scores.</p>"
        if agreement.by == "encoder"
        else "<p>The judge saw the query and one passage at a time, not the grades.</p>"
    )
    return "\n".join(
        (
            f"<h2>Agreement with the {agreement.by} {safe(agreement.name)}</h2>",
            note,
            table(("figure", "value"), rows, (1,)),
            image(agreement_plot(agreement), "grades against second opinion"),
        )
    )


def _contamination(audit: ListsAudit) -> str:
    names = ", ".join(safe(name) for name in audit.against)
    return (
        f"<h2>Evaluation collections</h2>\n<p>Compared with the documents of {names}, and with "
        "their queries that are judged outside of the split train (all, if there is no other). A "
        f"passage is reported if it shares {FEWEST_RUNS} runs of {RUN} words with one text "
        "(stock phrases and rows of numbers left out) or has nearly its title. Passages that "
        f"share a single run, not reported: {audit.single_runs:,}.</p>"
    )


def _examples(kind: Kind, findings: Sequence[Finding]) -> str:
    articles = "\n".join(_article(finding) for finding in findings)
    return f'<h2>Examples: {kind}</h2>\n<p class="soft">{MEANING[kind]}</p>\n{articles}'


def _article(finding: Finding) -> str:
    passage = f", passage <code>{safe(finding.doc_id)}</code>" if finding.doc_id else ""
    parts = [f"<p>Query <code>{safe(finding.query_id)}</code>{passage}: {safe(finding.why)}</p>"]
    quoted = {
        "text": "text",
        "words": "words in common",
        "other_text": "the other text",
        "query": "query",
    }
    for key, label in quoted.items():
        if isinstance(value := finding.evidence.get(key), str):
            parts.append(f'<p class="label">{label}</p><div class="text">{safe(value)}</div>')
    if isinstance(rows := finding.evidence.get("passages"), list):
        parts.append(_opinions(rows))
    return "<article>" + "\n".join(parts) + "</article>"


def _opinions(rows: Sequence[Mapping[str, Any]]) -> str:
    header = tuple(rows[0])
    cells = [[safe(row[name]) for name in header] for row in rows]
    return table([safe(name) for name in header], cells, range(1, len(header)))
