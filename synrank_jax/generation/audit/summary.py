"""What an audit measured, as audit.json, and what a user should make of it, in sentences."""

from collections.abc import Iterator

from synrank_jax.config_section import Section
from synrank_jax.generation.audit.agreement import Agreement
from synrank_jax.generation.audit.findings import MEANING, Kind
from synrank_jax.generation.audit.leakage import LENGTH, OPENING, OVERLAP, Leakage

AUDIT_FILE = "audit.json"
FINDINGS_FILE = "findings.jsonl"
REGRADES_FILE = "regrades.jsonl"
"""Grades of second opinions on the sample."""
LENGTH_LEAKS = 0.1
"""Distance of the concordance of length from 0.5 that a model would learn."""
OVERLAP_LEAKS = 0.9
"""Concordance of BM25 from which query words alone order the lists."""
OPENING_LEAKS = 0.05
"""Accuracy above chance that openings must not give."""
LEAST_TAU = 0.4
"""Mean Kendall tau below which a second opinion does not confirm the grades."""


class Found(Section):
    """What was found of one kind."""

    findings: int
    lists: int


class Shape(Section):
    """How many lists have so many passages of each grade."""

    passages: dict[int, int]
    """grade -> passages of a list."""
    lists: int


class ListsAudit(Section):
    """The content of audit.json."""

    name: str
    """What was audited, as it was named."""
    split: str | None
    """Of a BEIR-layout folder; None for a lists JSONL."""
    lists_sha256: str
    findings_sha256: str
    regrades_sha256: str
    lists: int
    passages: int
    shapes: tuple[Shape, ...]
    """The most frequent first; at most ten."""
    found: dict[Kind, Found]
    """Of every kind that was looked for."""
    against: tuple[str, ...]
    """Evaluation collections."""
    single_runs: int
    """Passages that share one run of words with a text of these, too little to be a finding."""
    leakage: Leakage | None
    agreements: tuple[Agreement, ...]

    def warnings(self) -> tuple[str, ...]:
        """What should be known before training on the lists."""
        return (*self._findings(), *self._leaks(), *self._disagreements())

    def _findings(self) -> Iterator[str]:
        for kind, found in self.found.items():
            if found.lists:
                yield (
                    f"{kind}: {found.lists:,} of {self.lists:,} lists "
                    f"({found.lists / max(self.lists, 1):.1%}): {MEANING[kind]}; "
                    f"--drop {kind} leaves them out"
                )

    def _leaks(self) -> Iterator[str]:
        features = self.leakage.features if self.leakage else {}
        length = features[LENGTH].concordance if LENGTH in features else None
        if length and length.beyond() and abs(length.value - 0.5) > LENGTH_LEAKS:
            longer = "longer" if length.value > 0.5 else "shorter"
            yield (
                f"length tells the grade: the {longer} passage is the better one in "
                f"{max(length.value, 1 - length.value):.0%} of the pairs (chance 50%); ask for "
                "passages of equal length within a list"
            )
        overlap = features[OVERLAP].concordance if OVERLAP in features else None
        if overlap and overlap.value > OVERLAP_LEAKS:
            yield (
                f"query words tell the grade: BM25 alone orders {overlap.value:.0%} of the pairs "
                "as the grades do; ask for irrelevant passages that share words with the query"
            )
        if OPENING in features:
            opening = features[OPENING].accuracy
            if opening.beyond() and opening.value - opening.chance > OPENING_LEAKS:
                yield (
                    f"openings tell the grade: the first words predict {opening.value:.0%} of the "
                    f"grades (chance {opening.chance:.0%}); see the table of openings"
                )

    def _disagreements(self) -> Iterator[str]:
        for agreement in self.agreements:
            if agreement.tau is not None and agreement.tau < LEAST_TAU:
                yield (
                    f"the {agreement.by} {agreement.name} hardly confirms the grades: mean Kendall "
                    f"tau {agreement.tau:.2f}"
                )
            if agreement.failures:
                failed = ", ".join(f"{why}: {n:,}" for why, n in agreement.failures.items())
                yield f"the {agreement.by} gave no grade for some passages ({failed})"


def summary_text(audit: ListsAudit) -> str:
    """The audit for a terminal."""
    lines = [
        f"{audit.name}: {audit.lists:,} lists, {audit.passages:,} passages",
        *(f"  {kind:<17}{found.lists:>9,} lists" for kind, found in audit.found.items()),
    ]
    if audit.leakage:
        lines.append(f"grades told from one feature, on {audit.leakage.lists:,} lists:")
        for name, feature in audit.leakage.features.items():
            figures = [("accuracy", feature.accuracy)]
            if feature.concordance:
                figures.insert(0, ("concordance", feature.concordance))
            shown = [
                f"{what} {c.value:.3f} (chance {c.low:.3f} to {c.high:.3f})" for what, c in figures
            ]
            lines.append(f"  {name}: {', '.join(shown)}")
    for found in audit.agreements:
        tau = "none" if found.tau is None else f"{found.tau:.3f}"
        exact = "none" if found.exact is None else f"{found.exact:.3f}"
        chance = "" if found.exact_by_chance is None else f" (chance {found.exact_by_chance:.3f})"
        lines.append(
            f"{found.by} {found.name} on {found.lists:,} lists: Kendall tau {tau}, "
            f"same grade {exact}{chance}, {found.reversed_lists:,} lists reversed"
        )
    warnings = audit.warnings()
    lines += ["", *(f"warning: {warning}" for warning in warnings or ())]
    return "\n".join(lines if warnings else [*lines, "no warnings"]) + "\n"
