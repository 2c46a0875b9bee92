"""Episodes on disk and in memory, for any shape and length."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpdiffuser.episodes import Episodes, EpisodesWriter
from mpdiffuser.errors import InputError


@st.composite
def all_episodes(draw):
    lengths = np.array(draw(st.lists(st.integers(1, 6), min_size=1, max_size=6)))
    offsets = np.concatenate([[0], np.cumsum(lengths + 1)])
    rows = int(offsets[-1])
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = draw(st.sampled_from([("observations",), ("frames",), ("observations", "frames", "physics", "costs")]))
    extra = {
        "observations": random.normal(size=(rows, draw(st.integers(1, 4)))).astype(np.float32),
        "frames": random.integers(0, 256, (rows, 3, 5, 3), np.uint8),
        "physics": random.normal(size=(rows, 2)),
        "costs": random.uniform(size=rows).astype(np.float32),
    }
    arrays = {key: extra[key] for key in kinds} | {
        "actions": random.normal(size=(rows, draw(st.integers(1, 3)))).astype(np.float32),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminations": random.uniform(size=rows) < 0.5,
        "truncations": random.uniform(size=rows) < 0.5,
    }
    return Episodes(arrays, offsets, {"task": "x", "numbers": [1, 2.5, None]})


def small():
    rows = np.arange(5, dtype=np.float32)
    flags = np.zeros(5, bool)
    arrays = {"observations": rows[:, None], "actions": rows[:, None], "rewards": rows}
    return Episodes({**arrays, "terminations": flags, "truncations": flags}, np.array([0, 2, 5]), {})


@settings(max_examples=40, deadline=None)
@given(episodes=all_episodes())
def test_save_and_load_change_nothing(episodes, tmp_path_factory):
    path = tmp_path_factory.mktemp("episodes") / "data"
    episodes.save(path)
    found = Episodes.load(path)
    assert found.info == episodes.info and np.array_equal(found.offsets, episodes.offsets)
    assert list(found.arrays) == list(episodes.arrays) and found.path == path
    for key, array in episodes.arrays.items():
        assert found[key].dtype == array.dtype and np.array_equal(found[key], array)


def test_an_array_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    small().save(tmp_path / "data")
    file = tmp_path / "data/rewards.npy"
    np.lib.format.open_memmap(file, "w+", np.float32, (2**28,)).flush()  # sparse
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**29, limits[1]))
    try:
        with pytest.raises(InputError, match=r"rewards.npy: cannot be read .*ulimit -v"):
            Episodes.load(tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@settings(max_examples=40, deadline=None)
@given(episodes=all_episodes(), data=st.data())
def test_select_is_the_list_of_its_episodes(episodes, data):
    chosen = np.array(data.draw(st.lists(st.integers(0, len(episodes) - 1), min_size=1, max_size=8)))
    part = episodes.select(chosen)
    assert len(part) == len(chosen) and np.array_equal(part.lengths, episodes.lengths[chosen])
    for new, old in enumerate(chosen):
        for key in episodes.arrays:
            assert np.array_equal(part[key][part.rows(new)], episodes[key][episodes.rows(old)])
        assert part.returns[new] == pytest.approx(episodes["rewards"][episodes.rows(old)].sum(dtype=np.float64))
        assert (part.episode_of_row[part.rows(new)] == new).all()


def test_refuses_what_is_not_episodes():
    good = small()
    without = {key: array for key, array in good.arrays.items() if key != "rewards"}
    short = {**good.arrays, "rewards": np.zeros(4, np.float32)}
    for arrays, offsets, words in (
        (without, [0, 2, 5], "need .*rewards"),
        (short, [0, 2, 5], "number of rows"),
        (good.arrays, [0, 2, 4], "offsets must start at 0 and end at"),
        (good.arrays, [0, 4, 5], "episode 1 has no step"),
    ):
        with pytest.raises(InputError, match=words):
            Episodes(arrays, np.array(offsets))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: (path / "meta.json").unlink(), "meta.json is missing"),
        (lambda path: (path / "meta.json").write_text("{"), "not readable as JSON"),
        (lambda path: (path / "meta.json").write_bytes(b"\xff\xfe\x00"), "not readable as JSON"),
        (lambda path: (path / "meta.json").write_text("[]"), "must hold a JSON object, found a list"),
        (lambda path: (path / "meta.json").write_text('{"format": "lerobot"}'), "'format' must be"),
        (lambda path: edit(path, version=99), "version 99 found, this program reads version 3"),
        (lambda path: edit(path, version=1), "version 1 found, .* reads version 3; collect or convert the data again"),
        (lambda path: (path / "actions.npy").unlink(), "actions.npy: missing"),
        (lambda path: (path / "actions.npy").write_bytes(b""), "actions.npy: truncated"),
        (lambda path: (path / "actions.npy").write_bytes(b"not an array"), "actions.npy: truncated or not"),
        (lambda path: np.save(path / "actions.npy", np.zeros((5, 2), np.float32)), "actions.npy: holds"),
        (lambda path: edit(path, arrays=3), "'arrays', with offsets, and 'info' must be objects"),
        (lambda path: add(path, "../elsewhere"), r"arrays: '\.\./elsewhere' must be a name of letters, digits"),
        (lambda path: add(path, "/etc/passwd"), r"arrays: '/etc/passwd' must be a name"),
        (lambda path: link(path / "actions.npy", "nowhere"), r"actions\.npy: a link that leads nowhere"),
        (lambda path: np.save(path / "costs.npy", np.zeros(5)), r"costs\.npy: meta\.json says nothing of it"),
        (lambda path: claim_much(path / "actions.npy"), r"actions\.npy: truncated"),
        (lambda path: pickled(path / "actions.npy"), r"actions\.npy: truncated or not a \.npy file"),
        (
            lambda path: overwrite(path / "terminations.npy", b"\x02"),
            r"terminations\.npy: holds bytes that are neither",
        ),
        (
            lambda path: overwrite(path / "rewards.npy", b"\x00\x00\xc0\x7f"),
            "rewards: must be finite, found nan in episode",
        ),
        (lambda path: np.save(path / "actions.npy", np.zeros((5, 1), np.float64)), "actions.npy: holds"),
    ],
)
def test_damaged_folders_are_named(tmp_path, damage, words):
    path = tmp_path / "data"
    small().save(path)
    damage(path)
    with pytest.raises(InputError, match=words):
        Episodes.load(path)


def add(path, key):
    meta = json.loads((path / "meta.json").read_text())
    edit(path, arrays=meta["arrays"] | {key: {"shape": [5], "dtype": "float32"}})


def link(file, name="elsewhere"):
    """Move a file to `elsewhere`, and put a link to `name` into its place."""
    file.rename(file.with_name("elsewhere"))
    file.symlink_to(file.with_name(name))


def test_links_and_hidden_files(tmp_path):
    """As in a download cache, and as a Mac leaves them."""
    path = tmp_path / "data"
    small().save(path)
    whole = Episodes.load(path).checksum()
    link(path / "actions.npy")
    (path / "._rewards.npy").write_bytes(b"Mac OS X")
    (tmp_path / "linked").symlink_to(path)
    assert Episodes.load(tmp_path / "linked").checksum() == whole


def claim_much(file):
    """A header that claims a terabyte."""
    with open(file, "wb") as out:
        np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": (2**38, 1)})


def pickled(file):
    np.save(file, np.array([{}, {}]), allow_pickle=True)


def overwrite(file, end):
    """The last bytes of an array."""
    data = file.read_bytes()
    file.write_bytes(data[: -len(end)] + end)


def edit(path, **changes):
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | changes))


def test_truncated_array(tmp_path):
    path = tmp_path / "data"
    small().save(path)
    with open(path / "observations.npy", "r+b") as file:
        file.truncate(file.seek(0, 2) - 1)
    with pytest.raises(InputError, match=r"observations\.npy: truncated"):
        Episodes.load(path)


def test_writer_publishes_whole_folders_only(tmp_path):
    path = tmp_path / "data"
    with pytest.raises(KeyboardInterrupt), EpisodesWriter(path, 5, {}) as writer:
        writer.create("actions", (1,), np.float32)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    small().save(path)
    with pytest.raises(InputError, match="exists already"):
        small().save(path)
    left = tmp_path / "other.partial"
    left.mkdir()
    (left / "frames.npy").write_bytes(b"half")
    small().save(tmp_path / "other")
    assert not left.exists() and not (tmp_path / "other" / "frames.npy").exists()


@pytest.mark.parametrize(("key", "value"), [("observations", np.nan), ("rewards", np.inf), ("physics", -np.inf)])
def test_a_number_that_is_not_finite_is_named(make_episodes, key, value):
    """By dataset, array, episode (as numbered in the dataset) and row."""
    episodes = make_episodes([3, 5, 4])
    episodes.arrays["physics"] = np.zeros((len(episodes["rewards"]), 7))
    episodes[key][7] = value  # row 3 of episode 1
    with pytest.raises(InputError, match=rf"episodes: {key}: must be finite, .* in episode 1, row 3 of it \(row 7\)"):
        episodes.check_finite()
    with pytest.raises(InputError, match=r"in episode 1, row 3 of it \(row 8\)"):
        episodes.select(np.array([2, 1])).check_finite()
    assert episodes.select(np.array([2, 0])).check_finite().numbers.tolist() == [2, 0]


def test_nothing_that_load_refuses_is_saved(make_episodes, tmp_path):
    episodes = make_episodes([3])
    episodes["actions"][1] = np.nan
    with pytest.raises(InputError, match=r"data: actions: must be finite"):
        episodes.save(tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_the_checksum_sees_every_number(make_episodes):
    first = make_episodes([3, 4]).checksum()
    assert make_episodes([3, 4]).checksum() == first
    for key in make_episodes([3, 4]).arrays:
        other = make_episodes([3, 4])
        other[key][5] = 1 - other[key][5]
        assert other.checksum() != first
        assert (other.checksum("rewards") == make_episodes([3, 4]).checksum("rewards")) == (key != "rewards")
    assert make_episodes([4, 3]).checksum() != first


def test_a_writer_goes_on_where_the_last_one_stopped(tmp_path):
    whole = small()

    def write(rows, stop=False, info=None):
        with EpisodesWriter(tmp_path / "data", 5, info or {"a": 1}) as writer:
            found = writer.progress
            for key, array in whole.arrays.items():
                out = writer.create(key, array.shape[1:], array.dtype)
                out[found:rows] = array[found:rows]
            writer.keep(rows)
            if stop:
                raise KeyboardInterrupt
            writer.offsets = whole.offsets
            return found

    for rows in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            write(rows, stop=True)
    before = {path: path.read_bytes() for path in (tmp_path / "data.partial").iterdir()}
    with pytest.raises(InputError, match=r"data.partial: has a part of another dataset, .*or remove the folder"):
        write(1, info={"a": 2})
    assert {path: path.read_bytes() for path in (tmp_path / "data.partial").iterdir()} == before
    assert write(5) == 3
    loaded = Episodes.load(tmp_path / "data")
    assert all((loaded[key] == array).all() for key, array in whole.arrays.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    assert sorted(path.suffix for path in (tmp_path / "data").iterdir()) == [
        ".json",
        *[".npy"] * (len(whole.arrays) + 1),
    ]


def test_a_writer_removes_no_files_of_others(tmp_path):
    (tmp_path / "data.partial").mkdir()
    (tmp_path / "data.partial/episode-000.npz").write_bytes(b"an hour's work")
    with pytest.raises(InputError, match="another dataset"), EpisodesWriter(tmp_path / "data", 5, {}):
        pass
    (tmp_path / "data.partial/episode-000.npz").unlink()
    (tmp_path / "data.partial/actions.npy").write_bytes(b"of a writer that was killed before its first resume point")
    with EpisodesWriter(tmp_path / "data", 5, {}) as writer:
        assert not list((tmp_path / "data.partial").glob("*.npy"))
        for key, array in small().arrays.items():
            writer.create(key, array.shape[1:], array.dtype)[:] = array
        writer.offsets = small().offsets


SECOND = """
import sys
from mpdiffuser.episodes import EpisodesWriter
with EpisodesWriter(sys.argv[1], 5, {}):
    pass
"""


def test_two_writers_of_one_dataset(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SECOND, str(tmp_path / "data")]
    with pytest.raises(KeyboardInterrupt), EpisodesWriter(tmp_path / "data", 5, {}) as writer:
        writer.create("actions", (1,), np.float32)[:] = 1
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert "another process is working there; it is collecting data" in done.stderr
        assert (writer.create("rewards", (), np.float32) == 0).all()  # its folder is as it was
        raise KeyboardInterrupt
