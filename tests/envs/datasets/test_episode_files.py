"""Files of episodes that several processes make: what is there is kept, and another dataset's part is refused."""

from functools import partial
from pathlib import Path

import pytest

from envs.datasets.episode_files import make_files
from mpdiffuser.errors import InputError
from mpdiffuser.files import release

NAMES = ["0.npz", "1.npz", "2.npz"]


def write(text: str, number: int, file: Path) -> None:
    if text == "fails" and number == 1:
        raise InputError("no episode 1")
    file.write_text(f"{text} {number}")


def test_missing_files_are_made_and_others_kept(tmp_path: Path) -> None:
    folder = tmp_path / "part"
    with pytest.raises(InputError, match="no episode 1"):
        make_files(folder, {"seed": 0}, NAMES, partial(write, "fails"), "test")
    release(folder)
    assert (folder / "0.npz").exists() and not (folder / "1.npz").exists()
    (folder / "0.npz").write_text("kept")
    (folder / "2.npz").unlink(missing_ok=True)
    files = make_files(folder, {"seed": 0}, NAMES, partial(write, "made"), "test")
    assert [file.read_text() for file in files] == ["kept", "made 1", "made 2"]


def test_a_part_of_another_dataset_is_refused(tmp_path: Path) -> None:
    make_files(tmp_path / "part", {"seed": 0}, NAMES, partial(write, "made"), "test")
    release(tmp_path / "part")
    with pytest.raises(InputError, match=r"part of another dataset \(seed\)"):
        make_files(tmp_path / "part", {"seed": 1}, NAMES, partial(write, "made"), "test")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "0.npz").touch()
    with pytest.raises(InputError, match="holds other files"):
        make_files(tmp_path / "other", {"seed": 1}, NAMES, partial(write, "made"), "test")
