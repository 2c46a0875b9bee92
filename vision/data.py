"""Training data of the encoder and the decoder, and the cache for features of a frozen backbone."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock

from mpdiffuser.console import progress
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.files import create_array, write_whole, writing
from mpdiffuser.models.base import Model
from mpdiffuser.parallel import run_parallel
from mpdiffuser.record import PICTURE, PROPRIOCEPTION, TRUE_STATE
from mpdiffuser.windows import step_rows
from vision.encoder import PixelEncoder

KEEP_EVERY = 32  # batches between two resume points


def weights_fingerprint(module: torch.nn.Module) -> str:
    """Return 16 hex digits of the SHA-256 of a module's weights."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class Rows:
    """Arrays (M, F_i) side by side, as one array (M, F). They may be memory-mapped, and are joined when rows are read.

    Args:
        parts: the arrays.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = list(parts)

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def width(self) -> int:
        """The sum of F_i."""
        return sum(part.shape[1] for part in self.parts)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return the rows (..., F) float32 of an index (...)."""
        parts = [np.asarray(part[index], np.float32) for part in self.parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, -1)


def inputs(episodes: Episodes) -> tuple[list[str], list[str]]:
    """Return the names of the pictures and of the measured values that an encoder of pixels gets."""
    return episodes.record.names(PICTURE), episodes.record.names(PROPRIOCEPTION)


def true_state_rows(episodes: Episodes) -> Rows:
    """Return the true states (M, s) of all rows."""
    return Rows([episodes[name] for name in episodes.record.names(TRUE_STATE)])


def cached_features(encoder: PixelEncoder, episodes: Episodes, folder: Path, batch: int = 64) -> Rows:
    """Return the inputs of the encoder's head (M, C F + p): the features of all cameras, then the measured values.

    The features are cached (`cached_frames`).
    """
    pictures, measured = inputs(episodes)
    features = [cached_frames(encoder, episodes, name, folder, batch) for name in pictures]
    return Rows([*features, *(episodes[name] for name in measured)])


def cached_frames(encoder: PixelEncoder, episodes: Episodes, key: str, folder: Path, batch: int = 64) -> np.ndarray:
    """Return the features (M, F) float16 of a camera's frames, memory-mapped. They are computed once and cached.

    The name of the file has everything that the features depend on: the frames, the backbone's name and its weights. A
    computation that was killed is resumed. If another process computes features in this folder, this process waits.

    Args:
        encoder: its backbone computes the features.
        episodes: the dataset.
        key: name of the camera's frames.
        folder: the cache.
        batch: number of frames in a forward pass.

    Raises:
        InputError: if the file cannot be written, or is damaged.
    """
    c = encoder.config
    kind = f"{c['backbone']}-{c['stride']}-{c['pool']}".replace(":", "_").replace("/", "_")
    name = f"features-{kind}-{weights_fingerprint(encoder.frame_net)}-{episodes.checksum(key)}"
    file, shape = folder / f"{name}.npy", (len(episodes[key]), encoder.frame_net.dim)
    if file.exists():
        print(f"Features: reusing {file}")
    else:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock")
        with lock:
            if not file.exists():  # another process may have computed it
                _compute(encoder, episodes[key], file, shape, batch)
            file.with_suffix(".progress").unlink(missing_ok=True)  # left by a process killed before its last step
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


