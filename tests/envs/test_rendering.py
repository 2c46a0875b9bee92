"""Fast rendering against dm_control's, and the trap of two renderers."""

import os
import subprocess
import sys

import numpy as np
import pytest

from envs import gl, rendering
from envs.rendering import Renderer
from envs.simulator import DMControlEnv
from mpdiffuser.errors import InputError

from dm_control.mujoco import engine  # isort: skip

pytestmark = pytest.mark.slow  # simulators in processes of their own

TASKS = [
    "cartpole_swingup",
    "pendulum_swingup",
    "reacher_easy",
    "point_mass_easy",
    "ball_in_cup_catch",
    "walker_walk",
    "cheetah_run",
]


def make(task, seed=0, **options):
    env = DMControlEnv(task, "frames", **options)
    env.reset(seed=seed)
    return env


def warm(frame):
    """Where a picture shows the coloured bodies: more red than blue."""
    frame = frame.astype(int)
    return frame[..., 0] > frame[..., 2] + 10


def dm_control_frame(env):
    return env.physics.render(env.size, env.size, camera_id=env.camera)


@pytest.mark.parametrize("task", TASKS)
def test_fast_frames_show_what_dm_control_shows(task):
    env = make(task)
    frame, other = env.render(), dm_control_frame(env)
    assert frame.dtype == np.uint8 and frame.shape == (64, 64, 3)
    assert np.array_equal(frame, env.render())
    own_warm, their_warm = warm(frame), warm(other)
    assert (own_warm & their_warm).sum() > 0.75 * (own_warm | their_warm).sum() > 0
    # without its shadow pass MuJoCo lights large planes less: those that fill the picture are darker by more than 12
    limit = 30 if task in ("pendulum_swingup", "reacher_easy", "point_mass_easy") else 12
    assert np.abs(frame.astype(float) - other).mean() < limit
    for _ in range(20):
        env.step(np.ones(env.action_space.shape))
    assert not np.array_equal(frame, env.render())


@pytest.mark.parametrize("task", ["reacher_easy", "walker_walk"])
def test_full_frames_equal_dm_controls(task):
    env = make(task, rendering="full", size=48)
    difference = np.abs(env.render().astype(int) - dm_control_frame(env))
    assert difference.mean() < 0.05 and difference.max() <= 16


def test_rendering_leaves_the_model_alone():
    env = make("walker_walk")
    before = env.model.vis.global_.offwidth, env.model.vis.quality.offsamples, env.model.vis.quality.shadowsize
    env.render()
    after = env.model.vis.global_.offwidth, env.model.vis.quality.offsamples, env.model.vis.quality.shadowsize
    assert before == after and before[0] >= 640


@pytest.mark.parametrize(("task", "target"), [("reacher_easy", "target"), ("point_mass_easy", "pointmass")])
def test_each_environment_draws_its_own_model(task, target):
    """Environments that share GPU memory: what differs between their models is drawn where dm_control projects it."""
    environments = [make(task, seed) for seed in range(4)]
    alone = [make(task, seed) for seed in range(4)]
    for env, single in zip(environments, alone):
        frame = env.render().astype(int)
        expected = Renderer(single.model, 64).render(single.data)
        assert np.array_equal(frame, expected)
        camera = engine.Camera(env.physics, 64, 64, camera_id=0)
        position = env.data.geom_xpos[env.model.geom(target).id]
        x, y, depth = camera.matrix @ np.append(position, 1)
        column, row = round(x / depth), round(y / depth)
        assert warm(frame)[row, column]
    positions = {tuple(env.data.geom_xpos[env.model.geom(target).id].round(3)) for env in environments}
    assert len(positions) == 4


def two_states(env):
    """Frames of two states: a renderer that lost its buffer repeats the frame it drew last, whatever the state."""
    start = env.get_physics()
    first = env.render()
    env.step(np.ones(env.action_space.shape))
    env.step(np.ones(env.action_space.shape))
    second = env.render()
    env.set_physics(start)
    assert not np.array_equal(first, second)
    return np.stack([first, second])


