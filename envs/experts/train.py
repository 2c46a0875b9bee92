"""Train an expert policy by soft actor-critic on the simulator, and export it with a ladder of weaker checkpoints.

    python -m envs.experts.train cartpole_swingup             train, then export to envs/experts/policies/
    python -m envs.experts.train walker_walk --export-only    export the best of the checkpoints so far

The training's checkpoints and `log.jsonl` go to runs/experts/<task>/. Needs the extra `experts` (stable-baselines3).
"""

import argparse
import importlib.resources
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from gymnasium.wrappers import TimeLimit, TransformReward
from scipy.stats import sem

from envs.experts import FOLDER, SEEDS, PolicyNetwork, rollout_returns
from envs.experts.mppi import MPPI
from envs.simulator import DMControlEnv
from mpdiffuser.console import quiet_pipes
from mpdiffuser.errors import InputError

WATCH_SEEDS = tuple(range(10_000, 10_005))  # of the returns measured during training
SELECTION_SEEDS = tuple(range(20_000, 20_020))  # the expert is the best on these
DEMONSTRATION_SEED = 30_000
LEVELS = (0.2, 0.4, 0.6, 0.8)  # returns of the exported checkpoints, as fractions of the expert's


@dataclass
class Settings:
    """Training of one task.

    Args:
        decisions: environment steps, each of action_repeat control steps.
        interval: decisions from one checkpoint to the next.
        warmup: decisions of random actions before the first update.
        episode: length of a training episode in decisions; short where each episode has another target.
        actor, critic: widths of their two hidden layers.
        demonstrations: MPPI episodes put into the replay buffer first, for rewards that random actions seldom find.
    """

    decisions: int = 30_000
    interval: int = 1_000
    warmup: int = 1_500
    episode: int = 1_000
    learning_rate: float = 1e-3
    batch_size: int = 256
    actor: int = 128
    critic: int = 128
    demonstrations: int = 0


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


def action_repeat(task: str) -> int:
    """Control steps per decision of a task, from configs/task/."""
    file = importlib.resources.files("configs") / "task" / f"{task}.yaml"
    return yaml.safe_load(file.read_text())["action_repeat"]


def make_model(task: str, settings: Settings, seed: int) -> Any:
    """An untrained SAC model; its reward is the mean over the control steps of a decision, so at most 1."""
    sac = load_library()
    repeat = action_repeat(task)
    env: Any = TimeLimit(DMControlEnv(task, action_repeat=repeat), settings.episode)
    env = TransformReward(env, lambda reward: float(reward) / repeat)
    architecture = {"pi": [settings.actor] * 2, "qf": [settings.critic] * 2}
    return sac(
        "MlpPolicy",
        env,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        learning_starts=settings.warmup,
        policy_kwargs={"net_arch": architecture, "optimizer_kwargs": {"fused": True}},
        seed=seed,
        device="cpu",
    )


def add_demonstrations(model: Any, task: str, episodes: int) -> None:
    """Put MPPI episodes into the model's replay buffer."""
    repeat = action_repeat(task)
    env: Any = DMControlEnv(task, action_repeat=repeat)
    for seed in range(DEMONSTRATION_SEED, DEMONSTRATION_SEED + episodes):
        controller = MPPI(env, seed, threads=1)
        state, _ = env.reset(seed=seed)
        terminated = truncated = False
        while not (terminated or truncated):
            action = controller.act()
            following, reward, terminated, truncated, _ = env.step(action)
            info = {"TimeLimit.truncated": truncated and not terminated}
            done = np.array([terminated or truncated])
            model.replay_buffer.add(
                state[None], following[None], action[None], np.array([reward / repeat]), done, [info]
            )
            state = following
        controller.close()
    env.close()


def deterministic_policy(model: Any, info: dict[str, Any]) -> PolicyNetwork:
    """The mean action of a SAC actor, as a numpy policy."""
    actor = model.policy.actor
    linear = [layer for layer in (*actor.latent_pi, actor.mu) if isinstance(layer, torch.nn.Linear)]
    return PolicyNetwork([(x.weight.detach().numpy().copy(), x.bias.detach().numpy().copy()) for x in linear], info)


