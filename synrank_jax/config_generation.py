"""The configuration of `generate`: queries, levels, prompt, backend, rules, price.

A file of its own: lists are often written on another machine, before a model to train is chosen.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from synrank_jax.config_section import NonNegativeFloat, PositiveFloat, PositiveInt, Section

Words = Annotated[
    tuple[PositiveInt, PositiveInt],
    Field(description="Fewest and most words."),
]


Said = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class QueriesConfig(Section):
    """The queries that lists are written for."""

    path: str
    """BEIR-layout folder, `bundled:cranfield`, a .tsv file (id, text, no header) or a .jsonl file
    (`_id` and `text`)."""
    subset: str | None = None
    """Text file with one query id per line: write lists for these queries only."""
    split: str | None = None
    """Only queries with judgements in this split of a BEIR-layout folder, such as train."""
    limit: PositiveInt | None = None
    """Only the first so many queries. Raising it later goes on with the rest."""


class LevelConfig(Section):
    """One level of relevance."""

    grade: Annotated[int, Field(ge=0, strict=True)]
    """The relevance grade of its passages; higher is more relevant."""
    name: Said
    """What the prompt calls it."""
    definition: Said
    """What makes a passage belong to it, as said to the model."""
    passages: PositiveInt = 1
    """Passages to write of this level."""


DEFAULT_LEVELS = (
    LevelConfig(
        grade=3,
        name="perfectly relevant",
        definition=(
            "the passage is about exactly what the query asks and answers it fully and directly"
        ),
    ),
    LevelConfig(
        grade=2,
        name="highly relevant",
        definition=(
            "the passage answers a part of the query, or all of it indirectly or unclearly; "
            "something asked for is missing or buried among other things"
        ),
    ),
    LevelConfig(
        grade=1,
        name="related",
        definition=(
            "the passage is on the topic of the query, and may share its words, but does not "
            "answer it"
        ),
    ),
    LevelConfig(
        grade=0,
        name="irrelevant",
        definition=(
            "the passage is of the same field and style, and may share words with the query, but "
            "has nothing to do with what it asks"
        ),
    ),
)


class PromptConfig(Section):
    """What the model is asked. All of it enters the prompt hash."""

    template: str = "bundled:web"
    """Prompt file (YAML); `bundled:web`, `bundled:scientific` and `bundled:question_answering` come
    with the package."""
    examples: str | None = None
    """Lists JSONL file of in-context examples; null: those that the prompt file names, if any."""
    examples_per_query: Annotated[int, Field(ge=0, strict=True)] = 1
    """Examples shown with a query, drawn by seed and query id."""
    mode: Literal["list", "level"] = "list"
    """`list`: one call writes the whole list, so that levels are set against each other. `level`:
    one call for each level, highest first."""
    language: Said = "English"
    """Language of the passages, as said to the model."""
    words: Annotated[tuple[Words, ...], Field(min_length=1)] = ((60, 100), (100, 160), (160, 240))
    """Lengths of passages in words, as said to the model: each query draws one for its whole list,
    so that length does not tell the grade."""
    difficulties: Annotated[tuple[Said, ...], Field(min_length=1)] = (
        "a general reader",
        "a student of the field",
        "an expert of the field",
    )
    """Readers that passages are written for; each query draws one."""

    @model_validator(mode="after")
    def _words_ascend(self) -> Self:
        for low, high in self.words:
            if low > high:
                raise ValueError(f"words [{low}, {high}]: give the fewest first")
        return self


class BackendConfig(Section):
    """The model that writes, and how it is reached."""

    kind: Literal["openai", "vllm", "transformers"] = "openai"
    """`openai`: any OpenAI-compatible server. `vllm`: vLLM in this process (extra `vllm`).
    `transformers`: a small model in this process (extra `local`)."""
    model: str
    """Name of the model at the server, or folder or hub id of a local one."""
    endpoints: tuple[str, ...] = ()
    """Base addresses of the servers, such as http://localhost:8000/v1, all with the same model."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; a server without keys needs none."""
    structured: Literal["auto", "json_schema", "delimiters"] = "auto"
    """How passages are told apart: JSON under a schema that the server enforces, or marked lines.
    `auto` asks the server."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature; 0: the most probable text."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus sampling."""
    max_tokens: PositiveInt = 2048
    """Most tokens of an answer; a longer one is cut, and malformed."""
    concurrency: PositiveInt = 64
    """Requests under way at each endpoint; of a local model: texts written at once."""
    requests_per_minute: PositiveInt | None = None
    """Rate limit of each endpoint; null: none (429 answers are waited out in any case)."""
    timeout: PositiveFloat = 300.0
    """Seconds until a request counts as failed."""
    retries: Annotated[int, Field(ge=0, strict=True)] = 4
    """Repeats of a request that timed out or met a server error; growing random waits lie
    between."""
    outage_timeout: PositiveFloat = 300.0
    """Seconds without a sign of life of any endpoint after which the run stops (it can go on
    later), and after which a request that is only told to wait is given up."""

    @field_validator("endpoints", mode="before")
    @classmethod
    def _one_endpoint(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _endpoints_fit(self) -> Self:
        if not self.api_key_env.isidentifier():  # perhaps the key itself: not shown
            raise ValueError("api_key_env: give the name of an environment variable, not a key")
        if self.kind == "openai" and not self.endpoints:
            raise ValueError("endpoints: give at least one, such as http://localhost:8000/v1")
        if self.kind != "openai" and self.endpoints:
            raise ValueError(f"endpoints: kind {self.kind} runs in this process; leave them out")
        for endpoint in self.endpoints:
            if "@" in endpoint or "?" in endpoint:  # first of all: no other message may show it
                raise ValueError("endpoints: no names or keys in addresses; see api_key_env")
            if not endpoint.startswith(("http://", "https://")):
                raise ValueError(f"endpoints: {endpoint!r} must begin with http:// or https://")
        if len(set(self.endpoints)) < len(self.endpoints):
            raise ValueError("endpoints: one is written twice")
        return self


class RulesConfig(Section):
    """What makes an answer a valid list, and how often a query is tried."""

    attempts: PositiveInt = 4
    """Answers asked for, each with a seed of its own, until one is valid."""
    min_words: PositiveInt = 20
    """A passage with fewer is too short. Each Chinese character or Japanese kana is a word."""
    max_words: PositiveInt = 600
    """A passage with more is too long."""
    near_duplicate: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of common word triples (Jaccard) from which two passages of a list, or a passage and
    one of the prompt's examples, are duplicates."""
    language_code: str | None = None
    """ISO 639-1 code that every passage must be recognised as, such as en; null: not checked."""


class PriceConfig(Section):
    """What tokens cost, in any currency, for `--status` and the report."""

    per_million_prompt_tokens: NonNegativeFloat = 0.0
    """Price of a million tokens sent."""
    per_million_completion_tokens: NonNegativeFloat = 0.0
    """Price of a million tokens written."""


class GenerationConfig(Section):
    """Everything `generate` reads."""

    queries: QueriesConfig
    levels: Annotated[tuple[LevelConfig, ...], Field(min_length=2)] = DEFAULT_LEVELS
    """The levels of relevance: grade, name, definition and number of passages of each."""
    prompt: PromptConfig = PromptConfig()
    backend: BackendConfig
    rules: RulesConfig = RulesConfig()
    price: PriceConfig = PriceConfig()
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    """Seeds examples, lengths, readers and the sampling of every request."""
    output: str
    """Folder of the ledger and of the lists."""

    @model_validator(mode="after")
    def _grades_differ(self) -> Self:
        grades = [level.grade for level in self.levels]
        if len(set(grades)) < len(grades):
            twice = next(grade for grade in grades if grades.count(grade) > 1)
            raise ValueError(f"levels: grade {twice} is given to two levels; a grade is one level")
        if len({level.name for level in self.levels}) < len(grades):
            raise ValueError("levels: two levels have the same name")
        return self

    @model_validator(mode="after")
    def _rules_allow_the_words(self) -> Self:
        for low, high in self.prompt.words:
            if low < self.rules.min_words or high > self.rules.max_words:
                raise ValueError(
                    f"prompt.words [{low}, {high}] asks for passages outside rules.min_words "
                    f"{self.rules.min_words} to rules.max_words {self.rules.max_words}; widen them"
                )
        return self
