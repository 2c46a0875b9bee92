"""Encoders compared on walker and cheetah: python -m experiments.encoders --help

Runs train_vision.py with each encoder on the same expert episodes. With true states the other models do not depend on
the encoder, so they are trained once and copied. Then measures what the latents keep of the true state (`vision.probe`)
and the returns in closed loop. The folder keeps all runs, so a command that was cut off resumes. Writes
docs/encoders.md.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.statistics import standard_error
from experiments import pages
from experiments.measuring import file_name, measure_once, trained
from experiments.seven_tasks import EPISODES, collected
from experiments.study import copy_models
from mpdiffuser.episodes import Episodes
from mpdiffuser.files import write_whole
from vision.encoder import PixelEncoder
from vision.probe import report

TASKS = ("walker_walk", "cheetah_run")
# a step of a large network on all pictures of 128 histories takes seconds on a CPU
FEWER = ("train.representation.steps=1000", "train.representation.batch_size=32")
ENCODERS: dict[str, tuple[str, ...]] = {
    "EfficientNet-Lite0, frozen": (),
    "the same, without true states": ("true_states=false",),
    "the same, fine-tuned": ("encoder.trainable=true", *FEWER),
    "the same, 84 px": ("task.size=84",),
    "ResNet-18 from scratch": ("encoder=resnet18", "encoder.pretrained=false", "encoder.trainable=true", *FEWER),
    "small network with random shifts": ("encoder=conv",),
    "the small network, without true states": ("encoder=conv", "true_states=false"),
}
METHODS = ("planner", "mpdiffuser", "expert")
FIRST = next(iter(ENCODERS))
CONTROL = ("ranker", "forward", "planner", "dynamics")  # models that encoders with the same true states share


def run_folder(folder: Path, task: str, encoder: str, seed: int) -> Path:
    """The folder of a run."""
    return folder / file_name(f"{task} {encoder} {seed}").removesuffix(".json")


def measure(task: str, seed: int, encoder: str, folder: Path, options: Sequence[str]) -> dict[str, Any]:
    """R2 of the latents, returns and minutes of a run."""
    output = run_folder(folder, task, encoder, seed)
    size = next((each.split("=")[1] for each in ENCODERS[encoder] if each.startswith("task.size=")), "64")
    data_root = folder / f"data-{size}"  # a dataset's name does not have its size
    chosen = [f"task={task}", "quality=expert", f"episodes={EPISODES[task]}", f"seed={seed}"]
    chosen += [f"evaluation.methods=[{','.join(METHODS)}]"]
    if encoder != FIRST and not any(each.startswith(("true_states=", "task.size=")) for each in ENCODERS[encoder]):
        copy_models(run_folder(folder, task, FIRST, seed), output, CONTROL)
    metrics = trained("train_vision.py", output, [*chosen, *ENCODERS[encoder], *options], [f"data_root={data_root}"])
    dataset = Episodes.load(collected(task, data_root))
    encoder_model = PixelEncoder.from_pretrained(output / "pipeline" / "encoder", use_safetensors=True)
    r2 = report(encoder_model, dataset, data_root / "cache", 0.1, seed)["r2"]
    returns = {method: metrics["methods"][method]["returns"] for method in METHODS}
    return {"r2": r2, "returns": returns, "minutes": metrics["core_seconds"]["representation"] / 60}


HEAD = """# Encoders compared

{written_by}

`python train_vision.py task=TASK quality=expert episodes=100` with the options of each encoder. R2: of a perceptron
from the latents to the joints' positions and velocities, on held-out episodes ([Latents](latents.md)). Returns: mean ±
standard error over the episodes, for each training seed ({seeds}). With true states all encoders of 64 px have the same
planner and dynamics model. Minutes: core-minutes of the encoder's training steps, without the features of the frames.

"""
COLUMNS = ("task", "encoder", "options", "R2 of positions, velocities", "planner only", "MPDiffuser", "minutes")


def page(results: dict[tuple[str, str], list[dict[str, Any]]], seeds: Sequence[int]) -> str:
    """docs/encoders.md, from task and encoder -> the result of each training seed."""
    rows = []
    for (task, encoder), found in results.items():
        r2 = ", ".join(f"{each['r2']['positions']:.2f} {each['r2']['velocities']:.2f}" for each in found)
        returns = [
            ", ".join(
                f"{np.mean(each['returns'][method]):.0f} ± {standard_error(np.array(each['returns'][method])):.0f}"
                for each in found
            )
            for method in ("planner", "mpdiffuser")
        ]
        time = ", ".join(f"{each['minutes']:.0f}" for each in found)
        rows.append([task, encoder, f"`{' '.join(ENCODERS[encoder])}`" * bool(ENCODERS[encoder]), r2, *returns, time])
    head = HEAD.format(written_by=pages.written_by("encoders"), seeds=", ".join(map(str, seeds)))
    return head + pages.table(COLUMNS, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=EPISODES)
    parser.add_argument("--encoders", nargs="*", default=list(ENCODERS), choices=ENCODERS)
    pages.run_options(parser, "encoders", "train_vision.py")
    args = parser.parse_args(arguments)
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for task in args.tasks:
        for encoder in args.encoders:
            for seed in args.seeds:
                identity = {"task": task, "seed": seed, "encoder": [*ENCODERS[encoder]], "options": args.set}
                file = args.folder / file_name(f"{task} {encoder} {seed}")
                found = measure_once(file, identity, partial(measure, task, seed, encoder, args.folder, args.set))
                results.setdefault((task, encoder), []).append(found)
                print(task, encoder, seed, found["r2"], flush=True)
            write_whole(args.page, page(results, args.seeds))


if __name__ == "__main__":
    main()
