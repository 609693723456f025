"""The contenders of benchmarks/train_step.py, each in a process (and environment) of its own.

    python benchmarks/train_sides.py NAME JOB.json

Every side trains with its own trainer. After its first step, and after every line that it reads,
it prints one JSON line about the step that just ended. Imports nothing of the benchmark, because
the peers' environments lack it. A job holds: inputs (folder), model (folder), output (folder),
steps, queries, list_size, length, temperature, dropout, dtype, order (of the lists), compile.
"""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

START = time.perf_counter()
Job = dict[str, Any]
# What a trainer does with a batch is timed, from the end of the step before: input included.
Report = Callable[..., None]


def reporter(*packages: str) -> Report:
    """Prints what a step took and waits for the next line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print, too
    versions = {name: importlib.metadata.version(name) for name in packages}
    began, cpu_began = START, 0.0

    def report(**facts: Any) -> None:
        nonlocal began, cpu_began
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        peaks = {"peak_bytes": resident_peak(), "versions": versions}
        line = {"seconds": seconds, "cpu_s": cpu, **peaks, **facts}
        print(json.dumps(line), file=answers, flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # the coordinator has what it needs
        began, cpu_began = time.perf_counter(), time.process_time()

    return report


def resident_peak() -> int:
    """Most bytes of memory that this process held at a time."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def synrank(job: Job) -> None:
    """`synrank_jax.train` on prepared lists, whose batches are those of `order`."""
    from synrank_jax import train
    from synrank_jax.config import Config

    report = reporter("jax", "jaxlib", "flax", "optax", "ott-jax")
    config = Config.model_validate(job["config"])
    metrics = Path(config.train.output) / "metrics.jsonl"

    def on_step(_: int) -> None:
        record = json.loads(metrics.read_text("utf-8").splitlines()[-1])
        slots = record["tokens"] / (1 - record["padding_share"])
        on_device = record.get("memory_peak_bytes")
        report(
            loss=record["loss"],
            tokens=record["tokens"],
            slots=round(slots),
            compile_s=record["compile_s"],
            **({} if on_device is None else {"peak_bytes": on_device}),
        )

    train.run(config, on_step=on_step)


def synrank_arrays(job: Job) -> None:
    """The same compiled step fed from tokenised arrays: for machines without grain or tokenizers.

    Nothing is written, and no wait for data is part of it.
    """
    import jax
    import numpy as np

    from synrank_jax.data.packing import RowShapes, needs

    report = reporter("jax", "jaxlib", "flax", "optax")
    stored = np.load(Path(job["inputs"]) / "tokens.npz")
    texts = job["queries"] * (1 + job["list_size"])
    lengths = stored["lengths"][job["order"]].reshape(-1, 1, texts)
    starts = stored["starts"][job["order"]].reshape(lengths.shape)
    grades = stored["grades"][job["order"]].reshape(-1, 1, job["queries"], job["list_size"])
    shapes = RowShapes(np.stack([needs(step)[0] for step in lengths]), job["length"])
    state, train_step = compiled_step(job)
    for step, length in enumerate(lengths):
        batch = batch_of(stored["tokens"], starts[step], length, grades[step], shapes)
        state, metrics = train_step(state, batch)
        loss = float(metrics["loss"])
        stats = jax.devices()[0].memory_stats() or {}
        report(
            loss=loss,
            tokens=int(length.sum()),
            slots=batch.texts.input_ids.size,
            **({"peak_bytes": stats["peak_bytes_in_use"]} if stats else {}),
        )