def following_actions(episodes: Episodes, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the actions (B, count, m) from each row of rows (B,) on, and whether they are known (B, count).

    An action after the end of the episode is not known; the episode's last action replaces it.
    """
    last = episodes.offsets[1:][episodes.episode_of_row[rows]] - 2
    index = rows[:, None] + np.arange(count)
    return episodes["actions"][np.minimum(index, last[:, None])], index <= last[:, None]


@torch.inference_mode()
def encode(encoder: Model, episodes: Episodes, features: Rows, batch: int = 1024) -> np.ndarray:
    """Return the latents (M, d) float32 of all rows, computed from features (M, F)."""
    index = history_rows(episodes, np.arange(len(features)), encoder.history)
    parts = []
    for start in range(0, len(index), batch):
        rows = index[start : start + batch]
        pair = (features[rows], history_actions(episodes, rows))
        parts.append(encoder(*(torch.from_numpy(part).to(encoder.device) for part in pair)).cpu().numpy())
    return np.concatenate(parts)


def encode_frames(encoder: PixelEncoder, episodes: Episodes) -> np.ndarray:
    """Return the latents (M, d) float32 of all rows, computed from the frames, for a fine-tuned backbone."""
    pictures, measured = inputs(episodes)
    rows = range(0, len(episodes["actions"]), 64)
    features = [
        np.concatenate([_features(encoder, episodes[key][i : i + 64]) for i in rows]).astype(np.float16)
        for key in pictures
    ]
    return encode(encoder, episodes, Rows([*features, *(episodes[name] for name in measured)]))


class FrameSteps:
    """Steps with their history of features or frames, for `Representation`.

    Args:
        episodes: the dataset.
        chosen: indices of the used episodes.
        history: number of frames for a latent.
        features: (M, F), of a frozen backbone; None: the examples have frames.
        true_states: whether the examples have the true states, if the dataset has them.
        statistics: mean and standard deviation of the targets; None: those of these episodes.
        ahead: K, the number of following actions that the examples have.
    """

    def __init__(
        self,
        episodes: Episodes,
        chosen: np.ndarray,
        history: int,
        features: Rows | None,
        true_states: bool,
        statistics: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
        ahead: int = 0,
    ) -> None:
        rows = step_rows(episodes)
        self.rows = rows[np.isin(episodes.episode_of_row[rows], chosen)]
        self.owners = episodes.numbers[episodes.episode_of_row[self.rows]]
        self.index = np.concatenate(
            [history_rows(episodes, self.rows, history), self.rows[:, None] + 1], 1
        )  # `history` rows up to o_t, and o_t+1
        pictures, measured = inputs(episodes)
        if features is not None:
            self.inputs: dict[str, Any] = {"features": features}
        else:
            self.inputs = {f"frames_{number}": episodes[name] for number, name in enumerate(pictures)}
            self.inputs["measured"] = Rows(
                [episodes[name] for name in measured] or [np.zeros((len(episodes["actions"]), 0), np.float32)]
            )
        self.actions = history_actions(episodes, self.index)
        rewards = np.array(episodes["rewards"][self.rows])
        self.episodes, self.ahead = episodes, ahead
        self.statistics = statistics or {"rewards": (rewards.mean(0), rewards.std(0) + 1e-6)}
        if ahead and statistics is None:
            taken = episodes["actions"][self.rows]
            spread = taken.std(0)
            self.statistics["following"] = taken.mean(0), np.where(spread < 1e-3, 1, spread).astype(np.float32)
        mean, spread = self.statistics["rewards"]
        self.targets = {"rewards": (rewards - mean) / spread}
        if true_states and episodes.record.names(TRUE_STATE):
            self.targets["states"] = true_state_rows(episodes)[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the steps of indices (B,).

        Returns:
            `features` (B, history + 1, F), or `frames_0`, `frames_1`, ... (B, history + 1, height, width, 3) of each
            camera and `measured` (B, history + 1, p). Also `actions` (B, history, m), standardised `rewards` (B,) and,
            if the data have true states, `states` (B, s). With `ahead` also the standardised actions `following`
            (B, K, m) from the step's own on, and whether they are `known` (B, K).
        """
        i = indices.numpy()
        targets = {k: v[i].astype(np.float32) for k, v in self.targets.items()}
        if self.ahead:
            following, targets["known"] = following_actions(self.episodes, self.rows[i], self.ahead)
            mean, spread = self.statistics["following"]
            targets["following"] = (following - mean) / spread
        found = {k: v[self.index[i]] for k, v in self.inputs.items()} | {"actions": self.actions[i]} | targets
        return {k: torch.from_numpy(v) for k, v in found.items()}

    def sources(self, indices: torch.Tensor) -> np.ndarray:
        """Return the numbers (B,) of the dataset's episodes that the steps (B,) are from."""
        return self.owners[indices.numpy()]


class Pictures:
    """Pairs of latent and frame of the first camera, for the decoder.

    Args:
        episodes: the dataset.
        chosen: indices of the used episodes.
        latents: (M, d).
    """

    def __init__(self, episodes: Episodes, chosen: np.ndarray, latents: np.ndarray) -> None:
        self.rows = np.flatnonzero(np.isin(episodes.episode_of_row, chosen))
        self.owners = episodes.numbers[episodes.episode_of_row[self.rows]]
        self.frames, self.latents = episodes[inputs(episodes)[0][0]], latents

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `latents` (B, d) and `frames` (B, height, width, 3) uint8 of indices (B,)."""
        rows = self.rows[indices.numpy()]
        return {"latents": torch.from_numpy(self.latents[rows]), "frames": torch.from_numpy(self.frames[rows])}

    def sources(self, indices: torch.Tensor) -> np.ndarray:
        """Return the numbers (B,) of the dataset's episodes that the frames (B,) are from."""
        return self.owners[indices.numpy()]
