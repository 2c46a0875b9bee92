"""D4RL's Adroit (Rajeswaran et al. 2018; Fu et al. 2020): a hand of 24 joints with a pen, a hammer, a door or a ball.

The models are files of gymnasium-robotics: pip install 'mpdiffuser[robotics]'. Observations, starts, rewards and ends
follow D4RL. The package's own environments pay other rewards: the distance of the hand counts as a gain there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from envs import gl  # noqa: F401  before mujoco is imported

import mujoco  # isort: skip

from envs.model_env import ModelEnv, check_choice
from envs.observations import Observed
from envs.physics import ActionScaling
from envs.robotics import assets

SUBSTEPS = 5  # of a decision
PICTURE = 240  # px a side


class Adroit(ModelEnv):
    """The hand with a thing. An observation is (o,), whose entries D4RL describes. An action is (m,) in [-1, 1].

    An episode ends with its time, and that of the pen when the pen is dropped.

    Attributes:
        decisions: of an episode. size: o.
    """

    decisions = 200
    size = 39

    def __init__(self, task: str) -> None:
        model = mujoco.MjModel.from_xml_path(str(assets() / "adroit_hand" / f"adroit_{task}.xml"))
        _set_strength(model)
        super().__init__(model, PICTURE, SUBSTEPS * model.opt.timestep, np.ones(model.nu), self.size)
        self._scale = ActionScaling(*model.actuator_ctrlrange.T)
        self._decisions = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode: the hand at rest, and the target or the thing at a random place."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.place(self.np_random.uniform)
        mujoco.mj_forward(self.model, self.data)
        self._decisions = 0
        return self.observe(), self.facts()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take one decision of 10 ms."""
        self.move(action)
        self._decisions += 1
        late = self._decisions >= self.decisions and not self.dropped
        return self.observe(), float(self.reward()), self.dropped, late, self.facts()

    def move(self, action: np.ndarray) -> None:
        """Move the hand for one decision by the action (m,), which is clipped to [-1, 1]."""
        self.data.ctrl[:] = self._scale(action)
        mujoco.mj_step(self.model, self.data, SUBSTEPS)

    def observe(self) -> np.ndarray:
        """Return the observation (o,) float32."""
        return np.concatenate(self.parts()).astype(np.float32)

    def place(self, draw: Callable[[float, float], float]) -> None:
        """Put the target or the thing at a random place; `draw` returns a number between two others."""
        raise NotImplementedError

    def parts(self) -> Sequence[Any]:
        """Return the parts of the observation, each (k,)."""
        raise NotImplementedError

    def reward(self) -> float:
        """Return D4RL's dense reward of the present state."""
        raise NotImplementedError

    @property
    def dropped(self) -> bool:
        """Whether the episode ends since the thing was dropped."""
        return False

    def _body(self, name: str) -> np.ndarray:
        return self.data.body(name).xpos

    def _site(self, name: str) -> np.ndarray:
        return self.data.site(name).xpos


class Door(Adroit):
    """Turn the handle and open the door."""

    def place(self, draw: Callable[[float, float], float]) -> None:
        self.model.body("frame").pos[:] = draw(-0.3, -0.2), draw(0.25, 0.35), draw(0.252, 0.35)

    def parts(self) -> Sequence[Any]:
        q, palm, handle = self.data.qpos, self._site("S_grasp"), self._site("S_handle")
        hinge = q[-2]
        return q[1:-2], [q[-1], hinge], palm, handle, palm - handle, [1.0 if hinge > 1 else -1.0]

    def reward(self) -> float:
        hinge, reach = self.data.qpos[-2], _distance(self._site("S_grasp"), self._site("S_handle"))
        cost = 0.1 * reach + 0.1 * (hinge - 1.57) ** 2 + 1e-5 * np.square(self.data.qvel).sum()
        return 2 * (hinge > 0.2) + 8 * (hinge > 1.0) + 10 * (hinge > 1.35) - cost


