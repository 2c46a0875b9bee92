"""LeRobotDataset v3.0, written as LeRobot writes it, and broken ones."""

import json
import sys
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from envs.datasets.readers.lerobot import read_lerobot
from mpdiffuser.errors import InputError

FILM = "observation.images.top"
LENGTHS = (4, 6, 5)  # rows of each episode; the first two in one file, the third in another


def table(first: int, lengths: tuple[int, ...], seed: int) -> dict[str, Any]:
    random, rows = np.random.default_rng(seed), sum(lengths)
    count = np.concatenate([np.arange(n) for n in lengths])
    return {
        "observation.state": list(random.normal(size=(rows, 3)).astype(np.float32)),
        "action": list(random.normal(size=(rows, 2)).astype(np.float32)),
        "next.reward": random.uniform(size=rows).astype(np.float32),
        "timestamp": (count / 10).astype(np.float32),
        "frame_index": count,
        "episode_index": np.repeat(first + np.arange(len(lengths)), lengths),
        "index": np.arange(rows),
        "task_index": np.zeros(rows, int),
    }


def write_table(file: Path, columns: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({key: pyarrow.array(list(v)) for key, v in columns.items()}), file)


def picture(episode: int, row: int) -> np.ndarray:
    """Grey of a level that tells which it is."""
    return np.full((32, 48, 3), 40 + 60 * episode + 8 * row, np.uint8)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    features: dict[str, Any] = {
        key: {"dtype": "float32", "shape": [n]} for key, n in {"action": 2, "next.reward": 1}.items()
    }
    features["observation.state"] = {"dtype": "float32", "shape": [3]}
    features[FILM] = {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channels"]}
    about = {"codebase_version": "v3.0", "fps": 10, "features": features, "total_episodes": 3}
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text(json.dumps(about))
    write_table(tmp_path / "data/chunk-000/file-000.parquet", table(0, LENGTHS[:2], 0))
    write_table(tmp_path / "data/chunk-000/file-001.parquet", table(2, LENGTHS[2:], 1))
    places = {"chunk_index": [0, 0, 0], "file_index": [0, 0, 1], "from_timestamp": [0.0, 0.4, 0.0]}
    episodes = {"episode_index": [0, 1, 2]} | {f"videos/{FILM}/{key}": values for key, values in places.items()}
    write_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet", episodes)
    films = tmp_path / f"videos/{FILM}/chunk-000"
    films.mkdir(parents=True)
    for number, inside in enumerate([(0, 1), (2,)]):
        pictures = [picture(e, row) for e in inside for row in range(LENGTHS[e])]
        imageio.mimsave(films / f"file-{number:03d}.mp4", pictures, fps=10, macro_block_size=1)  # type: ignore[arg-type]
    return tmp_path


def test_states(dataset: Path) -> None:
    episodes = read_lerobot(dataset)
    parts = [table(0, LENGTHS[:2], 0), table(2, LENGTHS[2:], 1)]
    assert episodes.lengths.tolist() == [3, 5, 4]
    lasts = episodes.offsets[1:] - 1
    for key, column in {"observations": "observation.state", "actions": "action", "rewards": "next.reward"}.items():
        expected = np.concatenate([np.array(part[column]) for part in parts])
        if key == "rewards":
            expected[lasts - 1] += expected[lasts]
        if key != "observations":
            expected[lasts] = 0
        assert np.array_equal(episodes[key], expected) and episodes[key].dtype == np.float32
    assert (
        not episodes["terminations"].any() and np.flatnonzero(episodes["truncations"]).tolist() == (lasts - 1).tolist()
    )
    assert episodes.info["films"] == [FILM] and episodes.info["fps"] == 10 and episodes.info["missing"] == []
    assert "frames" not in episodes


def test_frames(dataset: Path) -> None:
    frames = read_lerobot(dataset, frames=FILM)["frames"]
    expected = np.stack([picture(e, row) for e, rows in enumerate(LENGTHS) for row in range(rows)])
    assert frames.shape == expected.shape
    assert np.abs(frames[:].astype(int) - expected).max() < 4  # neighbouring pictures differ by 8
    small = read_lerobot(dataset, frames=FILM, size=16)["frames"]
    assert small.shape == (15, 16, 16, 3) and np.abs(small[:].astype(int) - expected[:, :16, :16]).max() < 4


def test_without_rewards(dataset: Path) -> None:
    about = json.loads((dataset / "meta/info.json").read_text())
    del about["features"]["next.reward"]
    (dataset / "meta/info.json").write_text(json.dumps(about))
    episodes = read_lerobot(dataset)
    assert not episodes["rewards"].any() and episodes.info["missing"] == ["rewards"]


def lists(rows: int, width: int) -> list[np.ndarray]:
    return list(np.zeros((rows, width), np.float32))


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("action", None, "no such key; expected observation.state, action, episode_index"),
        ("episode_index", None, "no such key"),
        ("observation.state", lists(5, 4), r"must have rows of shape \(3,\), found \(4,\)"),
        ("action", [[1.0, 2.0]] * 4 + [[1.0]], r"must have lists of one length, found \[1, 2\]"),
        ("action", [[1.0, np.nan]] + [[1.0, 2.0]] * 4, r"must be finite, found \[ *1\. *nan\] in row 0"),
        ("action", [[1.0, None]] + [[1.0, 2.0]] * 4, "must be numbers or lists of numbers, found .* with 1 nulls"),
        ("next.reward", ["much"] * 5, "must be numbers or lists of numbers, found string"),
    ],
)
def test_broken(dataset: Path, key: str, values: list | None, words: str) -> None:
    columns = table(2, LENGTHS[2:], 1) | {key: values}
    write_table(dataset / "data/chunk-000/file-001.parquet", {k: v for k, v in columns.items() if v is not None})
    with pytest.raises(InputError, match=rf"file-001.parquet: {key}: {words}"):
        read_lerobot(dataset)


