"""LeRobotDataset v3.0: robot demonstrations as parquet tables, and pictures as films.

    meta/info.json                                 codebase_version, fps, features, ...
    meta/episodes/chunk-000/file-000.parquet       where each episode's pictures lie in the films
    data/chunk-000/file-000.parquet                a row a step: observation.state, action, episode_index, frame_index,
                                                   and where there are rewards next.reward
    videos/{key}/chunk-000/file-000.mp4            many episodes one after the other

The row of an episode's last step holds no observation after it, so that step is dropped and its observation is the
final one. Demonstrations end by being stopped: all are truncated. Without next.reward the rewards are 0.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from envs.readers.arrays import EXPANSION, SMALL, check_finite, require
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError

VERSION = "v3."
STATE, ACTION, REWARD, EPISODE, FRAME = "observation.state", "action", "next.reward", "episode_index", "frame_index"


def read_lerobot(folder: str | Path, frames: str | None = None, size: int | None = None) -> Episodes:
    """Read a LeRobotDataset into memory.

    Args:
        frames: the film to keep as `frames`, such as "observation.images.top"; None: none.
        size: pixels a side to which its pictures are resized; None: as they are.

    Raises:
        InputError: if pyarrow is missing, or for a dataset of another version or a damaged one; names the file, the
            key, what was found and what was expected.
    """
    folder = Path(folder)
    about = _about(folder)
    films = sorted(key for key, feature in about["features"].items() if feature.get("dtype") == "video")
    if frames is not None and frames not in films:
        raise InputError(f"{folder}: frames={frames}: no such film; found {', '.join(films) or 'none'}")
    features = [STATE] if STATE in about["features"] else []
    require(folder / "meta/info.json", about["features"], (ACTION, *([] if frames else [STATE])))
    reward = [REWARD] if REWARD in about["features"] else []
    table = _tables(folder, "data", [*features, ACTION, EPISODE, FRAME, *reward])
    offsets = _offsets(folder, table[EPISODE], table[FRAME])
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
    try:
        about = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file; expected of a LeRobotDataset") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not readable as JSON ({error})") from error
    require(file, about if isinstance(about, dict) else {}, ("codebase_version", "fps", "features"))
    version = about["codebase_version"]
    if not str(version).startswith(VERSION):
        raise InputError(f"{file}: codebase_version: must be {VERSION}x, found {version}; convert it with LeRobot")
    return about


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"LeRobotDataset needs pyarrow ({error}): pip install 'mpdiffuser[lerobot]'") from error
    return pyarrow.parquet


def _tables(folder: Path, part: str, columns: list[str]) -> dict[str, np.ndarray]:
    """Columns of all tables under folder/part, joined: (n,) or (n, width)."""
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
    import pyarrow

    try:
        with parquet.ParquetFile(file) as data:
            require(file, dict.fromkeys(data.schema_arrow.names), tuple(columns))
            claimed = 8 * data.metadata.num_rows
            if claimed > max(EXPANSION * file.stat().st_size, SMALL):
                raise InputError(f"{file}: claims {data.metadata.num_rows:,} rows, found {file.stat().st_size:,} bytes")
            table = data.read(columns=columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file}: damaged or truncated ({error}); get it again") from error
    return {key: _column(file, key, table.column(key).combine_chunks()) for key in columns}


def _column(file: Path, key: str, column: Any) -> np.ndarray:
    """A column of numbers, (n,), or of equally long lists of numbers, (n, width)."""
    import pyarrow

    rows = len(column)
    nested = pyarrow.types.is_list(column.type) or pyarrow.types.is_fixed_size_list(column.type)
    flat = column.flatten() if nested else column
    if not (pyarrow.types.is_integer(flat.type) or pyarrow.types.is_floating(flat.type)) or flat.null_count:
        found = f"{column.type} with {flat.null_count} nulls"
        raise InputError(f"{file}: {key}: must be numbers or lists of numbers, found {found}")
    if nested and rows:
        lengths = np.unique(column.value_lengths().fill_null(0))
        if len(lengths) != 1:
            raise InputError(f"{file}: {key}: must have lists of one length, found {lengths.tolist()}")
    values = flat.to_numpy(zero_copy_only=False)
    check_finite(file, key, values.reshape(rows, -1) if rows else values)
    kind = np.int64 if key.endswith("_index") else np.float64 if key.endswith("timestamp") else np.float32
    values = values.astype(kind)
    vector = nested and key != REWARD  # LeRobot has rewards as lists of one
    return values.reshape(rows, len(values) // max(rows, 1)) if vector else values


def _offsets(folder: Path, episode: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """First row of each episode, then the number of rows."""
    if not len(episode):
        raise InputError(f"{folder}: {EPISODE}: no episode in it (0 rows)")
    starts = np.append(0, np.flatnonzero(np.diff(episode)) + 1)
    offsets = np.append(starts, len(episode))
    if not np.array_equal(frame, np.arange(len(frame)) - np.repeat(starts, np.diff(offsets))):
        raise InputError(
            f"{folder}: {FRAME}: must count each episode's rows from 0; the tables are damaged or mixed up"
        )
    if np.diff(offsets).min() < 2:
        number = int(episode[starts[np.argmin(np.diff(offsets))]])
        raise InputError(f"{folder}: {EPISODE}: episode {number} must have two rows at least, found one")
    return offsets


def _frames(
    folder: Path, key: str, size: int | None, about: dict[str, Any], episodes: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """The pictures of the rows of episodes (E,), (M, height, width, 3) uint8, out of the films."""
    chunk, number, begin = (f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp"))
    where = _tables(folder, "meta/episodes", [EPISODE, chunk, number, begin])
    place = {int(e): i for i, e in enumerate(where[EPISODE])}
    lost = [int(e) for e in episodes if int(e) not in place]
    if lost:
        raise InputError(f"{folder}/meta/episodes: {EPISODE}: no row for episode {lost[0]}")
    shape = about["features"][key]["shape"]
    height, width = shape[1:] if shape[0] == 3 else shape[:2]
    out = np.empty((int(rows.sum()), size or height, size or width, 3), np.uint8)
    wanted: dict[Path, dict[int, int]] = {}  # film -> number of the picture in it -> row
    for e, first, count in zip(episodes.tolist(), np.cumsum(rows) - rows, rows):
        i = place[e]
        film = folder / f"videos/{key}/chunk-{where[chunk][i]:03d}/file-{where[number][i]:03d}.mp4"
        start = round(float(where[begin][i]) * about["fps"])
        wanted.setdefault(film, {}).update({start + k: int(first) + k for k in range(count)})
    for film, pictures in wanted.items():
        _decode(film, pictures, out)
    return out


def _decode(film: Path, rows: dict[int, int], out: np.ndarray) -> None:
    """Put the pictures of a film, by their number, into their rows of `out`."""
    import imageio.v2 as imageio
    from PIL import Image

    if not film.is_file():
        raise InputError(f"{film}: no such file; expected by meta/episodes")
    shape, left = out.shape[1:3], len(rows)
    try:
        reader: Any
        with imageio.get_reader(film, format="FFMPEG") as reader:  # type: ignore[arg-type]
            for number, picture in enumerate(reader):
                if number in rows:
                    resized = picture.shape[:2] != shape
                    out[rows[number]] = Image.fromarray(picture).resize(shape[::-1]) if resized else picture
                    left -= 1
                if not left:
                    return
    except (OSError, IndexError, RuntimeError) as error:
        raise InputError(f"{film}: damaged or truncated ({error}); get it again") from error
    raise InputError(
        f"{film}: found {len(rows) - left} of {len(rows)} pictures expected by meta/episodes; get it again"
    )
