"""The configuration of a suite: collections that one model is evaluated on, and their averages."""

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from synrank_jax.config_section import PositiveInt, Section

Name = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")]


class CollectionConfig(Section):
    """One collection of a suite."""

    name: Name
    """Name in tables, and folder of its results."""
    path: str
    """Where it is: `hub:owner/name@revision` (downloaded once), a BEIR-layout folder, or
    `bundled:cranfield`."""
    folder: Name | None = None
    """Its folder under `--collections`, which is used instead of `path`; null: the name."""
    split: str = "test"
    """Which judgements."""
    group: Name | None = None
    """Collections of one group count as one in the average: by their mean."""
    average: bool = True
    """Whether it counts in the suite's average."""
    exclude_self_match: bool = False
    """Drop a document whose id is the query's id from its ranking (ArguAna, Quora)."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Measures in ir_measures' notation; null: those of the suite."""
    query_prompt: str | None = None
    """What queries are prefixed with on this collection; null: what the model was made with."""
    passage_prompt: str | None = None
    """The same of documents."""
    queries: PositiveInt | None = None
    """Judged queries that the split must have: another number is another split."""
    documents: PositiveInt | None = None
    """Documents that it must have."""


class SuiteConfig(Section):
    """Everything that `evaluate --suite` reads of a suite file."""

    name: Name
    """Name in tables and of the default output folder."""
    note: str = ""
    """What it is and where its figures come from."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("nDCG@10", "R@100", "AP")
    """Measures of collections without their own; the first decides comparisons."""
    collections: Annotated[tuple[CollectionConfig, ...], Field(min_length=1)]

    def metrics_of(self, collection: CollectionConfig) -> tuple[str, ...]:
        """The measures of a collection."""
        return collection.metrics or self.metrics

    def units(self) -> dict[str, list[CollectionConfig]]:
        """What the average is over: groups, and collections of none, by name."""
        units: dict[str, list[CollectionConfig]] = {}
        for collection in self.collections:
            if collection.average:
                units.setdefault(collection.group or collection.name, []).append(collection)
        return units

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [collection.name for collection in self.collections]
        names += {collection.group for collection in self.collections if collection.group}
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"collections: {twice!r} is the name of two collections or groups")
        return self

    @model_validator(mode="after")
    def _groups_agree(self) -> Self:
        kinds: dict[str, tuple[bool, tuple[str, ...]]] = {}
        for collection in self.collections:
            kind = (collection.average, self.metrics_of(collection))
            if collection.group and kinds.setdefault(collection.group, kind) != kind:
                raise ValueError(
                    f"collections: {collection.name} has other `average` or `metrics` than the "
                    f"rest of group {collection.group}; a group's mean needs the same"
                )
        return self
