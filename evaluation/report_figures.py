"""Figures of the report: inline SVG with the page's CSS variables as colours, for light and dark pages."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from evaluation.labels import NEUTRAL, color_name, colors, method_of

PAGE = ("ink", NEUTRAL, "rule")  # colours of the page; the methods have other colours


def _drawn() -> dict[str, str]:
    """Return CSS variable -> placeholder colour for matplotlib. `_svg` replaces the colour by the variable."""
    return {name: f"#{0x5A0001 + number:06x}" for number, name in enumerate((*PAGE, *colors()))}


INK, FAINT, RULE = (_drawn()[name] for name in PAGE)
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mpdiffuser",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Returns:
    """One row of the returns figure: its name, label and returns (E,), and, if known, the IQM with its interval."""

    name: str
    label: str
    returns: Sequence[float]
    iqm: float | None = None
    interval: Sequence[float] | None = None


def returns_figure(rows: Sequence[Returns]) -> Markup:
    """Draw a small dot for each episode, and a large dot for the IQM with its 95 % interval."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(5.0, 0.55 + 0.52 * len(rows))
        for y, row in enumerate(reversed(rows)):
            color = _color(row.name)
            jitter = 0.13 * (
                np.random.default_rng(0).permutation(len(row.returns)) / max(1, len(row.returns) - 1) - 0.5
            )
            axes.scatter(row.returns, y + jitter, s=14, color=color, alpha=0.4, linewidths=0, zorder=2, clip_on=False)
            if row.interval:
                axes.plot(row.interval, (y, y), color=color, linewidth=2.4, solid_capstyle="round", zorder=3)
            if row.iqm is not None:
                axes.plot([row.iqm], [y], "o", color=color, markersize=6, zorder=4)
            where: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            axes.annotate(row.label, (0, y + 0.2), (4, 0), va="bottom", **where)
        values = np.concatenate([np.asarray(row.returns, float) for row in rows])
        low, high = min(0.0, values.min()), max(0.0, values.max())
        margin = 0.03 * ((high - low) or 1.0)
        left = low - margin if low < 0 else 0.0
        axes.set(xlim=(left, high + margin), ylim=(-0.35, len(rows) - 0.4), xlabel="return of an episode")
        axes.yaxis.set_major_locator(NullLocator())
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        return _svg(figure, "returns", "Return of every episode, method by method")


def feasibility_figure(series: Mapping[str, tuple[str, Mapping[int, tuple[float, float]]]]) -> Markup:
    """Draw the distances between planned and real latents over the steps ahead.

    Args:
        series: row -> (label, steps ahead -> (mean, standard error)). A row with a cost limit has a dashed line.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _axes(5.0, 2.4 + 0.15 * (len(series) + 1))
        for row, (label, points) in series.items():
            steps = sorted(points)
            means, errors = np.array([points[k] for k in steps]).T
            line: Any = {"linestyle": "-" if row == method_of(row) else "--", "linewidth": 1.8, "marker": "o"}
            bars: Any = {"elinewidth": 1.2, "capsize": 2.5}
            axes.errorbar(steps, means, errors, color=_color(row), markersize=4.5, label=label, **line, **bars)
        ticks = sorted({k for _, points in series.values() for k in points})
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([str(k) for k in ticks])
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set(xlabel="steps ahead", ylabel="mean squared distance")
        _legend(axes)
        return _svg(figure, "feasibility", "Squared distance of planned and real latents against steps ahead")


def curve_figure(model: str, training: np.ndarray, validation: np.ndarray) -> Markup:
    """Draw the losses of one model.

    Args:
        model: name of the model.
        training, validation: (n, 2), with columns step and loss. At most one of them may be empty.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _axes(3.5, 2.3)
        color = _color("mpdiffuser")
        if len(training):
            axes.plot(*training.T, color=FAINT, linewidth=1, marker=_dot(training), label="training")
        if len(validation):
            marker = _dot(validation)
            axes.plot(*validation.T, color=color, linewidth=1.8, marker=marker, markersize=4, label="validation")
        losses = np.concatenate([training, validation])[:, 1]
        if losses.min() > 0 and losses.max() > 8 * losses.min():
            wide = losses.max() > 100 * losses.min()
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=8))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        axes.set(xlabel="step", ylabel="loss")
        _legend(axes)
        return _svg(figure, f"curve-{model}", f"Training and validation loss of the {model.replace('_', ' ')}")


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    return figure, axes


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.2, handlelength=1.4)


def _dot(points: np.ndarray) -> str | None:
    """Return a marker for a single point, since a line through one point is not visible."""
    return "o" if len(points) == 1 else None


def _color(row: str) -> str:
    return _drawn()[color_name(row)]


def _svg(figure: Figure, name: str, title: str) -> Markup:
    """Return the figure as an <svg> element with unique ids, without URLs, and with CSS variables as colours."""
    buffer = io.StringIO()
    nothing: dict[str, Any] = {key: None for key in ("Date", "Creator", "Format", "Type")}
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    view = re.search(r'viewBox="[^"]+"', text)
    assert view
    text = text[text.index(">") + 1 :]
    text = re.sub(r"<!--.*?-->|<style.*?</style>|<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;\"]+", "font-family: inherit", text)
    for variable, color in _drawn().items():
        text = text.replace(color, f"var(--{variable})")
    title = Markup.escape(title)
    return Markup(f'<svg {view.group()} role="img" aria-label="{title}">{text}')
