"""LeRobotDataset v2.1, pictures in the tables, films of another rate, links, marks and fillers."""

import io
import json
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from envs.datasets import open_dataset
from envs.datasets.readers.lerobot import read_lerobot
from mpdiffuser.errors import InputError
from mpdiffuser.record import PICTURE

FILM, STILL = "observation.images.wrist", "observation.image"
LENGTHS = (3, 7, 4)
HEIGHT, WIDTH = 16, 32


def grey(row: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), 10 + 16 * row, np.uint8)


def encoded(row: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(grey(row)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": f"frame_{row:06d}.png"}


def columns(episode: int, length: int, **more: Any) -> dict[str, Any]:
    random, first = np.random.default_rng(episode), sum(LENGTHS[:episode])
    return {
        "observation.state": list(random.normal(size=(length, 2)).astype(np.float32)),
        "action": list(random.normal(size=(length, 1)).astype(np.float32)),
        "timestamp": (np.arange(length) / 5).astype(np.float32),
        "frame_index": np.arange(length),
        "episode_index": np.full(length, episode),
        "index": first + np.arange(length),
        "task_index": np.zeros(length, int),
        STILL: [encoded(first + row) for row in range(length)],
    } | more


def write_table(file: Path, table: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({key: pyarrow.array(list(v)) for key, v in table.items()}), file)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """v2.1, two episodes a chunk, 5 rows a second; films of 15 pictures a second."""
    root = tmp_path / "robot"
    picture = {"shape": [HEIGHT, WIDTH, 3], "names": ["height", "width", "channel"]}
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": [2]},
        "action": {"dtype": "float32", "shape": [1]},
        FILM: {"dtype": "video", **picture},
        STILL: {"dtype": "image", **picture},
    }
    about = {"codebase_version": "v2.1", "fps": 5, "features": features, "total_episodes": 3, "chunks_size": 2}
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(about))
    lines = [{"episode_index": e, "tasks": ["lift"], "length": length} for e, length in enumerate(LENGTHS)]
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for episode, length in enumerate(LENGTHS):
        chunk, first = f"chunk-{episode // 2:03d}", sum(LENGTHS[:episode])
        write_table(root / f"data/{chunk}/episode_{episode:06d}.parquet", columns(episode, length))
        film = root / f"videos/{chunk}/{FILM}/episode_{episode:06d}.mp4"
        film.parent.mkdir(parents=True, exist_ok=True)
        pictures = [grey(first + row // 3) for row in range(3 * length)]
        imageio.mimsave(film, pictures, fps=15, macro_block_size=1)  # type: ignore[arg-type]
    return root


def same(frames: np.ndarray, size: int = WIDTH) -> bool:
    expected = np.stack([grey(row) for row in range(sum(LENGTHS))])
    return frames.shape[0] == len(expected) and bool(np.abs(frames[:, 0, :size].astype(int) - expected[:, 0]).max() < 5)


def test_v2(dataset: Path) -> None:
    episodes = open_dataset(dataset)
    assert episodes.lengths.tolist() == [length - 1 for length in LENGTHS]
    tables = [columns(e, length) for e, length in enumerate(LENGTHS)]
    assert np.array_equal(episodes["observations"], np.concatenate([t["observation.state"] for t in tables]))
    assert np.array_equal(episodes["actions"][:2], np.stack(tables[0]["action"])[:2])
    assert episodes.info["missing"] == ["rewards"] and episodes.info["films"] == [STILL, FILM]
    assert set(episodes.info["left_out"]) == {"index", "task_index"}
    assert episodes.record.names(PICTURE) == ["image", "wrist"]
    alone = open_dataset(dataset, pictures=False)
    assert set(alone.info["left_out"]) == {FILM, STILL, "index", "task_index", "timestamp"}
    assert not alone.record.names(PICTURE) and alone.checksum() == episodes.checksum(*alone.arrays)


def test_films_are_joined_by_time(dataset: Path) -> None:
    episodes = read_lerobot(dataset, FILM)
    assert same(episodes["frames"]) and FILM not in episodes.info["left_out"]
    assert "15 pictures a second (fps), the table 5 rows" in episodes.info["notes"][0]
    film = dataset / f"videos/chunk-000/{FILM}/episode_000001.mp4"
    imageio.mimsave(film, [grey(0)] * 9, fps=15, macro_block_size=1)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"episode_000001.mp4: found 3 of 7 pictures.*between 0 and 1.2 s.* 9 pictures"
    ):
        np.asarray(read_lerobot(dataset, FILM)["frames"])


def test_times_that_are_not_even(dataset: Path) -> None:
    """The second row was recorded late: it gets the picture of its time, not the second one."""
    file = dataset / "data/chunk-000/episode_000000.parquet"
    write_table(file, columns(0, LENGTHS[0], timestamp=np.array([0.0, 0.4, 0.45])))
    frames = read_lerobot(dataset, FILM)["frames"]
    assert np.abs(frames[:3, 0, 0, 0].astype(int) - [10, 42, 42]).max() < 5


def test_pictures_in_the_tables(dataset: Path) -> None:
    assert same(read_lerobot(dataset, STILL)["frames"])
    small = read_lerobot(dataset, STILL, size=8)["frames"]
    assert small.shape == (sum(LENGTHS), 8, 8, 3) and same(np.repeat(small[:], 4, axis=2))
    file = dataset / "data/chunk-000/episode_000001.parquet"
    for column, words in (
        ([{"bytes": None, "path": "a.png"}] * 7, "a row without bytes; store the pictures in the table"),
        ([{"bytes": b"no picture", "path": ""}] * 7, "damaged or truncated"),
        ([1.0] * 7, "must be structs with the field bytes, found double"),
    ):
        write_table(file, columns(1, LENGTHS[1], **{STILL: column}))
        with pytest.raises(InputError, match=f"episode_000001.parquet: .*{words}"):
            np.asarray(read_lerobot(dataset, STILL)["frames"])


def test_lengths_that_contradict(dataset: Path) -> None:
    file = dataset / "meta/episodes.jsonl"
    file.write_text(file.read_text().replace('"length": 7', '"length": 8'))
    with pytest.raises(InputError, match="episode 1 must have 8 rows as meta/episodes says, found 7"):
        read_lerobot(dataset)


@pytest.mark.parametrize(("row", "refused"), [(6, False), (5, False), (4, True), (0, True)])
def test_next_done(dataset: Path, row: int, refused: bool) -> None:
    for episode, length in enumerate(LENGTHS):
        done = np.arange(length) == (row if episode == 1 else length - 1)
        file = dataset / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet"
        write_table(file, columns(episode, length, **{"next.done": done}))
    if refused:
        with pytest.raises(InputError, match=rf"next.done: set in frame {row} of episode 1, which goes on"):
            read_lerobot(dataset)
    else:
        assert len(read_lerobot(dataset)) == 3


def test_fillers_and_links_and_hidden_files(dataset: Path, tmp_path: Path) -> None:
    whole = read_lerobot(dataset)
    action = np.stack(columns(2, LENGTHS[2])["action"])
    action[-1] = np.inf
    file = dataset / "data/chunk-001/episode_000002.parquet"
    write_table(file, columns(2, LENGTHS[2], action=list(action)))
    (file.parent / "._episode_000002.parquet").write_bytes(b"Mac OS X")
    (tmp_path / "linked").mkdir()
    for part in ("meta", "data", "videos"):
        (tmp_path / "linked" / part).symlink_to(dataset / part)
    assert read_lerobot(tmp_path / "linked").checksum() == whole.checksum()
    assert same(read_lerobot(tmp_path / "linked", FILM)["frames"])
    action[-2] = np.inf
    write_table(file, columns(2, LENGTHS[2], action=list(action)))
    with pytest.raises(InputError, match=r"episode_000002.parquet: action: must be finite, found .* in row 2"):
        read_lerobot(dataset)


def test_options_of_pictures_elsewhere(dataset: Path, tmp_path: Path) -> None:
    assert open_dataset(dataset, size=8)["wrist"].shape == (sum(LENGTHS), 8, 8, 3)
    with pytest.raises(InputError, match="size=8: is of pictures; found"):
        open_dataset(dataset, size=8, pictures=False)
    open_dataset(dataset).save(tmp_path / "folder")
    with pytest.raises(InputError, match=r"frames=wrist, size=None: are of LeRobotDatasets"):
        open_dataset(tmp_path / "folder", frames="wrist")
