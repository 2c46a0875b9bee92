"""Learned models of the two systems: outcomes of known plans, training, and the command at tiny size."""

import pytest
import torch

from experiments import maze
from experiments.maze import Learned, learn, outcome
from experiments.systems import Car, Pendulum, demonstrations, play
from mpdiffuser.models.denoisers import Dynamics

pytestmark = pytest.mark.slow  # make quick leaves evidence and drills out

CAR, PENDULUM = Car(), Pendulum()


def test_the_outcome_of_true_and_of_wrong_plans() -> None:
    learned: Learned = learn(CAR, CAR, steps=1, width=8)
    states, actions = demonstrations(CAR, 40, 32, 5)
    arrived = torch.arange(40) < 10
    true = outcome(learned, states, actions, arrived)
    assert true.one_step == true.drift == pytest.approx((0, 0), abs=1e-6)
    assert true.planned[0] > 0.8 and true.arrived[0] == 0.25
    shifted = states.clone()
    shifted[:, -1, 0] += learned.latents.std[0]  # one deviation in one of 4 dimensions, in one of 31 steps
    wrong = outcome(learned, shifted, actions, arrived)
    assert wrong.drift[0] == pytest.approx(0.5, rel=1e-4)
    assert wrong.one_step[0] == pytest.approx((1 / 31 / 4) ** 0.5, rel=1e-4)
    assert wrong.planned[0] < 0.1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_runs_in_closed_loop_arrive_if_the_plans_are_right(share: float) -> None:
    class Told(Learned):
        """Plans what the demonstrator does, or a share of it."""

        def plans(self, sampler, present, generator):
            z, taken = present, []
            for _ in range(maze.HORIZON):
                taken.append(share * CAR.policy(z))
                z = CAR.step(z, taken[-1])
            return z, torch.stack(taken, 1)

    told = Told(**vars(learn(CAR, CAR, steps=1, width=8)))
    generator = torch.Generator().manual_seed(0)
    arrived = told.arrives(told.sampler(steps=1), CAR.start(20, generator), generator)
    assert arrived.float().mean() == share


def test_training_learns_the_system() -> None:
    states, actions = play(PENDULUM, 300, 40, 0)
    torch.manual_seed(0)
    model = Dynamics(3, 1, maze.HORIZON, width=8, multipliers=(1, 2), embedding=16)
    held_out = dict(
        zip(("latents", "actions"), play(PENDULUM, 100, maze.HORIZON, 1)), mask=torch.ones(100, maze.HORIZON)
    )
    random = model.draw(100, maze.SCHEDULE, torch.Generator().manual_seed(0))
    losses = []
    for steps in (1, 120):
        maze.train(model, states, actions, steps, seed=0)
        with torch.no_grad():
            losses.append(model.loss(held_out, random, maze.SCHEDULE)["loss"].item())
    assert losses[1] < 0.8 * losses[0]


def test_the_command_writes_its_table(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(maze, "LEVELS", (4, 2))
    maze.main(["--steps", "2", "--plans", "4", "--output", str(tmp_path)])
    text = (tmp_path / "maze.md").read_text()
    assert str(tmp_path / "maze.png") in capsys.readouterr().out
    assert "## car" in text and "## pendulum" in text and "2 steps of batch" in text
    assert sum(line.startswith("| release |") for line in text.splitlines()) == 2
    assert (tmp_path / "maze.png").stat().st_size > 10_000
