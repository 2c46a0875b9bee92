"""LeRobotDataset v3.0 and v2.1: robot demonstrations as parquet tables, and pictures as films or in the tables.

    v3.0   meta/info.json                                  codebase_version, fps, features, ...
           meta/episodes/chunk-000/file-000.parquet        the place of each episode's pictures in the films
           data/chunk-000/file-000.parquet                 many episodes one after the other
           videos/KEY/chunk-000/file-000.mp4               likewise
    v2.1   meta/info.json                                  the same; chunks_size is the number of episodes in a chunk
           meta/episodes.jsonl                             a line an episode: episode_index, tasks, length
           meta/tasks.jsonl                                a line a task: task_index, task (not read)
           data/chunk-000/episode_000000.parquet           one episode
           videos/chunk-000/KEY/episode_000000.mp4         likewise

A table has a row for each step: observation.state, action, episode_index, frame_index, timestamp (seconds since the
episode's start), if there are rewards next.reward, and pictures as structs {bytes, path} where no film holds them
(features of dtype "image"). A row gets the picture of its time, at the film's own rate.

The observation after an episode's last row is not recorded. So the last row is no step: its observation is the final
one, its action is left out and may be anything, its reward is added to that of the step before. Demonstrations are
stopped by a person: all are truncated. Without next.reward the rewards are 0, and info["missing"] has "rewards". Where
there is next.done, it may be set in no other rows than an episode's last two.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from envs.datasets.readers.arrays import require
from envs.datasets.readers.films import encoded_source, film_facts, film_source
from envs.datasets.readers.guard import guard
from envs.datasets.readers.parquet import column_names, read_pictures, read_tables, table_files
from envs.datasets.readers.pictures import camera_names
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.files import LARGEST_JSON, read_json
from mpdiffuser.pictures import Source, StoredPictures
from mpdiffuser.record import Record

VERSIONS = ("v3.", "v2.")
LARGEST = 16384  # pixels a side
STATE, ACTION, REWARD, DONE = "observation.state", "action", "next.reward", "next.done"
EPISODE, FRAME, TIME = "episode_index", "frame_index", "timestamp"
COUNTS = {
    TIME: "rows are taken for evenly spaced in time",
    "index": "a running number of the rows",
    "task_index": "the texts of tasks are not read",
}


def read_lerobot(
    folder: str | Path, frames: str | None = None, size: int | None = None, pictures: bool = True
) -> Episodes:
    """Read a LeRobotDataset; its pictures are read when they are needed.

    Args:
        frames: the film, or the pictures in the tables, to keep as `frames`, such as "observation.images.top"; None:
            see `pictures`.
        size: pixels a side to which the pictures are resized; None: they keep their size.
        pictures: without `frames`, whether all films are kept, each under the last part of its name, such as `top`.

    Raises:
        InputError: if pyarrow is missing, or for a dataset of another version or a damaged one; names the file, the
            key, what was found and what was expected.
    """
    data = _Dataset(Path(folder))
    films, about = data.pictures(), data.about
    if frames is not None and (frames not in films or Path(frames).name != frames):
        raise InputError(f"{folder}: frames={frames}: no such film; found {', '.join(films) or 'none'}")
    chosen = {"frames": frames} if frames else data.cameras() if pictures else {}
    if size is not None and not chosen:
        raise InputError(f"{folder}: size={size}: is of pictures; found {films or 'none'}; leave it out")
    states = [STATE] if STATE in about["features"] else []
    require(data.folder / "meta/info.json", about["features"], (ACTION, *([] if chosen else [STATE])))
    table, offsets = data.table([*states, ACTION], bool(chosen))
    rewards = table.get(REWARD, np.zeros(int(offsets[-1]), np.float32))
    arrays: dict[str, Any] = {"observations": table[STATE]} if states else {}
    arrays |= {"actions": table[ACTION], "rewards": rewards}
    lasts = offsets[1:] - 1
    if rewards[lasts].any():
        data.notes["last reward"] = (
            f"{REWARD}: {np.count_nonzero(rewards[lasts]):,} last rows of episodes are added to the step before, "
            f"{rewards[lasts].sum(dtype=np.float64):.6g} in all: no observation follows them, so they are no steps"
        )
    rewards[lasts - 1] += rewards[lasts]
    for key in ("actions", "rewards"):
        arrays[key][lasts] = 0
    arrays["terminations"], arrays["truncations"] = (np.zeros(offsets[-1], bool) for _ in range(2))
    arrays["truncations"][lasts - 1] = True
    arrays |= {name: data.frames(key, size, table, offsets) for name, key in chosen.items()}
    info = {"source": "LeRobotDataset", "task": data.folder.absolute().name, "fps": about["fps"], "films": films}
    info |= {"decision_seconds": round(1 / about["fps"], 9), "missing": [] if REWARD in table else ["rewards"]}
    info |= {"left_out": data.left_out({*table, *chosen.values()}, bool(frames))}
    info |= {"notes": list(data.notes.values())} if data.notes else {}
    return Episodes(arrays, offsets, info, data.folder, record=data.record(arrays, lasts))


class _Dataset:
    """A folder, its meta/info.json, and the files of its tables."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.about = folder, _about(folder)
        self.files: list[Path] = []
        self.notes: dict[str, str] = {}

    def pictures(self) -> list[str]:
        features = self.about["features"].items()
        return sorted(key for key, feature in features if feature.get("dtype") in ("video", "image"))

    def is_film(self, key: str) -> bool:
        return self.about["features"][key]["dtype"] == "video"

    def cameras(self) -> dict[str, str]:
        """Short name -> film, of all films."""
        names = camera_names(self.pictures(), lambda key: key.rpartition(".")[2])
        return {name: key for key, name in names.items()}

    def record(self, arrays: dict[str, np.ndarray], lasts: np.ndarray) -> Record:
        """The record of the arrays, with the names that the features give to the entries of vectors."""
        found = Record.of(arrays, lasts)
        observations = dict(found.observations)
        if "observations" in observations:
            width = observations["observations"].shape[0]
            observations["observations"] = replace(observations["observations"], names=self._names(STATE, width))
        names = self._names(ACTION, len(found.actions.low))
        return replace(found, observations=observations, actions=replace(found.actions, names=names))

    def _names(self, key: str, width: int) -> tuple[str, ...]:
        names = self.about["features"][key].get("names")
        names = next(iter(names.values()), None) if isinstance(names, dict) else names
        right = isinstance(names, list) and len(names) == width and all(isinstance(name, str) for name in names)
        return tuple(names) if right else ()  # type: ignore[arg-type]

    def left_out(self, read: set[str], one_film: bool) -> dict[str, str]:
        """Features and columns that are not read -> why."""
        told = {}
        for key in sorted({*self.about["features"], *column_names(self.files)} - read):
            if key in self.pictures():
                told[key] = "pictures; only one film is kept" if one_film else "pictures"
            else:
                told[key] = COUNTS.get(key, f"of observations only {STATE} and films are read")
        return told

    def table(self, vectors: list[str], timed: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The columns, and the first row of each episode, (E + 1,); checked."""
        self.files = table_files(self.folder, "data")
        features = self.about["features"]
        there = set(column_names(self.files))
        optional = [REWARD] if REWARD in features else []
        optional += [key for key in (DONE, *([TIME] if timed else [])) if key in there]
        table, firsts = read_tables(self.files, [*vectors, EPISODE, FRAME, *optional], self.notes)
        offsets = _offsets(self.folder, table[EPISODE], table[FRAME])
        for key, found in (("total_episodes", len(offsets) - 1), ("total_frames", int(offsets[-1]))):
            if self.about.get(key, found) != found:
                raise InputError(
                    f"{self.folder}/data: must hold {key} {self.about[key]!r} as meta/info.json says, found {found}"
                )
        for key in vectors:
            table[key] = table[key].reshape(len(table[key]), -1)  # LeRobot stores vectors of one number as numbers
            shape, width = features[key].get("shape"), list(table[key].shape[1:])
            if shape != width:
                raise InputError(
                    f"{self.folder}/data: {key}: must be of shape {shape} as meta/info.json says, found {width}"
                )
        self._check(table, offsets, firsts)
        return table, offsets

    def _check(self, table: dict[str, np.ndarray], offsets: np.ndarray, firsts: np.ndarray) -> None:
        """Check numbers and marks; put 0 into the last rows of episodes where no number is needed."""
        lasts = offsets[1:] - 1
        for key, values in table.items():
            if values.dtype.kind != "f":
                continue
            bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
            if key in (ACTION, REWARD):
                values[lasts[bad[lasts]]] = 0
                bad[lasts] = False
            if bad.any():
                row = int(np.argmax(bad))
                file = int(np.searchsorted(firsts, row, "right")) - 1
                raise InputError(
                    f"{self.files[file]}: {key}: must be finite, found {values[row]} in row {row - firsts[file]}"
                )
        if DONE in table:
            done = np.flatnonzero(table[DONE])
            early = done[np.searchsorted(offsets, done + 2, "right") == np.searchsorted(offsets, done, "right")]
            if len(early):
                raise InputError(
                    f"{self.folder}/data: {DONE}: set in frame {table[FRAME][early[0]]} of episode "
                    f"{table[EPISODE][early[0]]}, which goes on; divide the episode there, or correct {DONE}"
                )
        lengths = _lengths(self.folder)
        for episode, rows in zip(table[EPISODE][offsets[:-1]].tolist(), np.diff(offsets).tolist()):
            if lengths.get(episode, rows) != rows:
                raise InputError(
                    f"{self.folder}/data: {EPISODE}: episode {episode} must have {lengths[episode]} rows as "
                    f"meta/episodes says, found {rows}; get the dataset again"
                )

    def frames(self, key: str, side: int | None, table: dict[str, np.ndarray], offsets: np.ndarray) -> StoredPictures:
        """The pictures of all rows, (M, height, width, 3) uint8. side: pixels a side; None: as they are."""
        shape = self.about["features"][key].get("shape")
        right = isinstance(shape, list) and len(shape) == 3
        if not right or not all(type(n) is int and 0 < n <= LARGEST for n in shape):
            raise InputError(
                f"{self.folder}/meta/info.json: {key}: shape: must be of a picture, found {str(shape)[:80]}"
            )
        height, width = shape[1:] if shape[0] in (1, 3) else shape[:2]
        size, rows = (side or height, side or width), int(offsets[-1])
        files = [self.folder / "meta/info.json", *self.files]
        if not self.is_film(key):
            read = partial(read_pictures, self.files, key)
            return StoredPictures((rows, *size, 3), [encoded_source(read, key, rows, (height, width), size)], files)
        films, sources = self._films(key, table, offsets, (height, width), size)
        files += films if self._is_v2() else [*films, *table_files(self.folder, "meta/episodes")]
        return StoredPictures((rows, *size, 3), sources, files)

    def _films(
        self,
        key: str,
        table: dict[str, np.ndarray],
        offsets: np.ndarray,
        found: tuple[int, int],
        size: tuple[int, int],
    ) -> tuple[list[Path], list[Source]]:
        """All films and their pictures, which must be of `found` pixels and are resized to `size`."""
        numbers = table[EPISODE][offsets[:-1]].tolist()
        places = self._films_v2(key, numbers) if self._is_v2() else self._films_v3(key, numbers)
        within = table[TIME] if TIME in table else table[FRAME] / self.about["fps"]
        lengths = np.diff(offsets)
        times = within + np.repeat([begin for _, begin in places], lengths)
        films = {film: number for number, film in enumerate(dict.fromkeys(film for film, _ in places))}
        owners = np.repeat([films[film] for film, _ in places], lengths)
        parts = np.split(np.argsort(owners, kind="stable"), np.cumsum(np.bincount(owners))[:-1])
        sources, odd = [], []
        for film, rows in zip(films, parts):
            pixels, rate = film_facts(film)
            if pixels != found:
                raise InputError(f"{film}: must be of {found} pixels as meta/info.json says, found {pixels}")
            sources.append(film_source(film, times[rows], rows, rate, size))
            if abs(rate - self.about["fps"]) > 0.01 * rate:
                odd.append(rate)
        if odd:
            self.notes[f"rate of {key}"] = (
                f"{key}: the film has {min(odd):g} pictures a second (fps), the table {self.about['fps']:g} rows; "
                "each row has the picture nearest to its time"
            )
        return list(films), sources

    def _is_v2(self) -> bool:
        return str(self.about["codebase_version"]).startswith("v2.")

    def _films_v2(self, key: str, episodes: list[int]) -> list[tuple[Path, float]]:
        count = self.about.get("chunks_size", 1000)
        if type(count) is not int or count < 1:
            raise InputError(
                f"{self.folder}/meta/info.json: chunks_size: must be a whole number from 1 on, found {count!r}"
            )
        return [(self.folder / f"videos/chunk-{e // count:03d}/{key}/episode_{e:06d}.mp4", 0.0) for e in episodes]

    def _films_v3(self, key: str, episodes: list[int]) -> list[tuple[Path, float]]:
        chunk, number, begin = (f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp"))
        where, _ = read_tables(table_files(self.folder, "meta/episodes"), [EPISODE, chunk, number, begin], {})
        place = {int(e): i for i, e in enumerate(where[EPISODE])}
        lost = [e for e in episodes if e not in place]
        if lost:
            raise InputError(f"{self.folder}/meta/episodes: {EPISODE}: no row for episode {lost[0]}")
        if not np.isfinite(where[begin]).all():
            raise InputError(f"{self.folder}/meta/episodes: {begin}: must be finite; get the dataset again")
        films = []
        for i in map(place.__getitem__, episodes):
            name = f"videos/{key}/chunk-{where[chunk][i]:03d}/file-{where[number][i]:03d}.mp4"
            films.append((self.folder / name, float(where[begin][i])))
        return films


def _about(folder: Path) -> dict[str, Any]:
    file = folder / "meta/info.json"
    about = read_json(file)
    require(file, about, ("codebase_version", "fps", "features"))
    version, fps, features = about["codebase_version"], about["fps"], about["features"]
    if not str(version).startswith(VERSIONS):
        raise InputError(f"{file}: codebase_version: must be v3.x or v2.x, found {version}; convert it with LeRobot")
    if not isinstance(fps, int | float) or not 0 < fps < 1e6:
        raise InputError(f"{file}: fps: must be a positive number, found {fps!r}")
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise InputError(f"{file}: features: must be an object of objects, found {str(features)[:80]}")
    return about


def _lengths(folder: Path) -> dict[int, int]:
    """Episode -> rows, as meta/episodes.jsonl (v2.1) or meta/episodes/ (v3.0) tell; empty where they do not."""
    file = folder / "meta/episodes.jsonl"
    if file.is_file():
        if file.stat().st_size > LARGEST_JSON:
            raise InputError(f"{file}: larger than {LARGEST_JSON:,} bytes, more than any file of this kind")
        with guard(file):
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
            return {int(line[EPISODE]): int(line["length"]) for line in lines}
    if not (folder / "meta/episodes").is_dir():
        return {}
    files = table_files(folder, "meta/episodes")
    if "length" not in column_names(files):
        return {}
    table, _ = read_tables(files, [EPISODE, "length"], {})
    return dict(zip(table[EPISODE].tolist(), table["length"].astype(np.int64).tolist()))


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
