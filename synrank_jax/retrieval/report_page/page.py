"""report.html: the figures in words, tables and plots."""

import math
from collections.abc import Iterable, Iterator, Mapping

from synrank_jax.html_page import image, page, safe, table
from synrank_jax.retrieval.report_page.cases import SHOWN_DOCUMENTS, QueryCase, RankedDocument
from synrank_jax.retrieval.report_page.facts import JUDGED, Facts
from synrank_jax.retrieval.report_page.plots import words
from synrank_jax.retrieval.report_page.scores import (
    MOST_PAIRS,
    MOST_SCORES,
    TOP,
    UNJUDGED_DRAWN,
)
from synrank_jax.retrieval.result import EvaluationResult
from synrank_jax.retrieval.significance import ALPHA
from synrank_jax.retrieval.summary import Comparison, notes, p_shown, summary_cells

_STYLE = """
body { max-width: 66rem; }
.summary tbody tr:has(td:first-child:not(:empty)) td { border-top: 2px solid var(--line); }
.summary td:nth-child(2) { min-width: 6rem; overflow-wrap: anywhere; }
.lengths th { white-space: normal; overflow-wrap: anywhere; min-width: 4.5rem; }
.origin td { overflow-wrap: anywhere; } .origin td:first-child { min-width: 12rem; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1.1rem; }
.sides > div { min-width: 0; }
.document { font-size: .86em; margin: .35rem 0; padding: .35rem .6rem; background: var(--pale);
  border-radius: 4px; overflow-wrap: anywhere; break-inside: avoid; }
.document .label { margin: 0 0 .15rem; }
.grade { display: inline-block; padding: 0 .45em; border-radius: 3px; background: var(--line);
  color: var(--ink); font-weight: 600; }
.grade.relevant { background: #2f855a; color: white; }
.value { font-variant-numeric: tabular-nums; }
@media (max-width: 44rem) { .sides { grid-template-columns: 1fr; }
  table { display: block; overflow-x: auto; } }
@media print {
  .summary table { font-size: .8em; } .summary th, .summary td { padding-right: .4rem; }
  .document { font-size: .72em; line-height: 1.35; } img { width: 36rem; }
}
"""
# key of `cost` -> what it is, how it is shown
_COST = {
    "documents_encoded": ("documents encoded (the others were found encoded)", "{:,.0f}"),
    "encode_s": ("encoding them, seconds", "{:,.1f}"),
    "documents_per_s": ("documents per second", "{:,.1f}"),
    "query_s": ("encoding the queries, seconds", "{:,.2f}"),
    "texts": ("documents and queries encoded", "{:,.0f}"),
    "tokens": ("their tokens", "{:,.0f}"),
    "tokens_per_s": ("tokens per second", "{:,.0f}"),
    "slots": ("tokens and padding", "{:,.0f}"),
    "padding_share": ("padding, share of these", "{:.1%}"),
    "tokenize_s": ("tokenisation, seconds", "{:,.1f}"),
    "compile_s": ("compilation, seconds", "{:,.1f}"),
    "search_s": ("search, seconds", "{:,.2f}"),
    "search_ms_per_query": ("search, milliseconds per query", "{:,.3f}"),
    "embedding_bytes": ("embeddings on disk, bytes", "{:,.0f}"),
}


def report_html(facts: Facts, result: EvaluationResult, images: Mapping[str, bytes]) -> str:
    """The whole file.

    Args:
        facts: what was measured.
        result: how it was measured.
        images: name -> PNG image.
    """
    parts = [
        _head(facts, result),
        _verdict(facts),
        _summary(facts, images),
        _outcomes(facts, images),
        _scores(facts, images),
        _calibration(facts, images),
        _lengths(facts, images),
    ]
    if facts.training:
        parts += ["<h2>Training</h2>", image(images["training"], "training curves")]
    if facts.cost:
        parts.append(_cost(facts))
    parts += [_cases(facts), _origin(facts, result)]
    return page(f"{facts.label} on {result.evaluation.path}", parts, _STYLE)


def _head(facts: Facts, result: EvaluationResult) -> str:
    return (
        f"<h1>{safe(facts.label)} on {safe(result.evaluation.path)}</h1>\n"
        f'<p class="soft">{safe(facts.collection)}; model <code>{safe(facts.model)}</code></p>'
    )


def _verdict(facts: Facts) -> str:
    first = facts.summaries[0]
    low, high = first.interval
    mean = f"{safe(first.measure)} {first.mean:.4f} (95 % interval {low:.4f} to {high:.4f})."
    items = "".join(f"<li>{sentence}</li>\n" for sentence in _sentences(facts, first.comparisons))
    return f"<h2>In short</h2>\n<p>{mean}</p>\n" + (f"<ul>\n{items}</ul>" if items else "")


