"""A collection of any size in the BEIR layout, of the words of the bundled lists."""

import csv
import json
from pathlib import Path

import numpy as np

BUNDLED = Path(__file__).parents[1] / "synrank_jax" / "datasets" / "cranfield-synthetic"
GRADES = 4


def write_lists(folder: Path, queries: int, passages: int, passage_words: float = 1.0) -> None:
    """Write `queries` queries and `passages` documents, which are judged for one query each.

    Numbers of words are drawn from those of the bundled lists' texts, `passage_words` times as many
    for documents; words from all words there, as often as they occur there (1.3 tokens each). A
    query's documents lie anywhere in the corpus.
    """
    rng = np.random.default_rng(0)
    texts = {side: bundled_texts(side) for side in ("queries", "corpus")}
    vocabulary = np.array([word for text in texts["corpus"] for word in text], dtype=object)
    scales = {"queries": 1.0, "corpus": passage_words}
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for side, count in (("queries", queries), ("corpus", passages)):
        lengths = np.array([len(text) for text in texts[side]])
        lengths = np.maximum(1, lengths * scales[side]).astype(int)
        with (folder / f"{side}.jsonl").open("w") as file:
            for number in range(count):
                words = vocabulary[rng.integers(len(vocabulary), size=rng.choice(lengths))]
                line = {"_id": f"{side[0]}{number}", "title": "", "text": " ".join(words)}
                file.write(json.dumps(line) + "\n")
    documents = rng.permutation(passages)
    with (folder / "qrels" / "train.tsv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(("query-id", "corpus-id", "score"))
        for place, document in enumerate(documents.tolist()):
            query, rank = divmod(place, passages // queries)
            if query < queries:
                rows.writerow((f"q{query}", f"c{document}", max(0, GRADES - 1 - rank)))


def bundled_texts(side: str) -> list[list[str]]:
    """Words of the texts of queries.jsonl or corpus.jsonl."""
    lines = (BUNDLED / f"{side}.jsonl").read_text("utf-8").splitlines()
    return [f"{line.get('title', '')} {line['text']}".split() for line in map(json.loads, lines)]
