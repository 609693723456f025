"""The plots of the report, from the same figures as its tables."""

from collections.abc import Callable
from typing import Any

from synrank_jax.plots import BLUE, INK, MARK, PALE, boxes, named, new_figure, png
from synrank_jax.retrieval.report_page.facts import Facts

_COLORS = (MARK, "#718096", "#2f855a", "#805ad5", "#b7791f")
_LONGEST_LABEL = 32


def plots(facts: Facts) -> dict[str, bytes]:
    """Name -> PNG image of every plot that there is something to draw in."""
    drawn: dict[str, tuple[bool, Callable[[Facts], bytes]]] = {
        "differences": (bool(facts.baselines), _differences),
        "queries": (True, _queries),
        "scores": (any(level.percentiles for level in facts.scores.levels), _scores),
        "calibration": (bool(facts.scores.gaps), _calibration),
        "length": (True, _length),
        "training": (bool(facts.training), _training),
    }
    return {name: draw(facts) for name, (needed, draw) in drawn.items() if needed}


def _plain(text: str) -> str:
    """A label as matplotlib shows it: no formulas, no characters that its font lacks, not long."""
    shown = "".join(c if c.isprintable() and c < "\u0300" else "?" for c in text)
    shown = shown if len(shown) <= _LONGEST_LABEL else "…" + shown[-_LONGEST_LABEL + 1 :]
    return shown.replace("$", r"\$")


def _differences(facts: Facts) -> bytes:
    """Per measure the difference to every baseline, with its interval."""
    labels = list(facts.baselines)
    figure = new_figure(7.6, 1.0 + 0.34 * max(len(labels), 2))
    panels = figure.subplots(1, len(facts.summaries), squeeze=False, sharey=True)[0]
    for panel, summary in zip(panels, facts.summaries, strict=True):
        panel.axvline(0, color=INK, linewidth=0.8)
        for row, found in enumerate(summary.comparisons):
            color = BLUE if found.p_holm <= 0.05 else "#718096"
            panel.plot(found.interval, [row, row], color=color, linewidth=2)
            panel.plot(found.difference, row, "o", color=color, markersize=5)
        panel.set(yticks=range(len(labels)), yticklabels=[_plain(label) for label in labels])
        panel.set(ylim=(len(labels) - 0.5, -0.5))
        named(panel, _plain(summary.measure), xlabel="model - baseline")
    return png(figure)


def _queries(facts: Facts) -> bytes:
    """The sorted differences to the first baseline, or the sorted values."""
    figure = new_figure(7.6, 2.6)
    panel = figure.subplots()
    curve = facts.outcomes.curve[::-1]
    shares = range(len(curve))
    if facts.baselines:
        first = _plain(next(iter(facts.baselines)))
        panel.axhline(0, color=INK, linewidth=0.8)
        above, below = ([v > 0 for v in curve], [v < 0 for v in curve])
        panel.fill_between(shares, curve, where=above, color=BLUE, alpha=0.75, linewidth=0)
        panel.fill_between(shares, curve, where=below, color=MARK, alpha=0.75, linewidth=0)
        title, label = f"difference to {first}, query by query", f"{facts.measure}, difference"
    else:
        panel.fill_between(shares, curve, color=BLUE, alpha=0.75, linewidth=0)
        title, label = "the values of all queries", facts.measure
    named(panel, title, xlabel="% of the queries, best first", ylabel=_plain(label))
    panel.set(xlim=(0, 100))
    return png(figure)


def _scores(facts: Facts) -> bytes:
    """Box plots of the scores of each level, and the separation of neighbours."""
    figure = new_figure(7.6, 3.2)
    left, right = figure.subplots(1, 2)
    known = [level for level in facts.scores.levels if level.percentiles]
    boxes(left, {number: level.percentiles for number, level in enumerate(known)})
    names = [level.name.replace("unjudged", "un-\njudged").replace(", ", ",\n") for level in known]
    left.set_xticklabels(names)
    named(left, "scores by grade", xlabel="grade", ylabel="score")
    found = facts.scores.separations
    right.axvline(0.5, color="0.7", linestyle=":")
    for row, separation in enumerate(found):
        right.plot(separation.interval, [row, row], color=BLUE, linewidth=2)
        right.plot(separation.within, row, "o", color=BLUE)
        if separation.pooled is not None:
            right.plot(separation.pooled, row, "x", color=MARK)
    right.set(yticks=range(len(found)), yticklabels=[f"{s.higher} over {s.lower}" for s in found])
    right.set(xlim=(0, 1), ylim=(-0.5, max(len(found), 1) - 0.5))
    named(right, "pairs in the right order", xlabel="dot: within a query; cross: over all queries")
    return png(figure)


def _calibration(facts: Facts) -> bytes:
    """Share of pairs in the right order by score gap."""
    figure = new_figure(7.6, 3.0)
    panel = figure.subplots()
    gaps = facts.scores.gaps
    panel.axhline(0.5, color="0.7", linestyle=":")
    at = [gap.mean for gap in gaps]
    low, high = ([gap.interval[end] for gap in gaps] for end in (0, 1))
    panel.fill_between(at, low, high, color=PALE, linewidth=0)
    panel.plot(at, [gap.share for gap in gaps], "o-", color=BLUE, markersize=4)
    panel.set(ylim=(min(0.4, *low), 1.02), xlim=(0, None))
    named(
        panel,
        "share of pairs in which the higher grade scores higher",
        xlabel="difference of the two scores",
        ylabel="share",
    )
    return png(figure)


def _length(facts: Facts) -> bytes:
    """The metric in groups of queries of like length."""
    figure = new_figure(7.6, 2.8)
    panel = figure.subplots()
    bins = facts.lengths
    at = range(len(bins))
    for color, label in zip(_COLORS, facts.baselines, strict=False):
        panel.plot(
            at,
            [b.baselines[label] for b in bins],
            "s--",
            color=color,
            markersize=4,
            linewidth=1,
            label=_plain(label),
        )
    for x, found in zip(at, bins, strict=True):
        panel.plot([x, x], found.interval, color=BLUE, linewidth=2)
    panel.plot(at, [b.mean for b in bins], "o-", color=BLUE, label=_plain(facts.label))
    panel.set(xticks=at, xticklabels=[f"{words(b.low, b.high)}\n{b.queries:,}" for b in bins])
    panel.set(ylim=(0, None), xlim=(-0.4, len(bins) - 0.6))
    figure.legend(fontsize=8, frameon=False, loc="outside upper right", ncols=3)
    named(
        panel,
        "by length of the query",
        xlabel="words of the query; below, the number of queries",
        ylabel=_plain(facts.measure),
    )
    return png(figure)


def words(low: int, high: int) -> str:
    """A range of word counts."""
    return str(low) if low == high else f"{low} to {high}"


def _training(facts: Facts) -> bytes:
    """One panel for each curve."""
    rows = -(-len(facts.training) // 3)
    figure = new_figure(7.6, 2.3 * rows)
    panels = figure.subplots(rows, 3, squeeze=False).ravel()
    for panel in panels[len(facts.training) :]:
        panel.set_visible(False)
    for panel, curve in zip(panels, facts.training, strict=False):
        mark: Any = "o-" if len(curve.steps) < 20 else "-"
        panel.plot(curve.steps, curve.values, mark, color=BLUE, linewidth=1.2, markersize=3)
        named(panel, _plain(curve.name.replace("_", " ")), xlabel="step")
        panel.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    return png(figure)
