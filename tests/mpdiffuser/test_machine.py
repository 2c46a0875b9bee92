"""Work on several cores."""

import threading

import pytest
import torch

from mpdiffuser import machine
from mpdiffuser.machine import available_cores, cpu_name, side_by_side

CPU = torch.device("cpu")


@pytest.mark.parametrize(("cores", "processes", "expected"), [(2, 1, 2), (8, 1, 4), (1, 1, 1), (2, 2, 1)])
def test_jobs_run_at_once_where_cores_lie_idle(monkeypatch, cores: int, processes: int, expected: int) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: cores)
    together = threading.Barrier(expected)  # passed only by that many at a time
    seen = []

    def job(number: int) -> int:
        together.wait(timeout=20)
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return number

    results = side_by_side([lambda n=n: job(n) for n in range(4)], CPU, processes)
    assert results == [0, 1, 2, 3]
    assert len({thread for thread, _ in seen}) <= expected
    assert {threads for _, threads in seen} == {torch.get_num_threads()}


def test_a_job_that_fails(monkeypatch) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        side_by_side([lambda: 1, lambda: 1 // 0], CPU)


def test_this_machine() -> None:
    assert available_cores() >= 1 and cpu_name()