def _sentences(facts: Facts, comparisons: tuple[Comparison, ...]) -> Iterator[str]:
    for found in comparisons:
        low, high = found.interval
        shown = f"{low:+.4f} to {high:+.4f}, p Holm {p_shown(found.p_holm)}"
        difference = f"{found.difference:+.4f} ({safe(shown)})"
        name = safe(found.baseline)
        if not found.detectable and not found.difference:
            yield f"equal to {name} on every query"
        elif found.p_holm <= ALPHA:
            verdict = "better" if found.difference > 0 else "worse"
            yield f'<span class="mark">{verdict}</span> than {name}: {difference}'
        else:
            yield (
                f"no difference to {name} shown: {difference}"
                + f"; with these queries, a true difference of {found.detectable:.4f} would be "
                "found four times in five" * math.isfinite(found.detectable)
            )
    judged = ", ".join(f"{safe(label)} {share:.0%}" for label, share in facts.judged_at_10.items())
    yield (
        f"judged among the first 10 documents ({JUDGED}): {judged}. What is not judged counts as "
        "not relevant, so a system with fewer judged documents may be better than its figures"
    )


def _summary(facts: Facts, images: Mapping[str, bytes]) -> str:
    header, rows = summary_cells(facts.label, facts.summaries)
    cells = [[safe(cell) for cell in row] for row in rows]
    shown = table([safe(name) for name in header], cells, range(2, len(header)))
    explained = "\n".join(f'<p class="soft">{safe(note)}</p>' for note in notes(facts.summaries))
    plot = ""
    if "differences" in images:
        plot = image(images["differences"], "differences to the baselines with intervals")
        plot += '\n<p class="soft">Blue: p Holm at most .05.</p>'
    return f'<h2>Measures</h2>\n<div class="summary">{shown}</div>\n{explained}\n{plot}'


def _outcomes(facts: Facts, images: Mapping[str, bytes]) -> str:
    found = facts.outcomes
    if facts.baselines:
        text = (
            f"Against {safe(next(iter(facts.baselines)))}, {safe(facts.measure)} is higher for "
            f"{found.better:,} queries, equal for {found.equal:,} and lower for {found.worse:,}. "
            "The largest differences are at the end of this page."
        )
    else:
        text = (
            f"{found.better:,} queries are above the mean, {found.worse:,} below it. "
            "The best and the worst are at the end of this page."
        )
    return f"<h2>Query by query</h2>\n<p>{text}</p>\n" + image(
        images["queries"], "sorted values of the queries"
    )


def _scores(facts: Facts, images: Mapping[str, bytes]) -> str:
    digits = _digits(v for level in facts.scores.levels for v in level.percentiles)
    levels = [
        (
            f"grade {level.name}" if level.name.isdigit() else level.name,
            f"{level.scored:,}",
            f"{level.not_retrieved:,}",
            *(f"{value:.{digits}f}" for value in level.percentiles),
            *([""] * (0 if level.percentiles else 5)),
        )
        for level in facts.scores.levels
    ]
    separations = [
        (
            f"{s.higher} over {s.lower}",
            f"{s.queries:,}",
            f"{s.within:.3f}",
            f"{s.interval[0]:.3f} to {s.interval[1]:.3f}",
            "" if s.pooled is None else f"{s.pooled:.3f}",
        )
        for s in facts.scores.separations
    ]
    parts = [
        "<h2>Do the scores separate the grades?</h2>",
        "<p>Share of the pairs in which the document of the higher level has the higher score: "
        "1 always, .5 chance. Within a query, averaged over the queries (a judged document that "
        "was not retrieved counts as lowest), and over all queries together, as one threshold "
        f"for all would see it. Unjudged: {UNJUDGED_DRAWN} of those retrieved for a query, drawn "
        f"at random with a fixed seed. The unjudged among the first {TOP} are there for their high "
        "scores; what is relevant among them, the judgements do not know.</p>",
        image(images["scores"], "scores by grade and their separation")
        if "scores" in images
        else "",
        table(
            ("levels", "queries", "within a query", "95 % interval", "over all queries"),
            separations,
            range(1, 5),
        ),
        table(
            ("scores of", "documents", "not retrieved", "5 %", "25 %", "median", "75 %", "95 %"),
            levels,
            range(1, 8),
        ),
    ]
    if any(level.scored > MOST_SCORES for level in facts.scores.levels):
        parts.append(
            f'<p class="soft">Percentiles and the figure over all queries: from {MOST_SCORES:,} '
            "scores of a level, drawn at random with a fixed seed.</p>"
        )
    return "\n".join(parts)


def _digits(values: Iterable[float]) -> int:
    """Decimals with which the largest of the values has four digits."""
    largest = max((abs(value) for value in values), default=0.0)
    return max(0, 3 - math.floor(math.log10(largest))) if largest else 0


