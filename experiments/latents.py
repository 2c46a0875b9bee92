"""What latents keep of the true state, by task and quality of the data: python -m experiments.latents

For each it collects about 10,000 frames, trains the encoder on them as train_vision.py does, and asks a perceptron for
the joints' positions (angles as sine and cosine) and velocities on the held-out episodes (`vision.probe`). What is done
already is reused. Writes docs/latents.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from envs.collect import collect
from experiments.measuring import machine
from mpdiffuser.config import load
from mpdiffuser.episodes import Episodes
from mpdiffuser.training import Clock, start
from vision.probe import report
from vision.training import train_encoder

PAGE = Path(__file__).parent.parent / "docs" / "latents.md"
# episodes and their seconds (None: the task's own); reacher's target moves between episodes only, so it needs many
DATA = {
    "cartpole_swingup": (40, None),
    "reacher_easy": (160, 5.0),
    "walker_walk": (20, None),
    "cheetah_run": (20, None),
}
QUALITIES = ("expert", "random")
# positions by ridge regression from frozen features of one frame (stride 16, 4 x 4 cells), 2,400 random frames
FROZEN = {"cartpole_swingup": 0.87, "reacher_easy": 0.85, "walker_walk": 0.64, "cheetah_run": 0.80}


def measure(task: str, quality: str, steps: int, folder: Path) -> dict[str, Any]:
    """R2 of positions and velocities, and what they were measured on."""
    output = folder / f"{task}-{quality}"
    done = output / "latents.json"
    if not done.exists():
        overrides = [f"task={task}", f"output_dir={output}", f"data_root={folder / 'data'}", "trackers=[]"]
        cfg = load("vision", [*overrides, f"train.representation.steps={steps}", "train.decoder.steps=1"])
        accelerator = start(cfg)
        episodes, seconds = DATA[task]
        options = {key: cfg.task[key] for key in ("action_repeat", "size", "camera")}
        data = Episodes.load(collect(task, quality, episodes, 0, cfg.data_root, time_limit=seconds, **options))
        encoder, _, _ = train_encoder(cfg, data, accelerator, Clock())
        found = report(encoder, data, folder / "data" / "cache", cfg.validation, cfg.seed)
        done.write_text(json.dumps(found | {"frames": len(data["frames"]), "steps": steps}))
    return json.loads(done.read_text())


HEAD = """# What the latents keep of the true state

Written by `python -m experiments.latents` on {date}, {cpu}, {cores} shared cores. R2 of a perceptron from the 16 latent
dimensions to the joints' positions (angles as sine and cosine) and velocities, on held-out episodes of the data that
the encoder was trained on for {steps} steps, true states among its targets. {done} of {all} parts are done; the command
makes the others. Last column: positions by ridge regression from frozen features of one frame, 2,400 frames of random
actions, measured earlier and not by this command; velocities were mostly lost.

| task | data | frames | positions | velocities | frozen, one frame: positions |
|---|---|---|---|---|---|
"""


def page(results: dict[tuple[str, str], dict[str, Any]], steps: int) -> str:
    """The table as Markdown."""
    rows = [
        f"| {task} | {quality} | {r['frames']} | {r['r2']['positions']:.3f} | {r['r2']['velocities']:.3f} "
        f"| {FROZEN[task] if quality == 'random' else ''} |\n"
        for (task, quality), r in results.items()
    ]
    return HEAD.format(**machine(), steps=steps, done=len(rows), all=len(DATA) * len(QUALITIES)) + "".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tasks", nargs="*", default=list(DATA), help=f"of {', '.join(DATA)}; all by default")
    parser.add_argument("--steps", type=int, default=2000, help="of the encoder's training")
    parser.add_argument("--folder", type=Path, default=Path("results/latents"), help="of data and encoders")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    results = {}
    for task in args.tasks:
        for quality in QUALITIES:
            results[task, quality] = measure(task, quality, args.steps, args.folder)
            print(task, quality, results[task, quality], flush=True)
            args.page.write_text(page(results, args.steps))


if __name__ == "__main__":
    main()
