"""The record: maps of actions, what JSON may hold, and which observations a policy takes."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mpdiffuser.errors import InputError
from mpdiffuser.record import (
    DECLARED,
    PICTURE,
    PROPRIOCEPTION,
    SEEN,
    TRUE_STATE,
    Actions,
    Observation,
    Record,
    read_observations,
)

ARM = Record(
    {
        "hand": Observation(PICTURE, (8, 12, 3)),
        "joints": Observation(PROPRIOCEPTION, (2,), ("hip", "knee")),
        "truth": Observation(TRUE_STATE, (5,)),
    },
    Actions((10.0, -3.0), (70.0, 3.0), DECLARED, ("hip", "knee")),
)
CAMERA, JOINTS = np.zeros((4, 8, 12, 3), np.uint8), np.zeros((4, 2), np.float32)
SEES = ARM.only(PICTURE, PROPRIOCEPTION)

TINY = np.finfo(np.float32).tiny  # numbers below it have fewer digits
finite = st.floats(-1e4, 1e4, width=32).map(lambda number: number + 0.0)  # no -0.0
bounds = st.lists(st.tuples(finite, finite).map(sorted), min_size=1, max_size=4)


def actions_of(pairs: list[Any], **more: Any) -> Actions:
    return Actions(*(tuple(float(pair[i]) for pair in pairs) for i in (0, 1)), **more)


@given(bounds, st.integers(0, 2**32 - 1), st.booleans())
@example([[0.0, 1e-45]], 0, False)
def test_the_map_and_back(pairs: list[Any], seed: int, tensors: bool) -> None:
    """To a rounding error of the larger bound; numpy and torch give the same, in the dtype of the actions."""
    actions, random = actions_of(pairs), np.random.default_rng(seed)
    scale, size = actions.scale(), np.abs([actions.low, actions.high]).max(0)
    rows = random.uniform(actions.low, actions.high, (6, len(pairs))).astype(np.float32)
    unit = scale.to_unit(torch.from_numpy(rows)).numpy() if tensors else scale.to_unit(rows)
    back = scale.to_data(torch.from_numpy(unit)).numpy() if tensors else scale.to_data(unit)
    assert unit.dtype == back.dtype == np.float32
    slack = 1e-6 * size / np.maximum(np.subtract(actions.high, actions.low), 1e-30)
    assert (np.abs(unit) <= 1 + 4 * slack).all()
    assert (np.abs(back - rows) <= 1e-6 * size + TINY).all()
    assert (np.abs(scale.to_data(np.clip(unit, -1, 1)) - rows) <= 2e-6 * size + TINY).all()
    constant = np.equal(actions.low, actions.high)
    assert (unit[:, constant] == 0).all() and (back[:, constant] == np.float32(actions.low)[constant]).all()


@given(bounds, st.integers(0, 2**32 - 1))
def test_clipped_actions_are_within_the_bounds_to_the_last_bit(pairs: list[Any], seed: int) -> None:
    """Also those at the ends of [-1, 1], which the map can carry beyond the bounds."""
    actions, random = actions_of(pairs), np.random.default_rng(seed)
    scale, shape = actions.scale(), (5, len(pairs))
    unit = np.concatenate([np.ones(shape), -np.ones(shape), random.uniform(-1.5, 1.5, shape)]).astype(np.float32)
    clipped = scale.clip(scale.to_data(unit))
    assert (clipped >= np.float32(actions.low)).all() and (clipped <= np.float32(actions.high)).all()
    within = random.uniform(actions.low, actions.high, shape).astype(np.float32)
    within = within.clip(np.float32(actions.low), np.float32(actions.high))
    np.testing.assert_array_equal(scale.clip(within), within)
    assert not actions.beyond(clipped).any()


def test_unit_bounds_change_no_bit() -> None:
    scale, rows = Actions.unit(3).scale(), np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    assert scale.to_unit(rows) is rows and scale.to_data(rows) is rows
    assert not Actions((-1.0, -1.0), (1.0, 1.0 + 1e-7)).scale().identity


def test_the_range_of_the_data_and_what_is_beyond_bounds() -> None:
    rows = np.array([[0.5, -3.0], [2.0, -3.0], [99.0, 99.0], [1.0, -3.0], [-99.0, 99.0]], np.float32)
    assert Actions.seen(rows, np.array([2, 4])) == Actions((0.5, -3.0), (2.0, -3.0), SEEN)
    bounds = Actions((0.0, -1.0), (100.0, -1.0))
    rows = np.array([[-0.0009, -1.0], [-0.002, -1.0], [100.0009, -1.001], [100.002, -1.0]], np.float32)
    assert bounds.beyond(rows).tolist() == [[False, False], [True, False], [False, True], [True, False]]


def test_several_datasets_are_one() -> None:
    """Seen ranges join; declared bounds must be the same."""
    seen = [Actions((0.0, 1.0), (2.0, 3.0), SEEN, ("a", "b")), Actions((1.0, -1.0), (5.0, 2.0))]
    assert Actions.of_all(seen) == Actions((0.0, -1.0), (5.0, 3.0), SEEN, ("a", "b"))
    assert Actions.of_all([Actions.unit(2)] * 2) == Actions.unit(2)
    for other in (Actions.unit(3), Actions((-1.0, -1.0), (1.0, 1.0)), Actions((-1.0, -2.0), (1.0, 2.0), DECLARED)):
        for parts in ([Actions.unit(2), other], [other, Actions.unit(2)]):
            with pytest.raises(InputError, match="actions: bounds differ"):
                Actions.of_all(parts)


@given(bounds, st.lists(st.text(max_size=3), min_size=2, max_size=2), st.sampled_from([SEEN, DECLARED]))
def test_json_and_back(pairs: list[Any], names: list[str], kind: str) -> None:
    for record in (ARM, Record({"q": Observation(TRUE_STATE, (2,), tuple(names))}, actions_of(pairs, bounds=kind))):
        assert Record.from_json(json.loads(json.dumps(record.to_json())), "here") == record


def damaged(path: str, value: Any) -> dict[str, Any]:
    """ARM as JSON with another value at a path; ... takes it out."""
    whole = json.loads(json.dumps(ARM.to_json()))
    *parents, last = path.split(".")
    place = whole
    for name in parents:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return whole


@pytest.mark.parametrize(
    ("path", "values", "word"),
    [
        ("observations", [..., None, [], "frames", 3], "observations"),
        ("observations.hand", [None, [], 3, {}], "record of a dataset|shape|kind"),
        ("observations.hand.kind", [..., None, "video", ["picture"], {}], "kind"),
        ("observations.hand.shape", [..., None, 8, "abc", [8, 12], [8, 12, 0], [8, 12, -3], [8.0, 12, 3]], "shape"),
        ("observations.hand.shape", [[10**6, 1, 3], [True, 1, 3], [[8], 12, 3], ["8", 12, 3]], "shape"),
        ("observations.joints.names", [None, "ab", ["hip"], [1, 2], ["a", "b", "c"]], "names"),
        ("observations.hand.names", [["red"]], "names"),
        ("actions", [..., None, [], 3, {}], "actions|low"),
        ("actions.low", [..., None, 3, "ab", [], [0.0], [0, "1"], [0, None], [0, True], [80.0, 0.0]], "low|bounds"),
        ("actions.high", [[float("inf"), 3], [float("nan"), 3], [10**400, 3], [1e39, 3], [[70], 3]], "bounds"),
        ("actions.bounds", [None, "guessed", 3, ["seen"]], "bounds"),
        ("actions.names", [None, "ab", ["hip"], [1, 2], [["hip"], "knee"]], "names"),
        ("actions.unit", ["degrees"], "unit"),
    ],
)
def test_a_damaged_field_is_refused_by_name(path: str, values: list[Any], word: str) -> None:
    for value in values:
        with pytest.raises(InputError, match=rf"^meta\.json: record: .*({word})") as caught:
            Record.from_json(damaged(path, value), "meta.json: record")
        assert len(str(caught.value)) < 500, value


@pytest.mark.parametrize("value", [None, 3, "record", [], [1], {}])
def test_what_is_no_record(value: Any) -> None:
    with pytest.raises(InputError, match=r"^there: not a record of a dataset"):
        Record.from_json(value, "there")


def test_parts_of_a_record() -> None:
    assert ARM.names(PROPRIOCEPTION, PICTURE) == ["hand", "joints"] == list(SEES.observations)
    assert SEES.actions == ARM.actions and SEES.with_actions(Actions.unit(2)).actions == Actions.unit(2)
    assert [each.dtype for each in ARM.observations.values()] == ["uint8", "float32", "float32"]


def test_what_is_not_declared_is_seen() -> None:
    arrays = {
        "frames": np.zeros((5, 4, 6, 3), np.uint8),
        "wrist": np.zeros((5, 2, 2, 3), np.uint8),
        "observations": np.zeros((5, 7), np.float32),
        "costs": np.zeros(5, np.float32),
        "actions": np.array([[1.0], [4.0], [99.0], [-2.0], [99.0]], np.float32),
    }
    record = Record.of(arrays, np.array([2, 4]))
    assert {name: (each.kind, each.shape) for name, each in record.observations.items()} == {
        "observations": (PROPRIOCEPTION, (7,)),
        "frames": (PICTURE, (4, 6, 3)),
        "wrist": (PICTURE, (2, 2, 3)),
    }
    assert record.actions == Actions((-2.0,), (4.0,), SEEN)


def test_observations_of_many_robots_and_of_one() -> None:
    found, single = read_observations({"joints": JOINTS, "hand": CAMERA}, 4, SEES)
    assert not single and list(found) == ["hand", "joints"]
    np.testing.assert_array_equal(found["joints"], JOINTS)
    for batch, alone in ((slice(0, 1), False), (0, True)):
        found, single = read_observations({"hand": CAMERA[batch], "joints": JOINTS[batch].tolist()}, 1, SEES)
        assert single == alone and found["hand"].shape == (1, 8, 12, 3) and found["joints"].shape == (1, 2)
    joints = ARM.only(PROPRIOCEPTION)
    for seen in (JOINTS, {"joints": JOINTS}, JOINTS.astype(np.float64), JOINTS.astype(np.int32), JOINTS.tolist()):
        found, single = read_observations(seen, 4, joints)
        assert not single and found["joints"].shape == (4, 2)
    unknown, single = read_observations(CAMERA, 4, None)
    assert unknown is CAMERA and not single


@pytest.mark.parametrize(
    ("given", "count", "words"),
    [
        (JOINTS, 4, r"must be a dict of hand uint8 \(B, 8, 12, 3\), joints float32 \(B, 2\), found ndarray"),
        ({"hand": CAMERA}, 4, r"must be a dict of .*, found \['hand'\]"),
        ({"hand": CAMERA, "joint": JOINTS}, 4, r"found \['hand', 'joint'\]"),
        ({"hand": CAMERA, "joints": JOINTS, "truth": JOINTS}, 4, r"found \['hand', 'joints', 'truth'\]"),
        ({"hand": CAMERA, "joints": JOINTS[:, :1]}, 4, r"takes .*, found joints float32 \(4, 1\)"),
        ({"hand": CAMERA[:, :4], "joints": JOINTS}, 4, r"found hand uint8 \(4, 4, 12, 3\)"),
        ({"hand": CAMERA.astype(np.float32), "joints": JOINTS}, 4, r"found hand float32 \(4, 8, 12, 3\)"),
        ({"hand": CAMERA, "joints": JOINTS > 0}, 4, r"found joints bool \(4, 2\)"),
        ({"hand": CAMERA, "joints": JOINTS.astype(str)}, 4, r"found joints <U\d+ \(4, 2\)"),
        ({"hand": CAMERA[0], "joints": JOINTS[0]}, 4, r"found hand uint8 \(8, 12, 3\)"),
        ({"hand": CAMERA[:3], "joints": JOINTS[:3]}, 4, r"must be one for each of the 4 seeds of reset, found 3"),
        ({"hand": CAMERA, "joints": JOINTS[:3]}, 4, r"must be one for each of the 4 seeds of reset, found 3"),
        ({"hand": CAMERA, "joints": 3.0}, 4, r"found joints float64 \(\)"),
    ],
)
def test_observations_that_do_not_fit(given: Any, count: int, words: str) -> None:
    with pytest.raises(InputError, match=rf"^observations: .*{words}"):
        read_observations(given, count, SEES)


def test_the_number_of_observations_of_an_unknown_kind() -> None:
    with pytest.raises(InputError, match=r"must be one for each of the 3 seeds of reset, found 4"):
        read_observations(CAMERA, 3, None)


def test_observations_have_one_order() -> None:
    """Encoders join their inputs in the record's order, and a pipeline's JSON sorts its keys."""
    cameras = {name: Observation(PICTURE, (8, 12, 3)) for name in ("wrist", "arm")}
    record = Record(cameras, Actions.unit(2))
    assert record.names(PICTURE) == ["arm", "wrist"]
    text = json.dumps(record.to_json(), sort_keys=True)
    assert Record.from_json(json.loads(text), "text").names(PICTURE) == record.names(PICTURE)
