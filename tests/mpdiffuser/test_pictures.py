"""Pictures that are read in blocks: the same as whole arrays, resumed at any place, in little memory."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpdiffuser import episodes as episodes_module
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.pictures import Source, StoredPictures


def stored(whole: np.ndarray, owners: np.ndarray, block: int) -> StoredPictures:
    """The pictures in files: each row's file is given, and a file has its rows in another order."""
    sources = []
    for owner in np.unique(owners):
        rows = np.random.default_rng(owner).permutation(np.flatnonzero(owners == owner))

        def read(first: int, rows: np.ndarray = rows) -> Iterator[np.ndarray]:
            for start in range(first, len(rows), block):
                yield whole[rows[start : start + block]]

        sources.append(Source(rows, read))
    return StoredPictures(whole.shape, sources)


def of(pictures: StoredPictures) -> Episodes:
    rows = len(pictures)
    arrays = {"frames": pictures, "actions": np.ones((rows, 1), np.float32), "rewards": np.zeros(rows, np.float32)}
    arrays |= {"terminations": np.zeros(rows, bool), "truncations": np.zeros(rows, bool)}
    return Episodes(arrays, np.array([0, rows]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=20), st.integers(1, 5), st.data())
def test_blocks_from_any_place(owners: list[int], block: int, data: st.DataObject) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (len(owners), 2, 3, 3), np.uint8)
    pictures = stored(whole, np.array(owners), block)
    first = data.draw(st.integers(0, len(owners)))
    found = list(pictures.read(first))
    rows = np.concatenate([rows for rows, _ in found]) if found else np.zeros(0, int)
    order = np.concatenate([source.rows for source in pictures.sources])
    assert rows.tolist() == order[first:].tolist()
    assert all(np.array_equal(block, whole[rows]) for rows, block in found)
    assert np.array_equal(np.asarray(pictures), whole) and np.array_equal(pictures[1:], whole[1:])
    twice = StoredPictures.joined([pictures, whole])
    assert np.array_equal(np.asarray(twice), np.concatenate([whole, whole]))


@pytest.mark.parametrize("stops", [1, 7, 8, 13])
def test_a_killed_copy_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: int) -> None:
    """Two cameras of 9 pictures in three files each; the copy stops within the first or the second camera."""
    monkeypatch.setattr(episodes_module, "KEEP_EVERY", 1)
    random = np.random.default_rng(1)
    whole = {name: random.integers(0, 256, (9, 4, 5, 3), np.uint8) for name in ("left", "right")}
    counted: list[int] = []

    def episodes(limit: int) -> Episodes:
        cameras = {name: stored(array, np.repeat([0, 1, 2], 3), 2) for name, array in whole.items()}
        for camera in cameras.values():
            for number, source in enumerate(camera.sources):
                camera.sources[number] = Source(source.rows, counting(source, limit))
        found = of(cameras["left"])
        return Episodes(found.arrays | cameras | {"frames": cameras["left"]}, found.offsets)

    def counting(source: Source, limit: int):
        def read(first: int) -> Iterator[np.ndarray]:
            for block in source.read(first):
                if sum(counted) >= limit:
                    raise KeyboardInterrupt
                counted.append(len(block))
                yield block

        return read

    with pytest.raises(KeyboardInterrupt):
        episodes(stops).save(tmp_path / "data")
    assert not (tmp_path / "data").exists()
    read_before = sum(counted)
    counted.clear()
    episodes(1000).save(tmp_path / "data")
    found = Episodes.load(tmp_path / "data")
    assert all(np.array_equal(found[name], array) for name, array in whole.items())
    assert sum(counted) == 27 - read_before  # nothing is read twice


def test_a_killed_copy_goes_on_with_cameras_in_another_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes_module, "KEEP_EVERY", 1)
    random = np.random.default_rng(2)
    whole = {name: random.integers(0, 256, (size, 3, 4, 3), np.uint8)[:6] for name, size in (("a", 6), ("b", 7))}

    def episodes(names: str, limit: int) -> Episodes:
        def read(name: str):
            def blocks(first: int) -> Iterator[np.ndarray]:
                for row in range(first, 6):
                    if name == "b" and row == limit:
                        raise KeyboardInterrupt
                    yield whole[name][row : row + 1]

            return blocks

        cameras = {name: StoredPictures((6, 3, 4, 3), [Source(np.arange(6), read(name))]) for name in names}
        found = of(cameras["a"])
        return Episodes({key: found[key] for key in found.arrays if key != "frames"} | cameras, found.offsets)

    with pytest.raises(KeyboardInterrupt):
        episodes("ab", 2).save(tmp_path / "data")
    episodes("ba", 6).save(tmp_path / "data")
    found = Episodes.load(tmp_path / "data")
    assert all(np.array_equal(found[name], array) for name, array in whole.items())


def test_a_name_that_leads_to_another_folder(tmp_path: Path) -> None:
    whole = np.zeros((4, 2, 2, 3), np.uint8)
    found = of(StoredPictures(whole.shape, [Source(np.arange(4), lambda first: iter([whole]))]))
    (tmp_path / "costs.npy").write_text("mine")
    with pytest.raises(InputError, match=r"data: array: '../costs' must be a name of letters, digits and _"):
        Episodes(found.arrays | {"../costs": np.zeros(4, np.float32)}, found.offsets).save(tmp_path / "data")
    assert (tmp_path / "costs.npy").read_text() == "mine"


def test_fewer_pictures_than_rows(tmp_path: Path) -> None:
    whole = np.zeros((4, 2, 2, 3), np.uint8)
    with pytest.raises(InputError, match="pictures: found 3, expected 4"):
        of(StoredPictures(whole.shape, [Source(np.arange(4), lambda first: iter([whole[:3]]))])).save(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_saving_needs_little_memory(tmp_path: Path) -> None:
    block = np.zeros((16, 64, 64, 3), np.uint8)
    pictures = StoredPictures((4096, 64, 64, 3), [Source(np.arange(4096), lambda first: iter([block] * 256))])
    tracemalloc.start()
    of(pictures).save(tmp_path / "data")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4096 * 64 * 64 * 3 / 4
