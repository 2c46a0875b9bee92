"""How much of the true state the latents keep, by task and quality of the data: python -m experiments.latents

Collects about 10,000 frames for each task and quality, and trains the encoder on them as train_vision.py does, with and
without true states. A perceptron then predicts the joints' positions (angles as sine and cosine) and velocities on the
held-out episodes (`vision.probe`). Results under --folder are reused. Writes docs/latents.md.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs.collect import collect
from envs.record import dm_control_record
from experiments import pages
from experiments.measuring import measure_once
from mpdiffuser.config import load
from mpdiffuser.episodes import Episodes
from mpdiffuser.launch import Clock, start
from vision.probe import report
from vision.training import build_representation, encoder_identities, train_encoder

# episodes and their seconds (None: the task's own); reacher's target moves between episodes only, so it needs many
DATA: dict[str, tuple[int, float | None]] = {
    "cartpole_swingup": (40, None),
    "reacher_easy": (160, 5.0),
    "walker_walk": (20, None),
    "cheetah_run": (20, None),
}
QUALITIES = ("expert", "random")
# positions by ridge regression from frozen features of one frame (stride 16, 4 x 4 cells), 2,400 random frames
FROZEN = {"cartpole_swingup": 0.87, "reacher_easy": 0.85, "walker_walk": 0.64, "cheetah_run": 0.80}


def measure(task: str, quality: str, true_states: bool, steps: int, folder: Path) -> dict[str, Any]:
    """R2 of positions and velocities, and the number of frames."""
    output, (count, seconds) = folder / f"{task}-{quality}-{'with' if true_states else 'without'}", DATA[task]

    def run() -> dict[str, Any]:
        overrides = [f"task={task}", f"output_dir={output}", f"data_root={folder / 'data'}", "trackers=[]"]
        overrides += [f"true_states={true_states}", f"train.representation.steps={steps}", "decoder=false"]
        cfg = load("vision", overrides)
        accelerator = start(cfg)
        record = dm_control_record(cfg.task, cfg.rendering, seconds)
        data = Episodes.load(collect(record, quality, count, 0, cfg.data_root))
        representation = build_representation(cfg, data)
        identities = encoder_identities(cfg, data.checksum(), representation)
        encoder, _, _ = train_encoder(cfg, data, representation, identities, accelerator, Clock())
        found = report(encoder, data, folder / "data" / "cache", cfg.validation, cfg.seed)
        return {**found, "frames": len(data["frames"])}

    return measure_once(output / "latents.json", {"steps": steps, "episodes": count, "seconds": seconds}, run)


HEAD = """# What the latents keep of the true state

{written_by}. R2 of a perceptron from the latents
to the joints' positions (angles as sine and cosine) and velocities, on held-out episodes of the data that the encoder
was trained on for {steps} steps: to estimate the true states, or without true states ([How it
learns](train.md#how-it-learns-from-mixed-data)). {done} of {all} parts are done. Last column: positions by ridge
regression from frozen features of one frame, 2,400 frames of random actions, not measured by this command; one frame
tells almost nothing of the velocities.

"""
R2 = ("positions", "velocities")
KINDS = {"with true states": True, "without": False}
MEASURED = tuple(f"{kind}: {name}" for kind in KINDS for name in R2)
COLUMNS = ("task", "data", "frames", *MEASURED, "frozen, one frame: positions")


def page(results: dict[tuple[str, str], list[dict[str, Any]]], steps: int) -> str:
    """docs/latents.md, from task and quality -> the results with and without true states."""
    rows = []
    for (task, quality), found in results.items():
        r2 = [f"{each['r2'][name]:.3f}" for each in found for name in R2]
        rows.append([task, quality, found[0]["frames"], *r2, FROZEN[task] if quality == "random" else ""])
    counts = {"done": len(rows), "all": len(DATA) * len(QUALITIES)}
    return HEAD.format(written_by=pages.written_by("latents"), steps=steps, **counts) + pages.table(COLUMNS, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("tasks", nargs="*", default=list(DATA), help=f"of {', '.join(DATA)}; all by default")
    parser.add_argument("--steps", type=int, default=2000, help="of the encoder's training")
    parser.add_argument("--folder", type=Path, default=Path("results/latents"), help="of data and encoders")
    parser.add_argument("--page", type=Path, default=pages.DOCS / "latents.md")
    args = parser.parse_args(arguments)
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for task in args.tasks:
        for quality in QUALITIES:
            found = [measure(task, quality, known, args.steps, args.folder) for known in KINDS.values()]
            results[task, quality] = found
            print(task, quality, found, flush=True)
            args.page.write_text(page(results, args.steps))


if __name__ == "__main__":
    main()
