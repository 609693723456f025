"""matplotlib, imported when a command draws; PNG files that are never seen half-written."""

from pathlib import Path
from typing import Any

from synrank_jax.errors import UserError
from synrank_jax.files import atomic_write


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, sizes in inches; nothing global, no window system.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            f"plots need matplotlib ({error}); install the extra: pip install 'synrank-jax[plot]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_png(figure: Any, path: Path) -> None:
    """Write the figure."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
