"""Facts about this machine and this checkout."""

import re
import subprocess
from pathlib import Path

from mpdiffuser import machine
from mpdiffuser.machine import available_cores, cpu_name, git_commit


def test_this_machine() -> None:
    assert available_cores() >= 1 and cpu_name()


def test_the_commit_that_runs(monkeypatch, tmp_path: Path) -> None:
    """With -dirty for a changed checkout; None outside of one."""
    file = tmp_path / "package" / "machine.py"
    file.parent.mkdir()
    file.write_text("")
    monkeypatch.setattr(machine, "__file__", str(file))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    who = ("-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "-A"), (*who, "commit", "-qm", "first")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    commit = git_commit()
    assert commit is not None and re.fullmatch(r"[0-9a-f]{40}", commit)
    file.write_text("changed = True")
    assert git_commit() == f"{commit}-dirty"
