"""Frames a second of dm_control tasks: python -m benchmarks.rendering

Renders with each value of collect.py's rendering=, and with dm_control's own `physics.render`. The bound is an empty
picture: the time that OpenGL takes to clear it and to return its pixels.
"""

from collections.abc import Sequence
from typing import Any

from envs.simulator import DMControlEnv, load_suite  # before mujoco, which would choose another back-end

import mujoco  # isort: skip

from benchmarks.common import parse, parser, rates, report, timed
from benchmarks.limits import limits
from envs.rendering import MODES, Renderer, gl_name

TASKS = ("cartpole_swingup", "reacher_easy", "walker_walk", "cheetah_run")


def empty_picture(size: int, count: int, repeats: int) -> float:
    """Milliseconds of processor time for an empty picture."""
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><camera/></worldbody></mujoco>")
    renderer, data = Renderer(model, size), mujoco.MjData(model)
    return timed(lambda: [renderer.render(data) for _ in range(count)], repeats, 30)["cpu_ms"] / count


def frames(task: str, mode: str, size: int, count: int, repeats: int, bound: float) -> dict[str, Any]:
    """A row: a frame without its physics, timed over `count` frames."""
    if mode == "physics.render":
        physics = load_suite(task).physics
        draw = lambda: physics.render(size, size, 0)  # noqa: E731
    else:
        env = DMControlEnv(task, "frames", size=size, rendering=mode)
        env.reset(seed=0)
        draw = env.render
    found = timed(lambda: [draw() for _ in range(count)], repeats, 30)
    each = {key: value / count for key, value in found.items() if key != "repeats"}
    return {"task": task, "rendering": mode, **rates(each, "frames", 1, bound)}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--tasks", nargs="*", default=list(TASKS))
    options.add_argument("--size", type=int, default=64)
    args = parse(options, arguments)
    count, repeats = (2, 3) if args.quick else (50, 10)
    measured = limits(args.quick) | {"empty picture ms": empty_picture(args.size, count, repeats), "gl": gl_name()}
    rows = []
    for task in args.tasks[:1] if args.quick else args.tasks:
        for mode in (*MODES, "physics.render"):
            few = 1 if mode == "physics.render" else count
            rows.append(frames(task, mode, args.size, few, repeats, measured["empty picture ms"]))
    report(args, "rendering", rows, measured)


if __name__ == "__main__":
    main()
