"""What an evaluation found, and how it was found: the content of metrics.json."""

from collections.abc import Set
from pathlib import Path
from typing import Literal, Self

import pydantic

from synrank_jax.config import EvaluationConfig
from synrank_jax.config_section import Section
from synrank_jax.contract import EncodingContract
from synrank_jax.errors import UserError
from synrank_jax.files import write_text


class EvaluationResult(Section):
    """Metrics of one model on one collection, with all that is needed to compare them fairly."""

    label: str
    """Name in tables and run files."""
    model: str
    """What was evaluated: a folder, a hub id or a `bundled:` name."""
    backend: Literal["jax", "torch"]
    """What computed the embeddings."""
    contract: EncodingContract
    weights_sha256: str | None = None
    """Of the model; None in results of versions that did not record it."""
    evaluation: EvaluationConfig
    """The configuration section this was made with."""
    documents: int
    empty_documents: int
    """Documents without any text; they are encoded like the others."""
    queries: int
    """Queries scored: those of the split with judgements, within the subset if one was given."""
    excluded_pairs: int
    """(query, document) pairs of the scored queries that were dropped from the rankings."""
    collection_sha256: str
    """Hash of documents, scored queries, judgements and exclusions."""
    metrics: dict[str, float]
    """{measure: mean over the queries}."""
    per_query: dict[str, dict[str, float]]
    """{measure: {query_id: value}}."""
    index_recall: dict[int, float] = pydantic.Field(default_factory=dict)
    """{k: recall of the approximate index at k against exact search}; empty for exact search."""
    timings: dict[str, float] = pydantic.Field(default_factory=dict)
    """What it took: seconds of each stage, texts, tokens and slots encoded (documents found encoded
    from before not counted), bytes of the embeddings."""
    versions: dict[str, str]

    def write(self, path: Path) -> None:
        """Write as JSON; `path` is never seen half-written."""
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote; every float comes back exactly.

        Raises:
            UserError: the file is missing or holds something else.
        """
        try:
            return cls.model_validate_json(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, pydantic.ValidationError) as error:
            raise UserError(f"{path}: not a metrics.json written by evaluate ({error})") from error

    def require_comparable(
        self, collection_sha256: str, query_ids: Set[str], measures: Set[str], name: str
    ) -> None:
        """Refuse to compare with figures for other queries, documents, judgements or measures.

        Args:
            collection_sha256: hash of the other side's collection.
            query_ids: the other side's scored queries.
            measures: the other side's measures.
            name: of this result in the error, such as its file.

        Raises:
            UserError: says what differs.
        """
        if missing := measures - self.per_query.keys():
            raise UserError(
                f"{name}: has no {', '.join(sorted(missing))}, only {', '.join(self.per_query)}; "
                "evaluate both with the same evaluation.metrics"
            )
        mine = set().union(*self.per_query.values())
        if mine != query_ids:
            raise UserError(
                f"{name}: scored on {len(mine)} queries, the other on {len(query_ids)}, "
                f"{len(mine & query_ids)} in common; a paired comparison needs the same queries: "
                "evaluate both with the same evaluation.path, split and queries"
            )
        if self.collection_sha256 != collection_sha256:
            raise UserError(
                f"{name}: same queries, but other documents, judgements or exclusions than the "
                "other; evaluate both on the same collection with the same exclusions"
            )
