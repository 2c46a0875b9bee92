"""Draws the method's figure: python docs/figures.py writes docs/method.svg."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

INK, MUTED = "#1f2430", "#667085"
BLUE, GREEN, ORANGE, GREY = "#2f6fdb", "#16896b", "#c2631b", "#8a94a6"
TINT = {BLUE: "#e8f0fd", GREEN: "#e3f4ee", ORANGE: "#fbeee2", GREY: "#f2f4f7"}


def box(axis: plt.Axes, x: float, y: float, width: float, height: float, title: str, text: str, color: str) -> None:
    """A rounded box with its lower left corner at (x, y), a bold title and a line of text."""
    shape = "round,pad=0,rounding_size=0.09"
    axis.add_patch(FancyBboxPatch((x, y), width, height, shape, fc=TINT[color], ec=color, lw=1.3))
    middle = y + height / 2
    axis.text(x + width / 2, middle + (0.17 if text else 0), title, ha="center", va="center", weight="bold", color=INK)
    axis.text(x + width / 2, middle - 0.17, text, ha="center", va="center", size=8.2, color=INK)


def arrow(axis: plt.Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    """An arrow between two points, curved by `bend`."""
    style = f"arc3,rad={bend}"
    axis.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, lw=1.2, color=MUTED, connectionstyle=style)
    )


def path(axis: plt.Axes, *points: tuple[float, float]) -> None:
    """Straight lines through the points, with an arrow at the last one."""
    *most, last = points
    axis.plot(*zip(*most), color=MUTED, lw=1.2, solid_capstyle="butt")
    axis.add_patch(FancyArrowPatch(most[-1], last, arrowstyle="-|>", mutation_scale=11, lw=1.2, color=MUTED, shrinkA=0))


def draw(axis: plt.Axes) -> None:
    """Training above, one decision below."""
    axis.text(0.1, 5.5, "TRAIN", weight="bold", color=MUTED, size=8.5)
    box(axis, 0.1, 4.45, 1.75, 0.8, "episodes", "frames or states", GREY)
    box(axis, 2.3, 4.45, 1.75, 0.8, "encoder", "latent $z$", GREY)
    axis.add_patch(Rectangle((4.95, 4.25), 6.35, 1.2, fc="none", ec=MUTED, lw=1.0, ls=(0, (4, 3))))
    axis.text(8.12, 5.53, "three models, trained separately", ha="center", color=MUTED, size=8.2)
    box(axis, 5.1, 4.45, 2.0, 0.8, "planner", r"$p(z, u \mid z_0, \mathrm{target})$", BLUE)
    box(axis, 7.3, 4.45, 1.75, 0.8, "dynamics", r"$p(z \mid u, z_0)$", GREEN)
    box(axis, 9.25, 4.45, 1.9, 0.8, "ranker", "reward, cost, value", ORANGE)
    arrow(axis, (1.9, 4.85), (2.25, 4.85))
    arrow(axis, (4.1, 4.85), (4.9, 4.85))
    axis.text(4.48, 4.97, "windows", ha="center", color=MUTED, size=7.8)

    axis.text(0.1, 3.72, "ACT", weight="bold", color=MUTED, size=8.5)
    box(axis, 0.1, 1.75, 1.75, 0.8, "observation", "a frame or a state", GREY)
    box(axis, 2.3, 1.75, 1.75, 0.8, "encoder", "$z_0$", GREY)
    axis.add_patch(Rectangle((4.45, 0.62), 4.8, 3.15, fc="none", ec=MUTED, lw=1.0, ls=(0, (4, 3))))
    axis.text(6.85, 3.85, "sampler: at each noise level $t$", ha="center", color=MUTED, size=8.5)
    box(axis, 4.65, 2.75, 2.0, 0.8, "planner", r"$\hat{x}_0$ of states, actions", BLUE)
    box(axis, 4.65, 0.8, 2.0, 0.8, "dynamics", r"$\hat{x}_0$ of states", GREEN)
    box(axis, 7.25, 1.77, 1.8, 0.8, "blend, step", r"$x_t \rightarrow x_{t-1}$", GREY)
    arrow(axis, (6.7, 2.95), (7.45, 2.62))
    arrow(axis, (6.7, 1.4), (7.45, 1.72))
    axis.text(6.72, 2.5, "$1 - w_t$", color=BLUE, size=9)
    axis.text(6.48, 1.78, r"$w_t = \bar{\alpha}_t^{\,p}$", color=GREEN, size=9)
    arrow(axis, (8.45, 2.62), (6.7, 3.35), 0.33)
    arrow(axis, (8.45, 1.72), (6.7, 1.0), -0.33)
    arrow(axis, (1.9, 2.15), (2.25, 2.15))
    arrow(axis, (4.1, 2.15), (4.4, 2.15))
    arrow(axis, (9.1, 2.15), (9.75, 2.15))
    axis.text(9.53, 2.27, "N plans", ha="center", color=MUTED, size=7.4)
    box(axis, 9.8, 1.75, 1.45, 0.8, "ranker", "chooses one", ORANGE)
    path(axis, (10.52, 1.7), (10.52, 0.3), (0.98, 0.3), (0.98, 1.68))
    axis.text(5.7, 0.08, "execute its first action, observe, plan again", ha="center", color=MUTED, size=8.2)


def main() -> None:
    plt.rcParams |= {
        "font.size": 9.5,
        "svg.fonttype": "path",
        "svg.hashsalt": "method",
        "font.family": "DejaVu Sans",
        "mathtext.fontset": "dejavusans",
    }
    figure, axis = plt.subplots(figsize=(10.2, 5.2))
    figure.subplots_adjust(0, 0, 1, 1)
    axis.set(xlim=(-0.05, 11.4), ylim=(-0.05, 5.8))
    axis.axis("off")
    draw(axis)
    figure.savefig(Path(__file__).parent / "method.svg", facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    main()
