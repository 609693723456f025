"""Settings under which a step would fit that does not: candidates, compiled to be sure."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from synrank_jax.config import Config
from synrank_jax.config_section import Section
from synrank_jax.divisors import divisors
from synrank_jax.engine.plan import Plan

MOST_COMPILED = 4
# Of what a step needs beside its state: remat: dots keeps about half of BERT's activations, those
# that matmuls made.
LEFT_BY_DOTS = 0.5
LARGE_STATE = 0.5
"""Share of a chip's memory above which weights and optimizer state are to be split first."""


class Remedy(Section):
    """A change of settings, and what it gives."""

    settings: dict[str, int | str]
    """Dotted field -> value."""
    plan: Plan


def find_remedy(
    config: Config, failed: Plan, compile_plan: Callable[[Config], Plan]
) -> list[Remedy]:
    """Compile changed settings, what costs the least time first, until one fits.

    Args:
        config: does not fit.
        failed: its plan.
        compile_plan: the plan of a changed configuration.

    Returns:
        What was tried, at most `MOST_COMPILED`; if any fits, it is the last.
    """
    tried = []
    for settings in islice(_candidates(config, failed), MOST_COMPILED):
        tried.append(Remedy(settings=settings, plan=compile_plan(changed(config, settings))))
        if tried[-1].plan.fits:
            break
    return tried


def changed(config: Config, settings: dict[str, Any]) -> Config:
    """A configuration with other values in some fields, by their dotted names."""
    for name, value in settings.items():
        section, field = name.split(".")
        part = getattr(config, section).model_copy(update={field: value})
        config = config.model_copy(update={section: part})
    return config


def _candidates(config: Config, failed: Plan) -> Iterator[dict[str, int | str]]:
    """First fsdp if the state is large, then elementwise work again, then a second forward pass."""
    base: dict[str, int | str] = {}
    capacity, state, fsdp = failed.capacity_bytes, failed.state_bytes, failed.mesh["fsdp"]
    if capacity and state > LARGE_STATE * capacity:
        wider = [size for size in divisors(failed.chips // failed.mesh["tensor"]) if size > fsdp]
        fitting = [size for size in wider if state * fsdp / size < LARGE_STATE * capacity]
        if wider:
            base = {"mesh.data": -1, "mesh.fsdp": (fitting or wider[-1:])[0]}
            state = state * fsdp // int(base["mesh.fsdp"])
            yield base
    rest = None if failed.needed_bytes is None else failed.needed_bytes - failed.state_bytes

    def may_fit(share: float) -> bool:
        return rest is None or capacity is None or state + share * rest < capacity

    if config.model.remat == "none" and may_fit(LEFT_BY_DOTS):
        yield {**base, "model.remat": "dots"}
    devices = failed.mesh["data"] * failed.mesh["fsdp"]
    now = failed.encode_chunk_size
    smaller = [size for size in divisors(failed.pool_size // devices) if size < now]
    fitting = [size for size in smaller if may_fit(size / now)]
    for size in reversed(fitting[-2:]):
        yield {**base, "train.encode_chunk_size": size}
    least: dict[str, int | str] = {"train.encode_chunk_size": smaller[0]} if smaller else {}
    yield {**base, **least, "model.remat": "layer"}
