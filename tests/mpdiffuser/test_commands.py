"""What all commands share."""

import sys

import pytest

from mpdiffuser.commands import entry_point, program
from mpdiffuser.errors import InputError


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_the_status_of_a_command(returned: int | None, status: int) -> None:
    assert entry_point(lambda: returned)() == status


@pytest.mark.parametrize("error", [InputError("x: found 0"), FileNotFoundError(2, "No such file", "x")])
def test_a_users_mistake_is_one_line(capsys, error: Exception) -> None:
    def main() -> None:
        raise error

    assert entry_point(main)() == 2
    assert capsys.readouterr() == ("", f"error: {error}\n")


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        entry_point(lambda: 1 // 0)()


@pytest.mark.parametrize(
    ("called", "name"), [("mpdiffuser doctor", "mpdiffuser doctor"), ("/a/b/doctor.py", "python -m envs.doctor")]
)
def test_help_names_the_command_as_it_was_called(monkeypatch, called: str, name: str) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    assert program("envs.doctor") == name
