"""Which updates a run may leave out, and what stops it."""

import math
from collections.abc import Mapping

from synrank_jax.errors import UserError


class BadUpdateError(UserError):
    """More updates were bad than the run may leave out, or the weights are broken."""


class UpdateBudget:
    """Counts what the optimizer left out (`optim.skip_bad_updates`) and means the losses.

    Args:
        skip_updates: So many bad updates may be left out; one more stops the run.
    """

    def __init__(self, skip_updates: int) -> None:
        self._allowed = skip_updates
        self._losses: list[float] = []

    def check(self, values: Mapping[str, float], window: tuple[int, int], checkpoint: int) -> None:
        """Look at the metrics of one step.

        Args:
            values: Its metrics, and its number as `step`.
            window: First and last step that were fetched together.
            checkpoint: Step of the newest checkpoint, 0 before the first.

        Raises:
            BadUpdateError: Names the step, the window, what was found and the way out.
        """
        skipped = int(values["skipped_updates"])
        if math.isfinite(values["loss"]):
            self._losses.append(values["loss"])
        if math.isfinite(values["param_norm"]) and skipped <= self._allowed:
            return
        if not math.isfinite(values["param_norm"]):
            reason = "the update broke the weights"
            way_out = "lower optimizer.learning_rate and train into another train.output"
        else:
            finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
            spike = f"the loss is a spike, its running mean is {values['loss_mean']:.6g}"
            reason = f"{spike if finite else 'not finite'}; the update was not applied"
            way_out = (
                f"with train.skip_updates above {self._allowed} (it may change on resuming) the "
                "run leaves such updates out; else lower optimizer.learning_rate or raise "
                "loss.temperature, and train into another train.output"
            )
        found = ", ".join(f"{name} {values[name]:.6g}" for name in ("loss", "grad_norm"))
        raise BadUpdateError(
            f"step {values['step']} (window {window[0]} to {window[1]}): {found}, "
            f"param_norm {values['param_norm']:.6g}: {reason}. {skipped} bad updates so far, "
            f"train.skip_updates {self._allowed}. Nothing of this window was saved, the newest "
            f"checkpoint is {f'of step {checkpoint}' if checkpoint else 'none'}; {way_out}"
        )

    def mean_loss(self) -> float:
        """Mean of the finite losses since the last call; infinite if there were none."""
        losses, self._losses = self._losses, []
        return math.fsum(losses) / len(losses) if losses else math.inf
