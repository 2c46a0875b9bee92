"""The compositions of the sampler against exact densities: python -m experiments.closed_form

Runs every composition with exact denoisers on a linear-Gaussian problem (experiments/gaussian.py). Compares mean,
covariance and dynamics violation with the exact product of the two densities. Writes docs/closed_form.md and
docs/closed_form.png. docs/theory.md derives the results. About a minute on one core.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes

from experiments import pages
from experiments.figures import COLORS, plt, save, use_small_style
from experiments.gaussian import Distance, Gaussian, Problem, System, problem

LEVELS = (100, 50, 20, 10, 5, 3)
POWERS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
RUNS = (
    ("planner", "dpmpp_2m"),
    ("planner", "ddim"),
    ("planner", "ddpm"),
    ("fused", "dpmpp_2m"),
    ("fused", "ddpm"),
    ("release", "ddpm"),
    ("joint", "dpmpp_2m"),
    ("joint", "ddpm"),
    ("sequential", "dpmpp_2m"),
    ("sequential", "ddpm"),
)
FUSED: dict[str, Any] = {"composition": "fused", "solver": "dpmpp_2m"}
VARIANCES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.99)


def alike(variance: float, mean: float = 1.0) -> Problem:
    """Planner and dynamics model are the same density: z_1 and the actions independent N(mean, variance)."""
    zero = torch.zeros(1, 1, dtype=torch.float64)
    line = torch.tensor([0.0, mean, mean, mean], dtype=torch.float64)
    density = Gaussian(line, torch.diag(torch.tensor([0.0, *[variance] * 3], dtype=torch.float64)))
    return Problem(System(zero, zero, variance**0.5, zero[0], 2), density, density, density, density)


def release_bias(variance: float) -> tuple[float, float]:
    """(mean / true mean, variance / true variance) of the states that infinitely many levels of the release draw for
    `alike` (docs/theory.md, section 4)."""
    k = 1 - variance
    area = math.atanh(k**0.5) / k**0.5
    return (1 - variance / 2 - variance**2 * area / 2) / k, (2 + variance) / 6


Runs = dict[tuple[str, str, int], Distance]  # by composition, solver and number of levels
Ends = dict[tuple[str, str, int], tuple[float, float]]  # last position, as planned and where the actions lead
Powers = dict[tuple[float, int], Distance]  # by power and number of levels
Biases = list[tuple[float, float, float, float, float]]  # variance; mean and variance ratios drawn; the same in theory


def sweep(one: Problem) -> tuple[Runs, Runs, Ends]:
    """Distance of every run from the product and from the rollouts of the planner's actions, and its last positions."""
    keys = [(c, s, n) for c, s in RUNS for n in LEVELS]
    drawn = {(c, s, n): one.drawn(composition=c, solver=s, steps=n, dynamics_power=0.5) for c, s, n in keys}
    product, feasible = ({k: one.distance(x, to) for k, x in drawn.items()} for to in (one.product, one.feasible))
    return product, feasible, {k: one.end_positions(x) for k, x in drawn.items()}


def power_sweep(one: Problem) -> Powers:
    """Distance from the product of fused (DPM-Solver++ 2M) for each power of the dynamics' weight."""
    return {
        (p, n): one.distance(one.drawn(**FUSED, steps=n, dynamics_power=p), one.product) for p in POWERS for n in LEVELS
    }


def hearing(one: Problem) -> list[tuple[str, list[Distance], list[tuple[float, float]]]]:
    """Distances from the product and last positions at each number of levels, if the actions hear the dynamics model.

    With p = 2 and 4 (docs/theory.md, section 8); fused, where they do not, for comparison.
    """
    rows, each = [], replace(one, hears=True)
    for composition in ("fused", "heard", "contrast"):
        for p in (2.0, 4.0):
            options = {**FUSED, "composition": composition, "dynamics_power": p}
            drawn = [each.drawn(**options, steps=n) for n in LEVELS]
            found = [one.distance(x, one.product) for x in drawn], [one.end_positions(x) for x in drawn]
            rows.append((f"{composition}, p = {p:g}", *found))
    return rows


def bias() -> Biases:
    """Ratios of mean and variance of the states that 1000 levels of the release draw for `alike`, and the theory's."""
    rows = []
    for v in VARIANCES:
        drawn = alike(v).drawn(levels=1000, composition="release", solver="ddpm", steps=1000)
        rows.append((v, float(drawn.mean[2]), float(drawn.covariance[2, 2]) / v, *release_bias(v)))
    return rows


def figure(runs: Runs, powers: Powers, biases: Biases, file: Path) -> None:
    """Two rows: against the number of levels; against the power of the dynamics' weight, and the release's bias."""
    use_small_style()
    fig, axes = plt.subplots(2, 3, figsize=(11, 6.8))
    names = {"mean": "error of the mean", "covariance": "error of the covariance", "violation": "dynamics violation"}
    for axis, (measure, title) in zip(axes[0], names.items()):
        _against_levels(axis, runs, measure)
        axis.set(title=title, xlabel="levels", xscale="log", xticks=LEVELS, xticklabels=LEVELS)
        axis.minorticks_off()
    axes[0, 2].set(yscale="log")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, ncols=5, loc="upper center")
    for axis, measure in zip(axes[1, :2], ("mean", "violation")):
        for i, levels in enumerate(n for n in (100, 10, 5, 3) if n in LEVELS):
            values = [getattr(powers[p, levels], measure) for p in POWERS]
            axis.plot(
                range(len(POWERS)), values, "o-", ms=3, color=plt.get_cmap("viridis")(i / 4), label=f"{levels} levels"
            )
        axis.set(title=f"fused: {names[measure]}", xlabel="power p of the weight alpha-bar(t)^p")
        axis.set_xticks(range(len(POWERS)), [f"{p:g}" for p in POWERS])
    axes[1, 0].legend(fontsize=7.5)
    _bias_panel(axes[1, 2], biases)
    save(fig, file, rect=(0, 0, 1, 0.92))