class Hammer(Adroit):
    """Drive a nail into a board."""

    size = 46

    def place(self, draw: Callable[[float, float], float]) -> None:
        self.model.body("nail_board").pos[2] = draw(0.1, 0.25)

    def parts(self) -> Sequence[Any]:
        turned, hit = _angles(self.data.body("Object").xquat), self.data.sensor("S_nail").data.clip(-1, 1)
        places = self._site("S_grasp"), self._body("Object"), turned, self._site("S_target")
        return self.data.qpos[:-6], self.data.qvel[-6:].clip(-1, 1), *places, hit

    def reward(self) -> float:
        hammer, head, nail = self._body("Object"), self._site("tool"), self._site("S_target")
        left = _distance(nail, self._site("nail_goal"))
        cost = 0.1 * _distance(self._site("S_grasp"), hammer) + _distance(head, nail) + 10 * left
        cost += 0.01 * float(np.linalg.norm(self.data.qvel))
        return 2 * (hammer[2] > 0.04 and head[2] > 0.04) + 25 * (left < 0.02) + 75 * (left < 0.01) - cost


class Pen(Adroit):
    """Turn a pen in the hand until it is parallel to another one."""

    decisions, size = 100, 45

    def place(self, draw: Callable[[float, float], float]) -> None:
        self.model.body("target").quat[:] = _quaternion(np.array([draw(-1, 1), draw(-1, 1), 0.0]))

    def parts(self) -> Sequence[Any]:
        pen, wanted, place = self._direction("object"), self._direction("target"), self._body("Object")
        velocity, off = self.data.qvel[-6:], place - self._site("eps_ball")
        return self.data.qpos[:-6], place, velocity, pen, wanted, off, pen - wanted

    def reward(self) -> float:
        alike = float(self._direction("object") @ self._direction("target"))
        off = _distance(self._body("Object"), self._site("eps_ball"))
        bonus = 10 * (alike > 0.9) + 50 * (alike > 0.95) if off < 0.075 else 0
        return alike - off - 5 * self.dropped + bonus

    @property
    def dropped(self) -> bool:
        return bool(self._body("Object")[2] < 0.075)

    def _direction(self, pen: str) -> np.ndarray:
        """Return the unit vector (3,) from the bottom to the top of a pen."""
        along = self._site(f"{pen}_top") - self._site(f"{pen}_bottom")
        return along / np.linalg.norm(along)


class Relocate(Adroit):
    """Carry a ball to a place."""

    def place(self, draw: Callable[[float, float], float]) -> None:
        self.model.body("Object").pos[:2] = draw(-0.15, 0.15), draw(-0.15, 0.3)
        self.model.site("target").pos[:] = draw(-0.2, 0.2), draw(-0.2, 0.2), draw(0.15, 0.35)

    def parts(self) -> Sequence[Any]:
        palm, ball, target = self._site("S_grasp"), self._body("Object"), self._site("target")
        return self.data.qpos[:-6], palm - ball, palm - target, ball - target

    def reward(self) -> float:
        palm, ball, target = self._site("S_grasp"), self._body("Object"), self._site("target")
        left = _distance(ball, target)
        lifted = 1 - 0.5 * _distance(palm, target) - 0.5 * left if ball[2] > 0.04 else 0
        return lifted + 10 * (left < 0.1) + 20 * (left < 0.05) - 0.1 * _distance(palm, ball)


TASKS: dict[str, type[Adroit]] = {"pen": Pen, "hammer": Hammer, "door": Door, "relocate": Relocate}


def make_adroit(observation: Observed = "states", task: str = "pen") -> Adroit:
    """Make one of the environments.

    Args:
        observation: "states".
        task: of `TASKS`.

    Raises:
        InputError: for other values, or if gymnasium-robotics is not installed.
    """
    check_choice("adroit", "observation", observation, ("states",))
    check_choice("adroit", "task", task, TASKS)
    return TASKS[task](task)


def _set_strength(model: mujoco.MjModel) -> None:
    """Set the gains of the wrist's and the fingers' position servos."""
    for first, last, gain in (("A_WRJ1", "A_WRJ0", 10.0), ("A_FFJ3", "A_THJ0", 1.0)):
        servos = slice(model.actuator(first).id, model.actuator(last).id + 1)
        model.actuator_gainprm[servos, :3] = gain, 0, 0
        model.actuator_biasprm[servos, :3] = 0, -gain, 0


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other))


def _angles(quaternion: np.ndarray) -> np.ndarray:
    """Quaternion (w, x, y, z) -> angles (3,) in rad about the moving axes x, y, z."""
    return Rotation.from_quat(np.roll(quaternion, -1)).as_euler("XYZ")


def _quaternion(angles: np.ndarray) -> np.ndarray:
    """Angles (3,) in rad about the moving axes x, y, z -> quaternion (w, x, y, z)."""
    return np.roll(Rotation.from_euler("XYZ", angles).as_quat(), 1)
