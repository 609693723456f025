"""From queries to training steps with real inference engines; only the words are noise."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import outputs
from tiny_llm import save_tiny_llm

from synrank_jax import generate, prepare, train
from synrank_jax.config import Config
from synrank_jax.config_file import to_yaml
from synrank_jax.config_generation import GenerationConfig
from synrank_jax.generation.lists import read_lists
from synrank_jax.tracking import read_metrics

LEVELS = [
    {"grade": 1, "name": "relevant", "definition": "answers the query"},
    {"grade": 0, "name": "irrelevant", "definition": "does not"},
]


@pytest.fixture(scope="module")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llm(tmp_path_factory.mktemp("llm"), context=4096)


def config(folder: Path, queries: int, **backend) -> GenerationConfig:
    (folder / "queries.tsv").write_text(
        "".join(f"q{number}\tgum {word} fer\n" for number, word in enumerate(["bal"] * queries))
    )
    return GenerationConfig.model_validate(
        {
            "queries": {"path": str(folder / "queries.tsv")},
            "levels": LEVELS,
            "prompt": {"words": [[5, 50]], "examples_per_query": 0},
            "backend": {"max_tokens": 300, "top_p": 1.0} | backend,
            "rules": {"min_words": 5, "attempts": 10},
            "output": str(folder / "out"),
        }
    )


def test_from_queries_to_training_steps(tiny_llm: Path, tiny_config: Config, tmp_path: Path):
    settings = config(tmp_path, 16, kind="transformers", model=str(tiny_llm), concurrency=8)
    assert generate.run(settings) is None
    folder = Path(settings.output)
    lists = list(read_lists(folder / "lists.jsonl"))
    assert len(lists) == 16
    assert all(one.counts() == {1: 1, 0: 1} for one in lists)

    generate.main(["--audit", str(folder)])
    assert (folder / "audit" / "audit.html").is_file()
    options = ["--drop", "query-copy", "--output", str(tmp_path / "kept")]
    generate.main(["--filter", str(folder), *options])
    assert outputs(tmp_path / "kept") == outputs(folder)  # nothing of that kind

    source = {"path": str(folder), "format": "beir"}
    data = tiny_config.data.model_dump() | {"sources": [source], "grades": (0, 1), "list_size": 2}
    steps = tiny_config.train.model_dump() | {"steps": 2}
    values = tiny_config.model_dump(mode="json") | {"data": data, "train": steps}
    ready = Config.model_validate(values)
    (tmp_path / "train.yaml").write_text(to_yaml(ready))
    prepare.main(["--config", str(tmp_path / "train.yaml")])
    train.run(ready)
    assert [entry["step"] for entry in read_metrics(Path(ready.train.output))] == [1, 2]


@contextlib.contextmanager
def transformers_serve(model: Path) -> Iterator[str]:
    """Base address of the server that comes with transformers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ.copy()
    ) as server:
        try:
            for _ in range(600):
                with contextlib.suppress(urllib.error.URLError):
                    urllib.request.urlopen(f"{url}/health").close()
                    break
                assert server.poll() is None
                time.sleep(0.1)
            yield f"{url}/v1"
        finally:
            server.kill()


def test_lists_from_transformers_serve(tiny_llm: Path, tmp_path: Path):
    with transformers_serve(tiny_llm) as url:
        settings = config(tmp_path, 4, model=str(tiny_llm), endpoints=[url], concurrency=2)
        generate.run(settings)
    lists = list(read_lists(Path(settings.output) / "lists.jsonl"))
    assert len(lists) == 4
    assert len({p.text for one in lists for p in one.passages}) == 8
    report = (Path(settings.output) / "report.json").read_text()
    assert '"completion_tokens": 0' not in report
