"""Returns-to-go and costs-to-go of a flat file, against sums over its rows in plain Python."""

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.datasets.readers.flat import read_flat
from mpdiffuser.windows import to_go


def slow_to_go(amounts: list[float], ends: list[str], discount: float) -> list[float]:
    """(1 - g) sum g^k amount_k at each step that is kept, of a file whose rows end by "t"ermination, time-"o"ut, or ""
    not at all. After a time-out, and at the end of the file, the rest is taken to have the mean of what was seen; the
    last such row only tells where the episode got to, and what it paid counts for the step before."""
    result, start = [], 0
    for row, end in enumerate(ends):
        if not end and row < len(ends) - 1:
            continue
        terminated = end == "t"
        stop = row + 1 if terminated else row
        paid = amounts[:stop] if terminated else [*amounts[: stop - 1], amounts[stop - 1] + amounts[stop]]
        for first in range(start, stop):
            total = weight = 0.0
            for step in range(first, stop):
                total += discount ** (step - first) * paid[step]
                weight += discount ** (step - first)
            result.append((1 - discount) * total if terminated else total / weight)
        start = row + 1
    return result


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from(["", "", "", "t", "o"]), min_size=2, max_size=20),
    st.sampled_from([0.0, 0.9, 0.997]),
    st.integers(0, 99),
)
def test_to_go_of_a_file(tmp_path_factory, ends: list[str], discount: float, seed: int) -> None:
    random, rows = np.random.default_rng(seed), len(ends)
    amounts = {"rewards": random.normal(size=rows), "costs": random.uniform(size=rows)}
    expected = {key: slow_to_go(values.tolist(), ends, discount) for key, values in amounts.items()}
    file = tmp_path_factory.mktemp("to_go") / "some.hdf5"
    with h5py.File(file, "w") as data:
        data["observations"], data["actions"] = np.zeros((rows, 3)), np.zeros((rows, 2))
        data["terminals"], data["timeouts"] = [end == "t" for end in ends], [end == "o" for end in ends]
        for key, values in amounts.items():
            data[key] = values
    if not expected["rewards"]:
        return
    episodes = read_flat(file)
    steps = np.ones(len(episodes["rewards"]), bool)
    steps[episodes.offsets[1:] - 1] = False
    for key in amounts:
        assert to_go(episodes[key], episodes, discount)[steps] == pytest.approx(expected[key], rel=1e-4, abs=1e-5)
