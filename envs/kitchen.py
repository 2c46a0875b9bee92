"""D4RL's Franka kitchen (Gupta et al. 2019; Fu et al. 2020): a robot arm is to bring four things to their goals.

The model is a file of gymnasium-robotics: pip install 'mpdiffuser[robotics]'. Observations, noise, control, rewards and
ends follow D4RL.
"""

from typing import Any
from xml.etree import ElementTree

import numpy as np

from envs import gl  # noqa: F401  before mujoco is imported

import mujoco  # isort: skip

from envs.model_env import ModelEnv, check_choice
from envs.observations import Observed
from envs.robotics import assets

# positions of the simulator that a thing has, and where they are to be
THINGS: dict[str, tuple[list[int], list[float]]] = {
    "bottom burner": ([11, 12], [-0.88, -0.01]),
    "light switch": ([17, 18], [-0.69, -0.05]),
    "slide cabinet": ([19], [0.37]),
    "microwave": ([22], [-0.75]),
    "kettle": ([23, 24, 25, 26, 27, 28, 29], [-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06]),
}
TASKS = {  # the four things of each dataset
    "complete": ("microwave", "kettle", "light switch", "slide cabinet"),
    "partial": ("microwave", "kettle", "light switch", "slide cabinet"),
    "mixed": ("microwave", "kettle", "bottom burner", "light switch"),
}
NEAR = 0.3  # the distance from its goal within which a thing is done
DECISIONS, SUBSTEPS = 280, 40  # of an episode, of a decision
JOINTS, POSITIONS = 9, 30  # of the arm, and with the things
FASTEST = 2.0  # rad/s of an action of 1
NOISE = 0.1  # of the amplitudes that the model's file names
PICTURE = 240  # px a side
START = np.array(
    [
        *(0.148388023, -1.76848573, 1.84390296, -2.4768576, 0.260252026, 0.712533105, 1.59515394, 0.0479267505),
        *(0.0371350919, -0.00026627985, -5.18043486e-05, 3.1287722e-05, -4.51199853e-05, -3.90842156e-06),
        *(-4.22629655e-05, 6.28065475e-05, 4.04984708e-05, 0.000462730939, -0.000226906415, -0.000465501369),
        *(-0.00644129196, -0.00177048263, 0.00108009684, -0.26939744, 0.350383255, 1.61944683, 1.00618764),
        *(0.0040639512, -0.00662095997, -0.000268278933),
    ]
)


class Kitchen(ModelEnv):
    """The arm in the kitchen. An observation is (60,): 30 positions with noise, then their goals, 0 where there is
    none. An action is (9,) in [-1, 1], the speeds of the joints.

    A decision's reward is the number of things that reach their goal for the first time. With the fourth the episode
    ends. D4RL's noise is uniform. The position servos follow the noisy positions.

    Args:
        observation: "states".
        task: of `TASKS`.

    Raises:
        InputError: for other values, or if gymnasium-robotics is not installed.
    """

    def __init__(self, observation: Observed = "states", task: str = "complete") -> None:
        check_choice("kitchen", "observation", observation, ("states",))
        check_choice("kitchen", "task", task, TASKS)
        folder = assets() / "kitchen_franka"
        model = mujoco.MjModel.from_xml_path(str(folder / "kitchen_assets" / "kitchen_env_model.xml"))
        _look_from_above(model)
        super().__init__(model, PICTURE, SUBSTEPS * model.opt.timestep, np.ones(JOINTS), 2 * POSITIONS)
        root = ElementTree.parse(folder / "franka_assets" / "franka_config.xml").getroot()
        joints = [root[number].attrib for number in range(POSITIONS)]
        numbers = lambda name, count: np.array([list(map(float, each[name].split())) for each in joints[:count]])  # noqa: E731
        self._amplitudes = NOISE * numbers("pos_noise_amp", POSITIONS)[:, 0]
        self._low, self._high = numbers("pos_bound", JOINTS).T
        self.goal = np.zeros(POSITIONS)
        for thing in TASKS[task]:
            places, wanted = THINGS[thing]
            self.goal[places] = wanted
        self.task, self.left, self._decisions = task, set(TASKS[task]), 0
        self._noise = np.zeros(POSITIONS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode: the arm and all things at rest, always at the same places."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = START
        mujoco.mj_forward(self.model, self.data)
        self.left, self._decisions = set(TASKS[self.task]), 0
        self._draw_noise()
        return self.observe(), self.facts()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take one decision of 80 ms."""
        self.move(action)
        self._decisions += 1
        self._draw_noise()
        done = {thing for thing in self.left if self._distance(thing) < NEAR}
        self.left -= done
        late = self._decisions >= DECISIONS and bool(self.left)
        return self.observe(), float(len(done)), not self.left, late, self.facts()

    def move(self, action: np.ndarray) -> None:
        """Move the arm for one decision by the action (9,), which is clipped to [-1, 1]."""
        wanted = self._seen()[:JOINTS] + FASTEST * self.clipped(action) * self.decision_seconds
        self.data.ctrl[:] = wanted.clip(self._low, self._high)
        mujoco.mj_step(self.model, self.data, SUBSTEPS)

    def observe(self) -> np.ndarray:
        """Return the observation (60,) float32. The noise changes with `step` and `reset` alone."""
        return np.concatenate([self._seen(), self.goal]).astype(np.float32)

    def _seen(self) -> np.ndarray:
        return self.data.qpos + self._noise

    def _distance(self, thing: str) -> float:
        places, wanted = THINGS[thing]
        return float(np.linalg.norm(self._seen()[places] - wanted))

    def _draw_noise(self) -> None:
        self._noise = self._amplitudes * self.np_random.uniform(-1, 1, POSITIONS)


def _look_from_above(model: mujoco.MjModel) -> None:
    """Move the first camera to where it sees the arm and all things."""
    azimuth, elevation, distance = np.deg2rad(70), np.deg2rad(-35), 2.2
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0])
    forwards = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    axes = np.stack([right, np.cross(right, forwards), -forwards], 1)
    model.cam_bodyid[0], model.cam_fovy[0] = 0, 45
    model.cam_pos[0] = np.array([-0.2, 0.5, 2.0]) - distance * forwards
    mujoco.mju_mat2Quat(model.cam_quat[0], axes.flatten())
