"""Datasets for training: several as one, and the copy that is kept of others' data."""

import errno
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from envs.datasets import import_datasets, open_datasets
from envs.datasets.importing import joined
from envs.datasets.opening import dataset_files
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.record import Actions


def write(file: Path, seed: int = 0, rows: int = 7, **arrays: np.ndarray) -> str:
    """A file of one truncated episode, with actions in degrees."""
    random = np.random.default_rng(seed)
    found = {
        "observations": random.normal(size=(rows, 3)),
        "actions": random.uniform(-40, 60, (rows, 2)),
        "rewards": np.arange(rows) + seed,
        "truncations": np.arange(rows) == rows - 1,
    }
    np.savez(file, **(found | arrays))  # type: ignore[arg-type]
    return str(file)


def test_several_as_one(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.npz"), write(tmp_path / "b.npz", 1, 5)]
    found = open_datasets(files)
    parts = [open_datasets(file) for file in files]
    assert found.offsets.tolist() == [0, 7, 12]
    for key in parts[0].arrays:
        assert np.array_equal(found[key], np.concatenate([part[key] for part in parts]))
    bounds = [part.record.actions for part in parts]
    assert found.record.actions.low == tuple(np.min([each.low for each in bounds], 0))
    assert found.record.actions.high == tuple(np.max([each.high for each in bounds], 0))
    assert found.info["joined"] == files


def test_what_does_not_fit(tmp_path: Path) -> None:
    first = write(tmp_path / "a.npz")
    for name, arrays, words in (
        ("wide", {"observations": np.zeros((7, 4))}, "observations: found"),
        ("more", {"actions": np.zeros((7, 3))}, "actions: found 3, expected 2"),
        ("declared", {"action_low": np.full(2, -90.0), "action_high": np.full(2, 90.0)}, "actions: found Actions"),
    ):
        other = write(tmp_path / f"{name}.npz", **arrays)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=f"{name}.npz does not fit .*a.npz: {words}"):
            open_datasets([first, other])


def test_files_that_tell_the_ends_of_episodes_in_other_ways(tmp_path: Path) -> None:
    """One has the final observations, another has not; both have no rewards, which a third has."""
    ends, after = np.arange(7) == 6, np.ones((7, 3))
    files = [write(tmp_path / "a.npz"), write(tmp_path / "b.npz", next_observations=after)]
    files += [write(tmp_path / "c.npz", terminations=ends, truncations=~ends & ends)]
    assert open_datasets(files).info["missing"] == ["next_observations"]
    found = {}
    for file in files:
        with np.load(file) as data:
            found[file] = {key: data[key] for key in data.files if key != "rewards"}
        np.savez(file, **found[file])
    assert open_datasets(files).info["missing"] == ["next_observations", "rewards"]
    with pytest.raises(InputError, match=r"d.npz does not fit .*a.npz: rewards: found some, expected none; train"):
        open_datasets([*files, write(tmp_path / "d.npz")])


def test_seconds_a_decision(tmp_path: Path) -> None:
    """A file may declare them; where only some do, they are those of all."""
    slow, fast, open_ = (
        write(tmp_path / f"{name}.npz", **({"decision_seconds": np.array(value)} if value else {}))  # type: ignore[arg-type]
        for name, value in (("slow", 0.1), ("fast", 0.02), ("open", None))
    )
    assert open_datasets(slow).info["decision_seconds"] == 0.1 and not open_datasets(slow).info["left_out"]
    assert "decision_seconds" not in open_datasets(open_).info
    assert open_datasets([open_, slow]).info["decision_seconds"] == 0.1
    with pytest.raises(InputError, match=r"fast.npz does not fit .*slow.npz: decision_seconds: found 0.02, expected 0"):
        open_datasets([slow, fast])
    for wrong in (np.zeros(1), np.array([0.1, 0.1]), np.array(-1.0), np.array(np.nan)):
        file = write(tmp_path / "wrong.npz", decision_seconds=wrong)
        with pytest.raises(InputError, match="decision_seconds: must"):
            open_datasets(file)


def test_a_held_out_file_in_a_folder_is_told_of(tmp_path: Path) -> None:
    for name in ("maze", "maze-val"):
        write(tmp_path / f"{name}.npz")
    assert any("maze-val is read too" in note for note in open_datasets(str(tmp_path)).info["notes"])


