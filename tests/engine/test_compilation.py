"""Options of the compiler are those it knows, and only on the device they are for."""

from collections.abc import Iterator

import pytest

from synrank_jax.config import MeshConfig
from synrank_jax.engine import compilation
from synrank_jax.parallel.mesh import make_mesh


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    compilation._known_cpu_options.cache_clear()
    yield
    compilation._known_cpu_options.cache_clear()


def test_this_release_knows_them_all():
    assert compilation.compiler_options(make_mesh(MeshConfig())) == compilation.CPU_OPTIONS


def test_an_option_that_the_compiler_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(compilation.CPU_OPTIONS, "xla_cpu_of_another_release", True)
    assert "xla_cpu_of_another_release" not in compilation.compiler_options(make_mesh(MeshConfig()))
