"""The command `mpdiffuser`, run from the source."""

import contextlib
import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import mpdiffuser
import mpdiffuser_cli
from mpdiffuser_cli import COMMANDS

ROOT = Path(__file__).parents[1]
SAME = {  # command -> the file that does the same
    "train-vision": "train_vision.py",
    "train-state": "train_state.py",
    "evaluate": "evaluate.py",
    "compare": "evaluation/runs.py",
    "adapt": "adapt.py",
    "collect": "collect.py",
    "datasets": "envs/datasets/__main__.py",
    "doctor": "envs/doctor.py",
    "export": "mpdiffuser/export.py",
    "serve": "mpdiffuser/serve.py",
    "probe": "vision/probe.py",
}


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Exit status of `mpdiffuser WORDS`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mpdiffuser", *words])
    try:
        return mpdiffuser_cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)


def words_of(text: str, *names: str) -> list[str]:
    """Its words, without the program's names: help wraps lines at a width that depends on the name."""
    for name in names:
        text = text.replace(name, "PROGRAM")
    return text.split()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("command", SAME)
def test_help_is_that_of_the_script(command: str, monkeypatch, capsys) -> None:
    assert call(monkeypatch, command, "--help") == 0
    own = capsys.readouterr().out
    assert f"sage: mpdiffuser {command} [" in own
    monkeypatch.setattr(sys, "argv", [str(ROOT / SAME[command]), "--help"])
    with contextlib.suppress(SystemExit):
        runpy.run_path(sys.argv[0], run_name="__main__")
    script = SAME[command].removesuffix("/__main__.py").removesuffix(".py").replace("/", ".")
    assert words_of(own, f"mpdiffuser {command}") == words_of(
        capsys.readouterr().out, f"python -m {script}", Path(SAME[command]).name
    )


def test_the_list_of_commands(monkeypatch, capsys) -> None:
    assert set(SAME) == set(COMMANDS)
    for words in ([], ["--help"], ["-h"]):
        assert call(monkeypatch, *words) == 0
        printed = capsys.readouterr().out
        assert all(f"  {name} " in printed and summary in printed for name, (_, summary) in COMMANDS.items())
    assert call(monkeypatch, "--version") == 0 and capsys.readouterr().out == f"{mpdiffuser.__version__}\n"


def test_each_command_has_a_function() -> None:
    for module, _ in COMMANDS.values():
        assert callable(importlib.import_module(module).main)


def test_an_unknown_command(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "trian-state") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: trian-state: no such command; nearest: train-state; all: train-vision, ")
    assert error.count("\n") == 1 and all(name in error for name in COMMANDS)
    assert call(monkeypatch, "-x") == 2 and call(monkeypatch, "") == 2


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["evaluate", "pipeline=nowhere"], "pipeline: nowhere"),
        (["evaluate"], "pipeline: is missing"),
        (["train-state", "sampler.stpes=3"], "sampler.stpes: no such option"),
        (["train-vision", "task=d4rl/hopper-medium-v2"], "task=d4rl/hopper-medium-v2"),
        (["collect", "quality=foo"], "quality='foo'"),
        (["collect", "task=d4rl/hopper-medium-v2"], "there is nothing to collect"),
        (["datasets", "show", "nowhere"], "nowhere: no such file"),
        (["export", "pipeline=nowhere"], "nowhere"),
        (["compare", "nowhere"], "nowhere/metrics.json: not found"),
        (["probe", "nowhere", "nothing"], "nowhere: no encoder"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(words: list[str], found: str, monkeypatch, capsys) -> None:
    assert call(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and found in error


@pytest.mark.parametrize(
    "words", [["datasets", "ls"], ["--help"], pytest.param(["train-state", "--help"], marks=pytest.mark.slow)]
)
def test_a_reader_that_has_gone_is_no_error(words: list[str]) -> None:
    """As `| head -1` does: the reader takes one line and closes the pipe."""
    program = [sys.executable, "mpdiffuser_cli.py", *words]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode in (0, 141)  # 0: all was written before


@pytest.mark.parametrize(
    ("module", "words", "found"),
    [
        ("envs.experts.__main__", ["chess_win"], "task='chess_win'"),
        ("envs.experts.mppi", ["chess_win"], "chess_win"),
        ("envs.datasets.minari", ["import", "nowhere", "out"], "nowhere"),
        ("vision.probe", ["nowhere", "nothing"], "nowhere: no encoder"),
    ],
)
def test_wrong_input_of_modules(module: str, words: list[str], found: str, capsys) -> None:
    assert importlib.import_module(module).main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and found in error