def test_closing_one_renderer_leaves_the_others_alone():
    first = make("walker_walk")
    before = two_states(first)
    for task in ("cheetah_run", "reacher_easy", "walker_walk"):
        second = make(task, rendering="full", size=80)
        second.render()
        assert np.array_equal(two_states(first), before)
        second.close()
        assert np.array_equal(two_states(first), before)
    other = Renderer(first.model, 64)
    other.render(first.data)
    first.render()
    del other
    assert np.array_equal(two_states(first), before)


def test_dm_controls_own_renderer_leaves_this_one_alone():
    env, other = make("walker_walk"), make("cheetah_run")
    before = two_states(env)
    dm_control_frame(other)
    assert np.array_equal(two_states(env), before)
    other.physics.free()
    assert np.array_equal(two_states(env), before)


def test_an_environment_renders_again_after_close():
    env = make("cartpole_swingup")
    before = env.render()
    env.close()
    assert np.array_equal(env.render(), before)


def test_bad_size_and_mode():
    env = make("cartpole_swingup")
    for options, word in (({"size": 0}, "size=0"), ({"mode": "quick"}, "fast, full"), ({"camera": -1}, "camera=-1")):
        with pytest.raises(InputError, match=word):
            Renderer(env.model, **options)


def test_names_the_back_end(monkeypatch):
    assert rendering.gl_name().startswith(rendering.back_end())
    monkeypatch.delattr(rendering.mujoco, "GLContext")
    assert rendering.back_end() == "none"


def test_a_terrain_that_is_drawn_anew():
    """Environments of one task share the memory of the GPU, but not the terrain."""
    alone = make("quadruped_escape", seed=1).render()
    envs = [make("quadruped_escape", seed=seed) for seed in (0, 1)]
    frames = [env.render() for env in envs]
    assert np.array_equal(frames[1], alone) and not np.array_equal(frames[0], alone)
    assert np.array_equal(envs[0].render(), frames[0])


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param(
            {"MUJOCO_GL": "glfw"}, marks=pytest.mark.skipif("DISPLAY" in os.environ, reason="glfw works here")
        ),
        {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "99"},
        {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "gpu"},
        {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa"},
        {"MUJOCO_GL": "nonsense"},
    ],
)
def test_without_a_back_end_states_work_and_frames_name_the_doctor(variables):
    code = (
        "from envs.simulator import DMControlEnv as E; print(E('cartpole_swingup').reset(seed=0)[0].shape, flush=True);"
    )
    code += "E('cartpole_swingup', 'frames').reset(seed=0)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and run.stdout.strip() == "(5,)"
    assert f"InputError: MUJOCO_GL={variables['MUJOCO_GL']!r}" in run.stderr
    assert "python -m envs.doctor" in run.stderr.splitlines()[-1]
    last = run.stderr.splitlines()[-1]
    for name in set(variables) & {"MUJOCO_EGL_DEVICE_ID", "PYOPENGL_PLATFORM"}:
        assert name in last and variables[name] in last


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="egl is Linux's")
@pytest.mark.parametrize("cards", ["99", "99,0", "-1", "", "GPU-8932f937", "0"])
def test_cards_that_egl_does_not_list_change_nothing(cards):
    """The frames are those without CUDA_VISIBLE_DEVICES, and the variables stay as the user has set them."""
    code = (
        "import hashlib, os; from envs.simulator import DMControlEnv; e = DMControlEnv(observation='frames', size=32);"
        "frame = e.reset(seed=0)[0]; print(hashlib.sha256(frame.tobytes()).hexdigest());"
        "print('MUJOCO_EGL_DEVICE_ID' in os.environ, os.environ.get('CUDA_VISIBLE_DEVICES'))"
    )
    left = {name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", gl.DEVICE)}
    left |= {"MUJOCO_GL": "egl", "PYTHONPATH": os.pathsep.join(sys.path)}
    found = [
        subprocess.run([sys.executable, "-c", code], env=left | more, capture_output=True, text=True, timeout=120)
        for more in ({}, {"CUDA_VISIBLE_DEVICES": cards})
    ]
    plain, told = (run.stdout.splitlines() for run in found)
    assert plain[0] == told[0] and told[1] == f"False {cards}", found[1].stderr
