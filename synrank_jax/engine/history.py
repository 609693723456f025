"""The evaluations of a run so far: what early stopping and the choice of a checkpoint go by."""

from pathlib import Path
from typing import Self

import pydantic

from synrank_jax.config_section import Section
from synrank_jax.errors import UserError
from synrank_jax.files import write_text

VALIDATION_FILE = "validation.json"


class History(Section):
    """The content of a run folder's validation.json.

    What was trained is compared: the evaluation before the first step (0) is for the reader.
    """

    metric: str
    """What decides, the first of `validation.metrics`; higher is better."""
    collection_sha256: str
    """Fingerprint of what was evaluated on."""
    values: dict[int, float]
    """{completed steps: value}."""

    def ranked(self) -> list[int]:
        """Steps from the best on; of equal ones the earliest is first."""
        return sorted(set(self.values) - {0}, key=lambda step: (-self.values[step], step))

    def without_better(self) -> int:
        """Evaluations since the best one."""
        best = self.ranked()[:1]
        return sum(step > best[0] for step in self.values) if best else 0

    def told(self, step: int) -> str:
        """What was found after a step, and where that stands."""
        place, count = self.ranked().index(step), len(self.ranked())
        rank = "best" if place == 0 else f"number {place + 1}"
        return f"{rank} of {count} by {self.metric}: {self.values[step]:.4f}"

    def add(self, step: int, value: float) -> Self:
        """With one more evaluation."""
        return self.model_copy(update={"values": {**self.values, step: value}})

    def write(self, run: Path) -> None:
        """Write into the run folder; never seen half-written."""
        write_text(run / VALIDATION_FILE, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, run: Path) -> Self | None:
        """That of a run folder; None: it was not evaluated.

        Raises:
            UserError: the file holds something else.
        """
        file = run / VALIDATION_FILE
        if not file.exists():
            return None
        try:
            return cls.model_validate_json(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, pydantic.ValidationError) as error:
            raise UserError(
                f"{file}: not as train wrote it ({error}); bring it back from a copy, or name a "
                "checkpoint of the run"
            ) from error

    @classmethod
    def resumed(cls, run: Path, metric: str, collection_sha256: str, done: int) -> Self:
        """What a run knows after `done` steps; later evaluations, which come again, are dropped.

        Raises:
            UserError: the run was evaluated on another collection, or its file is gone.
        """
        found = cls.read(run)
        if found is None:
            if done:
                raise UserError(
                    f"{run / VALIDATION_FILE}: missing, and with it what was found in {done} "
                    "steps; bring it back from a copy, or set another train.output"
                )
            return cls(metric=metric, collection_sha256=collection_sha256, values={})
        if found.collection_sha256 != collection_sha256:
            raise UserError(
                f"validation: the collection has fingerprint {collection_sha256[:12]}, but {run} "
                f"was evaluated on {found.collection_sha256[:12]}: its files have changed. Bring "
                "the former ones back, or set another train.output"
            )
        values = {step: value for step, value in found.values.items() if step <= done}
        kept = found.model_copy(update={"values": values})
        kept.write(run)
        return kept
