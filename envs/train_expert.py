"""Train an expert policy by soft actor-critic on the simulator, and export it with a ladder of rungs below it.

    python -m envs.train_expert cartpole_swingup             train, then export to envs/policies/cartpole_swingup/
    python -m envs.train_expert walker_walk --export-only    export the best of the checkpoints so far

Checkpoints and `log.jsonl` go to runs/experts/<task>/. Needs the extra `experts` (stable-baselines3).
"""

import argparse
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
from gymnasium.wrappers import TimeLimit, TransformReward

from envs.experts import ACTION_REPEATS, FOLDER, SEEDS, Policy, rollout_returns, standard_error
from envs.mppi import MPPI
from envs.simulator import DMControlEnv
from mpdiffuser.errors import InputError

WATCH_SEEDS = tuple(range(10_000, 10_005))  # at every checkpoint
SELECTION_SEEDS = tuple(range(20_000, 20_020))  # to choose the expert among the best checkpoints
DEMONSTRATION_SEED = 30_000
RUNGS = (0.2, 0.4, 0.6, 0.8)  # of the expert's return


@dataclass
class Settings:
    """Training of one task.

    Args:
        decisions: environment steps, each of action_repeat control steps.
        interval: decisions from one checkpoint to the next.
        warmup: decisions of random actions before the first update.
        episode: decisions after which training starts anew, for tasks that differ from episode to episode.
        actor, critic: widths of their two hidden layers.
        demonstrations: MPPI episodes put into the replay buffer first, for rewards that random actions hardly find.
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


def make_model(task: str, settings: Settings, seed: int) -> Any:
    """An untrained SAC model on the task; its reward is the mean over the action repeat, so at most 1."""
    sac = load_library()
    repeat = ACTION_REPEATS[task]
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
    repeat = ACTION_REPEATS[task]
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


def deterministic_policy(model: Any, info: dict[str, Any]) -> Policy:
    """The mean action of a SAC actor, as a numpy policy."""
    actor = model.policy.actor
    linear = [layer for layer in (*actor.latent_pi, actor.mu) if isinstance(layer, torch.nn.Linear)]
    return Policy([(x.weight.detach().numpy().copy(), x.bias.detach().numpy().copy()) for x in linear], info)


def checkpointer(task: str, settings: Settings, facts: dict[str, Any], folder: Path) -> Callable[..., bool]:
    """A callback that evaluates and saves the policy every `settings.interval` decisions."""
    start = time.monotonic()

    def callback(local: dict[str, Any], _: dict[str, Any]) -> bool:
        model = local["self"]
        decisions = model.num_timesteps
        if decisions % settings.interval == 0:
            policy = deterministic_policy(model, {**facts, "decisions": decisions})
            returns = rollout_returns(task, ACTION_REPEATS[task], policy, WATCH_SEEDS)
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
    """Train and leave checkpoints in `folder`.

    Raises:
        InputError: if the folder holds checkpoints already, or stable-baselines3 is missing.
    """
    if any(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: holds checkpoints already; remove it or choose another --output")
    model = make_model(task, settings, seed)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "task": task,
        "action_repeat": ACTION_REPEATS[task],
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
    return f"python -m envs.train_expert {task} " + " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in options.items()
    )


def choose_expert(task: str, checkpoints: Sequence[Policy], candidates: int = 4) -> Policy:
    """The best on SELECTION_SEEDS among the checkpoints that looked best in training."""
    best = sorted(checkpoints, key=lambda policy: policy.info["watch_return"])[-candidates:]
    means = [rollout_returns(task, ACTION_REPEATS[task], policy, SELECTION_SEEDS).mean() for policy in best]
    return best[int(np.argmax(means))]


def choose_rungs(task: str, checkpoints: Sequence[Policy], top: float) -> list[Policy]:
    """Measured checkpoints of rising return near the wanted fractions of `top`, none nearer than 0.08 to the next."""
    near: dict[int, Policy] = {}
    for fraction in RUNGS:
        order = sorted(checkpoints, key=lambda policy: abs(policy.info["watch_return"] - fraction * top))
        near |= {policy.info["decisions"]: policy for policy in order[:3]}
    measured = [measure(task, policy) for policy in near.values()]
    rungs: list[Policy] = []
    for fraction in RUNGS:
        nearest = min(measured, key=lambda policy: abs(policy.info["return_mean"] - fraction * top))
        below = rungs[-1].info["return_mean"] if rungs else 0.0
        if below + 0.08 * top < nearest.info["return_mean"] < 0.92 * top:
            rungs.append(nearest)
    return rungs


def measure(task: str, policy: Policy) -> Policy:
    """Write the return over SEEDS into the policy's info."""
    returns = rollout_returns(task, ACTION_REPEATS[task], policy, SEEDS)
    policy.info.update(
        return_mean=float(returns.mean()),
        return_sem=standard_error(returns),
        returns=returns.round(2).tolist(),
        episodes=len(SEEDS),
        seeds=list(SEEDS),
    )
    return policy


def export(task: str, folder: Path, target: Path) -> list[Policy]:
    """Choose expert and rungs among the checkpoints in `folder` and write them to `target`.

    Raises:
        InputError: if there are no checkpoints.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no checkpoints; train first")
    checkpoints = [Policy.load(file) for file in files]
    expert = measure(task, choose_expert(task, checkpoints))
    rungs = choose_rungs(task, checkpoints, expert.info["return_mean"])
    for old in target.glob("*.safetensors"):
        old.unlink()
    for index, rung in enumerate(rungs):
        rung.save(target / f"rung_{index + 1}.safetensors")
    expert.save(target / "expert.safetensors")
    return [*rungs, expert]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m envs.train_expert", description="Train and export an expert.")
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
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
