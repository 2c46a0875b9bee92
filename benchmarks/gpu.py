"""Train, plan and act on a GPU: python -m benchmarks.gpu

Makes maze2d's data, trains ranker, dynamics model and planner on them, plans with 64 and 4,096 candidates, and controls
the ball in the maze. The data lie on the GPU, and a captured graph holds many training steps, so no step waits for
Python. Each time stands beside its bound, from the limits that the same run measures. Needs no network, and of the
packages only those of `make gpu-wheels` besides PyTorch, timm and h5py. On a CPU the same steps run without graphs.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from benchmarks.common import parse, parser, report, spread
from benchmarks.limits import work
from benchmarks.planning import level_work
from envs.datasets.maze2d import Maze2DData
from envs.datasets.opening import open_task
from envs.datasets.tasks import find_offline_task
from envs.robots import Robots
from mpdiffuser.config import load, settings
from mpdiffuser.controller import Controller
from mpdiffuser.errors import InputError
from mpdiffuser.launch import train_config
from mpdiffuser.methods import Recipe
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.preparation import unit_actions
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.trainer import TrainConfig
from mpdiffuser.training import assemble, common_options, run_recipes, train_recipes, training_data
from mpdiffuser.tuning import tune
from vision.states import STATES, encode_states, state_encoder

TASK, MAZE, ROWS = "maze2d-umaze-v1", "umaze", 1_000_000
GRAPH = 25  # training steps of a captured graph
SECONDS = 150.0  # of a model's training at most
CHECKS = 10  # measurements of the held-out loss
HELD_OUT = 8  # batches of one measurement
CANDIDATES = (64, 4096)
ROBOTS = 20


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_device(data: Any, device: torch.device) -> Any:
    """A copy of training examples (`Windows`, `Steps`) whose tensors lie on the device."""
    moved = copy.copy(data)
    for name, value in vars(data).items():
        if isinstance(value, torch.Tensor):
            setattr(moved, name, value.to(device))
        elif isinstance(value, dict):
            setattr(moved, name, {key: each.to(device) for key, each in value.items()})
    return moved


class Loop:
    """A training whose steps have no work for the CPU: data, random numbers and averages are on the device.

    Args:
        model: a `mpdiffuser.models.base.Model` on the device.
        data, held_out: examples, results of `on_device`.
        config: the training's settings; its patience has no effect.
        schedule: on the device.
        device: a GPU, or a CPU for tests.
    """

    def __init__(
        self, model: Any, data: Any, held_out: Any, config: TrainConfig, schedule: NoiseSchedule, device: torch.device
    ) -> None:
        self.model, self.data, self.held_out = model, data, held_out
        self.config, self.schedule, self.device = config, schedule, device
        self.parameters = [weight for weight in model.parameters() if weight.requires_grad]
        self.averages = [weight.detach().clone() for weight in self.parameters]
        self.captured = device.type == "cuda"
        rate: Any = torch.tensor(config.learning_rate, device=device) if self.captured else config.learning_rate
        kind: dict[str, Any] = {"weight_decay": config.weight_decay, "fused": True, "capturable": self.captured}
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, **kind)
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.steps_done = 0
        self.losses: list[tuple[int, float]] = []  # step, held-out loss of the averaged weights

    def loss(self, data: Any, size: int) -> torch.Tensor:
        """The loss of a random batch."""
        with torch.device(self.device):
            indices = torch.randint(len(data), (size,), generator=self.generator)
            random = self.model.draw(size, self.schedule, self.generator)
            return self.model.loss(data.batch(indices), random, self.schedule)["loss"]

    def step(self) -> None:
        """One optimiser step."""
        self.optimizer.zero_grad()
        self.loss(self.data, self.config.batch_size).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.parameters, 1 - self.config.ema_decay)
        self.model.after_step()

    def captured_steps(self) -> Callable[[], None]:
        """A function that makes `GRAPH` steps: a captured graph on a GPU."""
        if not self.captured:
            return self.steps
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):  # libraries choose their kernels before the capture
            for _ in range(3):
                self.step()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph):
            self.steps()
        return graph.replay

    def steps(self) -> None:
        """`GRAPH` optimiser steps."""
        for _ in range(GRAPH):
            self.step()

    def train(self) -> float:
        """Train, leave the weights of the lowest held-out loss in the model, and return seconds a step.

        It ends after `SECONDS` on a GPU.

        Raises:
            InputError: if a held-out loss is not finite.
        """
        config, replay = self.config, self.captured_steps()
        rounds = max(1, config.steps // GRAPH)
        best, seconds = [weight.clone() for weight in self.averages], 0.0
        checks = {round((check + 1) * rounds / CHECKS) for check in range(CHECKS)}
        synchronize(self.device)
        began = time.perf_counter()
        for done in range(1, rounds + 1):
            self.set_rate(config.learning_rate * (0.1 + 0.45 * (1 + np.cos(np.pi * (done - 1) / rounds))))
            replay()
            late = done % 100 == 0 and self.captured and self.clock(began) + seconds > SECONDS
            if done in checks or late:
                seconds += self.clock(began)
                self.check(done * GRAPH)
                if min(self.losses, key=lambda each: each[1]) == self.losses[-1]:
                    best = [weight.clone() for weight in self.averages]
                if late:
                    break
                began = time.perf_counter()
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, best)
        self.model.eval()
        self.steps_done = done * GRAPH
        return seconds / self.steps_done

    def clock(self, began: float) -> float:
        """Seconds since `began`, when the device has done all its work."""
        synchronize(self.device)
        return time.perf_counter() - began

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next steps."""
        for group in self.optimizer.param_groups:
            if self.captured:
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    @torch.no_grad()
    def check(self, step: int) -> None:
        """Measure the held-out loss of the averaged weights."""
        trained = [weight.clone() for weight in self.parameters]
        torch._foreach_copy_(self.parameters, self.averages)
        self.model.eval()
        size = min(self.config.batch_size, len(self.held_out))
        value = float(torch.stack([self.loss(self.held_out, size) for _ in range(HELD_OUT)]).mean())
        self.model.train()
        torch._foreach_copy_(self.parameters, trained)
        if not np.isfinite(value):
            raise InputError(f"held-out loss {value} at step {step}")
        self.losses.append((step, value))


