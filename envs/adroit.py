"""D4RL's Adroit (Rajeswaran et al. 2018; Fu et al. 2020): a hand of 24 joints with a pen, a hammer, a door or a ball.

The models are files of gymnasium-robotics: pip install 'mpdiffuser[robotics]'. Observations, starts, rewards and ends
follow D4RL. The package's own environments pay other rewards: the distance of the hand counts as a gain there.
"""

from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from envs import gl  # noqa: F401  before mujoco is imported

import mujoco  # isort: skip

from envs.model_env import ModelEnv, check_choice
from envs.observations import Observed
from envs.physics import ActionScaling
from envs.robotics import assets

DECISIONS = {"pen": 100, "hammer": 200, "door": 200, "relocate": 200}  # of an episode
SIZES = {"pen": 45, "hammer": 46, "door": 39, "relocate": 39}  # of an observation
SUBSTEPS = 5  # of a decision
PICTURE = 240  # px a side


class Adroit(ModelEnv):
    """The hand. An observation is (o,), with o of `SIZES`; an action is (m,) in [-1, 1].

    An episode ends with its time, and that of the pen when the pen is dropped. D4RL describes the entries.

    Args:
        observation: "states".
        task: of `DECISIONS`.

    Raises:
        InputError: for other values, or if gymnasium-robotics is not installed.
    """

    def __init__(self, observation: Observed = "states", task: str = "pen") -> None:
        check_choice("adroit", "observation", observation, ("states",))
        check_choice("adroit", "task", task, DECISIONS)
        self.task = task
        model = mujoco.MjModel.from_xml_path(str(assets() / "adroit_hand" / f"adroit_{task}.xml"))
        _set_strength(model)
        super().__init__(model, PICTURE, SUBSTEPS * model.opt.timestep, np.ones(model.nu), SIZES[task])
        self._scale = ActionScaling(*model.actuator_ctrlrange.T)
        self._decisions = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode: the hand at rest, and the target or the object at a random place."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        draw = self.np_random.uniform
        if self.task == "pen":
            self.model.body("target").quat[:] = _quaternion(np.array([draw(-1, 1), draw(-1, 1), 0.0]))
        elif self.task == "hammer":
            self.model.body("nail_board").pos[2] = draw(0.1, 0.25)
        elif self.task == "door":
            self.model.body("frame").pos[:] = draw(-0.3, -0.2), draw(0.25, 0.35), draw(0.252, 0.35)
        else:
            self.model.body("Object").pos[:2] = draw(-0.15, 0.15), draw(-0.15, 0.3)
            self.model.site("target").pos[:] = draw(-0.2, 0.2), draw(-0.2, 0.2), draw(0.15, 0.35)
        mujoco.mj_forward(self.model, self.data)
        self._decisions = 0
        return self.observe(), self.facts()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take one decision of 10 ms."""
        self.move(action)
        self._decisions += 1
        dropped = self.task == "pen" and self._place("Object")[2] < 0.075
        over = bool(dropped), bool(self._decisions >= DECISIONS[self.task] and not dropped)
        return self.observe(), self.reward(), *over, self.facts()

    def move(self, action: np.ndarray) -> None:
        """Move the hand for one decision by the action (m,), which is clipped to [-1, 1]."""
        self.data.ctrl[:] = self._scale(action)
        mujoco.mj_step(self.model, self.data, SUBSTEPS)

    def observe(self) -> np.ndarray:
        """Return the observation (o,) float32."""
        q, v = self.data.qpos, self.data.qvel
        if self.task == "door":
            palm, handle, hinge = self._site("S_grasp"), self._site("S_handle"), q[-2]
            is_open = 1.0 if hinge > 1 else -1.0
            parts = [q[1:-2], [q[-1], hinge], palm, handle, palm - handle, [is_open]]
        elif self.task == "hammer":
            turned = _angles(self.data.body("Object").xquat)
            hit = self.data.sensor("S_nail").data.clip(-1, 1)
            ends = self._site("S_grasp"), self._place("Object"), turned, self._site("S_target")
            parts = [q[:-6], v[-6:].clip(-1, 1), *ends, hit]
        elif self.task == "relocate":
            palm, ball, target = self._site("S_grasp"), self._place("Object"), self._site("target")
            parts = [q[:-6], palm - ball, palm - target, ball - target]
        else:
            pen, wanted, place = self._direction("object"), self._direction("target"), self._place("Object")
            parts = [q[:-6], place, v[-6:], pen, wanted, place - self._site("eps_ball"), pen - wanted]
        return np.concatenate(parts).astype(np.float32)

    def reward(self) -> float:
        """Return D4RL's dense reward of the present state."""
        if self.task == "door":
            hinge = self.data.qpos[-2]
            reach = _distance(self._site("S_grasp"), self._site("S_handle"))
            reward = -0.1 * reach - 0.1 * (hinge - 1.57) ** 2 - 1e-5 * np.square(self.data.qvel).sum()
            reward += 2 * (hinge > 0.2) + 8 * (hinge > 1.0) + 10 * (hinge > 1.35)
        elif self.task == "hammer":
            hammer, head, nail = self._place("Object"), self._site("tool"), self._site("S_target")
            left = _distance(nail, self._site("nail_goal"))
            reward = -0.1 * _distance(self._site("S_grasp"), hammer) - _distance(head, nail) - 10 * left
            reward -= 0.01 * np.linalg.norm(self.data.qvel)
            reward += 2 * (hammer[2] > 0.04 and head[2] > 0.04) + 25 * (left < 0.02) + 75 * (left < 0.01)
        elif self.task == "relocate":
            palm, ball, target = self._site("S_grasp"), self._place("Object"), self._site("target")
            left = _distance(ball, target)
            reward = -0.1 * _distance(palm, ball) + 10 * (left < 0.1) + 20 * (left < 0.05)
            if ball[2] > 0.04:
                reward += 1 - 0.5 * _distance(palm, target) - 0.5 * left
        else:
            place, alike = self._place("Object"), self._direction("object") @ self._direction("target")
            off = _distance(place, self._site("eps_ball"))
            reward = alike - off - 5 * (place[2] < 0.075)
            if off < 0.075:
                reward += 10 * (alike > 0.9) + 50 * (alike > 0.95)
        return float(reward)

    def _place(self, body: str) -> np.ndarray:
        return self.data.body(body).xpos

    def _site(self, name: str) -> np.ndarray:
        return self.data.site(name).xpos

    def _direction(self, pen: str) -> np.ndarray:
        """Return the unit vector from the bottom to the top of a pen."""
        along = self._site(f"{pen}_top") - self._site(f"{pen}_bottom")
        return along / np.linalg.norm(along)


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
