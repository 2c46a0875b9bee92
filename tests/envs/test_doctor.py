"""envs.doctor as a user runs it."""

import os
import subprocess
import sys

import numpy as np
import pytest

from envs import doctor


def run(**environment):
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(
        [sys.executable, "-m", "envs.doctor"], env=variables, capture_output=True, text=True, timeout=300
    )


def line_of(report, start):
    return next(line for line in report.splitlines() if line.startswith(start))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="egl is Linux's")
def test_report_with_a_broken_egl():
    done = run(MUJOCO_EGL_DEVICE_ID="99", MUJOCO_GL="egl")
    assert "FAILS" in line_of(done.stdout, "egl") and "99" not in line_of(done.stdout, "versions")
    assert "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri" in done.stdout
    assert "used: egl" in done.stdout
    assert "works" in line_of(done.stdout, "osmesa") and "export MUJOCO_GL=osmesa" in done.stdout
    assert done.returncode == 0
    versions = line_of(done.stdout, "versions")
    assert all(name in versions for name in ("python 3", "mujoco 3", "dm_control 1", "torch 2", "timm", "diffusers"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="egl is Linux's")
def test_status_1_when_nothing_works(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "BACK_ENDS", ("egl",))
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    assert doctor.main([]) == 1
    assert "No back-end works" in capsys.readouterr().out


def test_the_odd_picture_out_is_an_error():
    frame = np.full((64, 64, 3), 80, np.uint8)
    outcomes = {"a": {"frame": frame}, "b": {"frame": frame + 60}, "c": {"frame": frame + 5}}
    doctor.compare(outcomes)
    assert "error" in outcomes["b"] and "error" not in outcomes["a"] and "error" not in outcomes["c"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="egl is Linux's")
def test_the_doctor_sees_the_variables_of_the_user(monkeypatch):
    """PYOPENGL_PLATFORM breaks the back-end that is used; it is not that of the others."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    error = doctor.examine("egl")["error"]
    assert "PYOPENGL_PLATFORM" in error
    assert doctor._fix("egl", error).startswith("unset PYOPENGL_PLATFORM, or set another value; else (Debian): apt-get")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    assert "PYOPENGL_PLATFORM" not in doctor.examine("osmesa").get("error", "")
