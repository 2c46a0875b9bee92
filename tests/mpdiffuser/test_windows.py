"""Windows against plain loops over episodes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.windows import (
    GOALS,
    NextSteps,
    Steps,
    Windows,
    decayed_sums,
    occupancy,
    resample,
    split,
    split_indices,
    step_rows,
    to_go,
)


def slow_to_go(amounts: np.ndarray, offsets: np.ndarray, terminated: list[bool], discount: float) -> np.ndarray:
    """Each row's sum written out."""
    result = np.zeros(len(amounts))
    for start, stop, ends in zip(offsets[:-1], offsets[1:], terminated):
        steps = stop - start - 1
        for t in range(steps):
            weights = [discount**k for k in range(steps - t)]
            total = sum(w * float(amounts[start + t + k]) for k, w in enumerate(weights))
            result[start + t] = total * (1 - discount) if ends else total / sum(weights)
        result[stop - 1] = 0.0 if ends else result[stop - 2]
    return result


@given(
    st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.5, 0.97, 0.999]),
    st.integers(0, 1000),
)
def test_to_go(make_episodes, shapes: list[tuple[int, bool]], discount: float, seed: int) -> None:
    lengths, terminated = [n for n, _ in shapes], [ends for _, ends in shapes]
    episodes = make_episodes(lengths, terminated=np.flatnonzero(terminated), seed=seed)
    expected = slow_to_go(episodes["rewards"], episodes.offsets, terminated, discount)
    found = to_go(episodes["rewards"], episodes, discount)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_constant_reward_means_the_same_all_along_a_truncated_episode(make_episodes) -> None:
    episodes = make_episodes([30])
    episodes["rewards"][:-1] = 0.6
    np.testing.assert_allclose(to_go(episodes["rewards"], episodes, 0.95), 0.6, rtol=1e-6)


def n_step_mixture(
    amounts: np.ndarray, values: np.ndarray, terminated: bool, discount: float, trace: float
) -> np.ndarray:
    """One episode's TD(lambda) returns by their definition: n-step returns G_n, weighted (1 - lambda) lambda^(n - 1),
    the last with all the weight that is left."""
    steps = len(amounts) - 1
    result = np.zeros(len(amounts))
    result[steps] = 0.0 if terminated else values[steps]
    for t in range(steps):
        total, left = 0.0, 1.0
        for n in range(1, steps - t + 1):
            ends = t + n == steps
            beyond = 0.0 if ends and terminated else values[t + n]
            logged = (1 - discount) * sum(discount**k * amounts[t + k] for k in range(n))
            weight = left if ends else (1 - trace) * trace ** (n - 1)
            total += weight * (logged + discount**n * beyond)
            left -= weight
        result[t] = total
    return result


@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.6, 0.99]),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    st.integers(0, 1000),
)
def test_returns_completed_by_values(make_episodes, shapes, discount: float, trace: float, seed: int) -> None:
    lengths, terminated = [n for n, _ in shapes], [ends for _, ends in shapes]
    episodes = make_episodes(lengths, terminated=np.flatnonzero(terminated), seed=seed)
    values = np.random.default_rng(seed).normal(size=len(episodes["rewards"]))
    found = to_go(episodes["rewards"], episodes, discount, values, trace)
    for e, ends in enumerate(terminated):
        rows = episodes.rows(e)
        expected = n_step_mixture(episodes["rewards"][rows].astype(float), values[rows], ends, discount, trace)
        np.testing.assert_allclose(found[rows], expected, rtol=1e-4, atol=1e-5)


def test_the_true_value_completes_to_itself(make_episodes) -> None:
    """In a world of constant reward the value is that reward, whatever the trace."""
    episodes = make_episodes([6, 9])
    episodes["rewards"][:] = 0.6
    for trace in (0.0, 0.5, 1.0):
        found = to_go(episodes["rewards"], episodes, 0.9, np.full(17, 0.6), trace)
        np.testing.assert_allclose(found, 0.6, rtol=1e-6)


def targets_of(episodes) -> np.ndarray:
    return to_go(episodes["rewards"], episodes, 0.9)[:, None]


def fitted(episodes) -> tuple[Normalizer, Normalizer, Marginals]:
    latents, actions = (
        Normalizer(array.shape[1]).fit(array) for array in (episodes["observations"], episodes["actions"])
    )
    return latents, actions, Marginals(1).fit(targets_of(episodes))


