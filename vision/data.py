"""Training data for the encoder and the decoder, and the cache of a frozen backbone's features."""

import functools
import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock

from mpdiffuser.console import progress
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.files import create_array, write_whole, writing
from mpdiffuser.parallel import run_parallel
from mpdiffuser.windows import step_rows
from vision.encoder import PixelEncoder

KEEP_EVERY = 32  # batches between two records of the progress


def weights_fingerprint(module: torch.nn.Module) -> str:
    """A name for the weights of a module."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def cached_features(encoder: PixelEncoder, episodes: Episodes, folder: Path, batch: int = 64) -> np.ndarray:
    """Features (M, F) float16 of every frame, computed once and memory-mapped. A killed computation is resumed.

    The file's name holds all that the features depend on: the frames, the backbone's kind and its weights. If another
    process computes features for this folder, this one waits.

    Raises:
        InputError: if the file cannot be written, or is damaged.
    """
    c = encoder.config
    kind = f"{c['backbone']}-{c['stride']}-{c['pool']}".replace(":", "_").replace("/", "_")
    name = f"features-{kind}-{weights_fingerprint(encoder.frame_net)}-{episodes.checksum('frames')}"
    file, shape = folder / f"{name}.npy", (len(episodes["frames"]), encoder.frame_net.dim)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
    with lock:
        if file.exists():
            print(f"Features: reusing {file}")
            file.with_suffix(".progress").unlink(missing_ok=True)  # of one killed at the last moment
        else:
            _compute(encoder, episodes["frames"], file, shape, batch)
    features = _open_features(file)
    if features is None or (features.shape, features.dtype) != (shape, np.float16):
        raise InputError(f"{file}: damaged; remove it, then it is computed again")
    return features


def _compute(encoder: PixelEncoder, frames: np.ndarray, file: Path, shape: tuple[int, int], batch: int) -> None:
    partial, kept = file.with_suffix(".partial"), file.with_suffix(".progress")
    out, done = _open_features(partial, "r+"), int(kept.read_text()) if kept.exists() else 0
    if not done or out is None or out.shape != shape:
        out, done = create_array(partial, np.float16, shape), 0

    def compute(start: int) -> None:
        out[start : start + batch] = _features(encoder, frames[start : start + batch])
        bar.update(min(batch, shape[0] - start))

    with writing(file), progress(total=shape[0], initial=done, desc="features", unit="frame") as bar:
        for first in range(done, shape[0], batch * KEEP_EVERY):
            end = min(first + batch * KEEP_EVERY, shape[0])
            run_parallel([functools.partial(compute, start) for start in range(first, end, batch)], encoder.device)
            out.flush()
            write_whole(kept, str(end))
        partial.rename(file)
        kept.unlink()


def _open_features(file: Path, mode: Literal["r", "r+"] = "r") -> np.memmap | None:
    """A .npy file, memory-mapped; None if there is none or it is torn."""
    try:
        return np.lib.format.open_memmap(file, mode)
    except (OSError, ValueError, EOFError):
        return None


@torch.inference_mode()
def _features(encoder: PixelEncoder, frames: np.ndarray) -> np.ndarray:
    return encoder.features(torch.from_numpy(np.array(frames)).to(encoder.device)).float().cpu().numpy()


def history_rows(episodes: Episodes, rows: np.ndarray, history: int) -> np.ndarray:
    """Rows (B,) -> (B, history): each row and those before it; the episode's first row stands for missing ones."""
    first = episodes.offsets[:-1][episodes.episode_of_row[rows]]
    return np.maximum(rows[:, None] + np.arange(1 - history, 1), first[:, None])


def history_actions(episodes: Episodes, rows: np.ndarray) -> np.ndarray:
    """Actions (B, history - 1, m) between the frames of `history_rows` (B, history); 0 before an episode's start."""
    between = rows[:, :-1]
    return np.where((between < rows[:, 1:])[..., None], episodes["actions"][between], np.float32(0))


@torch.inference_mode()
def encode(encoder: PixelEncoder, episodes: Episodes, features: np.ndarray, batch: int = 1024) -> np.ndarray:
    """Latents (M, d) float32 of every row."""
    index = history_rows(episodes, np.arange(len(features)), encoder.history)
    parts = []
    for start in range(0, len(index), batch):
        rows = index[start : start + batch]
        inputs = (features[rows].astype(np.float32), history_actions(episodes, rows))
        parts.append(encoder(*(torch.from_numpy(part).to(encoder.device) for part in inputs)).cpu().numpy())
    return np.concatenate(parts)


def encode_frames(encoder: PixelEncoder, episodes: Episodes) -> np.ndarray:
    """Latents (M, d) float32 of every row, computed from the frames (for a backbone that was trained here)."""
    features = [_features(encoder, episodes["frames"][i : i + 64]) for i in range(0, len(episodes["frames"]), 64)]
    return encode(encoder, episodes, np.concatenate(features).astype(np.float16))


class FrameSteps:
    """Consecutive steps for `Representation`: features if given, else frames.

    Args:
        episodes: the dataset.
        chosen: indices of the episodes to draw from.
        history: frames of a latent.
        features: (M, F), of a frozen backbone.
        statistics: mean and deviation of states and of rewards; None = of these episodes.
    """

    def __init__(
        self,
        episodes: Episodes,
        chosen: np.ndarray,
        history: int,
        features: np.ndarray | None,
        statistics: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        rows = step_rows(episodes)
        self.rows = rows[np.isin(episodes.episode_of_row[rows], chosen)]
        self.owners = episodes.numbers[episodes.episode_of_row[self.rows]]
        self.index = np.concatenate(
            [history_rows(episodes, self.rows, history), self.rows[:, None] + 1], 1
        )  # history frames up to o_t, then o_t+1
        self.source = features if features is not None else episodes["frames"]
        self.key = "features" if features is not None else "frames"
        self.actions = history_actions(episodes, self.index)
        targets = {"rewards": np.array(episodes["rewards"][self.rows])}
        if "observations" in episodes:
            targets["states"] = np.array(episodes["observations"][self.rows])
        self.statistics = statistics or {k: (v.mean(0), v.std(0) + 1e-6) for k, v in targets.items()}
        self.targets = {k: (v - self.statistics[k][0]) / self.statistics[k][1] for k, v in targets.items()}

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        i = indices.numpy()
        inputs = self.source[self.index[i]]
        inputs = inputs.astype(np.float32) if self.key == "features" else inputs
        targets = {k: torch.from_numpy(v[i].astype(np.float32)) for k, v in self.targets.items()}
        return {self.key: torch.from_numpy(inputs), "actions": torch.from_numpy(self.actions[i]), **targets}

    def sources(self, indices: torch.Tensor) -> np.ndarray:
        """The dataset's numbers of the episodes of transitions (B,)."""
        return self.owners[indices]


class Pictures:
    """Latents and their frames, for the decoder."""

    def __init__(self, episodes: Episodes, chosen: np.ndarray, latents: np.ndarray) -> None:
        self.rows = np.flatnonzero(np.isin(episodes.episode_of_row, chosen))
        self.owners = episodes.numbers[episodes.episode_of_row[self.rows]]
        self.frames, self.latents = episodes["frames"], latents

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = self.rows[indices.numpy()]
        return {"latents": torch.from_numpy(self.latents[rows]), "frames": torch.from_numpy(self.frames[rows])}

    def sources(self, indices: torch.Tensor) -> np.ndarray:
        """The dataset's numbers of the episodes of pictures (B,)."""
        return self.owners[indices]
