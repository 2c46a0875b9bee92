"""Adaptation against an oracle: a linear robot whose changes are known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpdiffuser.action_scale import ActionMap
from mpdiffuser.adaptation import Misfit, Steps, _fitted, choose, fit, pieces, saturation, warnings
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.models.forward import ForwardModel
from mpdiffuser.record import DECLARED, Actions
from mpdiffuser.windows import step_rows

D, M = 4, 3
EFFECT = np.array([[0.3, 0.0, 0.1, 0.0], [0.0, 0.3, 0.0, 0.1], [0.1, 0.0, 0.0, 0.3]])


def play(
    gain: np.ndarray, bias: np.ndarray, seed: int = 0, episodes: int = 6, steps: int = 100, most: float = np.inf
) -> Episodes:
    """z' = .95 z + (A u + b) EFFECT + noise, from random actions; A u + b ends at `most`."""
    random = np.random.default_rng(seed)
    states = np.zeros((episodes, steps + 1, D), np.float32)
    actions = random.uniform(-1, 1, (episodes, steps + 1, M)).astype(np.float32)
    for t in range(steps):
        push = (actions[:, t] @ gain.T + bias).clip(-most, most) @ EFFECT
        states[:, t + 1] = 0.95 * states[:, t] + push + 0.01 * random.normal(size=(episodes, D))
    actions[:, -1] = 0
    rows = episodes * (steps + 1)
    flags = np.zeros(rows, bool)
    arrays = {"observations": states.reshape(rows, D), "actions": actions.reshape(rows, M)}
    arrays |= {"rewards": np.zeros(rows, np.float32), "terminations": flags, "truncations": flags}
    return Episodes(arrays, np.arange(episodes + 1) * (steps + 1))


@pytest.fixture(scope="module")
def forward() -> ForwardModel:
    """The forward model of the nominal robot, trained for a second or two."""
    torch.manual_seed(0)
    data = play(np.eye(M), np.zeros(M), 1, 30)
    model, rows = ForwardModel(D, M, hidden=64), step_rows(data)
    model.latents.fit(data["observations"])
    model.changes.fit(data["observations"][rows + 1] - data["observations"][rows])
    z, u, after = (torch.from_numpy(x) for x in (data["observations"], data["actions"], data["observations"][1:]))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    for step in range(600):
        if step == 400:
            optimizer.param_groups[0]["lr"] = 3e-4
        batch = torch.from_numpy(rows[np.random.default_rng(step).integers(len(rows), size=256)])
        loss = model.errors(z[batch], u[batch], after[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02
    return model.requires_grad_(False).eval()


WEAK = 0.6 * np.eye(M), np.zeros(M)
GAINS = np.diag([0.5, 1.4, 0.8]), np.zeros(M)
BIASED = np.diag([0.5, 1.4, 0.8]), np.array([0.3, 0.0, -0.3])
MATRIX = np.array([[0.8, 0.3, 0.0], [-0.3, 0.8, 0.0], [0.2, 0.0, 1.2]]), np.array([0.0, 0.1, 0.0])


@pytest.mark.parametrize(
    ("form", "truth"), [("one gain", WEAK), ("gains", GAINS), ("gains and biases", BIASED), ("matrix", MATRIX)]
)
def test_the_difference_is_found(forward: ForwardModel, form: str, truth: tuple[np.ndarray, np.ndarray]) -> None:
    train, held_out = (Steps.of(play(*truth, seed)) for seed in (2, 3))
    change, found = choose(forward, train, held_out)
    assert found["form"] == form
    np.testing.assert_allclose(change.matrix, truth[0], atol=0.08)
    np.testing.assert_allclose(change.bias, truth[1], atol=0.08)
    assert found["errors"][form] < 0.5 * found["errors"]["identity"]


def test_steps_beyond_the_nominal_bounds_do_not_count(forward: ForwardModel) -> None:
    """What follows them shows an effect that ends at the bounds; the whole gains are found all the same."""
    gain = np.diag([1.5, 1.2, 1.9])
    train, held_out = (Steps.of(play(gain, np.zeros(M), seed, most=1.0)) for seed in (6, 7))
    units = torch.eye(M * M).view(-1, M, M)[:: M + 1]
    once = np.diag(np.array(_fitted(Misfit(forward, train), train, units, False).matrix))
    change, found = choose(forward, train, held_out)
    assert found["form"] == "gains" and (once[[0, 2]] < np.diag(gain)[[0, 2]] - 0.04).all()
    np.testing.assert_allclose(np.diag(np.array(change.matrix)), np.diag(gain), atol=0.08)


def test_nothing_changed(forward: ForwardModel) -> None:
    """The actions stay as they are, in most of ten plays."""
    forms = []
    for seed in range(10, 20):
        parts = [Steps.of(play(np.eye(M), np.zeros(M), seed + 100 * part)) for part in (0, 1)]
        forms.append(choose(forward, *parts)[1]["form"])
    assert forms.count("identity") >= 6, forms
    change = fit(Misfit(forward, parts[0]), parts[0], "matrix")
    np.testing.assert_allclose(change.matrix, np.eye(M), atol=0.06)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 250), min_size=1, max_size=6), st.integers(1, 40))
