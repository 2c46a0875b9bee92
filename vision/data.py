"""Training data of the encoder and the decoder, and the cache for features of a frozen backbone."""

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

KEEP_EVERY = 32  # batches between two resume points


def weights_fingerprint(module: torch.nn.Module) -> str:
    """Return 16 hex digits of the SHA-256 of a module's weights."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def cached_features(encoder: PixelEncoder, episodes: Episodes, folder: Path, batch: int = 64) -> np.ndarray:
    """Return the features (M, F) float16 of all frames, memory-mapped. They are computed once and cached in a file.

    The name of the file has everything that the features depend on: the frames, the backbone's name and its weights. A
    computation that was killed is resumed. If another process computes features in this folder, this process waits.

    Args:
        encoder: its backbone computes the features.
        episodes: with `frames`.
        folder: the cache.
        batch: number of frames in a forward pass.

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
            file.with_suffix(".progress").unlink(missing_ok=True)  # left by a process killed before its last step
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
    """Open a .npy file, memory-mapped; None if the file is missing or incomplete."""
    try:
        return np.lib.format.open_memmap(file, mode)
    except (OSError, ValueError, EOFError):
        return None


@torch.inference_mode()
def _features(encoder: PixelEncoder, frames: np.ndarray) -> np.ndarray:
    return encoder.features(torch.from_numpy(np.array(frames)).to(encoder.device)).float().cpu().numpy()


def history_rows(episodes: Episodes, rows: np.ndarray, history: int) -> np.ndarray:
    """Return each row of rows (B,) and the rows before it, (B, history).

    The first row of the episode replaces missing rows.
    """
    first = episodes.offsets[:-1][episodes.episode_of_row[rows]]
    return np.maximum(rows[:, None] + np.arange(1 - history, 1), first[:, None])


def history_actions(episodes: Episodes, rows: np.ndarray) -> np.ndarray:
    """Return the actions (B, history - 1, m) between `history_rows` (B, history); 0 before the start of an episode."""
    between = rows[:, :-1]
    return np.where((between < rows[:, 1:])[..., None], episodes["actions"][between], np.float32(0))


@torch.inference_mode()
def encode(encoder: PixelEncoder, episodes: Episodes, features: np.ndarray, batch: int = 1024) -> np.ndarray:
    """Return the latents (M, d) float32 of all rows, computed from features (M, F)."""
    index = history_rows(episodes, np.arange(len(features)), encoder.history)
    parts = []
    for start in range(0, len(index), batch):
        rows = index[start : start + batch]
        inputs = (features[rows].astype(np.float32), history_actions(episodes, rows))
        parts.append(encoder(*(torch.from_numpy(part).to(encoder.device) for part in inputs)).cpu().numpy())
    return np.concatenate(parts)


def encode_frames(encoder: PixelEncoder, episodes: Episodes) -> np.ndarray:
    """Return the latents (M, d) float32 of all rows, computed from the frames, for a fine-tuned backbone."""
    features = [_features(encoder, episodes["frames"][i : i + 64]) for i in range(0, len(episodes["frames"]), 64)]
    return encode(encoder, episodes, np.concatenate(features).astype(np.float16))


def with_latents(episodes: Episodes, latents: np.ndarray) -> Episodes:
    """Return the episodes with latents (M, d) as `observations`, without frames and true states."""
    kept = {key: episodes[key] for key in episodes.arrays if key not in ("frames", "observations", "physics")}
    return Episodes({**kept, "observations": latents}, np.asarray(episodes.offsets), episodes.info, episodes.path)


class FrameSteps:
    """Steps with their history of features or frames, for `Representation`.

    Args:
        episodes: the dataset.
        chosen: indices of the used episodes.
        history: number of frames for a latent.
        features: (M, F), of a frozen backbone; None: the examples have frames.
        statistics: mean and standard deviation of states and rewards; None: those of these episodes.
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
        )  # `history` rows up to o_t, and o_t+1
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
        """Return the steps of indices (B,).

        Returns:
            `features` (B, history + 1, F) or `frames` (B, history + 1, height, width, 3), `actions` (B, history, m),
            and standardised `rewards` (B,) and, if the data have states, `states` (B, s).
        """
        i = indices.numpy()
        inputs = self.source[self.index[i]]
        inputs = inputs.astype(np.float32) if self.key == "features" else inputs
        targets = {k: torch.from_numpy(v[i].astype(np.float32)) for k, v in self.targets.items()}
        return {self.key: torch.from_numpy(inputs), "actions": torch.from_numpy(self.actions[i]), **targets}

    def sources(self, indices: torch.Tensor) -> np.ndarray:
        """Return the numbers (B,) of the dataset's episodes that the steps (B,) are from."""
        return self.owners[indices]


class Pictures:
    """Pairs of latent and frame, for the decoder.

    Args:
        episodes: the dataset.
        chosen: indices of the used episodes.
        latents: (M, d).
    """

    def __init__(self, episodes: Episodes, chosen: np.ndarray, latents: np.ndarray) -> None:
        self.rows = np.flatnonzero(np.isin(episodes.episode_of_row, chosen))
        self.owners = episodes.numbers[episodes.episode_of_row[self.rows]]
        self.frames, self.latents = episodes["frames"], latents

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `latents` (B, d) and `frames` (B, height, width, 3) uint8 of indices (B,)."""
        rows = self.rows[indices.numpy()]
        return {"latents": torch.from_numpy(self.latents[rows]), "frames": torch.from_numpy(self.frames[rows])}

    def sources(self, indices: torch.Tensor) -> np.ndarray:
        """Return the numbers (B,) of the dataset's episodes that the frames (B,) are from."""
        return self.owners[indices]
