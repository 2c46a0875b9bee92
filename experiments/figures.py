"""What the experiments' figures share: a back-end without a display, a colour for each composition, saving."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

matplotlib.use("agg")
from matplotlib import pyplot as plt

COLORS = {"planner": "C7", "fused": "C0", "release": "C3", "joint": "C1", "sequential": "C2"}


def use_small_style() -> None:
    """Small letters and a light grid, for figures of many panels."""
    plt.rcParams.update({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3})


def save(figure: Figure, file: Path, **layout: Any) -> None:
    """Write a figure, and close it.

    Args:
        layout: for `Figure.tight_layout`.
    """
    figure.tight_layout(**layout)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