def compiled_step(job: Job) -> tuple[Any, Any]:
    """State and train step of a job's `config`, `contract` and `model`, as `train` makes them."""
    import jax

    from synrank_jax.config import Config
    from synrank_jax.contract import EncodingContract
    from synrank_jax.engine.compilation import use_compilation_cache
    from synrank_jax.engine.state import initial_state, split_model
    from synrank_jax.engine.step import make_train_step
    from synrank_jax.models.attention import choose_kernel
    from synrank_jax.models.dual_encoder import DualEncoder
    from synrank_jax.models.numerics import Numerics
    from synrank_jax.models.pretrained import load_encoder
    from synrank_jax.optim import make_optimizer
    from synrank_jax.parallel.mesh import make_mesh

    use_compilation_cache()
    config = Config.model_validate(job["config"])
    contract = EncodingContract.model_validate(job["contract"])
    model, platform = config.model, jax.devices()[0].platform
    dtype, dropout = model.compute_dtype, model.dropout
    kernel = choose_kernel(model.attention, platform, dtype, dropout, job["length"])
    encoder = load_encoder(Path(job["model"]), Numerics(dtype, dropout, kernel, model.remat))
    dual = DualEncoder(encoder, contract.pooling, contract.normalize, contract.dimension)
    structure, params = split_model(dual)
    mesh = make_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, job["steps"])
    step = make_train_step(structure, optimizer, config, contract, mesh)
    return initial_state(params, optimizer, mesh), step


def batch_of(tokens: Any, starts: Any, lengths: Any, grades: Any, shapes: Any) -> Any:
    """A `Batch` of one pool in one row: starts and lengths [1, Q (1 + L)], grades [1, Q, L]."""
    import jax
    import numpy as np

    from synrank_jax.data.packing import needs, pack
    from synrank_jax.types import Batch

    _, queries, size = grades.shape
    texts = pack(tokens, starts, lengths, shapes.of(needs(lengths)[0]))
    return Batch(
        texts=jax.tree.map(lambda leaf: leaf[None], texts),
        labels=grades.astype(np.float32),
        where=np.ones(grades.shape, bool),
        passage_ids=np.arange(queries * size, dtype=np.int32).reshape(grades.shape),
        excluded_ids=np.zeros((1, queries, 0), np.int32),
        sample_ids=np.arange(queries, dtype=np.int32)[None],
    )


def trove(job: Job, loss: str) -> None:
    """Trove's RetrievalTrainer over its MultiLevelDataset."""
    from transformers import AutoTokenizer
    from trove import (
        BiEncoderRetriever,
        MaterializedQRelConfig,
        ModelArguments,
        MultiLevelDataset,
        RetrievalTrainer,
        RetrievalTrainingArguments,
    )
    from trove.data.collator import RetrievalCollator
    from trove.data.data_args import DataArguments

    report = reporter("ir-trove", "torch", "transformers", "accelerate")
    model = BiEncoderRetriever.from_model_args(
        ModelArguments(
            model_name_or_path=job["model"],
            encoder_class="default",
            pooling="mean",
            normalize="yes",
            loss=loss,
            temperature=job["temperature"],
        )
    )
    data = DataArguments(
        group_size=job["list_size"], query_max_len=job["length"], passage_max_len=job["length"]
    )
    folder = job["inputs"]
    dataset = MultiLevelDataset(
        data_args=data,
        qrel_config=MaterializedQRelConfig(
            qrel_path=f"{folder}/qrels/train.tsv",
            corpus_path=f"{folder}/corpus.jsonl",
            query_path=f"{folder}/queries.jsonl",
        ),
        format_query=model.format_query,
        format_passage=model.format_passage,
    )
    run_trainer(
        RetrievalTrainer,
        job,
        report,
        model=model,
        args=RetrievalTrainingArguments(**training_arguments(job)),
        train_dataset=dataset,
        data_collator=RetrievalCollator(
            data, AutoTokenizer.from_pretrained(job["model"]), append_eos=model.append_eos_token
        ),
    )