def test_broken_episodes(dataset: Path) -> None:
    second = dataset / "data/chunk-000/file-001.parquet"
    write_table(second, table(2, (1,), 1))
    with pytest.raises(InputError, match="episode_index: episode 2 must have at least two rows, found one"):
        read_lerobot(dataset)
    write_table(second, table(2, (5,), 1) | {"frame_index": [0, 1, 3, 4, 5]})
    with pytest.raises(InputError, match="frame_index: must count each episode's rows from 0"):
        read_lerobot(dataset)
    second.write_bytes(second.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"file-001.parquet: damaged or truncated"):
        read_lerobot(dataset)
    for file in second.parent.iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"data: no \*.parquet in it"):
        read_lerobot(dataset)
    empty = {key: pyarrow.array([], pyarrow.list_(pyarrow.float32(), 2)) for key in ("observation.state", "action")}
    empty |= {"next.reward": pyarrow.array([], pyarrow.float32())}
    empty |= {key: pyarrow.array([], pyarrow.int64()) for key in ("episode_index", "frame_index")}
    pyarrow.parquet.write_table(pyarrow.table(empty), second)
    with pytest.raises(InputError, match=r"episode_index: no episode in it \(0 rows\)"):
        read_lerobot(dataset)


def test_broken_films(dataset: Path) -> None:
    with pytest.raises(InputError, match=rf"frames=wrist: no such film; found {FILM}"):
        read_lerobot(dataset, frames="wrist")
    film = dataset / f"videos/{FILM}/chunk-000/file-000.mp4"
    imageio.mimsave(film, [picture(0, row) for row in range(7)], fps=10, macro_block_size=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"file-000.mp4: found 7 of 10 pictures"):
        np.asarray(read_lerobot(dataset, frames=FILM)["frames"])
    film.write_bytes(film.read_bytes()[:300])
    with pytest.raises(InputError, match=r"file-000.mp4: damaged or truncated"):
        read_lerobot(dataset, frames=FILM)
    film.unlink()
    with pytest.raises(InputError, match=r"file-000.mp4: no such file"):
        read_lerobot(dataset, frames=FILM)


def test_broken_information(dataset: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(InputError, match=r"pip install 'mpdiffuser\[lerobot\]'"):
            read_lerobot(dataset)
    file = dataset / "meta/info.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"codebase_version": "v1.6"}))
    with pytest.raises(InputError, match=r"info.json: codebase_version: must be v3.x or v2.x, found v1.6"):
        read_lerobot(dataset)
    file.write_text("{")
    with pytest.raises(InputError, match=r"info.json: not readable as JSON"):
        read_lerobot(dataset)
    file.unlink()
    with pytest.raises(InputError, match=r"info.json: cannot be read \(No such file"):
        read_lerobot(dataset)


def test_vectors_of_one_and_of_another_size(dataset: Path) -> None:
    """LeRobot keeps a feature of shape [1] as a column of numbers."""
    for number, (first, lengths) in enumerate([(0, LENGTHS[:2]), (2, LENGTHS[2:])]):
        columns = table(first, lengths, number) | {"action": np.arange(sum(lengths), dtype=np.float32)}
        write_table(dataset / f"data/chunk-000/file-{number:03d}.parquet", columns)
    with pytest.raises(InputError, match=r"data: action: must be of shape \[2\] as meta/info.json says, found \[1\]"):
        read_lerobot(dataset)
    file = dataset / "meta/info.json"
    about = json.loads(file.read_text())
    about["features"]["action"]["shape"] = [1]
    file.write_text(json.dumps(about))
    assert read_lerobot(dataset)["actions"].shape == (sum(LENGTHS), 1)
