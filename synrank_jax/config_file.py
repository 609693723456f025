"""Configuration files: YAML to a typed configuration and back.

`load_config` reads the file and those it extends, applies `--set` overrides through the same
validation, and reports all errors at once.
"""

import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic import BaseModel

from synrank_jax.config import Config
from synrank_jax.config_section import Section
from synrank_jax.errors import UserError

SectionT = TypeVar("SectionT", bound=Section)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice (YAML would silently keep the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise UserError(
                    f"{key_node.start_mark.name}:{key_node.start_mark.line + 1}: "
                    f"key {key!r} is written twice; remove one"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, name: str) -> Any:
    loader = _StrictLoader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not valid YAML: {error}") from error
    finally:
        loader.dispose()


def _read_mapping(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """One YAML file as a mapping, merged over the file its `extends:` names."""
    if path.resolve() in extended_by:
        raise UserError(f"{path}: extends itself through {' -> '.join(map(str, extended_by))}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: cannot be read ({error}); check the path") from error
    loaded = _parse_yaml(text, str(path))
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: expected sections such as `model:` and `train:`, got {loaded!r}")
    base = loaded.pop("extends", None)
    if base is None:
        return loaded
    return _merge(_read_mapping(path.parent / str(base), (*extended_by, path.resolve())), loaded)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> dict[str, Any]:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: write it as section.field=value")
    nested: Any = _parse_yaml(text, f"--set {override}") if text.strip() else ""
    for key in reversed(keys):
        nested = {key: nested}
    return _merge(values, nested)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config, apply `section.field=value` overrides and validate the whole.

    A file may name another with a top-level `extends: other.yaml` (relative to itself) and then
    needs to hold only what differs.

    Raises:
        UserError: lists every error with its dotted path, the value and the nearest valid name.
    """
    return load_section(Config, path, overrides)


def validate_config(values: Any, name: str) -> Config:
    """Validate a nested mapping as a `Config`; `name` says in errors where it came from."""
    return _validate(Config, values, name)


def load_section(
    section: type[SectionT], path: str | Path, overrides: Sequence[str] = ()
) -> SectionT:
    """Read another typed YAML file, such as an experiment, with the same care as a config.

    Raises:
        UserError: as `load_config`.
    """
    values = _read_mapping(Path(path))
    for override in overrides:
        values = _apply_override(values, override)
    return _validate(section, values, name=str(path))


def _validate(section: type[SectionT], values: Any, name: str) -> SectionT:
    try:
        return section.model_validate(values)
    except pydantic.ValidationError as error:
        items = error.errors(include_url=False)
        lines = [_explain(item, section) for item in items if not _follows(item, items)]
        plural = "s" if len(lines) > 1 else ""
        raise UserError(
            f"{name}: {len(lines)} error{plural} in the configuration\n  " + "\n  ".join(lines)
        ) from error


def _follows(item: Any, items: Sequence[Any]) -> bool:
    """Whether an error is only that wrong members leave a list too short."""
    at = item["loc"]
    return item["type"] == "too_short" and any(
        other["loc"][: len(at)] == at for other in items if len(other["loc"]) > len(at)
    )


def _explain(item: Any, root: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        *parents, wrong = item["loc"]
        valid = _field_names(parents, root)
        near = difflib.get_close_matches(str(wrong), valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid names: {', '.join(valid)}"
        return f"{path}: no such key (value {item['input']!r}); {hint}"
    if item["type"] == "missing":
        return f"{path}: required, but not given"
    message = item["msg"].removeprefix("Value error, ")
    if isinstance(item["input"], dict):  # of a whole section: the message names field and value
        return f"{path}: {message}" if path else message
    return f"{path}: {message} (value {_short(item['input'])})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _field_names(path: Sequence[Any], root: type[BaseModel]) -> list[str]:
    """Names of the fields of `root`'s section at `path` (list indices are skipped)."""
    section = root
    for part in path:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation)
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(_section_of(arg) for arg in typing.get_args(annotation) if arg is not type(None))


def to_yaml(config: Section) -> str:
    """The fully resolved configuration as YAML; `load_config` reads it back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
