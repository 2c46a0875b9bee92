"""Train an expert policy by soft actor-critic on the simulator, and export it with a ladder of weaker checkpoints.

    python -m envs.experts.train cartpole_swingup                train, then export to envs/experts/policies/
    python -m envs.experts.train walker_walk --export-only       export the best of the checkpoints so far
    python -m envs.experts.train walker_walk --recipe vd4rl      the agents of V-D4RL's data (envs/datasets/vd4rl.py)

The checkpoints go to runs/experts/<task>/ or runs/experts/<task>-vd4rl/. A training that was cut off goes on after its
last checkpoint, with the same result. Needs the extra `experts` (stable-baselines3).
"""

import argparse
import json
import math
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import TimeLimit, TransformReward

from envs.experts import ABOUT, AGENTS, FOLDER, VD4RL_TASKS, PolicyNetwork, rollout_returns, task_options
from envs.experts.export import export, export_agents
from envs.experts.mppi import MPPI
from envs.simulator import DMControlEnv
from mpdiffuser.commands import entry_point
from mpdiffuser.errors import InputError
from mpdiffuser.files import claim, read_json, replacing, write_whole, writing

WATCH_SEEDS = tuple(range(10_000, 10_005))  # of the returns measured during training
DEMONSTRATION_SEED = 30_000


@dataclass
class Settings:
    """Training of one task.

    Args:
        decisions: environment steps, each of action_repeat control steps.
        interval: decisions from one checkpoint to the next. Each interval has random numbers and episodes of its own,
            so a training can go on after any checkpoint.
        warmup: decisions of random actions before the first update.
        episode: length of a training episode in decisions; short where each episode has another target.
        layers: number of hidden layers of the actor and the critic.
        actor, critic: their widths.
        demonstrations: MPPI episodes put into the replay buffer first, for rewards that random actions seldom find.
        sum_rewards: a decision's reward is the sum over its control steps, not the mean.
        kept: first decisions of the training that are written down, for a dataset.
    """

    decisions: int = 30_000
    interval: int = 1_000
    warmup: int = 1_500
    episode: int = 1_000
    learning_rate: float = 1e-3
    batch_size: int = 256
    layers: int = 2
    actor: int = 128
    critic: int = 128
    demonstrations: int = 0
    sum_rewards: bool = False
    kept: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name in ("warmup", "demonstrations", "kept") else 1
            fits = 0 < value < math.inf if field.name == "learning_rate" else value >= least
            if not isinstance(value, bool) and not fits:
                wanted = "above 0" if field.name == "learning_rate" else f"at least {least}"
                raise InputError(f"--{field.name.replace('_', '-')}: must be {wanted}, found {value}")
        if self.decisions % self.interval:
            raise InputError(f"--decisions: must be a multiple of --interval {self.interval}, found {self.decisions}")


LOCOMOTION = Settings(400_000, 5_000, 2_500, learning_rate=5e-4, batch_size=128, critic=256, demonstrations=6)
SETTINGS = {
    "cartpole_swingup": Settings(),
    "pendulum_swingup": Settings(20_000, demonstrations=10),
    "reacher_easy": Settings(24_000, episode=50),
    "point_mass_easy": Settings(15_000, interval=500, demonstrations=10),
    "ball_in_cup_catch": Settings(13_000),
    "walker_walk": LOCOMOTION,
    "cheetah_run": LOCOMOTION,
}
# V-D4RL's agents (Lu et al. 2023): 3 x 256 units, Adam 1e-4, 10,000 random control steps first
VD4RL = Settings(1_000_000, 25_000, 5_000, learning_rate=1e-4, layers=3, actor=256, critic=256)
VD4RL = replace(VD4RL, sum_rewards=True, kept=100_000)
RECIPES = {"task": SETTINGS, "vd4rl": dict.fromkeys(VD4RL_TASKS, VD4RL)}


