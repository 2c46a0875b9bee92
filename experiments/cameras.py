"""What latents tell of a scene with two cameras and a measured arm: python -m experiments.cameras

An arm's tip reaches for an object, which drifts slowly. Both are discs in the pictures of two cameras. The arm's
position is measured as well; the object is in the pictures alone, and so is what the demonstrated actions depend on.
There are no rewards. The encoder is trained on 60 such recordings as train_vision.py does with the default options. A
linear regression from its latents, fitted to these, then predicts the arm's and the object's position and the
demonstrated action on 40 further recordings. The folder keeps all results. Writes docs/cameras.md.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from experiments import pages
from experiments.measuring import measure_once
from mpdiffuser.config import load
from mpdiffuser.episodes import Episodes
from mpdiffuser.files import write_whole
from mpdiffuser.launch import Clock, start
from mpdiffuser.record import DECLARED, PICTURE, PROPRIOCEPTION, Actions, Observation, Record
from mpdiffuser.windows import step_rows
from vision.data import encode_frames
from vision.training import build_representation, encoder_identities, train_encoder

TRAINING, FURTHER = 60, 40  # episodes
HEIGHT, WIDTH = 96, 128
FIELD = 20.0  # degrees; arm and object stay between -FIELD and FIELD in both dimensions
RADIUS = 6.0  # of a disc in the first camera, in pixels
COLORS = {"object": (40, 90, 230), "arm": (220, 60, 40)}  # the arm is drawn over the object
TARGETS = ("arm", "object", "action")


def recordings(seed: int, episodes: int = TRAINING + FURTHER, steps: int = 40) -> tuple[Episodes, np.ndarray]:
    """Draw recordings of the arm. Its action is the way to the object, at most a degree a decision in each dimension.

    Returns:
        The episodes, and the object's positions (M, 2) in degrees, which the episodes do not have.
    """
    random = np.random.default_rng(seed)
    arm, target = random.uniform(-FIELD, FIELD, (2, episodes, 2))
    drift = random.normal(0, 0.1, (episodes, 2))
    rows: dict[str, list[np.ndarray]] = {"arm": [], "object": [], "action": []}
    for _ in range(steps + 1):
        action = np.clip(target - arm, -1, 1)
        for name, value in (("arm", arm), ("object", target), ("action", action)):
            rows[name].append(value)
        arm = np.clip(arm + action + random.normal(0, 0.1, arm.shape), -FIELD, FIELD)
        target = np.clip(target + drift, -FIELD, FIELD)
    found = {name: np.stack(values, 1).reshape(-1, 2).astype(np.float32) for name, values in rows.items()}
    count = episodes * (steps + 1)
    last = np.arange(count) % (steps + 1) == steps
    found["action"][last] = 0
    arrays = {"front": draw(found, random, 1.0), "side": draw(found, random, 0.8, turned=True)}
    arrays |= {"observations": found["arm"], "actions": found["action"], "rewards": np.zeros(count, np.float32)}
    arrays |= {"terminations": np.zeros(count, bool), "truncations": np.roll(last, -1)}
    seen = {name: Observation(PICTURE, (HEIGHT, WIDTH, 3)) for name in ("front", "side")}
    seen["observations"] = Observation(PROPRIOCEPTION, (2,), ("shoulder", "elbow"))
    about = Record(seen, Actions((-1.0, -1.0), (1.0, 1.0), DECLARED))
    offsets = np.arange(episodes + 1) * (steps + 1)
    return Episodes(arrays, offsets, {"missing": ["rewards"]}, record=about), found["object"]


def draw(found: dict[str, np.ndarray], random: np.random.Generator, zoom: float, turned: bool = False) -> np.ndarray:
    """Draw the pictures (M, HEIGHT, WIDTH, 3) uint8 of a camera, before a background of random squares.

    Args:
        found: positions (M, 2) in degrees of each of `COLORS`.
        random: source of the background.
        zoom: size of a degree, relative to the first camera.
        turned: whether the camera is turned by a quarter.
    """
    squares = random.uniform(60, 180, (6, 8, 3))
    background = np.kron(squares, np.ones((HEIGHT // 6, WIDTH // 8, 1)))
    frames = np.repeat(background[None].astype(np.uint8), len(found["arm"]), 0)
    row, column = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    scale = zoom * (HEIGHT / 2 - RADIUS) / FIELD  # pixels of a degree
    for name, color in COLORS.items():
        x, y = found[name].T * scale
        if turned:
            x, y = -y, x
        x, y = (x * WIDTH / HEIGHT + WIDTH / 2)[:, None, None], (y + HEIGHT / 2)[:, None, None]
        frames[(row - y) ** 2 + (column - x) ** 2 < (zoom * RADIUS) ** 2] = color
    return frames


def linear_r2(inputs: np.ndarray, targets: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> float:
    """Return the R2 of a linear regression on the rows `held_out`, fitted to the rows `train`: mean over dimensions.

    Args:
        inputs: (M, d).
        targets: (M, n).
        train, held_out: indices of rows.
    """
    known = np.concatenate([inputs, np.ones((len(inputs), 1))], 1).astype(np.float64)
    weights = np.linalg.lstsq(known[train], targets[train], rcond=None)[0]
    error = np.square(known[held_out] @ weights - targets[held_out]).mean(0)
    return float((1 - error / targets[held_out].var(0)).mean())


def measure(data_seed: int, seed: int, folder: Path, options: Sequence[str]) -> dict[str, float]:
    """Train the encoder, and return the R2 of each of `TARGETS` on the further episodes, and the minutes it took."""
    data, target = recordings(data_seed)
    known = np.arange(len(data)) < TRAINING
    first, further = (data.select(np.flatnonzero(part)) for part in (known, ~known))
    output = folder / f"toy{data_seed}-seed{seed}"
    places = [f"output_dir={output}", f"data_root={folder / 'data'}"]
    cfg = load("vision", [*places, f"seed={seed}", "trackers=[]", "decoder=false", *options])
    accelerator, clock = start(cfg), Clock()
    representation = build_representation(cfg, first)
    identities = encoder_identities(cfg, first.checksum(), representation)
    encoder, _, encoded = train_encoder(cfg, first, representation, identities, accelerator, clock)
    latents = np.concatenate([encoded["observations"], encode_frames(encoder, further)])
    steps = step_rows(data)
    train, held_out = (steps[known[data.episode_of_row[steps]] == part] for part in (True, False))
    told = dict(zip(TARGETS, (data["observations"], target, data["actions"])))
    r2 = {name: round(linear_r2(latents, values, train, held_out), 3) for name, values in told.items()}
    return {**r2, "minutes": round(sum(clock.seconds.values()) / 60, 1)}


HEAD = """# Cameras and joints

