"""What the configured loss does to real scores, before an hour of training: measured, and in words.

    python -m synrank_jax.audit --config configs/quickstart.yaml

Encodes a few batches of the prepared lists with the untrained model, and measures on their scores
whether the loss sees which query owns which list, how much of the target is on the own list as the
pool grows, and where the gradient falls and how large it is. Writes audit.txt, audit.json and
audit.png into the output folder.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from synrank_jax.cli import config_parser, parsed_config, run_command
from synrank_jax.config import Config
from synrank_jax.config_section import Section
from synrank_jax.engine.audit import IN_BATCH, Measurements, measure
from synrank_jax.files import make_folder, write_text
from synrank_jax.plots import new_figure, save_png

# A loss that moves by less than this share of itself when lists change owners does not see owners.
BLIND = 1e-3
LEAST_TARGET_MASS = 0.1
MOST_IN_BATCH_GRADIENT = 0.5
LEAST_GRADE_GRADIENT = 0.01
MOST_SHRINKING = 5.0
# The other losses have no target distribution: they look at the order or the top of a list.
OF_TARGETS = {"wasserstein", "sinkhorn", "gaussian_wasserstein", "gaussian_paired", "listnet_kl"}


class Audit(Section):
    """The content of audit.json."""

    losses: dict[str, float]
    """Name -> weight."""
    measurements: Measurements
    warnings: tuple[str, ...]


def warnings_of(config: Config, found: Measurements) -> Iterator[str]:
    """What a user should know before training with this loss, one sentence each."""
    losses = " + ".join(config.loss.weights())
    size = found.pool_size
    if (change := found.blindness["loss"]) < BLIND:
        yield (
            f"{losses} is blind to which query owns a row: giving every list the scores of another "
            f"query changes it by {change:.1e} of its value. It can only sharpen a model that "
            "already ranks well; add a loss that sees owners (wasserstein, listnet_kl, infonce) "
            "or use gaussian_paired"
        )
    mass = found.target_mass[size]
    if mass < LEAST_TARGET_MASS and OF_TARGETS & config.loss.weights().keys():
        yield (
            f"only {mass:.0%} of the target is on the own list at pool {size}: set "
            "loss.in_batch_grade null or lower, a lower loss.target_temperature, or a smaller "
            "train.pool_size (for Gaussian losses loss.gaussian_group_size)"
        )
    share = found.gradient_share
    if share[IN_BATCH] > MOST_IN_BATCH_GRADIENT:
        yield (
            f"{share[IN_BATCH]:.0%} of the gradient falls on in-batch passages, "
            f"{1 - share[IN_BATCH]:.0%} on the graded list: a smaller train.pool_size or a lower "
            "loss.temperature turns it to the list"
        )
    for grade in config.data.grades[1:]:  # the lowest is a negative, and may be an easy one
        if share[str(grade)] < LEAST_GRADE_GRADIENT:
            yield (
                f"passages of grade {grade} get {share[str(grade)]:.1%} of the gradient: this loss "
                "hardly uses them at this temperature, or the lists have none"
            )
    smallest = min(found.gradient_norm)
    shrinking = found.gradient_norm[smallest] / max(found.gradient_norm[size], 1e-30)
    if shrinking > MOST_SHRINKING:
        yield (
            f"the gradient per query is {shrinking:.0f} times smaller at pool {size} than at pool "
            f"{smallest}: in a sum with other losses it needs more weight as the pool grows, and "
            "optimizer.eps and clip_norm no longer mean the same; or set a smaller train.pool_size"
        )


def audit_text(audit: Audit) -> str:
    """All measurements and warnings as a text."""
    found = audit.measurements
    lists = found.pools * found.pool_size
    losses = " + ".join(f"{weight:g} {name}" for name, weight in audit.losses.items())
    blindness = [f"{name} {change:.2g}" for name, change in found.blindness.items()]
    mass = [f"{size}: {value:.1%}" for size, value in found.target_mass.items()]
    share = [f"{grade}: {value:.1%}" for grade, value in found.gradient_share.items()]
    norm = [f"{size}: {value:.3g}" for size, value in found.gradient_norm.items()]
    lines = [
        f"{losses}, {found.pools} pools of {found.pool_size} ({lists} lists), untrained model",
        f"loss  {found.loss:.6g}",
        f"change when every list gets another query's scores  {', '.join(blindness)} of its value",
        f"target mass on the own list, by pool size  {', '.join(mass)}",
        f"share of the gradient, by grade  {', '.join(share)}",
        f"gradient norm per query, by pool size  {', '.join(norm)}",
        "",
        *(f"warning: {warning}" for warning in audit.warnings),
    ]
    return "\n".join(lines if audit.warnings else [*lines, "no warnings"]) + "\n"


def _plot(audit: Audit) -> object:
    found = audit.measurements
    figure = new_figure(13, 3.2)
    blind, mass, share, norm = figure.subplots(1, 4)
    names = list(found.blindness)
    blind.barh(names, [max(change, 1e-10) for change in found.blindness.values()])
    blind.axvline(BLIND, color="0.7", linestyle=":")
    blind.set(title="change under row shuffling", xlabel="of the loss (left of the line: blind)")
    blind.set(xscale="log", xlim=(1e-10, 1e2))
    share.bar(list(found.gradient_share), list(found.gradient_share.values()))
    share.set(title="share of the gradient", xlabel="grade")
    for panel, values in ((mass, found.target_mass), (norm, found.gradient_norm)):
        panel.plot([str(size) for size in values], list(values.values()), "o-")
        panel.axvline(str(found.pool_size), color="0.7", linestyle=":")
        panel.set(xlabel="pool size")
    mass.set(title="target on the own list", ylim=(0, 1.05))
    norm.set(title="gradient norm per query", yscale="log")
    return figure


def run(config: Config, batches: int) -> Audit:
    """Measure the configured loss on so many training pools.

    Raises:
        UserError: see `measure`.
    """
    found = measure(config, batches)
    warnings = tuple(warnings_of(config, found))
    return Audit(losses=config.loss.weights(), measurements=found, warnings=warnings)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `python -m synrank_jax.audit`."""
    parser = config_parser("audit", __doc__ or "")
    parser.add_argument(
        "--batches", metavar="N", type=_positive, default=4, help="loss pools to measure (4)"
    )
    parser.add_argument("--output", metavar="FOLDER", help="default: runs/audit/CONFIG")
    args = parser.parse_args(argv)
    config = parsed_config(args)
    output = Path(args.output) if args.output else Path("runs") / "audit" / Path(args.config).stem
    new_figure(1, 1)  # better missing now than after the encoding
    audit = run(config, args.batches)
    make_folder(output, "--output")
    text = audit_text(audit)
    write_text(output / "audit.txt", text)
    write_text(output / "audit.json", audit.model_dump_json(indent=2) + "\n")
    save_png(_plot(audit), output / "audit.png")
    print(text)
    print(f"plot: {output / 'audit.png'}; figures: {output / 'audit.json'}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: at least 1")
    return value


if __name__ == "__main__":
    run_command(main)
