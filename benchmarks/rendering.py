"""Frames a second of dm_control tasks: python -m benchmarks.rendering

fast and full as in collect.py's rendering=, beside the plain way, `physics.render`. The bound is a
picture of nothing: what OpenGL takes here to clear one and to hand over its pixels.
"""

from collections.abc import Sequence
from typing import Any

from envs.simulator import DMControlEnv, load_suite  # before torch: see tests/test_imports.py

import mujoco  # isort: skip
import torch  # isort: skip

from benchmarks.limits import limits, parser, report, timed
from envs.rendering import MODES, Renderer, gl_name

TASKS = ("cartpole_swingup", "reacher_easy", "walker_walk", "cheetah_run")


def nothing(size: int, count: int, repeats: int) -> float:
    """Milliseconds of a core for an empty picture."""
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><camera/></worldbody></mujoco>")
    renderer, data = Renderer(model, size), mujoco.MjData(model)
    return timed(lambda: [renderer.render(data) for _ in range(count)], repeats, 30)["cpu_ms"] / count


def frames(task: str, mode: str, size: int, count: int, repeats: int, bound: float) -> dict[str, Any]:
    """A row: drawing `count` frames, without the physics."""
    if mode == "physics.render":
        physics = load_suite(task).physics
        draw = lambda: physics.render(size, size, 0)  # noqa: E731
    else:
        env = DMControlEnv(task, "frames", size=size, rendering=mode)
        env.reset(seed=0)
        draw = env.render
    found = timed(lambda: [draw() for _ in range(count)], repeats, 30)
    each = {key: value / count for key, value in found.items() if key != "repeats"}
    return {
        "task": task,
        "rendering": mode,
        **each,
        "frames a second of a core": 1e3 / each["cpu_ms"],
        "bound ms": bound,
        "times the bound": each["cpu_ms"] / bound,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--tasks", nargs="*", default=list(TASKS))
    options.add_argument("--size", type=int, default=64)
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    count, repeats = (2, 3) if args.quick else (50, 10)
    measured = limits(args.quick) | {"empty picture ms": nothing(args.size, count, repeats), "gl": gl_name()}
    rows = []
    for task in args.tasks[:1] if args.quick else args.tasks:
        for mode in (*MODES, "physics.render"):
            few = 1 if mode == "physics.render" else count
            rows.append(frames(task, mode, args.size, few, repeats, measured["empty picture ms"]))
    report(args, "rendering", rows, measured)


if __name__ == "__main__":
    main()
