"""Weights of model folders, for comparisons."""

from pathlib import Path

import numpy as np

from synrank_jax.models.pretrained import stored_tensors


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors under their own names."""
    with stored_tensors(folder) as stored:
        return {name: file.get_tensor(name) for name, file in stored.items()}
