"""What can be known of a pipeline without an environment: its errors on held-out episodes.

    actions    error of the first action beside that of cloning, of repeating the last action and of the mean action
    plans      error of the planned states 1, 2, 4, ... steps ahead, beside that of a state that stays
    dynamics   the same for the dynamics model, given the logged actions
    ranker     predicted values beside logged returns

An error of actions is a root mean square, in the data's units. An error of states is a mean square in variances of the
training data, the mean over dimensions: 1 is the error of the mean state.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import torch
from omegaconf import DictConfig

from mpdiffuser.episodes import Episodes
from mpdiffuser.files import write_whole, writing
from mpdiffuser.launch import Clock
from mpdiffuser.methods.cloning import CloningPolicy
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.safe_loading import load_model
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.tuning import clustered_error
from mpdiffuser.windows import split, step_rows, to_go

WINDOWS, BATCH = 512, 64
QUANTILES = 5
PICTURES = (0, 2, 4, 8, 12)  # steps ahead
EXAMPLES = 4


class HeldOut:
    """Windows of held-out episodes. Errors of states are of the rows within the episode alone.

    Args:
        pipeline: the trained pipeline.
        episodes: held-out latent episodes, with actions in [-1, 1].
        folder: the pipeline's folder, which may have the model of cloning.
    """

    def __init__(self, pipeline: MPDiffuserPipeline, episodes: Episodes, folder: Path) -> None:
        self.pipeline, self.episodes, self.folder = pipeline, episodes, folder
        self.ahead = pipeline.stride * np.arange(pipeline.planner.config["horizon"])  # steps
        self.starts = np.sort(np.random.default_rng(0).permutation(step_rows(episodes))[:WINDOWS])
        self.owners = episodes.episode_of_row[self.starts]
        rows, last = self.starts[:, None] + self.ahead, (episodes.offsets[1:] - 1)[self.owners][:, None]
        self.rows, self.there = np.minimum(rows, last), rows <= last  # (B, H)
        self.latents, self.actions = (
            torch.from_numpy(np.array(episodes[key][self.rows], np.float32)) for key in ("observations", "actions")
        )

    def plans(self, config: SamplerConfig, given: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return the executed latents (B, H, d) and actions (B, H, m) in the data's units.

        The goal, if the planner takes one, is the last latent of the window.

        Args:
            config: settings of the sampler.
            given: whether the plans have the logged actions.
        """
        sampler, parts = self.pipeline.sampler(config), []
        for first in range(0, len(self.starts), BATCH):
            z = self.latents[first : first + BATCH, 0].to(self.pipeline.device)
            generators = [torch.Generator().manual_seed(first + row) for row in range(len(z))]
            logged = self.pipeline.action_scale.to_data(self.actions[first : first + BATCH].to(z.device))
            goal = self.latents[first : first + BATCH, -1].to(z.device) if self.pipeline.takes_goals else None
            plan = self.pipeline(z, sampler, generators, goal=goal, committed=logged if given else None)
            parts.append([plan.executed_latents.cpu().numpy(), plan.executed_actions.cpu().numpy()])
        latents, actions = zip(*parts)
        return np.concatenate(latents), np.concatenate(actions)

    def action_error(self, actions: np.ndarray) -> dict[str, Any]:
        """Return the error of first actions (B, m) in the data's units: `each` (m,), `mean` and `standard_error`.

        `mean` is of the actions in [-1, 1]: their units may differ.
        """
        scale = self.pipeline.action_scale
        logged = self.actions[:, 0].numpy()
        error = np.square(scale.to_unit(actions.astype(np.float32)) - logged).mean(1)
        each = np.sqrt(np.square(actions - scale.to_data(logged)).mean(0))
        return {
            "each": [_rounded(value) for value in each],
            "mean": _rounded(error.mean()),
            "standard_error": _rounded(clustered_error(error, self.owners)),
        }

    def state_error(self, latents: np.ndarray) -> dict[str, dict[str, float | None]]:
        """Return steps ahead -> mean error and its standard error, of latents (B, H, d)."""
        std = self.pipeline.latents.std.detach().cpu().numpy()
        error = np.square((latents - self.latents.numpy()) / std).mean(-1)
        found = {}
        for k in (k for k in (1, 2, 4, 8, 16, 32, 64) if k < latents.shape[1]):
            there = self.there[:, k]
            if there.any():
                mean, spread = error[there, k].mean(), clustered_error(error[there, k], self.owners[there])
                found[str(self.ahead[k])] = {"mean": _rounded(mean), "standard_error": _rounded(spread)}
        return found

    def actions_by_policy(self) -> dict[str, np.ndarray]:
        """Return the first actions (B, m) of simple policies, in the data's units."""
        to_data, episodes = self.pipeline.action_scale.to_data, self.episodes
        first = episodes.offsets[:-1][self.owners]
        before = np.array(episodes["actions"][np.maximum(self.starts - 1, first)], np.float32)
        before[self.starts == first] = 0
        mean = self.pipeline.actions.mean.detach().cpu().numpy()
        found = {"repeat the last action": before, "mean action": np.broadcast_to(mean, before.shape)}
        if (self.folder / "cloning").is_dir():
            dims = {"latent_dim": self.latents.shape[-1], "action_dim": before.shape[1]}
            cloning = load_model(self.folder / "cloning", CloningPolicy, dims)
            with torch.inference_mode():
                found["cloning"] = cloning(self.latents[:, 0]).numpy()
        return {name: to_data(actions) for name, actions in found.items()}

    def ranker(self) -> dict[str, Any] | None:
        """Return the correlation of values and logged returns, and their means in quantiles of the value.

        If the data have costs, the values are those at the logged costs to go.
        """
        ranker, episodes = self.pipeline.ranker, self.episodes
        if ranker is None:
            return None
        left = {
            key: to_go(episodes[key], episodes, ranker.config["discount"])[self.starts]
            for key in ("rewards", "costs")
            if key in episodes
        }
        returns = left["rewards"]
        values = ranker.values(self.latents[:, 0].numpy(), left.get("costs"))
        parts = np.array_split(np.argsort(values), min(QUANTILES, len(values)))
        varies = returns.std() > 0 and values.std() > 0
        return {
            "correlation": _rounded(np.corrcoef(values, returns)[0, 1]) if varies else None,
            "value": [_rounded(values[part].mean()) for part in parts],
            "return": [_rounded(returns[part].mean()) for part in parts],
        }


