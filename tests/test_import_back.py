"""An exported model starts a new training, is exported again, and is the same in every program."""

from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from synrank_jax import evaluate, export, prepare, train
from synrank_jax.config import Config
from synrank_jax.config_file import to_yaml, validate_config
from synrank_jax.contract import EncodingContract
from synrank_jax.engine.encoding import checkpoint_encoder
from synrank_jax.errors import UserError
from synrank_jax.export_manifest import read_manifest
from synrank_jax.retrieval.result import EvaluationResult

# Two programs that add float32 in different orders, on unit vectors.
PARITY_TOLERANCE = 1e-6
SAME_METRIC = 1e-9
TEXTS = ["bal ber", "din", "fos gum kal " * 20]
KEPT = 12


def trained(config: Config, folder: Path, start: Path, **encoding: object) -> tuple[Config, Path]:
    """Two steps from a model folder; the configuration and its file."""
    values = config.model_dump(mode="json")
    values["model"]["path"] = str(start)
    values["encoding"] = encoding
    values["data"]["prepared"] = str(folder / "lists")
    values["train"] |= {"output": str(folder / "run"), "steps": 2, "save_every": None}
    values["evaluation"] = {
        "path": values["data"]["sources"][0]["path"],
        "split": "train",
        "metrics": ["nDCG@10"],
    }
    config = validate_config(values, name="second")
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    prepare.main(["--config", str(folder / "config.yaml")])
    train.run(config)
    return config, folder / "config.yaml"


@pytest.mark.slow
def test_export_train_and_export_again(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from sentence_transformers import SentenceTransformer

    first, second = tmp_path / "first", tmp_path / "second"
    encoding = tiny_config.encoding.model_dump() | {"query_prompt": "bal "}
    trained(tiny_config, first, Path(tiny_config.model.path), **encoding)
    once = tmp_path / "once"
    export.main(
        ["--checkpoint", str(first / "run"), "--output", str(once), "--dimension", str(KEPT)]
    )
    whole = checkpoint_encoder(first / "run", 4).encode(TEXTS, "query")[:, :KEPT]
    model = SentenceTransformer(str(once), device="cpu", local_files_only=True)
    np.testing.assert_allclose(
        model.encode_query(TEXTS),
        whole / np.linalg.norm(whole, axis=1, keepdims=True),
        rtol=0,
        atol=PARITY_TOLERANCE,
    )
    card = (once / "README.md").read_text()
    assert f"**Only the first {KEPT} components are kept, but the model was trained" in card

    # Everything but the lengths is taken over from the folder.
    config, file = trained(tiny_config, second, once, query_length=12, passage_length=24)
    contract = EncodingContract.read(second / "run")
    lengths = {"query_length": 12, "passage_length": 24}
    assert contract == EncodingContract.read(once).model_copy(update=lengths)
    assert (contract.dimension, contract.query_prompt) == (KEPT, "bal ")

    uploaded: list[Path] = []
    monkeypatch.setattr(export, "check_login", lambda repo_id: None)
    monkeypatch.setattr(export, "push", lambda folder, *_: uploaded.append(folder))
    twice = tmp_path / "twice"
    arguments = ["--checkpoint", str(second / "run"), "--output", str(twice)]
    export.main([*arguments, "--push-to-hub", "owner/name"])
    assert uploaded == [twice]
    assert EncodingContract.read(twice) == contract
    manifest = read_manifest(twice)
    assert manifest is not None
    assert (manifest.origin.model_path, manifest.origin.step) == (str(once), 2)
    assert "# owner/name" in (twice / "README.md").read_text()

    def scored(*arguments: str) -> EvaluationResult:
        evaluate.main(["--config", str(file), *arguments, "--output", str(tmp_path / "scored")])
        return EvaluationResult.read(tmp_path / "scored" / "metrics.json")

    of_run = scored("--model", str(second / "run"))
    in_torch = scored("--model", str(twice))
    in_jax = scored("--model", str(twice), "--backend", "jax")
    assert in_torch.metrics == pytest.approx(of_run.metrics, abs=SAME_METRIC)
    assert in_jax.metrics == pytest.approx(of_run.metrics, abs=SAME_METRIC)
    with pytest.raises(UserError, match=r"query_length: 12 in .*, 16 in "):
        scored("--model", str(once))

    # Figures of the exported folder are this model's, those of its starting point are not.
    export.main([*arguments, "--metrics", str(tmp_path / "scored" / "metrics.json")])
    (result,) = ModelCard((twice / "README.md").read_text()).data.eval_results
    assert (result.metric_type, result.dataset_split) == ("ndcg_at_10", "train")
    assert result.metric_value == pytest.approx(in_jax.metrics["nDCG@10"], abs=1e-5)

    (twice / "config.json").write_text((twice / "config.json").read_text() + "\n")
    for refusing in (
        lambda: scored("--model", str(twice)),
        lambda: trained(tiny_config, tmp_path / "third", twice, **lengths),
        lambda: train.run(
            config.model_copy(
                update={"model": config.model.model_copy(update={"path": str(twice)})}
            )
        ),
    ):
        with pytest.raises(UserError, match=r"twice/config\.json: changed since the export"):
            refusing()
