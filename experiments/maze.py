"""Learned models in two dimensions: python -m experiments.maze

A car in a U-shaped maze and a pendulum. For each, a tiny planner is trained on a few demonstrations of a stronger
system (the car steers more sharply, the pendulum's motor is stronger), and a tiny dynamics model on random actions of
the system that is controlled. Draws plans with every composition, and executes their actions in open loop and in closed
loop. Writes docs/maze.md and docs/maze.png. About 15 minutes on one core.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes

from experiments import pages
from experiments.figures import COLORS, plt, save, use_small_style
from experiments.systems import Car, Pendulum, System, demonstrations, play
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.normalizer import Normalizer
from mpdiffuser.sampler import Sampler, SamplerConfig
from mpdiffuser.schedule import NoiseSchedule

HORIZON = 32
DEMONSTRATIONS, EPISODES = 40, 2000
CHUNK, STEPS = 8, 64  # in closed loop: actions to execute of each plan, and steps of a run
LEVELS = (100, 50, 20, 10, 5, 3)
RUNS = {  # composition, solver, power of the dynamics' weight
    "planner": ("planner", "dpmpp_2m", 0.5),
    "sequential": ("sequential", "dpmpp_2m", 0.5),
    "joint": ("joint", "dpmpp_2m", 0.5),
    "fused, p = 0.5": ("fused", "dpmpp_2m", 0.5),
    "fused, p = 2": ("fused", "dpmpp_2m", 2.0),
    "fused, p = 2, ddpm": ("fused", "ddpm", 2.0),
    "release": ("release", "ddpm", 0.5),
}
SHOWN = ("planner", "sequential", "release", "fused, p = 0.5")
SCHEDULE = NoiseSchedule(100)


@dataclass(frozen=True)
class Learned:
    """A system, the models that were trained for it, and the normalisers of states and actions."""

    system: System
    planner: Planner
    dynamics: Dynamics
    latents: Normalizer
    actions: Normalizer

    def sampler(self, temperature: float = 0.5, **config) -> Sampler:
        low, high = (torch.cat(pair) for pair in zip(self.latents.bounds(), self.actions.bounds()))
        return Sampler(
            self.planner, self.dynamics, SCHEDULE, low, high, SamplerConfig(temperature=temperature, **config)
        )

    def plans(
        self, sampler: Sampler, present: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States (B, H, d) and actions (B, H, m) of plans from present states (B, d)."""
        d, m = self.system.latent_dim, self.system.action_dim
        noise = lambda: torch.randn(len(present), HORIZON, d + m, generator=generator)  # noqa: E731
        x = sampler(self.latents.normalize(present), torch.zeros(len(present), 1), noise)
        return self.latents.denormalize(x[..., :d]), self.actions.denormalize(x[..., d:])

    def arrives(self, sampler: Sampler, z: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Whether runs of STEPS from states z (B, d), with a new plan every CHUNK steps, reach the goal: (B,)."""
        arrived = torch.zeros(len(z), dtype=torch.bool)
        for _ in range(0, STEPS, CHUNK):
            actions = self.plans(sampler, z, generator)[1]
            for k in range(CHUNK):
                z = self.system.step(z, actions[:, k])
                arrived |= self.system.reached(z)
        return arrived

    def executed(self, present: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """The states (B, H, d) that actions (B, H, m) lead to from the present states (B, d), in open loop."""
        states = [present]
        for k in range(actions.shape[1] - 1):
            states.append(self.system.step(states[-1], actions[:, k]))
        return torch.stack(states, 1)


def train(
    model: Planner | Dynamics, states: torch.Tensor, actions: torch.Tensor, steps: int, seed: int
) -> Planner | Dynamics:
    """Fit on random windows of normalised states (E, L, d) and actions (E, L, m); Adam, cosine decay."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: (1 + math.cos(math.pi * k / steps)) / 2)
    ones = torch.ones(64, HORIZON)
    for _ in range(steps):
        episode = torch.randint(len(states), (64, 1), generator=generator)
        rows = torch.randint(states.shape[1] - HORIZON + 1, (64, 1), generator=generator) + torch.arange(HORIZON)
        batch = {"latents": states[episode, rows], "actions": actions[episode, rows], "mask": ones}
        batch |= {"action_mask": ones, "condition": torch.zeros(64, 1)}
        optimizer.zero_grad()
        model.loss(batch, model.draw(64, SCHEDULE, generator), SCHEDULE)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def learn(system: System, shown_by: System, steps: int, seed: int = 0, width: int = 32) -> Learned:
    """Train a planner on few demonstrations of another system, and a dynamics model, twice as long, on many random
    episodes of this one."""
    torch.manual_seed(seed)
    good, random = demonstrations(shown_by, DEMONSTRATIONS, 48, seed), play(system, EPISODES, 48, seed + 1)
    both = [torch.cat(pair) for pair in zip(good, random)]
    normalizers = [Normalizer(part.shape[-1]).fit(part.flatten(0, 1).numpy()) for part in both]
    sizes = (system.latent_dim, system.action_dim, HORIZON)
    net = dict(width=width, multipliers=(1, 2), embedding=64)
    planner, dynamics = Planner(*sizes, **net), Dynamics(*sizes, **net)
    latents, actions = normalizers
    planner.actions.load_state_dict(actions.state_dict())
    train(planner, latents.normalize(good[0]), actions.normalize(good[1]), steps, seed)
    train(dynamics, latents.normalize(random[0]), actions.normalize(random[1]), 2 * steps, seed + 1)
    return Learned(system, planner, dynamics, latents, actions)


@dataclass(frozen=True)
class Outcome:
    """Means over plans, each with its standard error.

    one_step: root mean square of planned z_{k+1} - f(planned z_k, u_k), in deviations of the data. drift: root mean
    square distance of the planned last state from the one that the actions lead to in open loop, in the same unit.
    planned: share of plans that end at the goal. arrived: share of runs in closed loop that reach it.
    """

    one_step: tuple[float, float]
    drift: tuple[float, float]
    planned: tuple[float, float]
    arrived: tuple[float, float]


def outcome(learned: Learned, states: torch.Tensor, actions: torch.Tensor, arrived: torch.Tensor) -> Outcome:
    """The outcome of plans, states (B, H, d) and actions (B, H, m), and of runs that arrived or not, (B,)."""
    system, std = learned.system, learned.latents.std
    following = system.step(states[:, :-1].flatten(0, 1), actions[:, :-1].flatten(0, 1)).view_as(states[:, 1:])
    executed = learned.executed(states[:, 0], actions)
    one_step = ((states[:, 1:] - following) / std).square().mean((1, 2)).sqrt()
    drift = ((states[:, -1] - executed[:, -1]) / std).square().mean(1).sqrt()
    values = (one_step, drift, system.reached(states[:, -1]).float(), arrived.float())
    return Outcome(*((float(v.mean()), float(v.std() / len(v) ** 0.5)) for v in values))


def trial(learned: Learned, count: int, seed: int, **config) -> Outcome:
    """The outcome of `count` plans, and of as many runs, from new starts."""
    generator = torch.Generator().manual_seed(seed)
    sampler, present = learned.sampler(**config), learned.system.start(count, generator)
    plans = learned.plans(sampler, present, generator)
    return outcome(learned, *plans, learned.arrives(sampler, present, generator))


Outcomes = dict[tuple[str, int], Outcome]  # by composition and number of levels


def measure(learned: Learned, count: int) -> Outcomes:
    """Every composition at every number of levels, from the same starts."""
    keys = [(name, levels) for name in RUNS for levels in LEVELS]
    return {key: trial(learned, count, seed=1000, **settings(*key)) for key in keys}


def settings(name: str, levels: int) -> dict[str, Any]:
    composition, solver, power = RUNS[name]
    return dict(composition=composition, solver=solver, dynamics_power=power, steps=levels)


def figure(both: list[tuple[Learned, Outcomes]], file: Path) -> None:
    """A row of plans for each system, and a row of feasibility errors."""
    use_small_style()
    fig, axes = plt.subplots(3, 4, figsize=(12, 8.6))
    for row, (learned, _) in zip(axes, both):
        for axis, name in zip(row, SHOWN):
            levels = 10 if 10 in LEVELS else LEVELS[0]
            generator = torch.Generator().manual_seed(2000)
            present = learned.system.start(6, generator)
            states, actions = learned.plans(learned.sampler(**settings(name, levels)), present, generator)
            _draw(axis, learned.system, states, learned.executed(states[:, 0], actions))
            axis.set_title(f"{learned.system.name}: {name}, {levels} levels")
    axes[0, 0].legend(fontsize=7.5, loc="center left")
    for i, (learned, outcomes) in enumerate(both):
        for axis, measure_name in zip(axes[2, 2 * i : 2 * i + 2], WORDS):
            for name, (composition, solver, power) in RUNS.items():
                values = [getattr(outcomes[name, n], measure_name)[0] for n in LEVELS]
                style = ":" if power == 0.5 and composition == "fused" else "-" if solver == "dpmpp_2m" else "--"
                axis.plot(LEVELS, values, f"o{style}", ms=3, color=COLORS[composition], label=name)
            axis.set(title=f"{learned.system.name}: {WORDS[measure_name]}", xlabel="levels", xscale="log", yscale="log")
            axis.set_xticks(LEVELS, [str(n) for n in LEVELS])
            axis.xaxis.minorticks_off()
    axes[2, 0].legend(fontsize=6.5)
    save(fig, file)


WORDS = {"one_step": "one-step error", "drift": "drift at the end"}


def _draw(axis: Axes, system: System, planned: torch.Tensor, executed: torch.Tensor) -> None:
    """States (B, H, d) as planned and as executed."""
    for i, (plan, real) in enumerate(zip(planned, executed)):
        labels = ("planned", "executed") if i == 0 else (None, None)
        for states, style, label in ((plan, "-", labels[0]), (real, ":", labels[1])):
            if isinstance(system, Car):
                axis.plot(states[:, 0], states[:, 1], style, color=f"C{i}", lw=1.3, label=label)
            else:
                upright = torch.atan2(states[:, 1], states[:, 0]).abs()
                axis.plot(range(HORIZON), upright, style, color=f"C{i}", lw=1.3, label=label)
    if isinstance(system, Car):
        right, half = system.wall
        axis.add_patch(plt.Rectangle((-1, -half), right + 1, 2 * half, color="0.6"))
        axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
    else:
        axis.set(xlabel="step", ylabel="|angle from upright|", ylim=(0, math.pi + 0.1))


def page(both: list[tuple[Learned, Outcomes]], steps: int, count: int) -> str:
    """docs/maze.md"""
    facts = {"steps": steps, "count": count, "demonstrations": DEMONSTRATIONS, "episodes": EPISODES}
    parts = [HEAD.format(written_by=pages.written_by("maze"), **facts, run=STEPS, chunk=CHUNK)]
    for learned, outcomes in both:
        rows = [[name, *(cell(outcomes[name, n]) for n in LEVELS)] for name in RUNS]
        shares = [o.one_step[1] / o.one_step[0] for o in outcomes.values()]
        drift, arrived = (max(getattr(o, name)[1] for o in outcomes.values()) for name in ("drift", "arrived"))
        parts += [
            f"## {learned.system.name}\n",
            pages.table(["composition", *LEVELS], rows),
            f"Standard errors over plans at most {100 * max(shares):.0f} % of the one-step error, {drift:.2f} of the "
            f"drift and {100 * arrived:.0f} of the shares.\n",
        ]
    return "\n".join(parts)


def cell(o: Outcome) -> str:
    return f"{o.one_step[0]:.3f} / {o.drift[0]:.2f} / {100 * o.planned[0]:.0f} / {100 * o.arrived[0]:.0f}"


HEAD = """# Learned models in two dimensions

{written_by}, one used. One training seed.

The planner was trained on {demonstrations} demonstrations of a stronger system, the dynamics model on {episodes}
episodes of random actions of the system that is controlled. That system turns 0.85 times as sharply (car) or pushes 0.9
times as hard (pendulum). Training: {steps} steps of batch 64 for the planner, twice as many for the dynamics model;
horizon 32. Plans: {count} from new starts; grid uniform in log-SNR, DPM-Solver++ 2M where not said otherwise (release:
ddpm), temperature 0.5, no guidance.

Columns are numbers of noise levels, rows are compositions ([Theory](theory.md#the-compositions)). Each cell has four
figures: the one-step error of the plan (root mean square, in deviations of the data); its drift, the distance of the
last planned state from where the plan's actions lead in open loop; the percentage of plans that end at the goal; and
the percentage of runs of {run} steps, with a new plan every {chunk}, that reach the goal.

![Plans and executed trajectories](maze.png)
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--output", type=Path, default=pages.DOCS, help="folder of the page and the figure")
    parser.add_argument("--steps", type=int, default=1200, help="of training, for each model")
    parser.add_argument("--plans", type=int, default=64, help="for each measurement")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    both = []
    for system, stronger in ((Car(turn=0.425), Car(turn=0.5)), (Pendulum(torque=2.25), Pendulum(torque=2.5))):
        learned = learn(system, stronger, args.steps)
        both.append((learned, measure(learned, args.plans)))
    figure(both, args.output / "maze.png")
    (args.output / "maze.md").write_text(page(both, args.steps, args.plans))
    print(f"{args.output / 'maze.md'}\n{args.output / 'maze.png'}")


if __name__ == "__main__":
    main()