def _against_levels(axis: Axes, runs: Runs, measure: str) -> None:
    for composition, solver in RUNS:
        if solver == "ddim":
            continue
        values = [getattr(runs[composition, solver, n], measure) for n in LEVELS]
        style = "-" if solver == "dpmpp_2m" else "--"
        axis.plot(LEVELS, values, f"o{style}", ms=3, color=COLORS[composition], label=f"{composition}, {solver}")


def _bias_panel(axis: Axes, biases: Biases) -> None:
    fine = [0.01 + 0.97 * i / 100 for i in range(101)]
    for index, (label, colour) in enumerate((("mean / true mean", "C3"), ("variance / true variance", "C4"))):
        axis.plot(fine, [release_bias(v)[index] for v in fine], color=colour, label=f"{label}, theory")
        axis.plot([row[0] for row in biases], [row[1 + index] for row in biases], "o", color=colour, label="drawn")
    axis.axhline(1, color="k", lw=0.8)
    axis.set(title="release when both models are right", xlabel="variance of the data", ylim=(0.2, 1.45))
    axis.legend(fontsize=7.5, loc="center right")


def page(one: Problem, runs: Runs, feasible: Runs, ends: Ends, powers: Powers, biases: Biases) -> str:
    """docs/closed_form.md"""
    densities = [(WORDS[name], [one.distance(getattr(one, name), one.product)]) for name in WORDS]
    by_levels = [(f"{c}, {s}", [runs[c, s, n] for n in LEVELS]) for c, s in RUNS]
    rollouts = [(f"{c}, {s}", [feasible[c, s, n] for n in LEVELS]) for c, s in RUNS if c != "planner"]
    by_power = [(f"{p:g}", [powers[p, n] for n in LEVELS]) for p in POWERS]
    terms = hearing(one)
    parts = [
        HEAD.format(written_by=pages.written_by("closed_form")),
        "## The densities\n",
        distances("density", ["mean / covariance / violation"], densities),
        "## Distance from the product against the number of levels (p = 0.5)\n",
        distances("composition, solver", LEVELS, by_levels),
        "## Distance from the planner's actions carried out, p_P(u) p_D(z \\| u)\n",
        distances("composition, solver", LEVELS, rollouts),
        "## Mean last position: as planned, and where the planned actions lead (goal 0.6)\n",
        positions([(f"{c}, {s}", [ends[c, s, n] for n in LEVELS]) for c, s in RUNS]),
        "The product: {:.2f}, {:.2f}.\n".format(*one.end_positions(one.product)),
        "## Fused, dpmpp_2m: distance from the product against the power p of the dynamics' weight\n",
        distances("p", LEVELS, by_power),
        "## Actions that hear the dynamics model: distance from the product; last position as planned, and where the "
        "actions lead\n",
        distances("composition", LEVELS, [(name, found) for name, found, _ in terms]),
        positions([(name, pairs) for name, _, pairs in terms]),
        "## The release's bias where both models are the same, right density N(1, v)\n",
        pages.table(
            ["v", "mean, 1000 levels", "theory", "variance / v, 1000 levels", "theory"],
            [(f"{v:g}", *(f"{each:.3f}" for each in (m, tm, r, tr))) for v, m, r, tm, tr in biases],
        ),
    ]
    return "\n".join(parts)


def distances(corner: str, columns: Sequence[object], rows: Sequence[tuple[str, Sequence[Distance]]]) -> str:
    """A table of distances."""
    cell = lambda x: f"{x.mean:.2f} / {x.covariance:.2f} / {x.violation:.1f}"  # noqa: E731
    return pages.table([corner, *columns], [(name, *map(cell, found)) for name, found in rows])


def positions(rows: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    """A table of last positions."""
    cell = "{:.2f}, {:.2f}".format
    return pages.table(["composition", *LEVELS], [(name, *(cell(*pair) for pair in pairs)) for name, pairs in rows])


HEAD = """# The compositions in closed form

{written_by}, one used. What it means, and why:
[theory.md](theory.md).

Exact denoisers of a linear-Gaussian problem in the library's own sampler; mean and covariance of what it draws are
exact, not estimated. Noise schedule cosine, 100 levels, visited on the grid uniform in log-SNR; temperature 1. Each
cell: error of the mean (in deviations of the density it is compared with) / error of the covariance (relative) /
dynamics violation (in deviations of the system's noise; 1 = as the system itself).

![The same as curves](closed_form.png)
"""
WORDS = {
    "planner": "p_P(z, u), the planner alone",
    "product": "p_P(z, u) p_D(z \\| u), the product",
    "feasible": "p_P(u) p_D(z \\| u), the planner's actions carried out",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--output", type=Path, default=pages.DOCS, help="folder of the page and the figure")
    output = parser.parse_args(arguments).output
    torch.set_num_threads(1)
    one = problem()
    (runs, feasible, ends), powers, biases = sweep(one), power_sweep(one), bias()
    figure(runs, powers, biases, output / "closed_form.png")
    (output / "closed_form.md").write_text(page(one, runs, feasible, ends, powers, biases))
    print(f"{output / 'closed_form.md'}\n{output / 'closed_form.png'}")


if __name__ == "__main__":
    main()