def checkpointer(task: str, settings: Settings, facts: dict[str, Any], folder: Path) -> Callable[..., bool]:
    """A callback that evaluates and saves the policy every `settings.interval` decisions."""
    start = time.monotonic()

    def callback(local: dict[str, Any], _: dict[str, Any]) -> bool:
        model = local["self"]
        decisions = model.num_timesteps
        if decisions % settings.interval == 0:
            policy = deterministic_policy(model, {**facts, "decisions": decisions})
            returns = rollout_returns(task, action_repeat(task), policy, WATCH_SEEDS)
            policy.info.update(watch_return=float(returns.mean()), cpu_seconds=round(time.process_time()))
            policy.save(folder / f"{decisions:08d}.safetensors")
            line = {
                "decisions": decisions,
                "return": round(float(returns.mean()), 1),
                "returns": returns.round().tolist(),
                "seconds": round(time.monotonic() - start),
                "cpu_seconds": round(time.process_time()),
            }
            print(json.dumps(line), flush=True)
            with open(folder / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
        return True

    return callback


def train(task: str, settings: Settings, seed: int, folder: Path) -> None:
    """Train, and write checkpoints into `folder`.

    Raises:
        InputError: if the folder holds checkpoints already, or stable-baselines3 is missing.
    """
    if any(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: holds checkpoints already; remove it or choose another --output")
    model = make_model(task, settings, seed)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "task": task,
        "action_repeat": action_repeat(task),
        "algorithm": "SAC (stable-baselines3)",
        "settings": asdict(settings),
        "seed": seed,
        "command": command(task, settings, seed),
        "versions": {
            name: version(name) for name in ("stable-baselines3", "torch", "gymnasium", "dm_control", "mujoco")
        },
    }
    add_demonstrations(model, task, settings.demonstrations)
    model.learn(settings.decisions, callback=checkpointer(task, settings, facts, folder))


def command(task: str, settings: Settings, seed: int) -> str:
    """The command that trains with these settings."""
    usual = asdict(SETTINGS[task])
    options = {"decisions": settings.decisions, "seed": seed}
    options |= {name: value for name, value in asdict(settings).items() if value != usual[name]}
    return f"python -m envs.experts.train {task} " + " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in options.items()
    )


def choose_expert(task: str, checkpoints: Sequence[PolicyNetwork], candidates: int = 4) -> PolicyNetwork:
    """The best on SELECTION_SEEDS among the checkpoints of highest return during training."""
    best = sorted(checkpoints, key=lambda policy: policy.info["watch_return"])[-candidates:]
    means = [rollout_returns(task, action_repeat(task), policy, SELECTION_SEEDS).mean() for policy in best]
    return best[int(np.argmax(means))]


def choose_levels(task: str, checkpoints: Sequence[PolicyNetwork], top: float) -> list[PolicyNetwork]:
    """Checkpoints of rising return, near the fractions LEVELS of `top`, their returns at least 0.08 `top` apart."""
    near: dict[int, PolicyNetwork] = {}
    for fraction in LEVELS:
        order = sorted(checkpoints, key=lambda policy: abs(policy.info["watch_return"] - fraction * top))
        near |= {policy.info["decisions"]: policy for policy in order[:3]}
    measured = [measure(task, policy) for policy in near.values()]
    chosen: list[PolicyNetwork] = []
    for fraction in LEVELS:
        nearest = min(measured, key=lambda policy: abs(policy.info["return_mean"] - fraction * top))
        below = chosen[-1].info["return_mean"] if chosen else 0.0
        if below + 0.08 * top < nearest.info["return_mean"] < 0.92 * top:
            chosen.append(nearest)
    return chosen


def measure(task: str, policy: PolicyNetwork) -> PolicyNetwork:
    """The policy, with its returns on SEEDS in its info."""
    returns = rollout_returns(task, action_repeat(task), policy, SEEDS)
    policy.info.update(
        return_mean=float(returns.mean()),
        return_sem=float(sem(returns)),
        returns=returns.round(2).tolist(),
        episodes=len(SEEDS),
        seeds=list(SEEDS),
    )
    return policy


def export(task: str, folder: Path, target: Path) -> list[PolicyNetwork]:
    """Choose the expert and the levels below it among the checkpoints in `folder` and write them to `target`.

    Raises:
        InputError: if there are no checkpoints.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no checkpoints; train first")
    checkpoints = [PolicyNetwork.load(file) for file in files]
    expert = measure(task, choose_expert(task, checkpoints))
    levels = choose_levels(task, checkpoints, expert.info["return_mean"])
    for old in target.glob("*.safetensors"):
        old.unlink()
    for level, policy in enumerate(levels, 1):
        policy.save(target / f"checkpoint_{level}.safetensors")
    expert.save(target / "expert.safetensors")
    return [*levels, expert]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m envs.experts.train", description="Train and export an expert.")
    parser.add_argument("task", help=", ".join(SETTINGS))
    for field in fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), help="default: the task's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder of the checkpoints (default: runs/experts/<task>)")
    parser.add_argument("--policies", type=Path, default=FOLDER, help="folder of the exported policies")
    parser.add_argument("--export-only", action="store_true", help="do not train; export from the checkpoints")
    options = parser.parse_args(arguments)
    if options.task not in SETTINGS:
        raise InputError(f"task={options.task!r} is unknown; allowed: {', '.join(SETTINGS)}")
    given = {field.name: getattr(options, field.name) for field in fields(Settings)}
    settings = replace(SETTINGS[options.task], **{name: x for name, x in given.items() if x is not None})
    folder = options.output or Path("runs/experts") / options.task
    torch.set_num_threads(1)
    if not options.export_only:
        train(options.task, settings, options.seed, folder)
    for policy in export(options.task, folder, options.policies / options.task):
        info = policy.info
        print(f"{info['return_mean']:.0f} ± {info['return_sem']:.0f} after {info['decisions']} decisions")


if __name__ == "__main__":
    with quiet_pipes():
        try:
            main()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
