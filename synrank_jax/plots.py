"""matplotlib, imported when a command draws; PNG files that are never seen half-written."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synrank_jax.errors import UserError
from synrank_jax.files import atomic_write

INK, BLUE, PALE, MARK = "#1f2933", "#2b6cb0", "#cbd5e0", "#b44d12"
PERCENTILES = (5, 25, 50, 75, 95)
"""Whiskers, box and median of a box plot."""


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
        file.write(png(figure))


def png(figure: Any) -> bytes:
    """The figure as a file's content."""
    buffer = io.BytesIO()
    # Without the version of matplotlib: the same audit is the same file.
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def named(panel: Any, title: str, **labels: str) -> None:
    """Title and axis labels, and no frame where there is no axis."""
    panel.set_title(title, fontsize=10)
    panel.set(**labels)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)


def boxes(panel: Any, percentiles: Mapping[Any, tuple[float, ...]]) -> None:
    """Box plots from `PERCENTILES` of each group, in ascending order of the groups."""
    names = ("whislo", "q1", "med", "q3", "whishi")
    assert len(names) == len(PERCENTILES)
    shown = [
        dict(zip(names, values, strict=True)) | {"label": str(group)}
        for group, values in sorted(percentiles.items())
    ]
    panel.bxp(
        shown,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": PALE, "edgecolor": INK},
        medianprops={"color": BLUE, "linewidth": 2},
    )