@settings(max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.sampled_from([4, 8]), st.integers(1, 3))
def test_every_window(make_episodes, lengths: list[int], horizon: int, stride: int) -> None:
    episodes = make_episodes(lengths)
    normalizers = fitted(episodes)
    windows = Windows(episodes, targets_of(episodes), horizon, *normalizers, stride=stride)
    assert len(windows) == sum(lengths)
    batch = windows.batch(torch.arange(len(windows)))
    wanted = targets_of(episodes)
    scaled = [
        ((array - n.mean.numpy()) / n.std.numpy())
        for array, n in zip((episodes["observations"], episodes["actions"]), normalizers)
    ]
    scaled.append(normalizers[2].normalize(torch.from_numpy(wanted)).numpy())
    index = 0
    for e, steps in enumerate(lengths):
        first = episodes.offsets[e]
        for t in range(steps):
            for k in range(horizon):
                row = first + min(t + stride * k, steps)
                np.testing.assert_allclose(batch["latents"][index, k], scaled[0][row], rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(batch["actions"][index, k], scaled[1][row], rtol=1e-5, atol=1e-6)
                assert batch["mask"][index, k] == (t + stride * k <= steps)
                assert batch["action_mask"][index, k] == (t + stride * k < steps)
            np.testing.assert_allclose(batch["condition"][index], scaled[2][first + t], rtol=1e-5, atol=1e-6)
            index += 1


@given(st.lists(st.floats(1e-3, 50), min_size=1, max_size=60))
def test_resampling_in_proportion(weights: list[float]) -> None:
    count = np.bincount(resample(np.array(weights)), minlength=len(weights))
    due = len(weights) * np.array(weights) / sum(weights)
    assert count.sum() == len(weights)
    assert (np.abs(count - due) <= 1 + 1e-6).all()


def test_windows_of_twice_the_weight_are_there_twice_as_often(make_episodes) -> None:
    episodes = make_episodes([5, 3])
    weights = np.where(np.arange(10) < 6, 2.0, 1.0)  # of the first episode's rows
    windows = Windows(episodes, targets_of(episodes), 4, *fitted(episodes), np.r_[weights])
    assert len(windows) == 8
    assert (windows.starts < 6).sum() == 6  # 8 windows in shares 10 : 3 make 6.2 and 1.8
    assert set(windows.starts.tolist()) <= set(step_rows(episodes).tolist())
    plain = Windows(episodes, targets_of(episodes), 4, *fitted(episodes), np.full(10, 0.3))
    assert plain.starts.tolist() == step_rows(episodes).tolist()


def test_the_example_of_the_docstring(make_episodes) -> None:
    episodes = make_episodes([5], latent_dim=1)
    episodes["observations"][:, 0] = np.arange(6)
    windows = Windows(episodes, targets_of(episodes), 4, Normalizer(1), Normalizer(2), Marginals(1))
    batch = windows.batch(torch.tensor([0, 2, 4]))
    assert batch["latents"][..., 0].tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 5, 5]]
    assert batch["mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["action_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("distance", [1.0, 4.0, 60.0])
def test_a_goal_is_a_later_state_at_a_geometric_distance(make_episodes, distance: float) -> None:
    """P(k steps) = (1 - p)^(k - 1) p with p = 1 / distance; the last state of the episode has the rest."""
    lengths = [20] * 60
    episodes = make_episodes(lengths, latent_dim=1)
    episodes["observations"][:, 0] = np.arange(21 * 60)
    normalizers = Normalizer(1), Normalizer(2), Marginals(1)
    windows = Windows(episodes, targets_of(episodes), 4, *normalizers, goal_distance=distance)
    assert len(windows) == 60 * 20 * GOALS
    batch = windows.batch(torch.arange(len(windows)))
    start, goal = (rows.numpy().astype(int) for rows in (batch["latents"][:, 0, 0], batch["goal"][:, 0]))
    assert (start // 21 == goal // 21).all() and (goal > start).all()
    assert (np.bincount(start)[step_rows(episodes)] == GOALS).all()
    np.testing.assert_array_equal(windows.sources(torch.arange(len(windows))), start // 21)
    for left in (1, 7, 20):  # steps to the end of the episode
        found = np.bincount((goal - start)[20 - start % 21 == left], minlength=left + 1) / (60 * GOALS)
        expected = [
            0.0,
            *((1 - 1 / distance) ** k / distance for k in range(left - 1)),
            (1 - 1 / distance) ** (left - 1),
        ]
        np.testing.assert_allclose(found, expected, atol=0.06)  # 3.7 standard errors at 1 / 2


def test_step_rows(make_episodes) -> None:
    assert step_rows(make_episodes([2, 1, 3])).tolist() == [0, 1, 3, 5, 6, 7]


def test_steps_hold_what_the_episodes_hold(make_episodes) -> None:
    episodes = make_episodes([4, 3], costs=True, terminated=[0])
    costs = to_go(episodes["costs"], episodes, 0.9)
    steps = Steps(episodes, to_go(episodes["rewards"], episodes, 0.9), costs)
    batch = steps.batch(torch.tensor([3, 4, 6]))
    rows = [3, 5, 7]
    for key, name in (("observations", "latents"), ("actions", "actions"), ("rewards", "rewards"), ("costs", "costs")):
        np.testing.assert_array_equal(batch[name], episodes[key][rows])
    assert batch["continuations"].tolist() == [0, 1, 1]
    expected = slow_to_go(episodes["rewards"], episodes.offsets, [True, False], 0.9)[rows]
    np.testing.assert_allclose(batch["return_to_go"], expected, rtol=1e-5)
    assert len(steps) == 7


def test_the_next_action_is_unknown_at_the_last_step(make_episodes) -> None:
    episodes = make_episodes([3, 1])
    batch = NextSteps(episodes, np.zeros(6)).batch(torch.arange(4))
    assert batch["next_known"].tolist() == [1, 1, 0, 0]
    np.testing.assert_array_equal(batch["next_actions"][:2], episodes["actions"][[1, 2]])
    assert not batch["next_actions"][2:].any()
    np.testing.assert_array_equal(batch["next_latents"], episodes["observations"][[1, 2, 3, 5]])


def test_steps_in_proportion_to_their_weights(make_episodes) -> None:
    episodes = make_episodes([4, 3])
    weights = np.where(np.arange(9) == 2, 4.0, 0.5)  # one step has 4 of 7
    steps = Steps(episodes, np.arange(9, dtype=np.float32), weights=weights)
    found = np.bincount(steps.batch(torch.arange(7))["return_to_go"].int(), minlength=9)
    assert found[2] == 4 and found.max() == 4 and found.sum() == 7


@given(st.integers(2, 200), st.floats(0, 1), st.integers(0, 100))
def test_split_has_no_overlap(count: int, share: float, seed: int) -> None:
    train, held_out = split_indices(count, share, seed)
    assert sorted([*train, *held_out]) == list(range(count))
    assert min(len(train), len(held_out)) >= 1
    assert len(held_out) == min(max(round(share * count), 1), count - 1)
    again = split_indices(count, share, seed)
    assert all(np.array_equal(a, b) for a, b in zip((train, held_out), again))


def test_split_keeps_episodes_whole(make_episodes) -> None:
    episodes = make_episodes([3, 5, 2, 4])
    train, held_out = split(episodes, 0.25, 0)
    assert (len(train), len(held_out)) == (3, 1)
    seen = {tuple(part["observations"][part.rows(e)].ravel()) for part in (train, held_out) for e in range(len(part))}
    assert seen == {tuple(episodes["observations"][episodes.rows(e)].ravel()) for e in range(4)}


def test_a_single_episode_serves_as_both() -> None:
    assert [part.tolist() for part in split_indices(1, 0.1, 0)] == [[0], [0]]


@pytest.mark.parametrize("seed", range(3))
def test_the_split_depends_on_the_seed(seed: int) -> None:
    assert not np.array_equal(split_indices(50, 0.2, seed)[1], split_indices(50, 0.2, seed + 1)[1])


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.997, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 1001])
def test_decayed_sums_are_those_of_a_filter(count: int, decay: float) -> None:
    values = np.random.default_rng(count).normal(size=count)
    expected = lfilter([1], [1, -decay], values[::-1])[::-1]
    np.testing.assert_allclose(decayed_sums(values, decay), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_occupancy_by_a_plain_loop(make_episodes, share: float) -> None:
    """1 on average over the steps; of a share g^t, t the steps since the episode's start."""
    episodes = make_episodes([7, 5], terminated=[1])
    found, rows = occupancy(episodes, 0.8, share), step_rows(episodes)
    discounted = [0.8**t for length in (7, 5) for t in range(length)]
    expected = [1 - share + share * d / (sum(discounted) / 12) for d in discounted]
    np.testing.assert_allclose(found[rows], expected)
    assert found[rows].mean() == pytest.approx(1)
