"""Datasets of sampling MPC."""

from pathlib import Path

import numpy as np
import pytest

import envs
from envs.datasets.__main__ import main
from envs.datasets.making import MAKERS
from envs.datasets.mppi import MPPIData
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError

DATA = MPPIData("cartpole_swingup", episodes=3, decisions=8)


def test_the_same_seed_gives_the_same_rows_and_the_simulator_agrees(tmp_path: Path) -> None:
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        DATA.write(tmp_path / name, seed)
    first, again, other = (Episodes.load(tmp_path / name) for name in ("first", "again", "other"))
    assert first.checksum() == again.checksum() != other.checksum()
    assert first.lengths.tolist() == [8, 8, 8]
    env = envs.make(first.info["environment"])
    state = env.reset(seed=int(np.random.SeedSequence([1, 2]).generate_state(1)[0]))[0]
    rows = slice(first.offsets[2], first.offsets[3])
    for row in range(8):
        assert np.array_equal(first["observations"][rows][row], state)
        state, reward, *_ = env.step(first["actions"][rows][row])
        assert first["rewards"][rows][row] == np.float32(reward)
    assert np.array_equal(first["observations"][rows][8], state)


def test_what_was_cut_off_goes_on(tmp_path: Path, monkeypatch) -> None:
    DATA.write(tmp_path / "whole", 0)
    made = MPPIData._episodes

    def cut_off(self, *arguments):
        for number, found in made(self, *arguments):
            if number == 2:
                raise KeyboardInterrupt
            yield number, found

    with monkeypatch.context() as patched:
        patched.setattr(MPPIData, "_episodes", cut_off)
        with pytest.raises(KeyboardInterrupt):
            DATA.write(tmp_path / "data", 0)
    assert not (tmp_path / "data").exists()
    firsts = []

    def watched(self, seed, decisions, first):
        firsts.append(first)
        return made(self, seed, decisions, first)

    monkeypatch.setattr(MPPIData, "_episodes", watched)
    DATA.write(tmp_path / "data", 0)
    assert firsts == [2]
    assert Episodes.load(tmp_path / "data").checksum() == Episodes.load(tmp_path / "whole").checksum()
    with pytest.raises(InputError, match="exists already"):
        DATA.write(tmp_path / "data", 0)


def test_the_command_takes_the_number_of_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAKERS, "mppi/cartpole_swingup", DATA)
    assert main(["make", "mppi/cartpole_swingup", str(tmp_path / "data"), "--episodes", "2"]) == 0
    assert Episodes.load(tmp_path / "data").lengths.tolist() == [8, 8]


def test_all_tasks_of_mppi_can_be_made() -> None:
    assert MAKERS["mppi/quadruped_run"] == MPPIData("quadruped_run")
