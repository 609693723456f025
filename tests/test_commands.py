"""The four commands one after the other on a tiny model, as a user runs them."""

import json
from pathlib import Path

import pytest

from synrank_jax import evaluate, export, prepare, train
from synrank_jax.config import Config, EvaluationConfig
from synrank_jax.config_file import to_yaml

# The two backends' embeddings differ by 1e-7; a tie may fall otherwise, and a metric with it.
SAME_METRIC = 1e-4


@pytest.mark.slow
def test_the_exported_model_scores_as_the_checkpoint_does(tiny_config: Config, tmp_path: Path):
    collection = EvaluationConfig(path=tiny_config.data.sources[0].path, split="train")
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(tiny_config.model_copy(update={"evaluation": collection})))
    run, exported = tmp_path / "run", tmp_path / "exported"
    prepare.main(["--config", str(config)])
    train.main(["--config", str(config)])

    def metrics(name: str, *model: str) -> dict[str, float]:
        output = tmp_path / name
        evaluate.main(["--config", str(config), *model, "--output", str(output)])
        return json.loads((output / "metrics.json").read_text())["metrics"]

    of_checkpoint = metrics("jax", "--model", str(run))
    figures = str(tmp_path / "jax" / "metrics.json")
    export.main(["--checkpoint", str(run), "--output", str(exported), "--metrics", figures])
    of_export = metrics("torch", "--model", str(exported))
    in_jax = metrics("export-jax", "--model", str(exported), "--backend", "jax")
    assert of_export == pytest.approx(of_checkpoint, abs=SAME_METRIC)
    assert in_jax == pytest.approx(of_checkpoint, abs=SAME_METRIC)
    assert of_export["nDCG@10"] > metrics("zero-shot", "--zero-shot")["nDCG@10"]
    assert f"{of_checkpoint['nDCG@10']:.4f}" in (exported / "README.md").read_text()
