"""What a training depends on, and how two of them are told apart."""

import json
from pathlib import Path

import pytest

from mpdiffuser.errors import InputError
from mpdiffuser.identity import check_run, differences, plain, refuse_other


def run_of(folder: Path, identity: object) -> Path:
    """A folder as the trainer leaves it."""
    state = folder / "step_00000010" / "state"
    state.mkdir(parents=True)
    (state / "trainer.json").write_text(json.dumps({"step": 10, "identity": identity}))
    (folder / "last").write_text("step_00000010")
    return folder


def test_differences_are_named_at_any_depth() -> None:
    old = {"data": "a", "options": {"seed": 0, "planner": {"width": 32}}, "gone": 1}
    new = {"data": "a", "options": {"seed": 1, "planner": {"width": 64}}, "more": [1]}
    assert differences(old, new) == [
        "gone: 1 there, null now",
        "more: null there, [1] now",
        "options.planner.width: 32 there, 64 now",
        "options.seed: 0 there, 1 now",
    ]
    assert differences(old, old) == []


def test_tuples_are_lists_and_diffusers_entries_do_not_count() -> None:
    """An identity that was written as JSON equals the one that it was made from."""
    identity = {"multipliers": (1, 2), "_class_name": "Planner", "nested": {"interval": (0.0, 1.0)}}
    assert plain(identity) == {"multipliers": [1, 2], "nested": {"interval": [0.0, 1.0]}}


def test_a_folder_of_another_run_is_refused_and_says_why(tmp_path: Path) -> None:
    identity = {"data": "a", "options": {"validation": 0.1}}
    folder = run_of(tmp_path / "planner", {**identity, "train": {"steps": 3}})
    check_run(folder, identity)
    words = r"planner: holds a run with other settings \(validation: 0\.1 there, 0\.2 now\); choose another"
    with pytest.raises(InputError, match=words):
        check_run(folder, {"data": "a", "options": {"validation": 0.2}})
    with pytest.raises(InputError, match=r"options: .* there, null now"):
        check_run(folder, {"data": "a"})
    with pytest.raises(InputError, match=r"data: a there, b now"):
        refuse_other(folder, {"data": "a"}, {"data": "b"})


@pytest.mark.parametrize("found", [None, 3, [1], {}])
def test_a_run_without_an_identity_is_another_run(tmp_path: Path, found: object) -> None:
    with pytest.raises(InputError, match="data: null there, a now"):
        check_run(run_of(tmp_path / "planner", found), {"data": "a"})


def test_a_folder_without_a_checkpoint_holds_no_run(tmp_path: Path) -> None:
    check_run(tmp_path / "absent", {"data": "a"})
    (tmp_path / "log.jsonl").write_text("")
    check_run(tmp_path, {"data": "a"})
    (tmp_path / "last").write_text("step_00000010")  # which is gone
    check_run(tmp_path, {"data": "a"})
