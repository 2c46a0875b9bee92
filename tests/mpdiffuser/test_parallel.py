"""Independent jobs on several cores."""

import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from mpdiffuser import parallel
from mpdiffuser.parallel import run_parallel

CPU = torch.device("cpu")


@pytest.mark.parametrize(("cores", "processes", "expected"), [(2, 1, 2), (8, 1, 4), (1, 1, 1), (2, 2, 1)])
def test_jobs_run_at_once_where_cores_lie_idle(monkeypatch, cores: int, processes: int, expected: int) -> None:
    monkeypatch.setattr(parallel, "available_cores", lambda: cores)
    together = threading.Barrier(expected)  # passed only by that many at a time
    seen = []

    def job(number: int) -> int:
        together.wait(timeout=20)
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return number

    results = run_parallel([lambda n=n: job(n) for n in range(4)], CPU, processes)
    assert results == [0, 1, 2, 3]
    assert len({thread for thread, _ in seen}) <= expected
    assert {threads for _, threads in seen} == {torch.get_num_threads()}


def test_a_job_that_fails(monkeypatch) -> None:
    monkeypatch.setattr(parallel, "available_cores", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        run_parallel([lambda: 1, lambda: 1 // 0], CPU)


WAITING = """
import os, signal, time, torch
from mpdiffuser import parallel
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started deaf to it
parallel.available_cores = lambda: 2
def job():
    os.write(1, b"running\\n")  # one call, or the lines of two threads could mix
    time.sleep(600)
parallel.run_parallel([job, job, job], torch.device("cpu"))
"""


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_the_jobs() -> None:
    with subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(2)] == [b"running"] * 2
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=60) != 0  # the jobs last ten minutes
        finally:
            process.kill()
        assert process.stdout.read() == b""  # the third was not begun


def test_after_a_failure_no_further_job_is_begun(monkeypatch) -> None:
    monkeypatch.setattr(parallel, "available_cores", lambda: 2)
    begun: list[int] = []
    failed = threading.Event()

    def job(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise ValueError("the first")
        failed.wait(timeout=20)

    with pytest.raises(ValueError, match="the first"):
        run_parallel([lambda n=n: job(n) for n in range(6)], CPU)
    time.sleep(0.3)
    before = len(begun)
    failed.set()
    time.sleep(0.3)
    assert len(begun) == before < 6
