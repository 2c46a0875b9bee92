"""python -m envs.experts, run in this process."""

import numpy as np

from envs.experts.__main__ import format_returns, main


def test_table_lists_random_checkpoints_and_expert(capsys):
    assert main(["point_mass_easy", "--episodes", "2"]) == 0
    head, rule, row = (line.strip("| ").split("|") for line in capsys.readouterr().out.strip().splitlines())
    assert [cell.strip() for cell in head] == ["task", "random", "checkpoints", "expert"]
    assert row[0].strip() == "point_mass_easy" and len(row) == len(rule) == 4
    assert float(row[3].split("±")[0]) > 700 > float(row[1].split("±")[0])


def test_a_task_without_policies(capsys):
    assert main(["chess_win"]) == 2 and "task='chess_win' has no policies" in capsys.readouterr().err


def test_one_episode_has_no_standard_error():
    assert format_returns(np.array([3.0])) == "3" and format_returns(np.array([2.0, 4.0])) == "3 ± 1"
