"""Output of commands, in processes with real pipes, real encodings and real log files."""

import contextlib
import os
import pty
import subprocess
import sys
import termios
import textwrap
from typing import Any

import pytest

from mpdiffuser.console import CLOSED, progress

BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def command(script: str, *options: str) -> list[str]:
    imports = "import os, sys\nfrom mpdiffuser.console import progress, quiet_pipes\n"
    return [sys.executable, *options, "-c", imports + textwrap.dedent(script)]


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(script), capture_output=True, text=True, encoding="utf-8", timeout=60, env=BUFFERED | environment
    )


def run_with_a_closed_pipe(script: str, *options: str, closed: str = "stdout", read: bool = False) -> tuple[int, str]:
    """Status, and what the other stream said, where the reader of one leaves: at once, or after it has read a line.

    The script's `input()` returns once the reader has left.
    """
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command(script, *options), text=True, env=BUFFERED, **pipes) as process:
        stream = getattr(process, closed)
        if read:
            assert stream.readline()
        stream.close()
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write("go on\n")
        other = process.stderr if closed == "stdout" else process.stdout
        assert other is not None
        return process.wait(60), other.read()


MANY = "\n    for number in range(100_000):\n        print(number, flush=number == 0)"


def test_a_closed_pipe_ends_the_program_quietly() -> None:
    assert run_with_a_closed_pipe(f"with quiet_pipes():{MANY}", read=True) == (CLOSED, "")


def test_as_a_decorator() -> None:
    script = f"@quiet_pipes()\ndef main():{MANY}\n\nmain()"
    assert run_with_a_closed_pipe(script, read=True) == (CLOSED, "")


def test_a_pipe_that_is_closed_before_the_last_flush() -> None:
    assert run_with_a_closed_pipe("with quiet_pipes():\n  input()\n  print('short')") == (CLOSED, "")


def test_unbuffered_output() -> None:
    script = "with quiet_pipes():\n  input()\n  print('short')"
    assert run_with_a_closed_pipe(script, "-u") == (CLOSED, "")


def test_a_closed_stderr() -> None:
    script = "with quiet_pipes():\n  input()\n  bar = progress(2, line_seconds=0)\n  bar.update()\n  print('not here')"
    assert run_with_a_closed_pipe(script, closed="stderr") == (CLOSED, "")


def test_an_error_that_was_raised_from_the_closed_pipe() -> None:
    script = """
    with quiet_pipes():
        try:
            input()
            print("lost", flush=True)
        except OSError as error:
            raise ValueError("cannot be written") from error
    """
    assert run_with_a_closed_pipe(script) == (CLOSED, "")


def test_other_errors_are_told_where_stdout_is_closed() -> None:
    script = "with quiet_pipes():\n  input()\n  print('lost')\n  raise KeyError('which')"
    status, told = run_with_a_closed_pipe(script)
    assert status == 1 and told.startswith("Traceback") and told.endswith("KeyError: 'which'\n")


def test_a_status_is_kept_where_stdout_is_closed() -> None:
    script = "with quiet_pipes():\n  input()\n  print('lost')\n  sys.exit(3)"
    assert run_with_a_closed_pipe(script) == (3, "")


def test_another_broken_pipe_is_an_error() -> None:
    script = """
    with quiet_pipes():
        reading, writing = os.pipe()
        os.close(reading)
        os.write(writing, b"x")
    """
    done = run(script)
    assert done.returncode == 1 and done.stderr.endswith("BrokenPipeError: [Errno 32] Broken pipe\n")


def test_nothing_changes_where_all_is_read() -> None:
    done = run("with quiet_pipes():\n  print('whole ±')\nprint('after')", PYTHONIOENCODING="utf-8")
    assert (done.returncode, done.stdout, done.stderr) == (0, "whole ±\nafter\n", "")


@pytest.mark.parametrize(
    ("encoding", "out"),
    [("ascii", "3 +- 0.5 x 2 - 1 ... 'a' ? ? e?"), ("latin-1", "3 ± 0.5 × 2 - 1 ... 'a' ? ? é?"), ("utf-8", None)],
)
def test_characters_that_the_encoding_lacks(encoding: str, out: str | None) -> None:
    text = "3 ± 0.5 × 2 – 1 … ‘a’ 漢 \udc80 é漢"
    if encoding == "ascii":
        text = text.replace("é", "e")
    script = f"with quiet_pipes():\n  print({text!a})\n  print({text!a}, file=sys.stderr)"
    done = subprocess.run(command(script), capture_output=True, env=BUFFERED | {"PYTHONIOENCODING": encoding})
    expected = (out or text.replace("\udc80", "?")).encode(encoding) + b"\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, expected)


def test_a_log_gets_whole_lines() -> None:
    script = """
    with progress(4, "planner", 1, "step", line_seconds=0) as bar:
        for number in range(3):
            bar.set_postfix(loss=f"{number:.1f}", refresh=False)
            bar.update()
    """
    lines = run(script).stderr.splitlines(keepends=True)
    counts = ["50% 2/4", "75% 3/4", "100% 4/4", "100% 4/4"]
    assert [line[: line.index(" [")] for line in lines] == [f"planner: {count}" for count in counts]
    assert all(line.endswith("]\n") and "\r" not in line and "step" in line for line in lines)
    assert ["loss=0.0" in lines[0], "loss=1.0" in lines[1], "loss=2.0" in lines[3]] == [True] * 3


def test_a_log_gets_one_line_of_what_ends_soon() -> None:
    script = """
    bar = progress(desc="random", unit="step")
    for number in range(1000):
        bar.update(2)
        bar.set_postfix(active=number)
        bar.set_postfix_str("all")
    bar.close()
    bar.close()
    progress(3, disable=True).close()
    """
    done = run(script)
    assert done.stderr.startswith("random: 2000 [") and done.stderr.endswith(", all]\n")
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_lines_keep_their_distance(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A line at most every 30 s of a clock that moves by 4 s an update; also if the bar is asked to show itself."""
    clock = [0.0]
    monkeypatch.setattr("mpdiffuser.console.time.monotonic", lambda: clock[0])
    with progress(100, "x") as bar:
        for _ in range(25):
            clock[0] += 4
            bar.update(4)
            bar.refresh()
    lines = capfd.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["32%", "64%", "96%", "100%"]


def test_a_failure_leaves_where_it_was() -> None:
    done = run("with progress(4, 'x') as bar:\n  bar.update()\n  raise KeyError('why')")
    assert done.stderr.startswith("x: 25% 1/4 [") and done.stderr.endswith("KeyError: 'why'\n")


def test_bytes_are_scaled() -> None:
    done = run("with progress(4_000_000, 'f', unit='B', unit_scale=True) as bar: bar.update(1_500_000)")
    assert done.stderr.startswith("f: 38% 1.50M/4.00M [")


def test_a_terminal_gets_a_bar() -> None:
    mine, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 80))
    script = "with progress(4, 'x') as bar:\n  bar.update(4)"
    process = subprocess.run(command(script), stderr=its, stdout=subprocess.PIPE, timeout=60)
    os.close(its)
    text = ""
    with contextlib.suppress(OSError):  # the end, on Linux
        while block := os.read(mine, 10_000):
            text += block.decode()
    os.close(mine)
    assert process.returncode == 0
    assert "\rx:   0%|" in text and "\rx: 100%|" in text


def test_disabled(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(4, "x", disable=True) as bar:
        bar.update()
        bar.set_postfix(loss=1)
    assert capsys.readouterr().err == ""