def test_pieces(lengths: list[int], horizon: int) -> None:
    """Each step is in one piece, in its order."""
    rows = sum(lengths) + len(lengths)
    counted = np.arange(rows, dtype=np.float32)
    flags, offsets = np.zeros(rows, bool), np.cumsum([0, *(length + 1 for length in lengths)])
    arrays = {"observations": counted[:, None], "actions": counted[:, None], "rewards": counted}
    whole = Episodes(arrays | {"terminations": flags, "truncations": flags}, offsets)
    found = pieces(whole, horizon)
    steps = step_rows(found)
    assert found["rewards"][steps].tolist() == step_rows(whole).tolist()
    assert (found["rewards"][steps + 1] == found["rewards"][steps] + 1).all()
    assert found.lengths.max() <= max(100, horizon) and len(found) >= min(20, sum(lengths) // horizon // 2)


def test_few_steps_change_little(forward: ForwardModel) -> None:
    """With two steps the prior keeps the map near to the identity."""
    few = Steps.of(play(*GAINS, 5, episodes=1, steps=2))
    many = Steps.of(play(*GAINS, 5))
    maps = [fit(Misfit(forward, steps), steps, "matrix") for steps in (few, many)]
    near, far = (np.abs(np.array(change.matrix) - np.eye(M)).max() for change in maps)
    assert near < 0.7 * far


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_the_scale_of_a_changed_robot(seed: int) -> None:
    """An executed action has the effect of the planned one, unless it is beyond the bounds; both ways, numpy, torch."""
    random = np.random.default_rng(seed)
    change = ActionMap.of(np.eye(M) + 0.3 * random.normal(size=(M, M)) / M, 0.1 * random.normal(size=M))
    low = random.uniform(-50, 0, M)
    bounds = Actions(tuple(low.tolist()), tuple((low + random.uniform(1, 50, M)).tolist()), DECLARED)
    scale, plain = bounds.scale(change), bounds.scale()
    planned = random.uniform(-1.2, 1.2, (20, M))
    executed = scale.to_data(planned)
    assert (executed >= np.array(bounds.low) - 1e-9).all() and (executed <= np.array(bounds.high) + 1e-9).all()
    effect = plain.to_unit(executed) @ np.array(change.matrix).T + np.array(change.bias)
    inside = (np.abs(plain.to_unit(executed)) < 1 - 1e-9).all(1)
    np.testing.assert_allclose(effect[inside], planned[inside], atol=1e-9)
    np.testing.assert_allclose(scale.to_unit(executed), effect, atol=1e-9)
    tensor = torch.from_numpy(planned)
    np.testing.assert_allclose(scale.to_data(tensor).numpy(), executed, atol=1e-9)
    np.testing.assert_allclose(scale.to_unit(torch.from_numpy(executed)).numpy(), effect, atol=1e-9)
    again = ActionMap.from_json({"map": change.to_json()}, "here")
    assert again == change


def test_a_robot_without_the_strength_is_told_of() -> None:
    weak = ActionMap.of(np.diag([0.4, 1.0, 1.3]), np.zeros(M))
    share = saturation(weak, np.zeros(M), np.full(M, 0.6))
    assert 0.4 < share[0] < 0.6 and (share[1:] == 0).all()
    (told,) = warnings(weak, share, ["hip", "knee", "foot"])
    assert told.startswith("action hip: its gain is 0.40; 5") and "lacks the strength" in told
    assert not warnings(ActionMap.identity(M), saturation(ActionMap.identity(M), np.zeros(M), np.ones(M)), [])


@pytest.mark.parametrize(
    "value",
    [None, {}, {"matrix": [[1.0]], "bias": [0.0, 1.0]}, {"matrix": [[0.0]], "bias": [0.0]},
     {"matrix": [[float("nan")]], "bias": [0.0]}, {"matrix": [["1"]], "bias": [0.0]}, {"matrix": 3, "bias": [1]}],
)  # fmt: skip
def test_maps_of_strangers(value: object) -> None:
    for adaptation in (value, {"map": value}):
        with pytest.raises(InputError, match=r"there: .*action map"):
            ActionMap.from_json(adaptation, "there")


def test_a_gain_of_nothing_can_be_undone() -> None:
    change = ActionMap.of(np.diag([1.0, 0.0, -0.5]), np.zeros(M))
    assert np.linalg.svd(np.array(change.matrix), compute_uv=False).min() >= 0.049