{written_by}, with other jobs beside. R2 of a
linear regression from the latents, fitted to the 60 training episodes of 40 decisions, on 40 further
episodes, mean over dimensions. The recordings are drawn: two cameras of {height} x {width} pixels see an arm's tip and
an object, each before a background of its own. The arm's position is measured, so it is part of the latent. The
object's place is in the pictures alone, and the demonstrated action is the way to it, at most a degree in each
dimension. There are no rewards. All options are the defaults.

"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--data-seeds", nargs="*", type=int, default=[0, 1], help="of the recordings")
    pages.run_options(parser, "cameras", "train_vision.py")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for data_seed in args.data_seeds:
        for seed in args.seeds:
            identity = {"data_seed": data_seed, "seed": seed, "options": args.set}
            run = partial(measure, data_seed, seed, args.folder, args.set)
            found = measure_once(args.folder / f"toy{data_seed}-seed{seed}.json", identity, run)
            rows.append([data_seed, seed, *(f"{found[name]:.3f}" for name in TARGETS), found["minutes"]])
            print(*rows[-1], flush=True)
    columns = ("recordings", "training seed", *TARGETS, "minutes")
    head = HEAD.format(written_by=pages.written_by("cameras"), height=HEIGHT, width=WIDTH)
    write_whole(args.page, head + pages.table(columns, rows))


if __name__ == "__main__":
    main()
