"""Small datasets of every kind that the readers know, each in the layout of the published files."""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import imageio.v2 as imageio
import numpy as np

FILM = "observation.images.top"
LENGTHS = (4, 6)  # rows of the episodes


def _random() -> np.random.Generator:
    return np.random.default_rng(0)


def transitions(rows: int = 12) -> dict[str, np.ndarray]:
    """One row for each transition, as in D4RL and DSRL; one episode terminates, one times out."""
    random = _random()
    arrays: dict[str, np.ndarray] = {
        key: random.normal(size=(rows, 3)).astype(np.float32) for key in ("observations", "next_observations")
    }
    arrays["actions"] = random.uniform(-1, 1, (rows, 2)).astype(np.float32)
    arrays |= {key: random.uniform(size=rows).astype(np.float32) for key in ("rewards", "costs")}
    arrays |= {"terminals": np.arange(rows) == 4, "timeouts": np.arange(rows) == 8}
    return arrays


def flat_hdf5(folder: Path) -> None:
    """A file of D4RL with compressed arrays, infos and metadata."""
    with h5py.File(folder / "some.hdf5", "w") as data:
        for key, array in transitions().items():
            data.create_dataset(key, data=array, compression="gzip" if key != "rewards" else None)
        data["infos/qpos"], data["metadata/algorithm"] = np.zeros((12, 4)), "SAC"


def flat_npz(folder: Path) -> None:
    """A user's own recording with Gymnasium's names and with pictures."""
    arrays = transitions()
    arrays["terminations"], arrays["truncations"] = arrays.pop("terminals"), arrays.pop("timeouts")
    arrays |= {key: _random().integers(0, 256, (12, 6, 5, 3), np.uint8) for key in ("frames", "next_frames")}
    np.savez_compressed(folder / "walk.npz", **arrays)  # type: ignore[arg-type]


def vd4rl_npz(folder: Path) -> None:
    """V-D4RL, 64px: one file for each episode."""
    for number, rows in enumerate(LENGTHS):
        place = np.arange(rows)
        np.savez_compressed(
            folder / f"{number}-{rows}.npz",
            image=_random().integers(0, 256, (rows, 8, 8, 3), np.uint8),
            action=_random().uniform(-1, 1, (rows, 2)).astype(np.float32),
            reward=_random().uniform(size=rows).astype(np.float32),
            discount=np.ones(rows, np.float32),
            is_first=place == 0,
            is_last=place == rows - 1,
            is_terminal=place == rows,
        )


def vd4rl_hdf5(folder: Path) -> None:
    """V-D4RL, 84px: all episodes in one file."""
    rows = sum(LENGTHS)
    with h5py.File(folder / "shard.hdf5", "w") as data:
        data["observation"] = _random().integers(0, 256, (rows, 3, 8, 8), np.uint8)
        data["action"] = _random().uniform(-1, 1, (rows, 2)).astype(np.float32)
        data["reward"] = _random().uniform(size=rows).astype(np.float32)
        data["discount"] = np.ones(rows, np.float32)
        data["step_type"] = np.concatenate([[0] + [1] * (length - 2) + [2] for length in LENGTHS])


def lerobot(folder: Path) -> None:
    """LeRobotDataset v3.0, with a film."""
    import pyarrow
    import pyarrow.parquet

    def write(name: str, columns: dict[str, Any]) -> None:
        file = folder / name / "chunk-000/file-000.parquet"
        file.parent.mkdir(parents=True)
        arrays = {key: pyarrow.array(list(values)) for key, values in columns.items()}
        pyarrow.parquet.write_table(pyarrow.table(arrays), file)

    rows = sum(LENGTHS)
    features: dict[str, Any] = {
        key: {"dtype": "float32", "shape": [size]}
        for key, size in (("action", 2), ("next.reward", 1), ("observation.state", 3))
    }
    features[FILM] = {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channels"]}
    about = {"codebase_version": "v3.0", "fps": 10, "features": features, "total_episodes": 2, "total_frames": rows}
    (folder / "meta").mkdir()
    (folder / "meta/info.json").write_text(json.dumps(about))
    steps = np.concatenate([np.arange(length) for length in LENGTHS])
    columns = {
        "observation.state": _random().normal(size=(rows, 3)).astype(np.float32),
        "action": _random().normal(size=(rows, 2)).astype(np.float32),
        "next.reward": _random().uniform(size=rows).astype(np.float32),
        "timestamp": (steps / 10).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.repeat(np.arange(2), LENGTHS),
        "index": np.arange(rows),
        "task_index": np.zeros(rows, int),
    }
    write("data", columns)
    places = {"chunk_index": [0, 0], "file_index": [0, 0], "from_timestamp": [0.0, LENGTHS[0] / 10]}
    write("meta/episodes", {"episode_index": [0, 1]} | {f"videos/{FILM}/{key}": at for key, at in places.items()})
    film = folder / f"videos/{FILM}/chunk-000/file-000.mp4"
    film.parent.mkdir(parents=True)
    pictures = [np.full((32, 48, 3), 20 * row, np.uint8) for row in range(rows)]
    imageio.mimsave(film, pictures, fps=10, macro_block_size=1)  # type: ignore[arg-type]


def minari(folder: Path, size: int = 40) -> None:
    """A dataset of Minari: observations in a Dict with pictures, which Minari keeps as JPEG, and infos."""
    import minari as library
    from gymnasium import spaces

    views: dict[str, spaces.Space] = {
        "goal": spaces.Box(-9, 9, (2,)),
        "view": spaces.Box(0, 255, (size, size, 3), np.uint8),
    }
    buffers = [
        library.data_collector.EpisodeBuffer(
            observations={
                "goal": _random().normal(size=(rows, 2)),
                "view": _random().integers(0, 256, (rows, size, size, 3), np.uint8),
            },
            actions=_random().normal(size=(rows - 1, 3)),
            rewards=list(map(float, range(rows - 1))),
            terminations=[False] * (rows - 1),
            truncations=[False] * (rows - 2) + [True],
            infos={"cost": np.arange(float(rows)), "physics": np.zeros((rows, 2))},
        )
        for rows in LENGTHS
    ]
    with patch.dict(os.environ, MINARI_DATASETS_PATH=str(folder)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of missing authors and links
        library.create_dataset_from_buffers(
            "toy-v0", buffers, observation_space=spaces.Dict(views), action_space=spaces.Box(-9, 9, (3,))
        )
    (folder / "toy-v0/data").rename(folder / "data")


KINDS: tuple[Callable[[Path], None], ...] = (flat_hdf5, flat_npz, vd4rl_npz, vd4rl_hdf5, lerobot, minari)
