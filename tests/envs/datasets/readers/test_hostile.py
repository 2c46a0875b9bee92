"""Datasets of strangers: nothing in them is executed, nothing leads elsewhere, nothing fills the memory."""

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from envs.datasets import open_dataset
from envs.datasets.readers.lerobot import read_lerobot
from experiments.reliability import layouts
from experiments.reliability.spoil import HDF5, spoil_npz
from mpdiffuser.errors import InputError

pytestmark = pytest.mark.slow  # a drill

TAKEN = "claims shape|must have shape|no such key|must be an array of numbers|must have [0-9,]+ chunks|must hold"
HOSTILE = {
    "external link": r"a link to \S+elsewhere.h5",
    "soft link": "a link to :/",
    "virtual": r"lies in other files \(\S*elsewhere.h5\)",
    "external storage": r"lies in other files \(/etc/passwd\)",
    "terabytes": TAKEN,
    "terabytes begun": TAKEN,
    "a chunk of terabytes": TAKEN,
    "never written": r"must have [0-9,]+ bytes, found 0",
    "texts": "must be an array of numbers",
    "references": "must be an array of numbers",
    "lists": "must be an array of numbers",
    "records": "must be an array of numbers",
    "nothing": "must have shape|must have a row",
    "group": "no such key|must hold",
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize(
    ("make", "name", "key"),
    [
        (layouts.flat_hdf5, "some.hdf5", "actions"),
        (layouts.vd4rl_hdf5, "shard.hdf5", "action"),
        (layouts.minari, "data/main_data.hdf5", "episode_1/actions"),
    ],
)
def test_hdf5(tmp_path: Path, make: Any, name: str, key: str, kind: str) -> None:
    make(tmp_path)
    file = tmp_path / name
    elsewhere = file.with_name("elsewhere.h5")
    elsewhere.write_bytes(file.read_bytes())
    with h5py.File(file, "a") as data:
        HDF5[kind](data, key, key.replace("action", "reward"), elsewhere)
    tracemalloc.start()
    with pytest.raises(InputError, match=rf"{name}: {key}\S*( a chunk:)? .*({HOSTILE[kind]})"):
        open_dataset(tmp_path if make is layouts.minari else file)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_hdf5_groups_that_hold_themselves(tmp_path: Path) -> None:
    layouts.minari(tmp_path)
    with h5py.File(tmp_path / "data/main_data.hdf5", "a") as data:
        data["episode_0/loop"] = data["episode_0"]
    with pytest.raises(InputError, match=r"main_data.hdf5: episode_0/loop\S*: a group that contains itself"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("pickle", "must be an array of numbers, found object"),
        ("terabytes", "must have shape .*, found .1000000000000, 2.|claims shape"),
        ("twice", "and occur once"),
        ("compression", "stored or deflated, and occur once"),
        ("longer", "holds more than its shape"),
        ("header", "damaged or truncated"),
        ("path", "no such key"),
    ],
)
@pytest.mark.parametrize(
    ("make", "name", "key"), [(layouts.flat_npz, "walk.npz", "actions"), (layouts.vd4rl_npz, "0-4.npz", "action")]
)
def test_npz(tmp_path: Path, make: Any, name: str, key: str, kind: str, words: str) -> None:
    make(tmp_path)
    spoil_npz(tmp_path / name, key, kind, random.Random(0))
    with pytest.raises(InputError, match=rf"{name}: .*{words}"):
        open_dataset(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_npz_in_another_order_is_the_same(tmp_path: Path) -> None:
    layouts.flat_npz(tmp_path)
    before = open_dataset(tmp_path)
    spoil_npz(tmp_path / "walk.npz", "actions", "order", random.Random(0))
    assert np.array_equal(open_dataset(tmp_path)["actions"], before["actions"])


@pytest.mark.parametrize(
    ("key", "column", "words"),
    [
        ("action", [[1.0, 2.0, 3.0]] * 9 + [[1.0]], r"must have lists of one length, found \[1, 3\]"),
        ("action", [[[1.0], [2.0]]] * 10, "must be numbers or lists of numbers, found list"),
        ("action", [{"a": 1.0}] * 10, "must be numbers or lists of numbers, found struct"),
        ("action", ["1.0"] * 10, "must be numbers or lists of numbers, found string"),
        ("action", [None] + [[1.0, 2.0]] * 9, "must have lists of one length|nulls"),
        ("action", [[float("nan"), 1.0]] + [[1.0, 2.0]] * 9, "must be finite, found .* in row 0"),
        ("action", [[1e300, 1.0]] + [[1.0, 2.0]] * 9, "must be finite, found .* in row 0"),
        ("episode_index", [0.0] * 4 + [1.0] * 6, "must be whole numbers, found double"),
        ("episode_index", [0] * 2 + [1] * 6 + [0] * 2, "an episode occurs twice|must count"),
        ("frame_index", [0, 1, 2, 3, 0, 1, 2, 3, 4, 6], "must count each episode's rows from 0"),
    ],
)
def test_parquet(tmp_path: Path, key: str, column: list[Any], words: str) -> None:
    layouts.lerobot(tmp_path)
    file = tmp_path / "data/chunk-000/file-000.parquet"
    table = pyarrow.parquet.read_table(file)
    number = table.column_names.index(key)
    pyarrow.parquet.write_table(table.set_column(number, key, pyarrow.array(column)), file)
    with pytest.raises(InputError, match=rf"{key}: .*({words})"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fps": float("nan")}, "fps: must be a positive number, found nan"),
        ({"fps": 10**400}, "fps: must be a positive number, found 10"),
        ({"features": [1]}, "features: must be an object of objects"),
        ({"total_episodes": 3}, "must hold total_episodes 3 .* found 2"),
        ({"codebase_version": {}}, r"codebase_version: must be v3\.x"),
    ],
)
def test_lerobot_information(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    layouts.lerobot(tmp_path)
    file = tmp_path / "meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=words):
        open_dataset(tmp_path)


def test_json_of_endless_depth(tmp_path: Path) -> None:
    layouts.lerobot(tmp_path)
    (tmp_path / "meta/info.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"info\.json: not readable as JSON"):
        open_dataset(tmp_path)


def test_a_film_that_leads_elsewhere(tmp_path: Path) -> None:
    """By its name, or as a playlist of other films."""
    (tmp_path / "mine").mkdir()
    layouts.lerobot(tmp_path / "mine")
    film = tmp_path / f"mine/videos/{layouts.FILM}/chunk-000/file-000.mp4"
    other = tmp_path / "secret.mp4"
    film.rename(other)
    film.write_text(f"ffconcat version 1.0\nfile '{other}'\n")
    with pytest.raises(InputError, match=r"file-000\.mp4: damaged or truncated"):
        read_lerobot(tmp_path / "mine", layouts.FILM)
    file = tmp_path / "mine/meta/info.json"
    about = json.loads(file.read_text())
    about["features"] = {"../../../x" if key == layouts.FILM else key: v for key, v in about["features"].items()}
    file.write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"frames=../../../x: no such film"):
        read_lerobot(tmp_path / "mine", "../../../x")


def test_minari_names_no_path_and_makes_no_environment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    (tmp_path / "outside").mkdir()
    layouts.minari(tmp_path / "outside")
    for name in ("../outside", "/etc", "a//b", "x\x00"):
        with pytest.raises(InputError, match=r"not in \S+root; expected an id"):
            open_dataset(f"minari/{name}")
    file = tmp_path / "outside/data/metadata.json"
    spec = {"id": "os:x", "entry_point": "os:system", "kwargs": {"command": f"touch {tmp_path}/executed"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"env_spec": json.dumps(spec)}))
    assert len(open_dataset(tmp_path / "outside")) == 2 and not (tmp_path / "executed").exists()
