"""Random choices as pure functions of a seed."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mpdiffuser.randomness import data_order, seeded_generator


@given(st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 100), st.integers(1, 100))
def test_data_order(size: int, seed: int, start: int, count: int) -> None:
    stream = data_order(size, seed, 0, 5 * size).tolist()
    for epoch in range(5):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))
    longer = data_order(size, seed, 0, start + count).tolist()
    assert data_order(size, seed, start, count).tolist() == longer[start:]


def test_epochs_and_seeds_differ_in_order() -> None:
    orders = {tuple(data_order(50, seed, epoch * 50, 50).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_generators_of_other_numbers_draw_other_values() -> None:
    drawn = {
        torch.rand(1, generator=seeded_generator(seed, number, stream)).item()
        for seed in range(4)
        for number in range(4)
        for stream in range(4)
    }
    assert len(drawn) == 64