def sentence_transformers(job: Job, cached: bool) -> None:
    """SentenceTransformerTrainer, a column for each place of a list."""
    import datasets
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses

    report = reporter("sentence-transformers", "torch", "transformers", "accelerate")
    folder = Path(job["inputs"])
    texts = {side: read_texts(folder / f"{side}.jsonl") for side in ("queries", "corpus")}
    lists: dict[str, list[str]] = {}
    for row in (folder / "qrels" / "train.tsv").read_text("utf-8").splitlines()[1:]:
        query, document, _ = row.split("\t")
        lists.setdefault(query, []).append(texts["corpus"][document])
    columns = {"anchor": [texts["queries"][query] for query in lists]}
    for place in range(job["list_size"]):
        columns[f"passage_{place}"] = [documents[place] for documents in lists.values()]
    model = SentenceTransformer(job["model"])
    model.max_seq_length = job["length"]
    scale = 1 / job["temperature"]
    loss = (
        losses.CachedMultipleNegativesRankingLoss(model, scale=scale)
        if cached
        else losses.MultipleNegativesRankingLoss(model, scale=scale)
    )
    run_trainer(
        SentenceTransformerTrainer,
        job,
        report,
        model=model,
        args=SentenceTransformerTrainingArguments(**training_arguments(job)),
        train_dataset=datasets.Dataset.from_dict(columns),
        loss=loss,
    )


def training_arguments(job: Job) -> dict[str, Any]:
    """What both peers' trainers, which are transformers' own, are told."""
    return {
        "output_dir": job["output"],
        "per_device_train_batch_size": job["queries"],
        "max_steps": job["steps"],
        "learning_rate": job["learning_rate"],
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": job["dtype"] == "bfloat16",
        "torch_compile": job["compile"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def run_trainer(trainer: type, job: Job, report: Report, **arguments: Any) -> None:
    """Train; every step's loss and tokens are reported when the trainer logs it."""
    import torch
    from transformers import TrainerCallback

    torch.utils.data.RandomSampler.__iter__ = lambda sampler: iter(job["order"])
    seen = {"tokens": 0, "slots": 0}

    def masks(batch: dict[str, Any]) -> list[Any]:
        nested = [value["attention_mask"] for value in batch.values() if hasattr(value, "keys")]
        return nested or [value for key, value in batch.items() if key.endswith("attention_mask")]

    class Counting(trainer):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            for mask in masks(inputs):
                seen["tokens"] += int(mask.sum())
                seen["slots"] += mask.numel()
            return super().compute_loss(model, inputs, *rest, **named)

    class Steps(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in logs:
                return
            cuda = torch.cuda.is_available()
            device = {"peak_bytes": torch.cuda.max_memory_allocated()} if cuda else {}
            counts = dict(seen)
            seen.update(tokens=0, slots=0)
            report(loss=float(logs["loss"]), **counts, **device)

    Counting(**arguments, callbacks=[Steps()]).train()


def read_texts(path: Path) -> dict[str, str]:
    """Texts of a JSON Lines file by id."""
    with path.open(encoding="utf-8") as file:
        return {line["_id"]: line["text"] for line in map(json.loads, file)}


def matmul_peak(library: str, dtype: str) -> None:
    """FLOP/s of the fastest of some square matmuls, [2048, 2048] on a CPU and [8192, 8192] else."""
    if library == "jax":
        import jax
        import jax.numpy as jnp

        size = 2048 if jax.default_backend() == "cpu" else 8192
        matrix = jnp.ones((size, size), dtype)
        multiply = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))

        def run() -> None:
            multiply(matrix).block_until_ready()
    else:
        import torch

        cuda = torch.cuda.is_available()
        size = 8192 if cuda else 2048
        matrix = torch.ones(size, size, dtype=getattr(torch, dtype))
        matrix = matrix.cuda() if cuda else matrix

        def run() -> None:
            matrix @ matrix
            if cuda:
                torch.cuda.synchronize()

    run()
    fastest = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        run()
        fastest = min(fastest, time.perf_counter() - began)
    print(2 * size**3 / fastest)


SIDES: dict[str, Callable[[Job], None]] = {
    "synrank": synrank,
    "arrays": synrank_arrays,
    "trove-infonce": lambda job: trove(job, "infonce"),
    "trove-kl": lambda job: trove(job, "kl"),
    "st-mnrl": lambda job: sentence_transformers(job, cached=False),
    "st-cached": lambda job: sentence_transformers(job, cached=True),
}

if __name__ == "__main__":
    if sys.argv[1] == "peak":
        matmul_peak(*sys.argv[2:])
    else:
        SIDES[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text("utf-8")))
