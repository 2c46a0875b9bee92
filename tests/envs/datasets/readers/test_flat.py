"""Flat files, D4RL's, DSRL's and one's own, against plain loops, and broken ones."""

import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.datasets.readers.flat import read_flat, split
from mpdiffuser.errors import InputError

FORMATS = ("hdf5", "npz")


def transitions(rows: int = 12, ends: dict[int, str] | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Random numbers; `ends` says which rows are a "terminals" or "timeouts"."""
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {
        "observations": random.normal(size=(rows, 3)).astype(np.float32),
        "actions": random.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.zeros(rows, bool),
    }
    for row, key in ({4: "terminals", 8: "timeouts"} if ends is None else ends).items():
        arrays[key][row] = True
    return arrays


def write(file: Path, arrays: dict[str, np.ndarray]) -> Path:
    if file.suffix == ".npz":
        np.savez(file, **arrays)  # type: ignore[arg-type]
        return file
    with h5py.File(file, "w") as data:
        for key, array in arrays.items():
            data[key] = array
    return file


def slow_split(terminals, timeouts, limit, following) -> list[tuple[int, int, bool]]:
    """First row, steps and termination of each episode, row by row."""
    episodes, start = [], 0
    for row in range(len(terminals)):
        late = timeouts[row] if timeouts is not None else row - start + 1 == limit
        if terminals[row] or late or row == len(terminals) - 1:
            steps = row - start + int(following or terminals[row])
            if steps:
                episodes.append((start, steps, bool(terminals[row])))
            start = row + 1
    return episodes


flags = st.lists(st.sampled_from(["", "", "", "terminals", "timeouts", "both"]), min_size=1, max_size=25)


@given(flags, st.booleans(), st.integers(1, 6), st.booleans())
def test_split(rows: list[str], known: bool, limit: int, following: bool) -> None:
    terminals = np.array([flag in ("terminals", "both") for flag in rows])
    timeouts = np.array([flag in ("timeouts", "both") for flag in rows]) if known else None
    found = [array.tolist() for array in split(terminals, timeouts, limit, following)]
    assert list(zip(*found)) == slow_split(terminals, timeouts, limit, following)


@settings(max_examples=40)
@given(flags, st.booleans(), st.integers(0, 99))
def test_episodes_of_a_file(tmp_path_factory, rows: list[str], following: bool, seed: int) -> None:
    arrays = transitions(len(rows), {}, seed)
    for key in ("terminals", "timeouts"):
        arrays[key] = np.array([flag in (key, "both") for flag in rows])
    if following:
        arrays["next_observations"] = arrays["observations"] + 100
    file = write(tmp_path_factory.mktemp("flat") / "some.hdf5", arrays)
    expected = slow_split(arrays["terminals"], arrays["timeouts"], None, following)
    if not expected:
        with pytest.raises(InputError, match=r"some.hdf5: terminals, timeouts: no episode with a step in \d rows"):
            read_flat(file)
        return
    episodes = read_flat(file)
    assert episodes.lengths.tolist() == [steps for _, steps, _ in expected]
    for e, (start, steps, terminated) in enumerate(expected):
        mine = {key: array[episodes.rows(e)] for key, array in episodes.arrays.items()}
        for key in ("observations", "actions"):
            assert np.array_equal(mine[key][:-1], arrays[key][start : start + steps])
        rewards = arrays["rewards"][start : start + steps].copy()
        if not (following or terminated):  # the last row is no step, but what it paid is kept
            rewards[-1] += arrays["rewards"][start + steps]
        assert np.array_equal(mine["rewards"][:-1], rewards)
        assert not mine["actions"][-1].any() and mine["rewards"][-1] == 0
        assert mine["terminations"].tolist() == [False] * (steps - 1) + [terminated, False]
        assert mine["truncations"].tolist() == [False] * (steps - 1) + [not terminated, False]
        last, before = arrays["observations"][start + steps - 1], arrays["observations"][start + max(steps - 2, 0)]
        if following:
            assert np.array_equal(mine["observations"][-1], last + 100)
        elif terminated:
            assert np.array_equal(mine["observations"][-1], 2 * last - before)
        else:
            assert np.array_equal(mine["observations"][-1], arrays["observations"][start + steps])


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_the_public_files_are_like(tmp_path: Path, suffix: str) -> None:
    """(N, 1) arrays, flags as numbers, other arrays beside; types and notes."""
    arrays = transitions()
    plain = read_flat(write(tmp_path / f"plain.{suffix}", arrays), info={"task": "t"})
    for key in ("rewards", "terminals", "timeouts"):
        arrays[key] = arrays[key][:, None].astype(np.float64)
    wide = arrays | {"costs": np.ones((12, 1)), "mean": np.float32(1), "name": np.array([b"x"])}
    episodes = read_flat(write(tmp_path / f"wide.{suffix}", wide))
    for key, array in plain.arrays.items():
        assert np.array_equal(array, episodes[key]) and array.dtype == episodes[key].dtype
    assert episodes["costs"].tolist() == [1] * 5 + [0] + [1, 1, 2] + [0] + [1, 2] + [0]
    assert set(episodes.arrays) == set(plain.arrays) | {"costs"}
    assert plain.lengths.tolist() == [5, 3, 2]
    notes = plain.info.pop("notes")
    assert len(notes) == 1 and "rewards: 2 last rows of episodes are added to the step before" in notes[0]
    assert plain.info == {
        "file": f"plain.{suffix}",
        "missing": ["next_observations"],
        "left_out": {},
        "final_observations": "extrapolated where terminated",
        "task": "t",
    }
    assert set(episodes.info["left_out"]) == {"mean", "name"}


def test_hdf5_groups_are_not_read(tmp_path: Path) -> None:
    file = write(tmp_path / "d4rl.hdf5", transitions())
    with h5py.File(file, "a") as data:
        data["infos/qpos"] = np.zeros((12, 4))
        data["metadata/algorithm"] = "SAC"
    episodes = read_flat(file)
    assert set(episodes.arrays) == {"observations", "actions", "rewards", "terminations", "truncations"}
    assert set(episodes.info["left_out"]) == {"infos", "metadata"} and "qpos" in episodes.info["left_out"]["infos"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_timeouts_key(tmp_path: Path, suffix: str) -> None:
    arrays = transitions()
    del arrays["timeouts"]
    file = write(tmp_path / f"maze.{suffix}", arrays)
    episodes = read_flat(file, time_limit=3)  # rows 0 1 2 | 3 4 (terminated) | 5 6 7 | 8 9 10 | 11
    assert episodes.lengths.tolist() == [2, 2, 2, 2] and episodes.info["missing"][0] == "timeouts"
    with pytest.raises(InputError, match=rf"maze.{suffix}: truncations: no such key; expected"):
        read_flat(file)


@pytest.mark.parametrize("suffix", FORMATS)
def test_own_recording_with_frames(tmp_path: Path, suffix: str) -> None:
    arrays = transitions()
    arrays = {{"terminals": "terminations", "timeouts": "truncations"}.get(k, k): v for k, v in arrays.items()}
    arrays["frames"] = np.arange(12, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 4, 5, 3), np.uint8)
    episodes = read_flat(write(tmp_path / f"own.{suffix}", arrays))
    rows = [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11]  # the last picture stands for the one after a termination
    assert episodes["frames"][:, 0, 0, 0].tolist() == rows
    del arrays["observations"]
    assert "observations" not in read_flat(write(tmp_path / f"blind.{suffix}", arrays))
    both = arrays | {"next_frames": arrays["frames"] + 100}
    episodes = read_flat(write(tmp_path / f"next.{suffix}", both))
    assert episodes["frames"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 104, 5, 6, 7, 8, 108, 9, 10, 11, 111]


def replaced(key: str, values: np.ndarray | None) -> dict[str, np.ndarray]:
    arrays = transitions()
    arrays["next_observations"], arrays["costs"] = arrays["observations"], arrays["rewards"]
    if values is None:
        del arrays[key]
    else:
        arrays[key] = values
    return arrays


hole = np.ones((12, 3), np.float32)
hole[7, 1] = np.nan
end = np.ones((12, 3), np.float32)
end[8, 1] = np.nan


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("observations", None, r"no such key; found \['actions'"),
        ("actions", None, "no such key; expected"),
        ("actions", np.zeros((11, 2)), r"must have shape \(12, any\), found \(11, 2\)"),
        ("actions", np.zeros(12), r"must have shape \(12, any\), found \(12,\)"),
        ("observations", np.zeros((12, 2, 2)), r"must have shape \(12, any\), found \(12, 2, 2\)"),
        ("next_observations", np.zeros((12, 4)), r"must have shape \(12, 3\), found \(12, 4\)"),
        ("terminals", np.zeros((12, 2)), r"must have shape \(12,\) or \(12, 1\), found \(12, 2\)"),
        ("timeouts", np.zeros(13), r"must have shape \(12,\) or \(12, 1\), found \(13,\)"),
        ("costs", np.zeros(()), r"must have shape \(12,\) or \(12, 1\), found \(\)"),
        ("observations", hole, r"must be finite, found \[ *1\. *nan *1\.\] in row 7"),
        ("next_observations", end, "must be finite, found .* in row 8"),
        ("rewards", np.array([0.0] * 11 + [1e300]), "must be finite, found inf in row 11"),
        ("costs", np.array([-np.inf] + [0.0] * 11), "must be finite, found -inf in row 0"),
        ("timeouts", np.array([np.nan] + [0.0] * 11), "must be finite, found nan in row 0"),
        ("actions", np.array([b"ab"] * 12), r"must be an array of numbers, found \|S2"),
        ("actions", np.zeros((12, 2), complex), "must be an array of numbers, found complex128"),
        ("frames", np.zeros((12, 4, 4, 3)), "must be an array of uint8, found float64"),
        ("frames", np.zeros((12, 3, 4, 4), np.uint8), r"must have shape \(12, any, any, 3\), found \(12, 3, 4, 4\)"),
        ("rewards", np.zeros(0), r"must have one row for each transition, found shape \(0,\)"),
        ("rewards", np.zeros(()), r"must have one row for each transition, found shape \(\)"),
    ],
)
def test_broken(tmp_path: Path, suffix: str, key: str, values: np.ndarray | None, words: str) -> None:
    file = write(tmp_path / f"broken.{suffix}", replaced(key, values))
    with pytest.raises(InputError, match=rf"broken.{suffix}: {key}: {words}"):
        read_flat(file)


@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated_anywhere(tmp_path: Path, suffix: str) -> None:
    whole = write(tmp_path / f"whole.{suffix}", transitions(200)).read_bytes()
    file = tmp_path / f"part.{suffix}"
    for size in [0, 3, 100, *range(500, len(whole), len(whole) // 7)]:
        file.write_bytes(whole[:size])
        with pytest.raises(InputError, match=rf"part.{suffix}: (damaged or truncated|found {size} bytes)"):
            read_flat(file)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_changed_byte_never_gives_another_error(tmp_path: Path, suffix: str) -> None:
    whole = write(tmp_path / f"whole.{suffix}", transitions(5, {2: "terminals"})).read_bytes()
    file = tmp_path / f"part.{suffix}"
    for place in range(0, len(whole), 1 + len(whole) // 60):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            read_flat(file)
        except InputError as error:
            assert f"part.{suffix}" in str(error)


def test_terabytes_claimed_by_hdf5(tmp_path: Path) -> None:
    arrays, rows = transitions(), 10**11
    del arrays["observations"]
    file = write(tmp_path / "huge.hdf5", arrays)
    with h5py.File(file, "a") as data:
        for key in list(data):
            del data[key]
        for key, shape in {"observations": (rows, 20), "actions": (rows, 5), "rewards": (rows,)}.items():
            data.create_dataset(key, shape, np.float32, chunks=True)
        data.create_dataset("terminals", (rows,), bool, chunks=True)
    with pytest.raises(InputError, match=r"huge.hdf5: terminals: claims shape \(100000000000,\), .* found 0 bytes"):
        read_flat(file)


def test_terabytes_claimed_by_npz(tmp_path: Path) -> None:
    file = tmp_path / "huge.npz"
    with zipfile.ZipFile(file, "w") as archive:
        for key in ("observations", "actions", "rewards", "terminals", "timeouts"):
            shape = (10**11, 5) if key in ("observations", "actions") else (10**11,)
            with archive.open(f"{key}.npy", "w") as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
    with pytest.raises(InputError, match=r"huge.npz: timeouts: claims shape \(100000000000,\), .* cannot hold so many"):
        read_flat(file)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    file = write(tmp_path / "trap.npz", replaced("actions", np.array([Trap()] * 12, object)))
    with pytest.raises(InputError, match=r"trap.npz: actions: must be an array of numbers, found object"):
        read_flat(file)
    assert not (tmp_path / "sprung").exists()


def test_memory(tmp_path: Path) -> None:
    """While reading, there is at most one array beside those that are kept."""
    arrays = transitions(50_000) | {"next_observations": np.zeros((50_000, 3), np.float32)}
    file = write(tmp_path / "large.hdf5", arrays)
    tracemalloc.start()
    episodes = read_flat(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = sum(array.nbytes for array in episodes.arrays.values())
    assert peak < kept + arrays["observations"].nbytes + 3 * 8 * 50_000  # and some indices


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.hdf5: no such file"):
        read_flat(tmp_path / "absent.hdf5")


@pytest.mark.parametrize("suffix", FORMATS)
def test_one_kind_of_mark_is_enough(tmp_path: Path, suffix: str) -> None:
    arrays = transitions(ends={3: "timeouts", 8: "timeouts"})
    marked = read_flat(write(tmp_path / f"both.{suffix}", arrays))
    del arrays["terminals"]
    found = read_flat(write(tmp_path / f"one.{suffix}", arrays))
    assert found.offsets.tolist() == marked.offsets.tolist() == [0, 4, 9, 12]
    del arrays["timeouts"]
    with pytest.raises(InputError, match=f"none.{suffix}: truncations: no such key"):
        read_flat(write(tmp_path / f"none.{suffix}", arrays))


@pytest.mark.parametrize("suffix", FORMATS)
def test_bounds_are_declared_or_seen(tmp_path: Path, suffix: str) -> None:
    arrays = transitions()
    seen = read_flat(write(tmp_path / f"seen.{suffix}", arrays)).record.actions
    steps = np.delete(arrays["actions"], [8, 11], 0)  # rows 8 and 11 are no steps
    assert seen.bounds == "seen"
    assert np.array_equal([seen.low, seen.high], [steps.min(0), steps.max(0)])
    declared = arrays | {"action_low": np.array([-90.0, -5.0]), "action_high": np.array([90.0, 5.0])}
    found = read_flat(write(tmp_path / f"declared.{suffix}", declared))
    assert (found.record.actions.bounds, found.record.actions.low) == ("declared", (-90.0, -5.0))
    assert not found.info["left_out"]
    for wrong, words in (
        ({"action_low": np.array([-90.0, 6.0])}, "action_low: must be at most action_high, found 6.0 in 1"),
        ({"action_high": np.zeros(3)}, r"action_high: must have shape \(2,\)"),
    ):
        with pytest.raises(InputError, match=words):
            read_flat(write(tmp_path / f"wrong{len(words)}.{suffix}", declared | wrong))
    del declared["action_high"]
    with pytest.raises(InputError, match="action_high: no such key"):
        read_flat(write(tmp_path / f"half.{suffix}", declared))


@pytest.mark.parametrize("suffix", FORMATS)
def test_arrays_of_other_names(tmp_path: Path, suffix: str) -> None:
    arrays = transitions()
    names = {"observations": "states", "actions": "torques", "terminations": "fell", "truncations": "cut"}
    plain = read_flat(write(tmp_path / f"plain.{suffix}", arrays))
    keys = {
        "observations": "observations",
        "actions": "actions",
        "terminations": "terminals",
        "truncations": "timeouts",
    }
    other = {names.get(name, name): arrays[keys.get(name, name)] for name in (*names, "rewards")}
    found = read_flat(write(tmp_path / f"other.{suffix}", other), keys=names)
    for key, array in plain.arrays.items():
        assert np.array_equal(found[key], array)
    with pytest.raises(InputError, match=r"keys.actions=torque: .*other.* no such array; found .*'torques'"):
        read_flat(tmp_path / f"other.{suffix}", keys=names | {"actions": "torque"})
