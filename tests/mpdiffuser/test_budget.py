"""Cost budgets: how they shrink, and safety margins."""

import numpy as np
import pytest
import torch

from mpdiffuser.budget import PROBABILITIES, Budget, calibrate
from mpdiffuser.errors import InputError
from mpdiffuser.models.ranker import Ranker


def test_what_is_left_shrinks_by_what_was_spent() -> None:
    budget = Budget(10, 5)
    budget.reset(2)
    for costs in ([1.0, 0.0], [2.0, 6.0]):
        budget.record_costs(np.array(costs))
    allowance = budget.allowance(torch.device("cpu"))
    assert allowance.cost.tolist() == [7.0, 4.0]
    assert allowance.steps.tolist() == [3.0, 3.0]
    assert allowance.rate.tolist() == pytest.approx([7 / 3, 4 / 3])
    for _ in range(9):
        budget.record_costs(np.array([5.0, 0.0]))
    late = budget.allowance(torch.device("cpu"))
    assert late.steps.tolist() == [1.0, 1.0]  # longer than it was said to be
    assert late.rate.tolist() == [0.0, 4.0]


def test_the_margin_is_read_between_steps_and_probabilities() -> None:
    margins = {"steps": [1, 4], "probabilities": [0.5, 0.9], "margins": [[0.0, 1.0], [2.0, 6.0]], "largest_step": 0.25}
    budget = Budget(10, 8, margins, 0.7)
    np.testing.assert_allclose(budget.margin(np.array([1, 2.5, 4, 100])), [0.75, 2.5, 4.25, 4.25])
    assert budget.allowance(torch.device("cpu")).cost.tolist() == [5.75]
    assert Budget(10, 8, margins).allowance(torch.device("cpu")).cost.tolist() == [10.0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((-1, 5), "at least 0"), ((float("nan"), 5), "at least 0"), ((1, 0), "at least 1 step")],
)
def test_budgets_that_cannot_be(arguments: tuple, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Budget(*arguments)
    with pytest.raises(InputError, match="probability"):
        Budget(1, 5, None, 0.9)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": [4, 1]},
        {"margins": [[0.0], [1.0]]},
        {"margins": None},
        {"largest_step": float("inf")},
        {"largest_step": "all"},
    ],
)
def test_margins_that_training_does_not_write(change: dict) -> None:
    margins = {"steps": [1, 4], "probabilities": [0.5, 0.9], "margins": [[0.0, 1.0], [2.0, 6.0]], "largest_step": 1.0}
    Budget(10, 8, margins, 0.7)
    with pytest.raises(InputError, match="cost_margins"):
        Budget(10, 8, margins | change, 0.7)
    del margins["largest_step"]
    with pytest.raises(InputError, match="cost_margins"):
        Budget(10, 8, margins, 0.7)


def test_calibration_by_a_plain_loop(make_episodes, randomize) -> None:
    episodes = make_episodes([7, 4, 5], costs=True)
    ranker = randomize(Ranker(3, 2, hidden=8, costs=True))
    with torch.no_grad():
        for parameter in ranker.step[-1].parameters():
            parameter.mul_(17)  # so that predictions differ
    found = calibrate(ranker, episodes)
    assert found["steps"] == [1, 2, 4, 7] and found["largest_step"] == pytest.approx(max(episodes["costs"]), abs=1e-4)
    with torch.no_grad():
        tensors = (torch.from_numpy(episodes["observations"]), torch.from_numpy(episodes["actions"]))
        predicted = ranker(*tensors)["cost"].clamp(min=0).numpy()
    least = max(episodes["costs"]) / 2
    counted = []
    for n, margins in zip(found["steps"], found["margins"]):
        sums, dear = [], []
        for e in range(3):
            first, steps = episodes.offsets[e], episodes.lengths[e]
            for k in range(first, first + steps - n + 1):
                sums.append(sum(episodes["costs"][i] - predicted[i] for i in range(k, k + n)))
                if sum(float(predicted[i]) for i in range(k, k + n)) >= least:
                    dear.append(sums[-1])
        counted.append((len(dear), len(sums)))
        expected = [max(float(np.quantile(dear or sums, p)), 0.0) for p in PROBABILITIES]
        assert margins == pytest.approx(expected, abs=1e-3)
    assert any(0 < some < all_ for some, all_ in counted)  # the condition decides
