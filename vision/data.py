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
# what `FrameSteps` has of the steps that follow: the array, and the least standard deviation to divide by
FUTURE = {"following": ("actions", 1e-3), "rewards": ("rewards", 1e-6)}


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


def following_rows(episodes: Episodes, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each row of rows (B,) and the rows after it, (B, count), and whether an action was taken there.

    The episode's last row with an action replaces the rows after it.
    """
    last = episodes.offsets[1:][episodes.episode_of_row[rows]] - 2
    index = rows[:, None] + np.arange(count)
    return np.minimum(index, last[:, None]), index <= last[:, None]


def picture_targets(features: Rows, picture_dim: int, count: int, batch: int = 4096) -> np.ndarray:
    """Return what a `WorldModel` predicts of each frame (M, P): main components of the features, and measured values.

    The features are standardised. A component is divided by the square root of its standard deviation, so that small
    ones count too. All are then scaled to a mean variance of 1.

    Args:
        features: (M, C F + p), the measured values last.
        picture_dim: C F.
        count: number of main components, at most C F. Those beyond the number of rows are 0.
        batch: number of rows that are read at once. The components are fitted to up to twice as many.
    """
    sample = features[:: max(1, len(features) // batch)]
    mean, spread = sample.mean(0), sample.std(0)
    spread = np.where(spread < 1e-6, 1, spread)
    found = np.linalg.svd((sample - mean)[:, :picture_dim] / spread[:picture_dim], full_matrices=False)[2][:count]
    axes = np.zeros((picture_dim, min(count, picture_dim)), np.float32)
    axes[:, : len(found)] = found.T
    parts = []
    for start in range(0, len(features), batch):
        rows = (features[start : start + batch] - mean) / spread
        parts.append(np.concatenate([rows[:, :picture_dim] @ axes, rows[:, picture_dim:]], 1))
    targets = np.concatenate(parts)
    components = targets[:, : axes.shape[1]]
    components /= np.sqrt(components.std(0)) + 1e-6
    components /= components.std() + 1e-6
    return targets


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


def _standard(values: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of values (M, ...) over the rows, and the standard deviation; 1 in place of those below least."""
    spread = values.std(0)
    return values.mean(0), np.where(spread < least, 1, spread)


class FrameSteps:
    """Steps with their history of features or frames, to train an encoder.

    Args:
        episodes: the dataset.
        chosen: indices of the used episodes.
        history: number of frames for a latent.
        features: (M, F), of a frozen backbone; None: the examples have frames.
        true_states: whether the examples have the true states, if the dataset has them.
        targets: (M, P), see `picture_targets`; only with future.
        future: K, the number of following actions that the examples have; 0: none.
        statistics: mean and standard deviation of rewards and following actions; None: those of these episodes.
    """

    def __init__(
        self,
        episodes: Episodes,
        chosen: np.ndarray,
        history: int,
        features: Rows | None,
        true_states: bool = False,
        targets: np.ndarray | None = None,
        future: int = 0,
        statistics: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        rows = step_rows(episodes)
        self.rows = rows[np.isin(episodes.episode_of_row[rows], chosen)]
        self.owners = episodes.numbers[episodes.episode_of_row[self.rows]]
        self.index = history_rows(episodes, self.rows, history)
        pictures, measured = inputs(episodes)
        if features is not None:
            self.inputs: dict[str, Any] = {"features": features}
        else:
            self.inputs = {f"frames_{number}": episodes[name] for number, name in enumerate(pictures)}
            self.inputs["measured"] = Rows(
                [episodes[name] for name in measured] or [np.zeros((len(episodes["actions"]), 0), np.float32)]
            )
        self.actions = history_actions(episodes, self.index)
        has_states = bool(episodes.record.names(TRUE_STATE))
        self.states = true_state_rows(episodes)[self.rows] if true_states and has_states else None
        self.episodes, self.targets, self.future = episodes, targets, future
        self.statistics = statistics or {
            name: _standard(episodes[key][self.rows], least) for name, (key, least) in FUTURE.items() if future
        }

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the steps of indices (B,).

        Returns:
            `features` (B, history, F), or `frames_0`, `frames_1`, ... (B, history, height, width, 3) of each camera and
            `measured` (B, history, p). Also the `actions` (B, history - 1, m) between them and, if the data have true
            states, `states` (B, s). With `future` also the standardised actions `following` (B, K, m) from the step's
            own on, their standardised `rewards` (B, K), whether these are `known` (B, K), and the `targets`
            (B, K + 1, P) before, between and after them.
        """
        i = indices.numpy()
        found = {name: values[self.index[i]] for name, values in self.inputs.items()} | {"actions": self.actions[i]}
        if self.states is not None:
            found["states"] = self.states[i]
        if self.future:
            rows, found["known"] = following_rows(self.episodes, self.rows[i], self.future)
            for name, (key, _) in FUTURE.items():
                mean, spread = self.statistics[name]
                found[name] = ((self.episodes[key][rows] - mean) / spread).astype(np.float32)
            assert self.targets is not None
            found["targets"] = self.targets[np.concatenate([self.rows[i][:, None], rows + 1], 1)]
        return {name: torch.from_numpy(values) for name, values in found.items()}

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
