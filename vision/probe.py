"""Measure how much of the true state latents have: python -m vision.probe PIPELINE DATASET [DATASET ...]

A perceptron learns to predict the positions and velocities of the joints from latents. Its R2 is measured on held-out
episodes. Hinge angles can exceed one turn, so the targets are their sine and cosine. In some tasks the camera follows
the robot's root. Frames then do not show the root's position along the ground (`rootx`), so the targets omit it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mpdiffuser.commands import entry_point, program
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.models.mlp import mlp
from mpdiffuser.safe_loading import check_component
from mpdiffuser.windows import split_indices
from vision.data import cached_features, encode
from vision.encoder import PixelEncoder


def joint_targets(episodes: Episodes) -> dict[str, np.ndarray]:
    """Return the true "positions" and "velocities", each (M, n), from the physics states and `info["joints"]`.

    Raises:
        InputError: if the dataset has no physics states.
    """
    if "physics" not in episodes or "joints" not in episodes.info:
        raise InputError(f"{episodes.path}: holds no physics state to compare latents with; collect it with collect.py")
    positions, velocities = [], []
    for joint in episodes.info["joints"]:
        value = episodes["physics"][:, joint["position_index"]]
        velocities.append(episodes["physics"][:, joint["velocity_index"]])
        if joint["type"] == "hinge":
            positions += [np.sin(value), np.cos(value)]
        elif joint["name"] != "rootx":
            positions.append(value)
    return {"positions": np.stack(positions, 1), "velocities": np.stack(velocities, 1)}


def probe(
    latents: np.ndarray, targets: np.ndarray, train: np.ndarray, held_out: np.ndarray, steps: int = 3000, seed: int = 0
) -> float:
    """Train a perceptron from latents to targets, and return its R2 on held-out rows, the mean over dimensions.

    Args:
        latents: (M, d).
        targets: (M, n).
        train: mask (M,) of the training rows.
        held_out: mask (M,) of the rows that measure R2.
        steps: number of optimiser steps.
        seed: of the initial weights and the batches.
    """
    torch.manual_seed(seed)
    rows = torch.from_numpy(np.flatnonzero(train))
    x, y = (torch.from_numpy(_standardise(a, train).astype(np.float32)) for a in (latents, targets))
    net = mlp(x.shape[1], 256, y.shape[1])
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (256,))]
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        error = (net(x[held_out]) - y[held_out]).square().mean(0)
    variance = y[held_out].var(0, unbiased=False)
    seen = variance > 1e-6  # R2 is not defined for a joint that does not move
    return float((1 - error[seen] / variance[seen]).mean())


def _standardise(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return (values - values[rows].mean(0)) / (values[rows].std(0) + 1e-6)


def report(encoder: PixelEncoder, episodes: Episodes, cache: Path, validation: float, seed: int) -> dict[str, Any]:
    """Return the R2 of positions and velocities for an encoder's latents, on the held-out episodes of its training.

    Args:
        encoder: the trained encoder.
        episodes: its dataset.
        cache: folder for the features.
        validation, seed: of the split in the training.
    """
    latents = encode(encoder, episodes, cached_features(encoder, episodes, cache))
    parts = split_indices(len(episodes), validation, seed)
    train, held_out = (np.isin(episodes.episode_of_row, part) for part in parts)
    r2 = {name: round(probe(latents, t, train, held_out), 3) for name, t in joint_targets(episodes).items()}
    return {"episodes": len(episodes), "held_out": len(parts[1]), "r2": r2}


@entry_point
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the R2 of an encoder on each dataset, one JSON object in each line."""
    description = (__doc__ or "").split("\n\n")[1]
    parser = argparse.ArgumentParser(prog=program("vision.probe"), description=description)
    parser.add_argument("pipeline", type=Path, help="a pipeline folder, or a folder with an encoder/ in it")
    parser.add_argument("dataset", type=Path, nargs="+")
    parser.add_argument("--cache", type=Path, default=Path("data/cache"))
    parser.add_argument("--validation", type=float, default=0.1, help="share of held-out episodes, as in training")
    parser.add_argument("--seed", type=int, default=0, help="of the split, as in training")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if not (args.pipeline / "encoder" / "config.json").is_file():
        raise InputError(f"{args.pipeline}: no encoder in this folder")
    check_component(args.pipeline / "encoder", ("vision.encoder", "PixelEncoder"))
    encoder = PixelEncoder.from_pretrained(args.pipeline / "encoder", use_safetensors=True)
    for path in args.dataset:
        result = report(encoder, Episodes.load(path), args.cache, args.validation, args.seed)
        print(json.dumps({"dataset": path.name, **result}))


if __name__ == "__main__":
    sys.exit(main())