def measure(pipeline: MPDiffuserPipeline, episodes: Episodes, folder: Path) -> tuple[HeldOut, dict[str, Any], Any]:
    """Return the windows, the errors as JSON (see the module), and the planned latents (B, H, d)."""
    windows = HeldOut(pipeline, episodes, folder)
    config = pipeline.sampler_defaults
    alone = replace(config, composition="planner")
    planned, actions = windows.plans(alone)
    errors = {"planner": windows.action_error(actions[:, 0])}
    states = {
        "stay": windows.state_error(windows.latents[:, :1].expand_as(windows.latents).numpy()),
        "planner": windows.state_error(planned),
    }
    if pipeline.dynamics is not None:
        planned, actions = windows.plans(config)
        errors["mpdiffuser"] = windows.action_error(actions[:, 0])
        states["mpdiffuser"] = windows.state_error(planned)
        given, _ = windows.plans(replace(config, composition="joint"), given=True)
        states["dynamics, given the logged actions"] = windows.state_error(given)
    errors |= {name: windows.action_error(each) for name, each in windows.actions_by_policy().items()}
    record = pipeline.record
    found = {
        "episodes": len(episodes),
        "windows": len(windows.starts),
        "names": list(record.actions.names) if record else [],
        "actions": errors,
        "states": states,
        "ranker": windows.ranker(),
    }
    return windows, found, planned


def write_held_out(
    cfg: DictConfig,
    pipeline: MPDiffuserPipeline,
    encoded: Episodes,
    clock: Clock,
    frames: np.ndarray | None = None,
) -> dict[str, Any] | None:
    """Measure a pipeline on the held-out episodes of its training, and print and write the errors.

    The files are held_out.json and held_out.png in cfg.output_dir. A pipeline without a planner is not measured.

    Args:
        cfg: the configuration of the training.
        pipeline: the trained pipeline.
        encoded: the latent episodes, with actions in [-1, 1].
        clock: of the run.
        frames: the pictures (M, height, width, 3) of all rows that the decoder draws, for held_out.png; None: no
            pictures.

    Raises:
        InputError: if the files cannot be written.
    """
    if pipeline.planner is None:
        return None
    output = Path(cfg.output_dir)
    with clock("held_out"):
        _, held_out = split(encoded, cfg.validation, cfg.seed)
        windows, found, planned = measure(pipeline, held_out, output / "pipeline")
    print(table(found))
    with writing(output):
        write_whole(output / "held_out.json", json.dumps(found, indent=1))
        if frames is not None and pipeline.decoder is not None:
            _write_pictures(windows, planned, encoded, frames, output / "held_out.png")
    return found


def _write_pictures(windows: HeldOut, planned: np.ndarray, encoded: Episodes, frames: np.ndarray, file: Path) -> None:
    """Write pictures of a few windows: a row of what came 0, 2, 4, ... steps later, and below it the decoded plan."""
    steps = [k for k in PICTURES if k < planned.shape[1]]
    whole = windows.there[:, steps].sum(1)
    longest = np.flatnonzero(whole == whole.max())
    chosen = longest[np.linspace(0, len(longest) - 1, min(EXAMPLES, len(longest))).astype(int)]
    held = windows.episodes
    first = encoded.offsets[:-1][np.searchsorted(encoded.numbers, held.numbers)]  # rows of the whole dataset
    shift = (first - held.offsets[:-1])[held.episode_of_row]
    rows = windows.rows[chosen][:, steps]
    came = np.stack([[frames[row] for row in line] for line in rows + shift[rows]])
    drawn = torch.from_numpy(planned[chosen][:, steps]).flatten(0, 1).to(windows.pipeline.device)
    imagined = windows.pipeline.decoder.frames(drawn).cpu().numpy().reshape(came.shape)
    lines = [np.concatenate(line, 1) for pair in zip(came, imagined) for line in pair]
    partial = file.with_name(f"{file.stem}.partial.png")
    imageio.imwrite(partial, np.concatenate(lines))
    partial.replace(file)


def table(found: dict[str, Any]) -> str:
    """Return the errors as text."""
    lines = [f"Held out: {found['episodes']} episodes, {found['windows']} windows (held_out.json)"]
    units = ", ".join(found["names"]) or "each action"
    lines.append(f"  first action: root mean square error of {units}, in the data's units")
    for name, error in sorted(found["actions"].items(), key=lambda item: item[1]["mean"]):
        lines.append(f"    {name:36}{'  '.join(f'{value:.4g}' for value in error['each'])}")
    lines.append("  states: mean square error in variances of the data, by steps ahead")
    for name, errors in found["states"].items():
        ahead = (f"+{k}: {each['mean']:.3g}" for k, each in errors.items())
        lines.append(f"    {name:36}{'  '.join(ahead)}")
    if found["ranker"]:
        lines.append(f"  ranker: correlation of value and logged return {found['ranker']['correlation']}")
    return "\n".join(lines)


def _rounded(value: Any) -> float | None:
    return float(f"{float(value):.4g}") if np.isfinite(value) else None
