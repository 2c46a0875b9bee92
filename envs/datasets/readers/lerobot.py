"""LeRobotDataset v3.0: robot demonstrations as parquet tables, and pictures as films.

    meta/info.json                                 codebase_version, fps, features, ...
    meta/episodes/chunk-000/file-000.parquet       the place of each episode's pictures in the films
    data/chunk-000/file-000.parquet                one row for each step: observation.state, action, episode_index,
                                                   frame_index, and if there are rewards next.reward
    videos/{key}/chunk-000/file-000.mp4            many episodes one after the other

The observation after an episode's last step is not recorded; so that step is dropped, and its observation is the final
one. Demonstrations are stopped by a person: all are truncated. Without next.reward the rewards are 0.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from envs.datasets.readers.arrays import EXPANSION, SMALL, check_finite, guard, require
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.files import read_json

VERSION = "v3."
LARGEST = 16384  # pixels a side
MP4 = ["-f", "mp4"]  # ffmpeg must read no other format: a playlist could name other files and addresses
STATE, ACTION, REWARD, EPISODE, FRAME = "observation.state", "action", "next.reward", "episode_index", "frame_index"


def read_lerobot(folder: str | Path, frames: str | None = None, size: int | None = None) -> Episodes:
    """Read a LeRobotDataset into memory.

    Args:
        frames: the film to keep as `frames`, such as "observation.images.top"; None: no pictures.
        size: pixels a side to which the pictures are resized; None: they keep their size.

    Raises:
        InputError: if pyarrow is missing, or for a dataset of another version or a damaged one; names the file, the
            key, what was found and what was expected.
    """
    folder = Path(folder)
    about = _about(folder)
    films = sorted(key for key, feature in about["features"].items() if feature.get("dtype") == "video")
    if frames is not None and (frames not in films or Path(frames).name != frames):
        raise InputError(f"{folder}: frames={frames}: no such film; found {', '.join(films) or 'none'}")
    features = [STATE] if STATE in about["features"] else []
    require(folder / "meta/info.json", about["features"], (ACTION, *([] if frames else [STATE])))
    reward = [REWARD] if REWARD in about["features"] else []
    table = _tables(folder, "data", [*features, ACTION, EPISODE, FRAME, *reward])
    offsets = _offsets(folder, table[EPISODE], table[FRAME])
    for key, found in (("total_episodes", len(offsets) - 1), ("total_frames", int(offsets[-1]))):
        if about.get(key, found) != found:
            raise InputError(f"{folder}/data: must hold {key} {about[key]!r} as meta/info.json says, found {found}")
    for key in (*features, ACTION):
        table[key] = table[key].reshape(len(table[key]), -1)  # LeRobot stores vectors of one number as numbers
        shape, width = about["features"][key].get("shape"), list(table[key].shape[1:])
        if shape != width:
            raise InputError(f"{folder}/data: {key}: must be of shape {shape} as meta/info.json says, found {width}")
    arrays = {"observations": table[STATE]} if features else {}
    arrays |= {"actions": table[ACTION], "rewards": table[REWARD] if reward else np.zeros(offsets[-1], np.float32)}
    lasts = offsets[1:] - 1
    for key in ("actions", "rewards"):
        arrays[key][lasts] = 0
    arrays["terminations"], arrays["truncations"] = (np.zeros(offsets[-1], bool) for _ in range(2))
    arrays["truncations"][lasts - 1] = True
    if frames:
        arrays["frames"] = _frames(folder, frames, size, about, table[EPISODE][offsets[:-1]], np.diff(offsets))
    info = {"source": "LeRobotDataset", "task": folder.name, "fps": about["fps"], "films": films}
    return Episodes(arrays, offsets, info | {"missing": [] if reward else [REWARD]}, folder)


def _about(folder: Path) -> dict[str, Any]:
    file = folder / "meta/info.json"
    about = read_json(file)
    require(file, about, ("codebase_version", "fps", "features"))
    version, fps, features = about["codebase_version"], about["fps"], about["features"]
    if not str(version).startswith(VERSION):
        raise InputError(f"{file}: codebase_version: must be {VERSION}x, found {version}; convert it with LeRobot")
    if not isinstance(fps, int | float) or not 0 < fps < 1e6:
        raise InputError(f"{file}: fps: must be a positive number, found {fps!r}")
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise InputError(f"{file}: features: must be an object of objects, found {str(features)[:80]}")
    return about


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"LeRobotDataset needs pyarrow ({error}): pip install 'mpdiffuser[lerobot]'") from error
    return pyarrow.parquet


def _tables(folder: Path, part: str, columns: list[str]) -> dict[str, np.ndarray]:
    """Columns of all tables under folder/part, concatenated: (n,) or (n, width)."""
    files = sorted((folder / part).rglob("*.parquet"))
    if not files:
        raise InputError(f"{folder / part}: no *.parquet in it; expected chunk-000/file-000.parquet")
    tables = [_table(file, columns) for file in files]
    shapes = [{key: values.shape[1:] for key, values in table.items()} for table in tables]
    for file, shape in zip(files, shapes):
        key = next((key for key in columns if shape[key] != shapes[0][key]), None)
        if key:
            raise InputError(f"{file}: {key}: must have rows of shape {shapes[0][key]}, found {shape[key]}")
    return {key: np.concatenate([table[key] for table in tables]) for key in columns}


def _table(file: Path, columns: list[str]) -> dict[str, np.ndarray]:
    parquet = _parquet()
    with guard(file), parquet.ParquetFile(file) as data:
        require(file, dict.fromkeys(data.schema_arrow.names), tuple(columns))
        groups = [data.metadata.row_group(number) for number in range(data.metadata.num_row_groups)]
        values = [group.column(number).num_values for group in groups for number in range(group.num_columns)]
        if 8 * max(sum(values), data.metadata.num_rows) > max(EXPANSION * file.stat().st_size, SMALL):
            raise InputError(f"{file}: claims {data.metadata.num_rows:,} rows, found {file.stat().st_size:,} bytes")
        table = data.read(columns=columns, use_threads=False)
        return {key: _column(file, key, table.column(key).combine_chunks()) for key in columns}


def _column(file: Path, key: str, column: Any) -> np.ndarray:
    """A column of numbers, (n,), or of equally long lists of numbers, (n, width)."""
    import pyarrow

    rows = len(column)
    nested = pyarrow.types.is_list(column.type) or pyarrow.types.is_fixed_size_list(column.type)
    flat = column.flatten() if nested else column
    numbers, whole = pyarrow.types.is_floating(flat.type), pyarrow.types.is_integer(flat.type)
    if not (whole or (numbers and not key.endswith("_index"))) or flat.null_count:
        wanted = "whole numbers" if key.endswith("_index") else "numbers or lists of numbers"
        raise InputError(f"{file}: {key}: must be {wanted}, found {column.type} with {flat.null_count} nulls")
    if nested and rows:
        lengths = np.unique(column.value_lengths().fill_null(0))
        if len(lengths) != 1:
            raise InputError(f"{file}: {key}: must have lists of one length, found {lengths.tolist()}")
    values = flat.to_numpy(zero_copy_only=False)
    kind = np.int64 if key.endswith("_index") else np.float64 if key.endswith("timestamp") else np.float32
    with np.errstate(over="ignore"):
        values = values.astype(kind)
    check_finite(file, key, values.reshape(rows, -1) if rows else values)
    vector = nested and key != REWARD  # LeRobot stores rewards as lists of one number
    return values.reshape(rows, len(values) // max(rows, 1)) if vector else values


def _offsets(folder: Path, episode: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """(E + 1,): the first row of each episode, then the number of rows."""
    if not len(episode):
        raise InputError(f"{folder}: {EPISODE}: no episode in it (0 rows)")
    starts = np.append(0, np.flatnonzero(np.diff(episode)) + 1)
    offsets = np.append(starts, len(episode))
    if len(np.unique(episode)) != len(starts):
        raise InputError(f"{folder}: {EPISODE}: an episode occurs twice; the tables are damaged or mixed up")
    if not np.array_equal(frame, np.arange(len(frame)) - np.repeat(starts, np.diff(offsets))):
        raise InputError(
            f"{folder}: {FRAME}: must count each episode's rows from 0; the tables are damaged or mixed up"
        )
    if np.diff(offsets).min() < 2:
        number = int(episode[starts[np.argmin(np.diff(offsets))]])
        raise InputError(f"{folder}: {EPISODE}: episode {number} must have at least two rows, found one")
    return offsets


def _frames(
    folder: Path, key: str, size: int | None, about: dict[str, Any], episodes: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """The pictures of episodes (E,) with `rows` (E,) rows each, (M, height, width, 3) uint8, read from the films."""
    chunk, number, begin = (f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp"))
    where = _tables(folder, "meta/episodes", [EPISODE, chunk, number, begin])
    place = {int(e): i for i, e in enumerate(where[EPISODE])}
    lost = [int(e) for e in episodes if int(e) not in place]
    if lost:
        raise InputError(f"{folder}/meta/episodes: {EPISODE}: no row for episode {lost[0]}")
    shape = about["features"][key].get("shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int and 0 < n <= LARGEST for n in shape):
        raise InputError(f"{folder}/meta/info.json: {key}: shape: must be of a picture, found {str(shape)[:80]}")
    height, width = shape[1:] if shape[0] == 3 else shape[:2]
    wanted: dict[Path, dict[int, int]] = {}  # film -> number of the picture in it -> row
    for e, first, count in zip(episodes.tolist(), np.cumsum(rows) - rows, rows):
        i = place[e]
        film = folder / f"videos/{key}/chunk-{where[chunk][i]:03d}/file-{where[number][i]:03d}.mp4"
        start = round(float(where[begin][i]) * about["fps"])
        wanted.setdefault(film, {}).update({start + k: int(first) + k for k in range(count)})
    for film in wanted:  # check all films before memory for their pictures is allocated
        with _opened(film) as reader:
            found = reader.get_meta_data()["size"][::-1]
        if found != (height, width):
            raise InputError(f"{film}: must be of {(height, width)} pixels as meta/info.json says, found {found}")
    with guard(folder):
        out = np.empty((int(rows.sum()), size or height, size or width, 3), np.uint8)
    for film, pictures in wanted.items():
        _decode(film, pictures, out)
    return out


@contextlib.contextmanager
def _opened(film: Path) -> Iterator[Any]:
    import imageio.v2 as imageio

    if not film.is_file():
        raise InputError(f"{film}: no such file; expected by meta/episodes")
    reader: Any
    with guard(film), imageio.get_reader(film, format="FFMPEG", input_params=MP4) as reader:  # type: ignore[arg-type]
        yield reader


def _decode(film: Path, rows: dict[int, int], out: np.ndarray) -> None:
    """Write pictures of a film into `out`; rows: number of the picture in the film -> row of `out`."""
    from PIL import Image

    shape, left = out.shape[1:3], len(rows)
    with _opened(film) as reader:
        for number, picture in enumerate(reader):
            if number in rows:
                resized = picture.shape[:2] != shape
                out[rows[number]] = Image.fromarray(picture).resize(shape[::-1]) if resized else picture
                left -= 1
            if not left:
                return
    raise InputError(
        f"{film}: found {len(rows) - left} of {len(rows)} pictures expected by meta/episodes; get it again"
    )
