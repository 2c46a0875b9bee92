"""Whole files, whole folders, and one run a folder."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mpdiffuser.errors import InputError
from mpdiffuser.files import (
    check_manifest,
    claim,
    create_array,
    publish,
    read_json,
    release,
    write_manifest,
    write_whole,
    writing,
)

NOBODY = 65534


def in_fork(job: Callable[[], None]) -> str:
    """The message of the InputError that a job in a process of its own raises; "done" without one."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        words = "done"
        try:
            job()
        except InputError as error:
            words = str(error)
        except BaseException as error:
            words = f"not an InputError: {error!r}"
        os.write(writable, words.encode())
        os._exit(0)
    os.close(writable)
    os.waitpid(child, 0)
    with os.fdopen(readable) as pipe:
        return pipe.read()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole folder."""
    made = tmp_path / "folder"
    (made / "in").mkdir(parents=True)
    (made / "a.json").write_text("{}")
    (made / "in" / "b").write_bytes(b"123")
    write_manifest(made)
    return made


def link(file: Path) -> None:
    file.unlink()
    file.symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "in" / "b").write_bytes(b"124"), r"in/b: .*sha256.*manifest\.json says.*do this"),
        (lambda f: (f / "in" / "b").unlink(), r"in/b: missing.*do this"),
        (lambda f: (f / "more.py").write_text(""), r"more\.py: .*says no such file.*do this"),
        (lambda f: (f / "manifest.json").unlink(), r"manifest\.json is missing.*do this"),
        (lambda f: (f / "manifest.json").write_text("{}"), r"must be mpdiffuser-folder 1, found .*None.*do this"),
        (lambda f: (f / "manifest.json").write_text("{"), "not readable as JSON"),
        (lambda f: link(f / "in" / "b"), r"in/b: a link"),
        (lambda f: (f / "more").symlink_to(f.parent), r"more: a link"),
        (lambda f: os.mkfifo(f / "pipe"), r"pipe: a link or special file"),
    ],
)
def test_a_damaged_folder_is_named(folder: Path, damage: Callable[[Path], None], words: str) -> None:
    check_manifest(folder, "do this")
    damage(folder)
    with pytest.raises(InputError, match=words):
        check_manifest(folder, "do this")


def test_another_version_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 2}))
    with pytest.raises(InputError, match=r"must be mpdiffuser-folder 1, found .*'version': 2"):
        check_manifest(folder, "")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "file"
    write_whole(file, "old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with (
        pytest.raises(InputError, match=r"file: cannot be written .*No space left.*free some space; complete files"),
        writing(file),
    ):
        write_whole(file, "new")
    assert file.read_text() == "old"


def test_publishing_replaces_what_was_there(tmp_path: Path) -> None:
    for name, text in (("final", "old"), ("partial", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / text).write_text(text)
    publish(tmp_path / "partial", tmp_path / "final")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["final", "final/new"]


def test_no_space_is_an_error_before_anything_is_computed(tmp_path: Path) -> None:
    def job() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        create_array(tmp_path / "a.npy", np.float32, (10_000,))

    assert "a.npy" in (words := in_fork(job)) and not words.startswith("not an"), words


def test_weights_that_cannot_be_written(tmp_path: Path) -> None:
    """safetensors has an exception of its own."""

    def job() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        with writing(tmp_path / "a"):
            save_file({"x": torch.zeros(10_000)}, tmp_path / "a")

    assert "a: cannot be written" in (words := in_fork(job)) and "ulimit -f" in words


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)

    def job() -> None:
        if os.geteuid() == 0:  # whom no permission stops
            for parent in tmp_path.parents[:2]:
                parent.chmod(0o755)
            tmp_path.chmod(0o755)
            os.setuid(NOBODY)
        claim(closed / "run", "wait")

    assert "run: cannot be written" in (words := in_fork(job)) and "you may not write there" in words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not readable as JSON"),
        (b"\xff", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"3", "must hold a JSON object, found a int"),
        (b" " * (2**24 + 1), "larger than"),
    ],
)
def test_json_that_is_no_object(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "file").write_bytes(text)
    with pytest.raises(InputError, match=words):
        read_json(tmp_path / "file")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path / "none")


HOLD = """
import sys, time
from pathlib import Path
from mpdiffuser.files import claim
claim(Path(sys.argv[1]), "wait")
print("held", flush=True)
time.sleep(600)
"""


def test_the_second_run_in_a_folder_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        try:
            with pytest.raises(InputError, match=r"run: another process is working there; choose another"):
                claim(tmp_path / "run", "choose another")
        finally:
            first.kill()
    for _ in range(2):  # this process may ask again
        claim(tmp_path / "run", "choose another")
    release(tmp_path / "run")
