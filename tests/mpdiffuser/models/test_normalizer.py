"""The normalisers against NumPy."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from mpdiffuser.models.normalizer import Marginals, Normalizer


def test_normalizer(tmp_path) -> None:
    rows = np.random.default_rng(0).normal([5, -2, 1000], [0.1, 3, 20], (500, 3))
    normalizer = Normalizer(3).fit(rows)
    x = torch.from_numpy(rows.astype(np.float32))
    scaled = normalizer.normalize(x)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(3), rtol=1e-4, atol=0)
    torch.testing.assert_close(normalizer.denormalize(scaled), x, rtol=1e-5, atol=1e-5)
    low, high = normalizer.bounds()
    torch.testing.assert_close(low, scaled.min(0).values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(high, scaled.max(0).values, rtol=1e-4, atol=1e-4)
    normalizer.save_pretrained(tmp_path)
    assert torch.equal(Normalizer.from_pretrained(tmp_path).normalize(x), scaled)


@pytest.mark.parametrize("value", [0.0, 1.0, -1234.567, 1e6])
def test_a_constant_dimension_is_centred_and_not_blown_up(value: float) -> None:
    rows = np.full((100, 2), value, np.float32)
    rows[:, 1] = np.arange(100)
    normalizer = Normalizer(2).fit(rows)
    scaled = normalizer.normalize(torch.from_numpy(rows))
    assert scaled[:, 0].abs().max() < 1e-6
    off = normalizer.normalize(torch.tensor([[value + 0.5, 0.0]]))[0, 0]
    assert off == pytest.approx(0.5, abs=0.1)
    assert normalizer.std[0] == 1


@pytest.mark.parametrize("cast", [lambda n: n.half(), lambda n: n.to(torch.float16), lambda n: n.bfloat16()])
def test_a_cast_leaves_the_normalizer_exact(cast) -> None:
    normalizer = Normalizer(1).fit(np.array([[1234.567], [1240.0]]))
    mean = normalizer.mean.clone()
    holder = torch.nn.ModuleDict({"normalizer": normalizer, "linear": torch.nn.Linear(1, 1)})
    cast(holder)
    assert holder["linear"].weight.dtype != torch.float32
    assert normalizer.mean.dtype == torch.float32
    assert torch.equal(normalizer.mean, mean)


def test_normalizer_is_not_trained() -> None:
    assert not any(parameter.requires_grad for parameter in Normalizer(3).parameters())


def test_marginals_are_uniform_with_unit_deviation(tmp_path) -> None:
    rows = np.random.default_rng(0).gamma([1, 5], [1, 30], (20_000, 2))
    marginals = Marginals(2).fit(rows)
    x = torch.from_numpy(rows.astype(np.float32))
    scaled = marginals.normalize(x)
    for column in range(2):
        assert kstest(scaled[:, column].numpy(), "uniform", (-(3**0.5), 12**0.5)).statistic < 0.005
        order = np.argsort(rows[:, column])
        assert (np.diff(scaled[order, column]) >= 0).all()
    torch.testing.assert_close(marginals.denormalize(scaled), x, rtol=1e-4, atol=1e-3)
    low, high = marginals.bounds()
    torch.testing.assert_close(low, torch.full((2,), -(3**0.5)))
    torch.testing.assert_close(high, torch.full((2,), 3**0.5))
    torch.testing.assert_close(marginals.normalize(torch.tensor([-1e9, 1e9])), torch.tensor([-(3**0.5), 3**0.5]))
    marginals.save_pretrained(tmp_path)
    assert torch.equal(Marginals.from_pretrained(tmp_path).normalize(x), scaled)


@pytest.mark.parametrize("knots", [2, 3, 257])
def test_marginals_lie_where_numpy_says(knots: int) -> None:
    rows = np.random.default_rng(1).normal(size=(999, 1))
    marginals, levels = Marginals(1, knots).fit(rows), np.linspace(0, 1, knots)
    x = np.random.default_rng(2).normal(size=(4, 50, 1))
    expected = (np.interp(x, np.quantile(rows, levels), levels) - 0.5) * 12**0.5
    np.testing.assert_allclose(marginals.normalize(torch.from_numpy(x).float()), expected, atol=1e-4)
    back = np.interp(x / 12**0.5 + 0.5, levels, np.quantile(rows, levels))
    np.testing.assert_allclose(marginals.denormalize(torch.from_numpy(x).float()), back, atol=1e-4)


def test_equal_values_get_their_mean_rank() -> None:
    rows = np.concatenate([np.zeros(600), np.full(400, 2.0)])  # a sparse reward
    zero, two = (Marginals(1, 1001).fit(rows).normalize(torch.tensor([[0.0], [2.0]])) / 12**0.5 + 0.5)[:, 0]
    assert zero.item() == pytest.approx(0.3, abs=2e-3) and two.item() == pytest.approx(0.8, abs=2e-3)
    constant = Marginals(1).fit(np.full(10, 7.0))
    assert constant.normalize(torch.tensor([7.0])).item() == pytest.approx(0, abs=1e-6)
    assert constant.denormalize(torch.tensor([1.0])).item() == 7


def test_a_cast_leaves_the_marginals_exact() -> None:
    marginals = Marginals(1).fit(np.linspace(0, 1, 300))
    kept = marginals.points.clone()
    assert torch.equal(marginals.half().points, kept)
