"""`python -m envs.doctor`: which rendering back-ends work here, how fast they are, and how to repair the others."""

import argparse
import base64
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import envs  # noqa: F401  chooses MUJOCO_GL
from mpdiffuser.commands import entry_point, program

PACKAGES = ["mujoco", "dm_control", "gymnasium", "torch", "torchvision", "timm", "diffusers", "accelerate"]
BACK_ENDS = ("cgl", "glfw") if sys.platform == "darwin" else ("egl", "osmesa", "glfw")
FIXES = {
    "egl": "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri",
    "osmesa": "apt-get install -y libosmesa6",
    "glfw": "apt-get install -y libglfw3 xvfb, then run the program under `xvfb-run -a`, or on a desktop",
    "cgl": "none known: it is part of macOS",
}
VARIABLES = ("MUJOCO_EGL_DEVICE_ID", "PYOPENGL_PLATFORM")  # of the user, which can break a back-end
TIMEOUT = 120.0  # seconds for one back-end
SIZE = 64


def probe() -> None:
    """Render with the back-end of MUJOCO_GL and print the outcome as one line of JSON; runs in a process of its own."""
    from envs import rendering
    from envs.simulator import DMControlEnv

    env = DMControlEnv("cartpole_swingup", "frames", size=SIZE)
    env.reset(seed=0)
    frame = env.render()
    for _ in range(20):
        env.step(np.ones(1))
    moved = env.render()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.5:
        env.render()
        count += 1
    outcome = {
        "frame": base64.b64encode(frame.tobytes()).decode(),
        "contrast": float(np.std(frame)),
        "motion": float(np.abs(np.subtract(frame, moved, dtype=float)).max()),
        "frames_per_second": count / (time.perf_counter() - start),
        "driver": rendering.gl_name(),
    }
    print(json.dumps(outcome))


def examine(back_end: str) -> dict[str, Any]:
    """The outcome of `probe` with a back-end, or {"error": the reason}."""
    command = [sys.executable, "-P", "-c", "from envs.doctor import probe; probe()"]
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = {**os.environ, "MUJOCO_GL": back_end, "PYTHONPATH": path}
    if back_end != _used():
        environment.pop("PYOPENGL_PLATFORM", None)
    try:
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return {"error": f"no frame within {TIMEOUT:.0f} seconds"}
    if run.returncode != 0:
        lines = run.stderr.strip().splitlines() or [f"ended with exit status {run.returncode}"]
        return {"error": lines[-1].removeprefix("mpdiffuser.errors.InputError: ")}
    outcome = json.loads(run.stdout.strip().splitlines()[-1])
    outcome["frame"] = np.frombuffer(base64.b64decode(outcome["frame"]), np.uint8).reshape(SIZE, SIZE, 3)
    if outcome["contrast"] < 5:
        return {"error": "it draws an empty picture"}
    if outcome["motion"] < 20:
        return {"error": "the picture does not follow the simulation"}
    return outcome


def _used() -> str:
    """The back-end that this program uses."""
    return os.environ.get("MUJOCO_GL") or BACK_ENDS[0]


def _fix(back_end: str, error: str) -> str:
    """How to repair a back-end."""
    variables = "".join(f"unset {name}, or set another value; else " for name in VARIABLES if name in error)
    return f"{variables}(Debian): {FIXES[back_end]}"


def compare(outcomes: dict[str, dict[str, Any]]) -> None:
    """Replace an outcome by an error if its frame differs from the pixel-wise median of all frames."""
    frames = [outcome["frame"] for outcome in outcomes.values() if "error" not in outcome]
    if len(frames) < 2:
        return
    median = np.median(np.stack(frames), axis=0)
    for name, outcome in outcomes.items():
        if "error" not in outcome and np.abs(outcome["frame"] - median).mean() > 12:
            outcomes[name] = {"error": "its picture differs from the other back-ends'"}


def versions() -> dict[str, str]:
    """Version of each package that the project depends on, or "missing"."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; returns 0 if at least one back-end works, else 1."""
    name = program("envs.doctor")
    description = (__doc__ or "").replace("`python -m envs.doctor`: ", "")
    argparse.ArgumentParser(prog=name, description=description).parse_args(arguments)
    found = versions()
    print("versions: " + ", ".join(f"{name} {version}" for name, version in found.items()))
    if missing := [name for name, version in found.items() if version == "missing"]:
        print(f"   fix for missing packages: pip install {' '.join(missing)}")
    outcomes = {name: examine(name) for name in BACK_ENDS}
    compare(outcomes)
    for name, outcome in outcomes.items():
        if "error" in outcome:
            print(f"{name:8} FAILS: {outcome['error']}\n   fix {_fix(name, outcome['error'])}")
        else:
            print(
                f"{name:8} works: {outcome['frames_per_second']:.0f} frames/s of {SIZE} x {SIZE}, {outcome['driver']}"
            )
    working = [name for name in BACK_ENDS if "error" not in outcomes[name]]
    used = _used()
    print(f"used: {used} (from MUJOCO_GL, whose default on Linux is egl)")
    if not working:
        print("No back-end works: environments give states only, until one is repaired.")
        return 1
    if used not in working:
        print(f"{used} does not work here; repair it as above, or: export MUJOCO_GL={working[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