def test_arrays_that_some_lack_are_left_out(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.npz", costs=np.ones(7)), write(tmp_path / "b.npz", 1)]
    found = open_datasets(files)
    assert "costs" not in found
    assert found.info["left_out"] == {"costs": "not in all of the datasets"}


def test_one_dataset_is_not_copied() -> None:
    arrays = {"observations": np.zeros((3, 1), np.float32), "actions": np.zeros((3, 1), np.float32)}
    arrays |= {"rewards": np.zeros(3, np.float32), "terminations": np.zeros(3, bool), "truncations": np.zeros(3, bool)}
    one = Episodes(arrays, np.array([0, 3]))
    assert joined([one]) is one


def test_bounds_of_several() -> None:
    unit, seen = Actions.unit(2), Actions((-2.0,), (1.0,))
    assert Actions.of_all([unit, unit]) == unit
    assert Actions.of_all([seen, Actions((-1.0,), (3.0,))]) == Actions((-2.0,), (3.0,))
    with pytest.raises(InputError, match="actions: bounds differ"):
        Actions.of_all([unit, Actions((-1.0, -1.0), (1.0, 1.0))])


def test_others_data_are_kept_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, root = write(tmp_path / "walk.npz"), str(tmp_path / "data")
    found = import_datasets(file, root)
    assert "importing" in capsys.readouterr().out
    assert found.path is not None and found.path.parent == tmp_path / "data/imported"
    assert isinstance(found["observations"], np.memmap)
    assert import_datasets([file], root).path == found.path
    assert "importing" not in capsys.readouterr().out
    write(tmp_path / "walk.npz", 3, 9)  # another content is another folder
    assert import_datasets(file, root).path != found.path
    assert import_datasets(str(found.path), root).path == found.path  # a dataset folder is opened where it is
    assert not list((tmp_path / "data/imported").glob("*.partial"))


def test_a_copy_is_there_on_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, root = write(tmp_path / "walk.npz"), str(tmp_path / "data")
    found = import_datasets(file, root)

    def refuse(lock: FileLock, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", lock.lock_file)

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert import_datasets(file, root).path == found.path
    with pytest.raises(InputError, match=r"imported: cannot be written .*it is read-only; choose another folder"):
        import_datasets(write(tmp_path / "run.npz"), root)


def test_copies_beside_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the data is the working folder, in which copies and results are written."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / f"{'walk' * 60}.npz")
    first = import_datasets(".", "data").path
    (tmp_path / "results").mkdir()
    (tmp_path / "results/metrics.json").write_text("{}")
    assert import_datasets(".", "data").path == first
    assert import_datasets(f"{'walk' * 60}.npz", "data").path != first
    write(tmp_path / "more.npz")
    assert import_datasets(".", "data").path != first


def test_files_of_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    robot, films = tmp_path / "robot", tmp_path / "films"
    for file in ("meta/info.json", "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"):
        (robot / file).parent.mkdir(parents=True, exist_ok=True)
        (robot / file).touch()
    (films / "top/chunk-000").mkdir(parents=True)
    (films / "top/chunk-000/file-000.mp4").touch()
    (robot / "videos").symlink_to(films)
    found = {file.relative_to(robot).as_posix() for file in dataset_files(robot)}
    assert found == {
        "meta/info.json",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
        "videos/top/chunk-000/file-000.mp4",
    }
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    (tmp_path / "mine/arm-v0/data").mkdir(parents=True)
    for name in ("main_data.hdf5", "metadata.json"):
        (tmp_path / "mine/arm-v0/data" / name).touch()
    assert [file.name for file in dataset_files("minari/mine/arm-v0")] == ["main_data.hdf5", "metadata.json"]
    with pytest.raises(InputError, match="Minari dataset 'mine/leg-v0': not in"):
        dataset_files("minari/mine/leg-v0")


def test_keys(tmp_path: Path) -> None:
    file = write(tmp_path / "walk.npz", states=np.ones((7, 5)))
    found = open_datasets(file, keys={"observations": "states", "actions": None})
    assert found["observations"].shape == (7, 5)
    found.save(tmp_path / "folder")
    with pytest.raises(InputError, match=r"keys.observations: .*folder is no npz or HDF5 file of your own"):
        open_datasets(str(tmp_path / "folder"), keys={"observations": "states"})