def _calibration(facts: Facts, images: Mapping[str, bytes]) -> str:
    heading = "<h2>What does a gap between two scores say?</h2>"
    if not facts.scores.gaps:
        return f"{heading}\n<p>Nothing: no query has scored documents of different grades.</p>"
    digits = _digits(gap.high for gap in facts.scores.gaps)
    rows = [
        (
            f"{gap.low:.{digits}f} to {gap.high:.{digits}f}",
            f"{gap.pairs:,}",
            f"{gap.share:.1%}",
            f"{gap.interval[0]:.1%} to {gap.interval[1]:.1%}",
        )
        for gap in facts.scores.gaps
    ]
    pairs = (
        "a relevant and an unjudged document of one query (no query has documents of two grades)"
        if facts.scores.gaps_to_unjudged
        else "two judged documents of one query with different grades"
    )
    return "\n".join(
        (
            heading,
            f"<p>Of {pairs}, the better one has the higher score in {facts.scores.in_order:.1%} of "
            f"the pairs. The share should rise with the distance of the scores. At most "
            f"{MOST_PAIRS} pairs of a query, drawn at random with a fixed seed; intervals from a "
            "bootstrap over queries.</p>",
            image(images["calibration"], "share of pairs in order by score gap"),
            table(("difference of scores", "pairs", "in order", "95 % interval"), rows, (1, 2, 3)),
        )
    )


def _lengths(facts: Facts, images: Mapping[str, bytes]) -> str:
    rows = [
        (
            words(found.low, found.high),
            f"{found.queries:,}",
            f"{found.mean:.4f}",
            f"{found.interval[0]:.4f} to {found.interval[1]:.4f}",
            *(f"{mean:.4f}" for mean in found.baselines.values()),
        )
        for found in facts.lengths
    ]
    header = ("words", "queries", safe(facts.label), "95 % interval", *map(safe, facts.baselines))
    return (
        f"<h2>{safe(facts.measure)} by length of the query</h2>\n"
        + image(images["length"], "metric by query length")
        + "\n"
        + f'<div class="lengths">{table(header, rows, range(1, len(header)))}</div>'
    )


def _cost(facts: Facts) -> str:
    named = {key: value for key, value in facts.cost.items() if key not in _COST}
    rows = [
        (what, form.format(facts.cost[key]))
        for key, (what, form) in _COST.items()
        if key in facts.cost
    ]
    rows += [(f"<code>{safe(key)}</code>", f"{value:,.6g}") for key, value in named.items()]
    return "<h2>Cost</h2>\n" + table(("figure", "value"), rows, (1,))


def _cases(facts: Facts) -> str:
    found = facts.outcomes
    if facts.baselines:
        first = safe(next(iter(facts.baselines)))
        titles = f"Largest wins over {first}", f"Largest losses to {first}"
    else:
        titles = "Best queries", "Worst queries"
    parts = []
    for title, cases in zip(titles, (found.best, found.worst), strict=True):
        articles = "\n".join(_case(case, facts) for case in cases) or "<p>None.</p>"
        parts.append(f"<h2>{title}</h2>\n{articles}")
    return "\n".join(parts)


def _case(case: QueryCase, facts: Facts) -> str:
    value = f'{safe(facts.measure)} <span class="value">{case.value:.4f}</span>'
    if case.baseline is not None:
        value += f", {safe(next(iter(facts.baselines)))} {case.baseline:.4f}"
    sides = [_side(facts.label, case.documents, bool(case.baseline_documents))]
    if case.baseline_documents:
        sides.append(_side(next(iter(facts.baselines)), case.baseline_documents, True))
    documents = "\n".join(sides)
    if len(sides) == 2:
        documents = f'<div class="sides">\n{documents}\n</div>'
    return (
        f"<article>\n<p><b>{safe(case.query)}</b></p>\n"
        f'<p class="label">query <code>{safe(case.query_id)}</code>: {value}</p>\n'
        f"{documents}\n</article>"
    )


def _side(label: str, documents: tuple[RankedDocument, ...], compared: bool) -> str:
    shown = "\n".join(_document(document, compared) for document in documents) or "<p>nothing</p>"
    return f'<div><p class="label">first {SHOWN_DOCUMENTS} of {safe(label)}</p>\n{shown}</div>'


def _document(document: RankedDocument, compared: bool) -> str:
    if document.grade is None:
        grade = '<span class="grade">not judged</span>'
    else:
        relevant = " relevant" if document.grade > 0 else ""
        grade = f'<span class="grade{relevant}">grade {document.grade}</span>'
    other = ""
    if compared:
        rank = "not on it" if document.other_rank is None else f"rank {document.other_rank:,}"
        other = f"; in the other list {rank}"
    return (
        f'<div class="document"><p class="label">{document.rank}. {grade} '
        f"<code>{safe(document.doc_id)}</code> score {document.score:.4g}{other}</p>"
        f"{safe(document.text) or '<i>empty</i>'}</div>"
    )


def _origin(facts: Facts, result: EvaluationResult) -> str:
    contract = result.contract
    rows = [
        ("model", f"<code>{safe(result.model)}</code>"),
        ("embeddings by", safe(result.backend)),
        ("pooling, similarity", f"{safe(contract.pooling)}, {safe(contract.similarity)}"),
        ("tokens of a query, a passage", f"{contract.query_length}, {contract.passage_length}"),
        *((f"baseline {safe(label)}", safe(origin)) for label, origin in facts.baselines.items()),
        ("SHA-256 of the collection", f"<code>{safe(facts.collection_sha256)}</code>"),
        ("versions", safe(", ".join(f"{name} {v}" for name, v in result.versions.items()))),
    ]
    shown = table(("what", "value"), rows, ())
    return f'<h2>How it was measured</h2>\n<div class="origin">{shown}</div>'
