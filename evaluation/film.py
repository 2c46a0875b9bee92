"""Films: methods control one episode each, and their plans are drawn beside what really came."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.observations import picture
from envs.record import whole_episodes
from envs.vector import VectorEnv
from evaluation.check import observed
from evaluation.closed_loop import Outcome, evaluate
from evaluation.video import Film, write_video
from mpdiffuser.errors import InputError
from mpdiffuser.methods import Method, Setup

STEPS_AHEAD = (2, 4, 8, 12)
DECODED = 64  # pictures that are decoded at once
RATE = 25  # most pictures in a second
PICTURES = 500  # most pictures of a film


def write_film(
    file: Path,
    record: Mapping[str, Any],
    shown: Mapping[str, tuple[type[Method], Setup]],
    seed: int,
    max_decisions: int | None = None,
) -> None:
    """Write a video in which methods control one episode each from one seed.

    The simulator's frames are beside the decoded plans, if the pipeline has a decoder. Without pictures there is no
    video.

    Args:
        file: the video.
        record: of the environment.
        shown: name -> method and its setup, from the top to the bottom of the picture.
        seed: of the episodes.
        max_decisions: see `evaluate`.
    """
    if not shown:
        return
    pipeline = next(iter(shown.values()))[1].pipeline
    environment, films = VectorEnv(whole_episodes(record), 1, 1, observed(pipeline.record)), []
    try:
        every = film_every(environment)
        for name, (method, setup) in shown.items() if every else ():
            policy = method.policy(replace(setup, action_space=environment.single_action_space))
            most = min(PICTURES * every, max_decisions or PICTURES * every)
            label = f"film of {name}"
            outcome = evaluate([policy], [environment], [seed], film_every=every, label=label, max_decisions=most)
            films.append(film_of(outcome, method.label, pipeline.decoder, pipeline.stride))
    finally:
        environment.close()
    if films:
        write_video(file, films, RATE)


def film_every(environment: VectorEnv) -> int:
    """Return the number of decisions between two pictures of a film; 0 if nothing can be seen."""
    try:
        seen = picture(environment.reset(seed=[0])[0]) is not None or environment.render_first() is not None
    except (InputError, RuntimeError) as error:  # no rendering here, or the environment's own picture fails
        print(f"note: no video: {str(error).strip().splitlines()[-1]}")
        return 0
    seconds = environment.decision_seconds or 1 / RATE
    return max(1, round(1 / RATE / seconds)) if seen else 0


def film_of(outcome: Outcome, title: str, decoder: Any, stride: int = 1) -> Film:
    """Return the film of an outcome.

    Args:
        outcome: of `evaluate` with `film_every`.
        title: stands above the frames.
        decoder: of the pipeline; None: plans are not drawn.
        stride: decisions between two rows of a plan.
    """
    every, imagined = outcome.film_every, None
    frames = np.stack([scene["frame"] for scene in outcome.film])
    length = min(len(scene["plan"]) for scene in outcome.film)
    rows = [k for k in STEPS_AHEAD if k < length and stride * k % every == 0] if decoder is not None else []
    if rows:
        plans = torch.from_numpy(np.stack([scene["plan"][rows] for scene in outcome.film]))
        parts = plans.flatten(0, 1).split(DECODED)
        decoded = np.concatenate([decoder.frames(part.to(decoder.device)).cpu().numpy() for part in parts])
        imagined = decoded.reshape(*plans.shape[:2], *frames.shape[1:])
    captions = [f"decision {i * every}, return so far {scene['return']:.0f}" for i, scene in enumerate(outcome.film)]
    return Film(frames, captions, imagined, [stride * k for k in rows], every, title)
