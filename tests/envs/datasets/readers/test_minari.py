"""Minari's layouts on the disk: pictures as JPEG and as they are, infos with and without the reset."""

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from envs.datasets.readers.minari import read_minari
from mpdiffuser.errors import InputError

STEPS = 6


def jpeg(picture: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=95)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def write(folder: Path, shape: tuple[int, ...], observations: Any, more: dict[str, Any], about: dict[str, Any]) -> Path:
    (folder / "data").mkdir(parents=True)
    low, high = np.zeros(shape, int).tolist(), np.full(shape, 255).tolist()
    space = {"type": "Box", "dtype": "uint8", "shape": shape, "low": low, "high": high}
    with h5py.File(folder / "data/main_data.hdf5", "w") as file:
        group = file.create_group("episode_0")
        arrays = {
            "actions": np.zeros((STEPS, 2), np.float32),
            "rewards": np.arange(STEPS, dtype=np.float64),
            "terminations": np.zeros(STEPS, bool),
            "truncations": np.arange(STEPS) == STEPS - 1,
        }
        for key, values in (arrays | {"observations": observations} | more).items():
            if isinstance(values, list) and len({len(value) for value in values}) > 1:
                kept = group.create_dataset(key, (len(values),), h5py.vlen_dtype(np.uint8))
                for row, value in enumerate(values):
                    kept[row] = value
            else:
                group[key] = np.stack(values) if isinstance(values, list) else values
    facts = {"total_episodes": 1, "total_steps": STEPS, "observation_space": json.dumps(space)} | about
    (folder / "data/metadata.json").write_text(json.dumps(facts))
    return folder


def slopes(*shape: int) -> np.ndarray:
    """Smooth pictures, which JPEG keeps well: (STEPS + 1, *shape)."""
    column = np.linspace(0, 120, shape[1]).astype(np.uint8)
    column = column.reshape(-1, *[1] * (len(shape) - 2))
    return np.stack([np.broadcast_to(column + 20 * step, shape) for step in range(STEPS + 1)]).astype(np.uint8)


@pytest.mark.parametrize("shape", [(40, 48), (40, 48, 3)])
@pytest.mark.parametrize("about", [{}, {"jpeg_encoding": True}, {"jpeg_encoding": False}])
@pytest.mark.parametrize("encoded", [True, False])
def test_pictures(tmp_path: Path, shape: tuple[int, ...], about: dict[str, Any], encoded: bool) -> None:
    pictures = slopes(*shape)
    stored = [jpeg(picture) for picture in pictures] if encoded else pictures
    folder = write(tmp_path / "some", shape, stored, {}, about)
    if encoded and about == {"jpeg_encoding": False}:
        with pytest.raises(InputError, match="episode_0/observations: must "):
            read_minari(folder)
        return
    episodes = read_minari(folder)
    expected = pictures if len(shape) == 3 else np.repeat(pictures[..., None], 3, axis=-1)
    assert set(episodes.arrays) == {"frames", "actions", "rewards", "terminations", "truncations"}
    assert episodes["frames"].shape == expected.shape
    assert np.abs(episodes["frames"][:].astype(int) - expected).max() <= (6 if encoded else 0)


def test_a_picture_of_another_size(tmp_path: Path) -> None:
    folder = write(tmp_path / "some", (40, 48), [jpeg(picture) for picture in slopes(32, 48)], {}, {})
    with pytest.raises(InputError, match=r"episode_0/observations: must be of \(40, 48\), found"):
        np.asarray(read_minari(folder)["frames"])


@pytest.mark.parametrize("shape", [(3, 40, 48), (40, 48, 4), (4, 40, 48)])
def test_pictures_of_another_layout_are_no_vectors(tmp_path: Path, shape: tuple[int, ...]) -> None:
    folder = write(tmp_path / "some", shape, np.zeros((STEPS + 1, *shape), np.uint8), {}, {})
    with pytest.raises(InputError, match=r"episode_0/observations: pictures must be \(rows, height, width, 3\), found"):
        read_minari(folder)


def test_infos(tmp_path: Path) -> None:
    numbers = np.arange(float(STEPS))
    more = {
        "infos/costs": numbers,
        "infos/physics": np.zeros((STEPS, 3)),
        "infos/speed": numbers,
        "observed_at": numbers,
    }
    episodes = read_minari(write(tmp_path / "some", (2,), np.zeros((STEPS + 1, 2), np.uint8), more, {}))
    assert episodes["costs"].tolist() == [*numbers, 0] and "physics" not in episodes
    left_out = episodes.info["left_out"]
    assert left_out.keys() == {"infos/physics", "infos/speed", "observed_at"}
    assert "6 rows in episode_0, expected 7" in left_out["infos/physics"]


def test_the_cost_of_a_reset_is_of_no_action(tmp_path: Path) -> None:
    costs = np.append(9.0, np.arange(STEPS))
    seen = np.zeros((STEPS + 1, 2), np.uint8)
    episodes = read_minari(write(tmp_path / "some", (2,), seen, {"infos/cost": costs}, {}))
    assert episodes["costs"].tolist() == [*range(STEPS), 0]
    assert "the cost in the info of the reset, of no action, is not used" in episodes.info["notes"][0]
    costs[0] = np.nan
    episodes = read_minari(write(tmp_path / "other", (2,), seen, {"infos/cost": costs}, {}))
    assert episodes["costs"].tolist() == [*range(STEPS), 0] and "notes" not in episodes.info


def test_marks(tmp_path: Path) -> None:
    seen = np.zeros((STEPS + 1, 2), np.uint8)
    folder = write(tmp_path / "some", (2,), seen, {"terminations": np.arange(STEPS) == 2}, {})
    with pytest.raises(InputError, match="episode_0/terminations: step 2 of 6 terminates, but the episode goes on"):
        read_minari(folder)
    folder = write(tmp_path / "other", (2,), seen, {"terminations": np.full(STEPS, 3)}, {})
    with pytest.raises(InputError, match="episode_0/terminations: must be true or false"):
        read_minari(folder)