def load_library() -> Any:
    """The SAC class of stable-baselines3.

    Raises:
        InputError: if it is not installed.
    """
    try:
        from stable_baselines3 import SAC
    except ImportError as error:
        raise InputError(f"stable-baselines3 is missing ({error}): run pip install -e '.[experts]'") from error
    return SAC


class Diary(gymnasium.Wrapper):
    """Writes down the first `most` decisions: physics (p,), action (m,), reward and whether an episode begins.

    A row has the state after its action. The first row of an episode has no action and no reward.
    """

    def __init__(self, env: gymnasium.Env, most: int) -> None:
        super().__init__(env)
        self.most = most
        self.start: Any = None  # of an episode without decisions
        self.rows: list[tuple[np.ndarray, np.ndarray, float, bool]] = []

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**arguments)
        self.start = info["physics"]
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.most > 0:
            self.most -= 1
            if self.start is not None:
                self.rows.append((self.start, np.zeros_like(action), 0.0, True))
                self.start = None
            self.rows.append((info["physics"], np.array(action), float(reward), False))
        return observation, reward, terminated, truncated, info

    def take(self) -> dict[str, np.ndarray]:
        """The rows since the last call: physics (n, p), action (n, m), reward (n,), first (n,)."""
        columns = [np.array(column) for column in zip(*self.rows)]
        self.rows = []
        return dict(zip(("physics", "action", "reward", "first"), columns))


def make_model(task: str, settings: Settings, seed: int) -> tuple[Any, Diary]:
    """An untrained SAC model, and the diary of its environment."""
    sac = load_library()
    repeat = task_options(task)["action_repeat"]
    diary = Diary(DMControlEnv(task, action_repeat=repeat), settings.kept)
    env: Any = TimeLimit(diary, settings.episode)
    scale = 1 if settings.sum_rewards else repeat
    env = TransformReward(env, lambda reward: float(reward) / scale)
    architecture = {"pi": [settings.actor] * settings.layers, "qf": [settings.critic] * settings.layers}
    model = sac(
        "MlpPolicy",
        env,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        buffer_size=settings.decisions + 1_000 * settings.demonstrations,
        learning_starts=settings.warmup,
        policy_kwargs={"net_arch": architecture, "optimizer_kwargs": {"fused": True}},
        seed=seed,
        device="cpu",
    )
    from stable_baselines3.common.logger import Logger

    model.set_logger(Logger(folder=None, output_formats=[]))  # the library's own leaves folders in /tmp
    return model, diary


def add_demonstrations(model: Any, task: str, settings: Settings) -> None:
    """Put MPPI episodes into the model's replay buffer."""
    repeat = task_options(task)["action_repeat"]
    scale = 1 if settings.sum_rewards else repeat
    env: Any = DMControlEnv(task, action_repeat=repeat)
    for seed in range(DEMONSTRATION_SEED, DEMONSTRATION_SEED + settings.demonstrations):
        controller = MPPI(env, seed, threads=1)
        state, _ = env.reset(seed=seed)
        terminated = truncated = False
        while not (terminated or truncated):
            action = controller.act()
            following, reward, terminated, truncated, _ = env.step(action)
            info = {"TimeLimit.truncated": truncated and not terminated}
            done = np.array([terminated or truncated])
            model.replay_buffer.add(
                state[None], following[None], action[None], np.array([reward / scale]), done, [info]
            )
            state = following
        controller.close()
    env.close()


def policy_of(model: Any, info: dict[str, Any]) -> PolicyNetwork:
    """A SAC actor as a numpy policy."""
    actor = model.policy.actor
    weights = lambda x: (x.weight.detach().numpy().copy(), x.bias.detach().numpy().copy())  # noqa: E731
    linear = [layer for layer in (*actor.latent_pi, actor.mu) if isinstance(layer, torch.nn.Linear)]
    return PolicyNetwork([weights(layer) for layer in linear], info, weights(actor.log_std))


BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def save_state(model: Any, file: Path) -> None:
    """Write what a training needs to go on: weights, optimizers and replay buffer."""
    buffer, count = model.replay_buffer, model.replay_buffer.pos or model.replay_buffer.buffer_size
    state = {
        "parameters": model.get_parameters(),
        "log_ent_coef": model.log_ent_coef.detach(),
        "buffer": {name: torch.from_numpy(getattr(buffer, name)[:count]) for name in BUFFER},
        "updates": model._n_updates,
        "decisions": model.num_timesteps,
    }
    with replacing(file) as handle:
        torch.save(state, handle)


def load_state(model: Any, file: Path) -> None:
    """Go on from a file of `save_state`.

    Raises:
        InputError: if the file is damaged, or has more rows than the buffer of `model`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():  # torch does not check the sums
                raise zipfile.BadZipFile(damaged)
        state = torch.load(file, weights_only=True)
    except (zipfile.BadZipFile, RuntimeError) as error:
        raise InputError(f"{file}: damaged; remove the folder and train again") from error
    count, most = state["decisions"], model.replay_buffer.buffer_size
    if len(state["buffer"]["rewards"]) > most:
        raise InputError(f"{file}: holds {count:,} decisions; give --decisions of at least as many, found {most:,}")
    model.set_parameters(state["parameters"])
    model.log_ent_coef.data.copy_(state["log_ent_coef"])
    model._n_updates, model.num_timesteps = state["updates"], state["decisions"]
    buffer = model.replay_buffer
    for name, rows in state["buffer"].items():
        getattr(buffer, name)[: len(rows)] = rows.numpy()
    buffer.pos, buffer.full = len(rows) % buffer.buffer_size, len(rows) == buffer.buffer_size


def train(task: str, settings: Settings, seed: int, folder: Path, recipe: str) -> None:
    """Train, and write a checkpoint into `folder` after each interval; go on after the last one there.

    Raises:
        InputError: if the folder holds a training with other settings, or stable-baselines3 is missing.
    """
    model, diary = make_model(task, settings, seed)
    facts = {
        "task": task,
        "action_repeat": task_options(task)["action_repeat"],
        "algorithm": "SAC (stable-baselines3)",
        "settings": asdict(settings),
        "seed": seed,
        "command": command(task, settings, seed, recipe),
        "versions": {
            name: version(name) for name in ("stable-baselines3", "torch", "gymnasium", "dm_control", "mujoco")
        },
    }
    start_or_resume(model, folder, facts)
    diary.most -= model.num_timesteps
    if not model.num_timesteps:
        add_demonstrations(model, task, settings)
    while model.num_timesteps < settings.decisions:
        train_interval(model, settings, seed)
        write_checkpoint(model, diary, folder, facts)


def start_or_resume(model: Any, folder: Path, facts: dict[str, Any]) -> None:
    """Bring the model to the last checkpoint in the folder, or prepare an empty folder."""
    about, state = folder / ABOUT, folder / "state.pt"
    if folder.exists() and not about.exists() and any(file.name != ".lock" for file in folder.iterdir()):
        raise InputError(f"{folder}: holds other files; remove it or choose another --output")
    claim(folder, "wait for it, or choose another --output")
    if about.exists():
        found, wanted = _identity(read_json(about)), _identity(facts)
        differ = [
            f"{name} is {found.get(name)}, not {wanted[name]}" for name in wanted if found.get(name) != wanted[name]
        ]
        if differ:
            raise InputError(f"{folder}: holds another training ({'; '.join(differ)}); choose another --output")
        if state.exists():
            load_state(model, state)
            print(f"{folder}: goes on after {model.num_timesteps} decisions", flush=True)
    with writing(folder):
        write_whole(about, json.dumps(facts))


def _identity(facts: dict[str, Any]) -> dict[str, Any]:
    """What a training must have in common with the one that it goes on with; it may be longer."""
    settings = {name: value for name, value in facts.get("settings", {}).items() if name != "decisions"}
    return {"task": facts.get("task"), "seed": facts.get("seed"), **settings}


def train_interval(model: Any, settings: Settings, seed: int) -> None:
    """Train to the next checkpoint, from a new episode, with random numbers of the interval."""
    number = model.num_timesteps // settings.interval
    model.set_random_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
    model._last_obs = None  # begin an episode
    model.learn(settings.interval, reset_num_timesteps=False)


def write_checkpoint(model: Any, diary: Diary, folder: Path, facts: dict[str, Any]) -> None:
    """Measure the policy and write it, the rows of the diary and the state to go on from."""
    decisions, task = model.num_timesteps, facts["task"]
    policy = policy_of(model, {**facts, "decisions": decisions})
    returns = rollout_returns(task, task_options(task)["action_repeat"], policy, WATCH_SEEDS)
    policy.info.update(watch_return=float(returns.mean()), watch_returns=returns.round().tolist())
    policy.info["cpu_seconds"] = round(time.process_time())  # of this process
    with writing(folder):
        rows = diary.take()
        if rows:
            with replacing(folder / f"{decisions:08d}.npz") as file:
                np.savez(file, allow_pickle=False, **rows)
        policy.save(folder / f"{decisions:08d}.safetensors")
        save_state(model, folder / "state.pt")
    seconds = policy.info["cpu_seconds"]
    print(f"{decisions} decisions, {seconds} s, return {returns.mean():.1f} {returns.round().tolist()}", flush=True)


def command(task: str, settings: Settings, seed: int, recipe: str) -> str:
    """The command that trains with these settings."""
    usual = asdict(RECIPES[recipe][task])
    options = {"decisions": settings.decisions, "seed": seed}
    options |= {name: value for name, value in asdict(settings).items() if value != usual[name]}
    words = [f"python -m envs.experts.train {task}", *[f"--recipe {recipe}"] * (recipe != "task")]
    for name, value in options.items():
        dashed = name.replace("_", "-")
        words.append(f"--{'' if value else 'no-'}{dashed}" if isinstance(value, bool) else f"--{dashed} {value}")
    return " ".join(words)


@entry_point
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m envs.experts.train", description="Train and export an expert.")
    parser.add_argument("task", help=", ".join(SETTINGS))
    parser.add_argument("--recipe", choices=RECIPES, default="task", help="the task's own settings, or V-D4RL's")
    for field in fields(Settings):
        switch = isinstance(field.default, bool)
        kind: Any = {"action": argparse.BooleanOptionalAction} if switch else {"type": type(field.default)}
        parser.add_argument(f"--{field.name.replace('_', '-')}", **kind, default=None, help="default: the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder of the checkpoints (default: runs/experts/<task>)")
    parser.add_argument(
        "--policies",
        type=Path,
        help="folder of the exported policies (default: the project's; needed for own settings)",
    )
    parser.add_argument("--export-only", action="store_true", help="do not train; export from the checkpoints")
    options = parser.parse_args(arguments)
    task, recipe = options.task, options.recipe
    if task not in RECIPES[recipe]:
        raise InputError(f"task={task!r} is unknown; allowed: {', '.join(RECIPES[recipe])}")
    given = {field.name: getattr(options, field.name) for field in fields(Settings)}
    settings = replace(RECIPES[recipe][task], **{name: x for name, x in given.items() if x is not None})
    if options.seed < 0:
        raise InputError(f"--seed: must be 0 or more, found {options.seed}")
    if settings != RECIPES[recipe][task] and options.policies is None:
        raise InputError("--policies: is needed, since other settings than the recipe's do not replace its policies")
    folder = options.output or Path("runs/experts") / (task if recipe == "task" else f"{task}-{recipe}")
    torch.set_num_threads(1)
    if not options.export_only:
        train(task, settings, options.seed, folder, recipe)
    write, target = (export, FOLDER) if recipe == "task" else (export_agents, AGENTS)
    for policy in write(task, folder, (options.policies or target) / task):
        info = policy.info
        print(f"{info['return_mean']:.0f} ± {info['return_sem']:.0f} after {info['decisions']} decisions")


if __name__ == "__main__":
    sys.exit(main())
