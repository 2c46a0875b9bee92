"""Few expert episodes: which are drawn, and the whole command on a tiny file."""

from pathlib import Path

import numpy as np
import pytest

from experiments import demonstrations
from experiments.demonstrations import experts
from mpdiffuser.errors import InputError


def test_episodes_are_drawn_from_the_second_half(make_episodes) -> None:
    episodes = make_episodes([9, 5, 4, 3, 3, 3])  # the rows 0..9, 10..15, 16..20, ...: the second half begins at 16
    drawn = [experts(episodes, 2, seed) for seed in range(8)]
    numbers = {int(number) for each in drawn for number in each.numbers}
    assert numbers == {2, 3, 4, 5}
    assert all(len(each) == 2 for each in drawn)
    assert len(experts(episodes, 4, 0)) == 4
    with pytest.raises(InputError, match=r"--counts: 5 episodes are wanted, the second half of the file has 4"):
        experts(episodes, 5, 0)


@pytest.mark.slow
def test_the_command(hopper_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (hopper_data / "hopper-medium.hdf5").rename(hopper_data / "hopper-medium-expert.hdf5")
    page = tmp_path / "page.md"
    chosen = ["rounds=2", "evaluation.episodes=2", "ranker.hidden=16", "planner.width=8", "planner.multipliers=[1,2]"]
    chosen += [f"train.{model}.steps=3" for model in ("cloning", "forward", "ranker", "planner")]
    arguments = ["--data-dir", str(hopper_data), "--robots", "hopper", "--counts", "1", "3", "--seeds", "0"]
    arguments += ["--folder", str(tmp_path / "runs"), "--page", str(page), "--set", *chosen]
    demonstrations.main(arguments)
    rows = [line for line in page.read_text().splitlines() if line.startswith("| hopper")]
    assert [row.split(" | ")[1:3] for row in rows] == [["1", "0"], ["3", "0"]]
    before = page.read_text()
    capsys.readouterr()
    demonstrations.main(arguments)  # reuses the results
    assert page.read_text() == before and "step" not in capsys.readouterr().err
    with pytest.raises(InputError, match="made with other settings; choose another --folder"):
        demonstrations.main([*arguments, "horizon=8"])
    assert np.isfinite([float(cell.split(" ± ")[0]) for cell in rows[0].strip("| ").split(" | ")[3:]]).all()
