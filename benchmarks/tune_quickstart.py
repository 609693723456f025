"""Choose the quickstart's settings on validation queries; the test queries are not touched.

    python benchmarks/tune_quickstart.py [--loss wasserstein ...] [--output runs/validation]

Trains on the lists of 100 of the 137 train queries (configs/quickstart_validation.yaml) and scores
the other 37 with Cranfield's train judgements. One row per setting; every loss gets the same grid
and budget. Finished settings are read from results.jsonl, so the command can be interrupted.
"""

import argparse
import itertools
import json
import shutil
from pathlib import Path

from synrank_jax import prepare, train
from synrank_jax.cli import run_command
from synrank_jax.config_file import load_config
from synrank_jax.encoders import load_encoder
from synrank_jax.evaluation import evaluate_collection, read_collection

CONFIG = "configs/quickstart_validation.yaml"
LOSSES = {
    "wasserstein": [],
    "infonce": ["loss.wasserstein=0", "loss.infonce=1"],
    "gaussian_wasserstein": [
        "loss.wasserstein=0",
        "loss.gaussian_wasserstein=1",
        "loss.in_batch_grade=0",
        "loss.target_temperature=1",
    ],
}
# Temperatures of the Gaussian loss: its optimum needs score gaps of one temperature per grade.
TEMPERATURES = {
    "wasserstein": (0.05, 0.1),
    "infonce": (0.05, 0.1),
    "gaussian_wasserstein": (0.3, 0.5),
}
LEARNING_RATES = (2e-5, 4e-5)
EPOCHS = (1, 2)


def main(argv: list[str] | None = None) -> None:
    """Run the settings that have no result yet and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loss", nargs="+", choices=sorted(LOSSES), default=sorted(LOSSES))
    parser.add_argument("--output", type=Path, default=Path("runs/validation"))
    args = parser.parse_args(argv)
    prepare.main(["--config", CONFIG])
    results = args.output / "results.jsonl"
    known = {}
    if results.exists():
        rows = [json.loads(line) for line in results.read_text().splitlines()]
        known = {row["setting"]: row for row in rows}
    settings = {"zero-shot": None}
    # All losses at their first temperature before any at its second: equal budgets at any time.
    grid = itertools.product(range(2), args.loss, LEARNING_RATES, EPOCHS)
    for position, name, rate, epochs in grid:
        temperature = TEMPERATURES[name][position]
        settings[f"{name} temperature {temperature} lr {rate:g} epochs {epochs}"] = [
            *LOSSES[name],
            f"loss.temperature={temperature}",
            f"optimizer.learning_rate={rate}",
            f"train.epochs={epochs}",
        ]
    for setting, overrides in settings.items():
        if setting not in known:
            known[setting] = {"setting": setting, **score(overrides, args.output)}
            with results.open("a") as file:
                file.write(json.dumps(known[setting]) + "\n")
        print({key: known[setting][key] for key in ("setting", "nDCG@10", "R@100", "AP")})


def score(overrides: list[str] | None, output: Path) -> dict[str, float]:
    """Metrics on the validation queries of the untrained (None) or the trained encoder."""
    config = load_config(CONFIG, [*(overrides or []), f"train.output={output / 'run'}"])
    shutil.rmtree(config.train.output, ignore_errors=True)
    if overrides is not None:
        train.run(config)
    model = None if overrides is None else config.train.output
    encoder, backend = load_encoder(model, "jax", config, config.evaluation.batch_size)
    collection = read_collection(config.evaluation)
    result, _ = evaluate_collection(
        encoder,
        config.evaluation,
        collection,
        label="validation",
        model=config.train.output,
        backend=backend,
    )
    return result.metrics


if __name__ == "__main__":
    run_command(main)
