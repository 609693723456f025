"""README.md says what the code does. `python tests/test_readme.py` rewrites the generated table."""

import json
import re
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from synrank_jax.config import Config, EvaluationConfig, SourceConfig, ValidationConfig
from synrank_jax.config_generation import GenerationConfig, LevelConfig
from synrank_jax.config_section import Section

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
OPTIONAL = {"validation": ValidationConfig, "evaluation": EvaluationConfig}
BEGIN, END = "<!-- generated: configuration -->", "<!-- end of generated -->"


def sections() -> dict[str, type[Section]]:
    named = {}
    for name, field in Config.model_fields.items():
        named[name] = OPTIONAL.get(name, field.annotation)
        if name == "data":
            named["data.sources[]"] = SourceConfig
    return named


def reference() -> str:
    """One row per field: dotted name, default, meaning."""
    rows = ["| field | default | |", "|---|---|---|"]
    for prefix, section in sections().items():
        rows.append(f"| **{prefix}** | | {' '.join((section.__doc__ or '').split())} |")
        for name, field in section.model_fields.items():
            rows.append(_row(f"{prefix}.{name}", field))
    rows += ["", "Of `generate`, a file of its own:", "", "| field | default | |", "|---|---|---|"]
    for name, field in GenerationConfig.model_fields.items():
        section = LevelConfig if name == "levels" else field.annotation
        prefix = "levels[]." if name == "levels" else f"{name}."
        if isinstance(section, type) and issubclass(section, Section):
            rows.append(f"| **{name}** | | {' '.join((section.__doc__ or '').split())} |")
            rows += [_row(prefix + key, value) for key, value in section.model_fields.items()]
        else:
            rows.append(_row(name, field))
    return "\n".join(rows)


def _row(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else json.dumps(field.default)
    text = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{name}` | `{default}` | {text} |"


def test_the_configuration_table_is_current():
    text = README.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip() == reference()


def test_every_field_is_described_but_adams_own():
    bare = [
        f"{prefix}.{name}"
        for prefix, section in sections().items()
        for name, field in section.model_fields.items()
        if not field.description and field.annotation not in sections().values()
    ]
    assert bare == ["optimizer.b1", "optimizer.b2", "optimizer.eps"]


@pytest.mark.parametrize(
    "path", re.findall(r"`((?:configs|launch|synrank_jax|tests)/[\w./]+)`", README.read_text())
)
def test_files_named_in_the_readme_exist(path: str):
    assert (ROOT / path).exists()


def test_the_mixture_is_the_shipped_one():
    (block,) = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    assert (ROOT / "configs" / "mixture.yaml").read_text().endswith(f"\n{block}")


def test_every_module_is_on_the_file_map():
    modules = {path.name for path in (ROOT / "synrank_jax").glob("*.py")} - {"__init__.py"}
    assert {name for name in modules if name not in README.read_text()} == set()


if __name__ == "__main__":
    before, rest = README.read_text().split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{reference()}\n{END}{rest.split(END)[1]}")
