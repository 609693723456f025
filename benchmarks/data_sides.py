"""The contenders of benchmarks/data.py, each started in a process (and environment) of its own.

    python benchmarks/data_sides.py NAME ARGUMENT ...

Prints a JSON line with its versions when it is ready, then one JSON line of results for every line
it reads. Imports nothing of the benchmark, because the peers' environments lack it.
"""

import importlib.metadata
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

START = time.perf_counter()
QUERY_LENGTH, PASSAGE_LENGTH = 64, 256
WARM_UP = 8  # batches


def synrank(prepared: str, batch_size: str, batches: str) -> tuple[Callable[[], Any], Any]:
    """Ours: a shuffled stream of prepared lists; how long the first batch took."""
    from synrank_jax.data import pipeline

    imported = time.perf_counter()
    lists = pipeline.PreparedLists(Path(prepared))
    size = int(batch_size)
    stream = pipeline.batches(lists, seed=0, global_batch_size=size, pool_size=size)
    next(stream)
    first = time.perf_counter()
    about = versions("grain", "numpy", "protobuf") | {
        "first_batch_s": first - imported,
        "first_batch_from_start_s": first - START,
    }
    return lambda: lists_per_s(stream, int(batches), size), about


def trove(
    source: str, model: str, list_size: str, batch_size: str, batches: str, workers: str
) -> tuple[Callable[[], Any], Any]:
    """Trove's MultiLevelDataset and RetrievalCollator in torch's loader, as its trainer does."""
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer
    from trove import MaterializedQRelConfig, MultiLevelDataset
    from trove.data.collator import RetrievalCollator
    from trove.data.data_args import DataArguments

    args = DataArguments(
        group_size=int(list_size), query_max_len=QUERY_LENGTH, passage_max_len=PASSAGE_LENGTH
    )
    config = MaterializedQRelConfig(
        qrel_path=f"{source}/qrels/train.tsv",
        corpus_path=f"{source}/corpus.jsonl",
        query_path=f"{source}/queries.jsonl",
    )
    dataset = MultiLevelDataset(
        data_args=args,
        qrel_config=config,
        format_query=lambda text, dataset=None: text,
        format_passage=lambda text, title=None, dataset=None: text,
    )
    collator = RetrievalCollator(args, AutoTokenizer.from_pretrained(model), append_eos=False)
    size = int(batch_size)
    loader = DataLoader(
        dataset, batch_size=size, shuffle=True, collate_fn=collator, num_workers=int(workers)
    )
    stream = iter(loader)
    return lambda: lists_per_s(stream, int(batches), size), versions(
        "ir-trove", "torch", "transformers", "tokenizers", "datasets"
    )


def sentence_transformers(
    source: str, model: str, list_size: str, batch_size: str, batches: str, workers: str
) -> tuple[Callable[[], Any], Any]:
    """The training loader of sentence-transformers' trainer: a column for each place of a list."""
    import datasets
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    texts = {side: read_texts(Path(source) / f"{side}.jsonl") for side in ("queries", "corpus")}
    lists: dict[str, list[str]] = {}
    for row in (Path(source) / "qrels" / "train.tsv").read_text().splitlines()[1:]:
        query, document, _ = row.split("\t")
        lists.setdefault(query, []).append(texts["corpus"][document])
    columns = {"query": [texts["queries"][query] for query in lists]}
    for place in range(int(list_size)):
        columns[f"passage_{place}"] = [documents[place] for documents in lists.values()]
    encoder = SentenceTransformer(model, device="cpu")
    encoder.max_seq_length = PASSAGE_LENGTH
    size = int(batch_size)
    trainer = SentenceTransformerTrainer(
        model=encoder,
        args=SentenceTransformerTrainingArguments(
            output_dir=os.environ["HF_HOME"],
            per_device_train_batch_size=size,
            dataloader_num_workers=int(workers),
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=datasets.Dataset.from_dict(columns),
        loss=MultipleNegativesRankingLoss(encoder),
    )
    stream = iter(trainer.get_train_dataloader())
    return lambda: lists_per_s(stream, int(batches), size), versions(
        "sentence-transformers", "torch", "transformers", "tokenizers", "datasets"
    )


def tokenizers(source: str, tokenizer: str, passages: str) -> tuple[Callable[[], Any], Any]:
    """The bare library: texts from the same files to lists of ids, by its own threads."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(tokenizer)
    encoder.no_padding()
    count = int(passages)

    def run() -> dict[str, float]:
        start, tokens = time.perf_counter(), 0
        for side, length in (("corpus", PASSAGE_LENGTH), ("queries", QUERY_LENGTH)):
            total = sum(1 for _ in (Path(source) / f"{side}.jsonl").open("rb"))
            if side == "corpus":
                share = min(1.0, count / total)
                used = round(share * total)
            encoder.enable_truncation(length)
            with (Path(source) / f"{side}.jsonl").open(encoding="utf-8") as file:
                lines = itertools.islice(file, round(share * total))
                while chunk := list(itertools.islice(lines, 2048)):
                    encodings = encoder.encode_batch_fast([json.loads(x)["text"] for x in chunk])
                    ids = [encoding.ids for encoding in encodings]
                    tokens += sum(map(len, ids))
        seconds = time.perf_counter() - start
        return {"passages_per_s": used / seconds, "tokens_per_s": tokens / seconds}

    return run, versions("tokenizers")


def read_texts(path: Path) -> dict[str, str]:
    """Texts of a JSON Lines file by id."""
    with path.open(encoding="utf-8") as file:
        return {line["_id"]: line["text"] for line in map(json.loads, file)}


def lists_per_s(stream: Iterator[Any], batches: int, batch_size: int) -> dict[str, float]:
    """Speed of `batches` batches, after those that were read ahead."""
    for _ in range(WARM_UP):
        next(stream)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(stream)
    seconds = time.perf_counter() - start
    return {
        "lists_per_s": batches * batch_size / seconds,
        "cores": (time.process_time() - cpu) / seconds,
    }


def versions(*names: str) -> dict[str, Any]:
    """Versions of installed packages."""
    return {"versions": {name: importlib.metadata.version(name) for name in names}}


SIDES = {
    "synrank": synrank,
    "trove": trove,
    "sentence-transformers": sentence_transformers,
    "tokenizers": tokenizers,
}

if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print, too
    run, about = SIDES[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(about), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(run()), file=answers, flush=True)
