"""Studies: a folder has the models of one set of options."""

from pathlib import Path
from typing import Any

import pytest

import train_state
from experiments.study import SAME, Run, Study
from mpdiffuser.errors import InputError


def test_a_folder_of_other_options_is_refused(tmp_path: Path, make_episodes: Any) -> None:
    """Its trained models would be taken for those of the new options."""

    def study(*options: str) -> Study:
        return Study(tmp_path, train_state, options, lambda cfg: make_episodes([5]), {}, {SAME: Run()}, {})

    study("horizon=16")
    study("horizon=16")
    with pytest.raises(InputError, match=r"study.json: made with other settings; choose another --folder"):
        study("horizon=32")