def timed(call: Callable[[], Any], device: torch.device, repeats: int = 30) -> dict[str, float]:
    """Milliseconds of a call, after two that warm up."""
    found = []
    for number in range(repeats + 2):
        began = time.perf_counter()
        call()
        synchronize(device)
        found.append(1e3 * (time.perf_counter() - began))
        if number == 1:
            found = []
    return spread("ms", found)


def limits(device: torch.device, quick: bool) -> dict[str, Any]:
    """TFLOP a second of matrix products by precision, and TB a second that a copy reads and writes."""
    size = 256 if quick else 8192
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"}
    for name, kind, precision in (
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bfloat16", torch.bfloat16, "high"),
    ):
        torch.set_float32_matmul_precision(precision)
        matrix = torch.randn(size, size, device=device, dtype=kind)
        best = timed(partial(torch.matmul, matrix, matrix), device, 10)["ms_best"]
        found[f"{name}_tflops"] = 2 * size**3 / best / 1e9
    source = torch.ones(2**22 if quick else 2**30, device=device)
    target = torch.empty_like(source)
    found["copy_tb_s"] = 2 * source.nbytes / timed(lambda: target.copy_(source), device, 10)["ms_best"] / 1e9
    return found


def train(args: Any, device: torch.device, measured: dict[str, Any]) -> tuple[MPDiffuserPipeline, list[dict[str, Any]]]:
    """The trained pipeline, and a row for each training."""
    data_dir, rounds = args.folder / "data", max(GRAPH, args.steps // 10)
    if not (data_dir / f"{TASK}.hdf5").exists():
        Maze2DData(MAZE, "sparse", 5000 if args.quick else ROWS).write(data_dir / f"{TASK}.hdf5", 0)
    steps = {"planner": args.steps, "dynamics": args.steps, "ranker": rounds, "forward": rounds}
    words = [f"train.{name}.steps={count}" for name, count in steps.items()] + ["evaluation.methods=[mpdiffuser]"]
    cfg = load("state", [f"task=d4rl/{TASK}", f"data_dir={data_dir}", f"output_dir={args.folder / 'run'}", *words])
    episodes, bounds = unit_actions(open_task(TASK, "d4rl", data_dir), cfg.out_of_bounds)
    encoder = state_encoder(episodes, cfg.history)
    data = training_data(cfg, encode_states(encoder, episodes))
    schedule, rows = copy.copy(data.schedule), []
    schedule.alphas, schedule.sigmas = schedule.alphas.to(device), schedule.sigmas.to(device)
    tf32, copied = measured["tf32_tflops"], measured["copy_tb_s"]

    def fit(recipe: Recipe, name: str, model: Any, examples: Any, held_out: Any) -> Any:
        config = train_config(cfg, recipe.section or recipe.name)
        seen, unseen = (on_device(each, device) for each in (examples, held_out))
        loop = Loop(model.to(device).train(), seen, unseen, config, schedule, device)
        flops = work(lambda: loop.loss(loop.data, config.batch_size).backward())
        seconds = loop.train()
        moved = 9 * 4 * sum(weight.numel() for weight in loop.parameters)  # AdamW and the average, read and written
        bound = max(flops / tf32 / 1e9, moved / copied / 1e9)
        row = {"model": name, "steps": loop.steps_done, "steps a second": 1 / seconds, "ms a step": 1e3 * seconds}
        rows.append(row | {"bound ms": bound, "times the bound": 1e3 * seconds / bound, "held-out": loop.losses[-1][1]})
        print(rows[-1], flush=True)
        return model

    accelerator = Accelerator(cpu=device.type == "cpu")
    recipes = run_recipes(Path(cfg.output_dir), ["mpdiffuser"])
    train_recipes(cfg, recipes, data, fit, accelerator)
    info = episodes.info | {"record": episodes.record.only(*STATES).with_actions(bounds).to_json()}
    pipeline = assemble(cfg, data, encoder, None, info).to(device)

    def held_out(model: str) -> Any:
        return recipes[model].examples(data.limited_to(recipes[model].settings(settings(cfg), common_options(cfg))), 1)

    tune(pipeline, settings(cfg), data.trained, held_out)
    return pipeline, rows


def plan(pipeline: MPDiffuserPipeline, candidates: int, device: torch.device, rate: float) -> dict[str, Any]:
    """A row: the time of a decision, and its bound."""
    config = replace(pipeline.sampler_defaults, candidates=candidates, steps=4)
    controller = Controller(pipeline, config)
    controller.reset([0])
    found = timed(lambda: controller.act(np.full((1, 4), 2.0, np.float32)), device)
    bound = 4 * candidates * level_work(pipeline, config.guidance) / rate / 1e9
    return {"plan, candidates": candidates, **found, "bound ms": bound, "times the bound": found["ms"] / bound}


def control(pipeline: MPDiffuserPipeline, composition: str, steps: int | None) -> dict[str, Any]:
    """A row: D4RL's score of 20 episodes, of at most `steps` steps."""
    robots = Robots(dict(pipeline.config["info"]["environment"]), ROBOTS)
    controller = Controller(pipeline, replace(pipeline.sampler_defaults, composition=composition))
    began = time.perf_counter()
    found = robots.run(controller, range(1000, 1000 + ROBOTS), steps=steps)
    scores = [find_offline_task(TASK, "d4rl").score(float(each["rewards"].sum())) for each in found]
    seconds = (time.perf_counter() - began) / len(found[0]["rewards"])
    return {"composition": composition, "ms a decision": 1e3 * seconds} | spread("score", [s or 0.0 for s in scores])


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=200_000, help="of the planner and of the dynamics model")
    args = parse(options, arguments)
    if args.quick:
        args.steps = 2 * GRAPH
    if args.steps < GRAPH:
        raise SystemExit(f"error: --steps: must be at least {GRAPH}, found {args.steps}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured = limits(device, args.quick)
    print(measured, flush=True)
    torch.set_float32_matmul_precision("high")
    pipeline, rows = train(args, device, measured)
    sizes = CANDIDATES[:1] if args.quick else CANDIDATES
    rows += [plan(pipeline, candidates, device, measured["tf32_tflops"]) for candidates in sizes]
    rows += [control(pipeline, composition, 20 if args.quick else None) for composition in ("planner", "fused")]
    report(args, "gpu", rows, measured)


if __name__ == "__main__":
    main()
