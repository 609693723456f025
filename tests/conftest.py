"""Tests run on CPU with eight virtual devices; warnings are errors, only loopback is reachable."""

import atexit
import os
import shutil
import signal
import tempfile

# Both must stand before the first import of jax.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# One compilation of a program serves all tests of a run.
CACHE = tempfile.mkdtemp(prefix="synrank-xla-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A job in the background ignores Ctrl-C, and so would the processes that the tests send it to.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_words import WORDS

if TYPE_CHECKING:
    from synrank_jax.config import Config

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Check shapes and dtypes of annotated functions at run time."""
    from jaxtyping import install_import_hook

    for package in ("losses", "models", "parallel"):
        install_import_hook(f"synrank_jax.{package}", "beartype.beartype")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the collections that do not ship with the project; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the collections of {SHARED_DATA} are not on this machine")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised two-layer BERT folder with its own WordPiece vocabulary."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("model")
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    transformers.BertTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,  # of order one after each layer: neither saturated nor flat
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder of 24 queries with one passage per grade 3, 2, 1, 0.

    A passage of grade g repeats g of the query's three words; lengths vary.
    """
    import json
    import random

    folder = tmp_path_factory.mktemp("lists")
    rng = random.Random(0)
    queries, documents, judgements = [], [], ["query-id\tcorpus-id\tscore"]
    for number in range(24):
        words = rng.sample(WORDS, 3)
        queries.append({"_id": f"q{number}", "text": " ".join(words)})
        for grade in (3, 2, 1, 0):
            text = words[:grade] + rng.choices(WORDS, k=rng.randint(4, 20))
            doc_id = f"q{number}_l_{grade}"
            documents.append({"_id": doc_id, "title": "", "text": " ".join(text)})
            judgements.append(f"q{number}\t{doc_id}\t{grade}")
    (folder / "qrels").mkdir()
    (folder / "qrels" / "train.tsv").write_text("\n".join(judgements) + "\n")
    for name, rows in (("queries", queries), ("corpus", documents)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


@pytest.fixture
def tiny_config(tiny_model: Path, tiny_lists: Path, tmp_path: Path) -> "Config":
    """A configuration that trains the tiny model for 6 steps of 8 lists; paths under tmp_path."""
    from synrank_jax.config_file import validate_config

    return validate_config(
        {
            "model": {"path": str(tiny_model)},
            "encoding": {
                "pooling": "mean",
                "normalize": True,
                "similarity": "cosine",
                "query_length": 16,
                "passage_length": 32,
            },
            "data": {"sources": [{"path": str(tiny_lists)}], "prepared": str(tmp_path / "lists")},
            "loss": {"wasserstein": 1.0, "target_temperature": 0.5},
            "optimizer": {"learning_rate": 1e-3},
            "train": {
                "output": str(tmp_path / "run"),
                "steps": 6,
                "global_batch_size": 8,
                "save_every": 2,
                "tensorboard": False,
            },
        },
        name="tiny_config",
    )


@pytest.fixture(autouse=True)
def evaluation_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations of one test find nothing of another's, and leave nothing in this folder."""
    monkeypatch.setattr("synrank_jax.evaluation.CACHE", tmp_path / "cache")
