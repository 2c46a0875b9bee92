"""The denoisers: saving, losses and random numbers against plain loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner, hold
from mpdiffuser.schedule import PREDICTIONS, NoiseSchedule

D, M, H = 3, 2, 8
SIZES = dict(latent_dim=D, action_dim=M, horizon=H, width=8, multipliers=(1, 2), embedding=16)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of_windows(batch: int = 4, valid: int = H) -> dict[str, torch.Tensor]:
    """Windows whose first `valid` rows are real; no action is taken at the last of them."""
    rows = torch.arange(H).expand(batch, H)
    return {
        "latents": normal(batch, H, D, seed=1),
        "actions": normal(batch, H, M, seed=2),
        "mask": (rows < valid).float(),
        "action_mask": (rows < valid - 1).float(),
        "condition": normal(batch, 1, seed=3),
    }


@pytest.mark.parametrize("kind", [Planner, Dynamics])
def test_other_sizes_that_cannot_be(kind: type) -> None:
    with pytest.raises(InputError, match=r"prediction: must be one of epsilon, sample, v_prediction.*'noise'"):
        kind(**SIZES, prediction="noise")
    with pytest.raises(InputError, match=r"width: must be a multiple of 8.*found 12"):
        kind(**{**SIZES, "width": 12})


@pytest.mark.parametrize("kind", [Planner, Dynamics])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("valid", [2, 5, H])
def test_denoising_loss_by_hand(randomize, kind: type, prediction: str, valid: int) -> None:
    schedule = NoiseSchedule(100)
    model = randomize(kind(**SIZES, prediction=prediction, **({"bounded": False} if kind is Planner else {})))
    batch = batch_of_windows(valid=valid)
    random = model.draw(4, schedule, torch.Generator().manual_seed(0))
    levels, noise = random["levels"], random["noise"]
    clean = torch.cat([batch["latents"], batch["actions"]], -1)
    alpha = schedule.alpha_bar[levels].sqrt().float()[:, None, None]
    sigma = (1 - schedule.alpha_bar[levels]).sqrt().float()[:, None, None]
    noisy = alpha * clean + sigma * noise
    noisy[:, 0, :D] = clean[:, 0, :D]
    with torch.no_grad():
        inputs = (batch["condition"], random["keep"]) if kind is Planner else ()
        output = model(noisy, levels, *inputs)
        found = model.loss(batch, random, schedule)["loss"].item()
    wanted = {"epsilon": noise, "sample": clean, "v_prediction": alpha * noise - sigma * clean}[prediction]
    channels = D + M if kind is Planner else D
    per_window = []
    for b in range(4):
        total = weights = 0.0
        for k in range(H):
            for c in range(channels):
                weight = float(0 < k < valid) if c < D else float(k < valid - 1) * (50.0 if k == 0 else 1.0)
                total += weight * (output[b, k, c] - wanted[b, k, c]).item() ** 2
                weights += weight
        per_window.append(total / weights)
    assert found == pytest.approx(sum(per_window) / 4, rel=1e-4)


def bounded_planner(prediction: str, **fitted: list[float]) -> Planner:
    planner = Planner(**SIZES, prediction=prediction)
    for name, value in fitted.items():
        getattr(planner.actions, name).data = torch.tensor(value)
    return planner


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_bounded_actions(prediction: str) -> None:
    """States as without a bound, actions inside -1..1; increasing in the unbounded estimate; a policy at pure noise."""
    schedule, scale = NoiseSchedule(100), {"mean": [0.3, -0.5], "std": [0.4, 0.8]}
    planner = bounded_planner(prediction, **scale)
    levels = torch.arange(100)
    noisy, output = 2 * normal(100, H, D + M), 3 * normal(100, H, D + M, seed=1)
    linear = schedule.to_clean(prediction, output, noisy, levels)
    found = planner.to_clean(output, noisy, levels, schedule)
    assert torch.equal(found[..., :D], linear[..., :D])
    actions = planner.actions.denormalize(found[..., D:])
    assert actions.abs().max() <= 1 + 1e-6
    step = schedule.to_clean(prediction, output + 1e-2, noisy, levels) - linear
    more = planner.actions.denormalize(planner.to_clean(output + 1e-2, noisy, levels, schedule)[..., D:])
    assert ((more - actions) * step[..., D:].sign() >= 0).all()
    if prediction == "v_prediction":
        top = planner.actions.mean.atanh() - planner.actions.std * output[-1, :, D:]
        torch.testing.assert_close(actions[-1], torch.tanh(top), rtol=0, atol=2e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_bounded_estimate_keeps_clean_actions(prediction: str) -> None:
    """With a zero output the estimate at the lowest level is the noisy trajectory, also near the bounds."""
    planner, schedule = bounded_planner(prediction, mean=[0.2, 0.0], std=[0.5, 0.7]), NoiseSchedule(1000)
    actions = torch.linspace(-1, 1, 2 * H).view(1, H, 2)
    x = torch.cat([normal(1, H, D), planner.actions.normalize(actions)], -1)
    clean = planner.to_clean(torch.zeros_like(x), x, torch.zeros(1, dtype=torch.long), schedule)
    torch.testing.assert_close(planner.actions.denormalize(clean[..., D:]), actions, rtol=0, atol=2e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_of_a_bounded_planner_by_hand(randomize, prediction: str) -> None:
    """The unbounded loss with the error of the bounded estimate, in units of the output."""
    schedule, planner = NoiseSchedule(100, "linear"), randomize(bounded_planner(prediction))
    batch, random = batch_of_windows(), planner.draw(4, schedule, torch.Generator().manual_seed(0))
    batch["actions"] = batch["actions"].clamp(-1, 1)
    clean = torch.cat([batch["latents"], batch["actions"]], -1)
    noisy = hold(schedule.add_noise(clean, random["noise"], random["levels"]), clean[:, 0, :D])
    total = 0.0
    with torch.no_grad():
        estimate = planner.to_clean(
            planner(noisy, random["levels"], batch["condition"], random["keep"]), noisy, random["levels"], schedule
        )
        for b, level in enumerate(random["levels"].tolist()):
            alpha, sigma = float(schedule.alphas[level]), float(schedule.sigmas[level])
            unit = {"epsilon": alpha / sigma, "sample": 1.0, "v_prediction": 1 / sigma}[prediction]
            error = (unit * (estimate[b] - clean[b])) ** 2
            weight = torch.ones(H, D + M)
            weight[0, :D], weight[0, D:], weight[-1, D:] = 0, 50, 0
            total += float((weight * error).sum() / weight.sum()) / 4
    assert planner.loss(batch, random, schedule)["loss"].item() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("kind", [Planner, Dynamics])
def test_padded_rows_are_no_targets(kind: type) -> None:
    schedule, valid = NoiseSchedule(100), 5
    model = kind(**SIZES)  # fresh, its output is the same whatever it sees, so only targets matter
    batch = batch_of_windows(valid=valid)
    random = model.draw(4, schedule, torch.Generator().manual_seed(0))
    loss = model.loss(batch, random, schedule)["loss"]
    padded = {**batch, "latents": batch["latents"].clone(), "actions": batch["actions"].clone()}
    padded["latents"][:, valid:] += 5
    padded["actions"][:, valid - 1 :] += 5
    assert torch.equal(model.loss(padded, random, schedule)["loss"], loss)
    padded["latents"][:, valid - 1] += 5
    assert model.loss(padded, random, schedule)["loss"] > loss + 0.1


def test_dropped_conditions_do_not_matter(randomize) -> None:
    planner = randomize(Planner(**SIZES))
    x, levels = normal(2, H, D + M), torch.tensor([3, 50])
    for keep, same in ((torch.zeros(2), True), (torch.ones(2), False)):
        outputs = [planner(x, levels, condition, keep) for condition in (normal(2, 1), normal(2, 1, seed=9))]
        assert torch.equal(*outputs) == same
    free, zero = (planner(x, levels, torch.zeros(2, 1), keep) for keep in (torch.zeros(2), torch.ones(2)))
    assert not torch.allclose(free, zero)  # "no target" is not "the target 0"


def test_entries_of_a_goal_that_do_not_count_have_no_effect(randomize) -> None:
    planner = randomize(Planner(3, 1, horizon=4, width=8, embedding=16, goal_dim=3, goal_entries=[2, 0])).eval()
    x, condition, levels, keep = torch.randn(5, 4, 4), torch.randn(5, 4), torch.arange(5), torch.ones(5)
    found = planner(x, levels, condition, keep)
    for entry, counts in ((0, True), (1, True), (2, False), (3, True)):  # the target, then the goal
        changed = condition.clone()
        changed[:, entry] += 1
        assert torch.equal(planner(x, levels, changed, keep), found) != counts


def test_share_of_dropped_conditions() -> None:
    keep = Planner(**SIZES, dropout=0.25).draw(20_000, NoiseSchedule(100), torch.Generator().manual_seed(0))["keep"]
    assert set(keep.tolist()) == {0.0, 1.0}
    assert keep.mean().item() == pytest.approx(0.75, abs=0.01)


def test_draw_covers_all_levels_and_repeats() -> None:
    model, schedule = Dynamics(**SIZES), NoiseSchedule(10)
    first, second = (model.draw(500, schedule, torch.Generator().manual_seed(4)) for _ in range(2))
    assert set(first["levels"].tolist()) == set(range(10))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_levels_are_the_highest_of_several_draws(draws: int) -> None:
    """Of n even draws from 0..T-1 the highest is at most t with probability ((t + 1) / T)^n."""
    planner, schedule = Planner(**SIZES, level_draws=draws), NoiseSchedule(10)
    levels = planner.draw(50_000, schedule, torch.Generator().manual_seed(3))["levels"]
    for t in range(10):
        assert (levels <= t).float().mean().item() == pytest.approx(((t + 1) / 10) ** draws, abs=0.01)
    with pytest.raises(InputError, match=r"planner\.level_draws: must be at least 1, found 0"):
        Planner(**SIZES, level_draws=0)


@given(st.integers(2, 6), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.data())
def test_hold_puts_what_is_known_in_its_place(horizon: int, d: int, m: int, with_goal: bool, data) -> None:
    count = data.draw(st.integers(0, horizon))
    x, present, goal = normal(2, horizon, d + m), normal(2, d, seed=1), normal(2, d, seed=2)
    committed = normal(2, count, m, seed=3)
    before = x.clone()
    held = hold(x, present, goal if with_goal else None, committed if count else None)
    assert torch.equal(x, before)
    for k in range(horizon):
        state = present if k == 0 else goal if with_goal and k == horizon - 1 else x[:, k, :d]
        assert torch.equal(held[:, k, :d], state)
        assert torch.equal(held[:, k, d:], committed[:, k] if k < count else x[:, k, d:])


@pytest.mark.parametrize("valid", [3, H])
def test_loss_of_a_dynamics_model_that_hears_by_hand(randomize, valid: int) -> None:
    """States and actions are targets where they are seen; what is hidden is 0 in the input, but for z_0."""
    schedule = NoiseSchedule(100)
    model = randomize(Dynamics(**SIZES, hears=True))
    batch = batch_of_windows(valid=valid)
    random = model.draw(4, schedule, torch.Generator().manual_seed(0))
    random["seen"] = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    clean = torch.cat([batch["latents"], batch["actions"]], -1)
    alpha = schedule.alpha_bar[random["levels"]].sqrt().float()[:, None, None]
    sigma = (1 - schedule.alpha_bar[random["levels"]]).sqrt().float()[:, None, None]
    noisy, target = alpha * clean + sigma * random["noise"], alpha * random["noise"] - sigma * clean
    losses = []
    for b, (states, actions) in enumerate(random["seen"].tolist()):
        noisy[b, :, :D] *= states
        noisy[b, :, D:] *= actions
        noisy[b, 0, :D] = clean[b, 0, :D]
        with torch.no_grad():
            row = model(noisy[b : b + 1], random["levels"][b : b + 1], random["seen"][b : b + 1])[0]
        total = weights = 0.0
        for k in range(H):
            for c in range(D + M):
                weight = states * (0 < k < valid) if c < D else actions * (k < valid - 1)
                total += weight * (row[k, c] - target[b, k, c]).item() ** 2
                weights += weight
        losses.append(total / weights)
    with torch.no_grad():
        assert model.loss(batch, random, schedule)["loss"].item() == pytest.approx(sum(losses) / 4, rel=1e-4)


def test_what_is_hidden_in_training() -> None:
    """Both parts are seen in half of the examples; one of them is, in a quarter each."""
    seen = Dynamics(**SIZES, hears=True).draw(4000, NoiseSchedule(100), torch.Generator().manual_seed(0))["seen"]
    shares = [(seen == torch.tensor(kind)).all(1).float().mean() for kind in ([1, 1], [0, 1], [1, 0], [0, 0])]
    assert shares[3] == 0 and [float(share) for share in shares[:3]] == pytest.approx([0.5, 0.25, 0.25], abs=0.03)
