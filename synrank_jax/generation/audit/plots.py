"""The plots of an audit, as PNG images to embed."""

from typing import Any

from synrank_jax.generation.audit.agreement import Agreement
from synrank_jax.generation.audit.leakage import Chance, Leakage
from synrank_jax.plots import BLUE, INK, PALE, boxes, named, new_figure, png


def leakage_plot(leakage: Leakage) -> bytes:
    """Each feature's values by grade, and both figures of all features against chance."""
    numeric = {name: f for name, f in leakage.features.items() if f.percentiles}
    figure = new_figure(7.6, 5.0)
    panels = figure.subplots(2, 2).ravel()
    panels[1].set_visible(len(numeric) > 1)
    for panel, (name, feature) in zip(panels, numeric.items(), strict=False):
        boxes(panel, feature.percentiles)
        named(panel, f"{name} by grade", xlabel="grade")
    concordance = {n: f.concordance for n, f in numeric.items() if f.concordance}
    _against_chance(panels[-2], concordance, "concordance with the grade")
    _against_chance(
        panels[-1], {n: f.accuracy for n, f in leakage.features.items()}, "accuracy of prediction"
    )
    return png(figure)


def agreement_plot(agreement: Agreement) -> bytes:
    """The confusion matrix, and an encoder's scores by grade."""
    scored = bool(agreement.score_percentiles)
    figure = new_figure(3.8 * (1 + scored), 3.2)
    panels = figure.subplots(1, 1 + scored, squeeze=False)[0]
    _confusion(panels[0], agreement)
    if scored:
        boxes(panels[1], agreement.score_percentiles)
        named(panels[1], "score by grade", xlabel="grade")
    return png(figure)


def _against_chance(panel: Any, figures: dict[str, Chance], title: str) -> None:
    for row, figure in enumerate(figures.values()):
        panel.plot(
            [figure.low, figure.high], [row, row], color=PALE, linewidth=9, solid_capstyle="butt"
        )
        panel.plot(figure.value, row, "o", color=BLUE)
    labels = [name.replace(" (", "\n(").replace(" in ", "\nin ") for name in figures]
    panel.set(yticks=range(len(figures)), yticklabels=labels, xlim=(0, 1))
    panel.set(ylim=(len(figures) - 0.5, -0.5))
    named(panel, title, xlabel="grey: 95% of chance")


def _confusion(panel: Any, agreement: Agreement) -> None:
    rows = agreement.confusion
    grades = sorted(set(rows) | {other for row in rows.values() for other in row})
    shares = [
        [
            rows.get(grade, {}).get(other, 0) / max(sum(rows.get(grade, {}).values()), 1)
            for other in grades
        ]
        for grade in grades
    ]
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, origin="lower")
    for y, row in enumerate(shares):
        for x, share in enumerate(row):
            color = "white" if share > 0.5 else INK
            count = rows.get(grades[y], {}).get(grades[x], 0)
            panel.text(x, y, f"{count:,}", ha="center", va="center", color=color, fontsize=9)
    ticks = {"xticks": range(len(grades)), "yticks": range(len(grades))}
    panel.set(**ticks, xticklabels=grades, yticklabels=grades)
    by, own = f"grade of the {agreement.by}", "grade in the list"
    named(panel, "passages", xlabel=by, ylabel=own)
