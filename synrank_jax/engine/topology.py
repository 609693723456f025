"""Devices to compile for: those of this machine, or a TPU slice that is not here.

The TPU compiler is part of libtpu, which runs on any Linux machine; JAX then compiles for devices
that only a topology description has.
"""

import importlib.util
import os
import re
from typing import Any

import jax
from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from synrank_jax.errors import UserError

LOCAL = "local"
EXAMPLES = "v5e:2x4 (8 chips), v5e:16x16 (256), v5e:1x1, v6e:8x8 (64), v5p:2x2x2 (8), v4:2x2x2 (8)"
# libtpu crashes at some names of another form (a length of 0), so they do not reach it.
FORM = re.compile(r"v\d\w*:[1-9]\d*(x[1-9]\d*){1,2}")
# A description takes no TPU: libtpu shall neither look for one, nor wait for the metadata server of
# a cloud machine, nor exclude other processes, nor warn that all of these are missing.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def has_tpu_compiler() -> bool:
    """Whether libtpu is installed."""
    return importlib.util.find_spec("libtpu") is not None


def devices_of(topology: str) -> list[jax.Device]:
    """The devices of a topology.

    Args:
        topology: `local`, or a TPU slice as KIND:AxB or KIND:AxBxC, its chips along each dimension.

    Raises:
        UserError: no TPU compiler here, or it does not know such a slice.
    """
    if topology == LOCAL:
        return jax.devices()
    if not FORM.fullmatch(topology):
        raise UserError(f"--topology {topology!r}: not local, and not KIND:AxB, as {EXAMPLES}")
    if not has_tpu_compiler():
        raise UserError(
            f"--topology {topology}: the TPU compiler is not installed; "
            "pip install 'synrank-jax[plan]' (libtpu, 0.5 GB, needs no TPU)"
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {}
    if topology.startswith("v4:"):  # else its two cores, which TPU machines show as one device
        options["chip_config_name"] = "megacore"
    if topology.endswith(":1x1"):  # else a host is taken to have 2 x 2 chips
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except JaxRuntimeError as error:
        raise UserError(
            f"--topology {topology}: the TPU compiler does not know it ({error}); "
            f"there are for example {EXAMPLES}"
        ) from error
    return list(described.devices)
