"""Minari round trips, and a dataset of another project."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces

from envs.datasets import minari as minari_command
from envs.datasets.minari import compare, export_minari
from envs.datasets.readers.minari import read_minari
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.record import PICTURE, PROPRIOCEPTION, Observation

minari = pytest.importorskip("minari")
from minari.data_collector import EpisodeBuffer  # noqa: E402


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def make(keys, lengths=(3, 1, 40), seed=0):
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(np.array(lengths) + 1)])
    rows = offsets[-1]
    arrays = {
        "frames": random.integers(0, 256, (rows, 8, 8, 3), np.uint8),
        "observations": random.normal(size=(rows, 4)).astype(np.float32),
        "physics": random.normal(size=(rows, 7)),
        "costs": random.uniform(size=rows).astype(np.float32),
        "actions": random.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminations": random.uniform(size=rows) < 0.3,
        "truncations": random.uniform(size=rows) < 0.3,
    }
    for key in ("costs", "actions", "rewards", "terminations", "truncations"):
        arrays[key][offsets[1:] - 1] = 0
    required = ("actions", "rewards", "terminations", "truncations")
    info = {"task": "some_task", "policies": ["expert", "random"], "noise": 0.1}
    return Episodes({key: arrays[key] for key in (*keys, *required)}, offsets, info)


def assert_equal(one, other):
    assert set(one.arrays) == set(other.arrays) and one.info == other.info
    assert np.array_equal(one.offsets, other.offsets)
    for key, array in one.arrays.items():
        assert array.dtype == other[key].dtype and np.array_equal(array, other[key]), key


@pytest.mark.parametrize(
    "keys", [("frames", "observations", "physics", "costs"), ("frames",), ("observations", "costs")]
)
def test_round_trip_is_exact(keys, datasets):
    episodes = make(keys)
    export_minari(episodes, "mine/toy-v0")
    assert_equal(read_minari("mine/toy-v0"), episodes)
    assert_equal(read_minari(datasets / "mine" / "toy-v0"), episodes)


def test_all_observations_are_exported():
    """Two cameras and two vectors of other names."""
    episodes = make(("frames", "observations"))
    rows = len(episodes["actions"])
    more = {
        "wrist": np.random.default_rng(1).integers(0, 256, (rows, 4, 6, 3), np.uint8),
        "joints": np.random.default_rng(2).normal(size=(rows, 3)).astype(np.float32),
    }
    kinds = {"wrist": Observation(PICTURE, (4, 6, 3)), "joints": Observation(PROPRIOCEPTION, (3,), ("a", "b", "c"))}
    record = replace(episodes.record, observations={**episodes.record.observations, **kinds})
    episodes = replace(episodes, arrays=episodes.arrays | more, record=record)
    export_minari(episodes, "mine/two-cameras-v0")
    found = read_minari("mine/two-cameras-v0")
    assert_equal(found, episodes)
    assert found.record == record


@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari's, on authors and links that were not given
def test_several_pictures_of_another_project():
    """Minari keeps the large one as JPEG and the small one as it is; blocks start at any of the pictures."""
    top, wrist = spaces.Box(0, 255, (40, 48, 3), np.uint8), spaces.Box(0, 255, (8, 6, 3), np.uint8)
    space = spaces.Dict({"camera": spaces.Dict({"top": top, "wrist": wrist}), "joints": spaces.Box(-9, 9, (2,))})
    random, buffers, seen = np.random.default_rng(0), [], []
    for number, steps in enumerate((4, 2)):
        level = np.arange(steps + 1)[:, None, None, None]
        large = np.broadcast_to(20 * level + 100 * number, (steps + 1, 40, 48, 3)).astype(np.uint8)
        small = random.integers(0, 256, (steps + 1, 8, 6, 3), np.uint8)
        seen.append((large, small))
        observations = {"camera": {"top": large, "wrist": small}, "joints": random.normal(size=(steps + 1, 2))}
        marks = {"terminations": np.zeros(steps, bool), "truncations": np.arange(steps) == steps - 1}
        actions, rewards = np.zeros((steps, 1)), np.ones(steps)
        buffers.append(EpisodeBuffer(number, observations=observations, actions=actions, rewards=rewards, **marks))
    minari.create_dataset_from_buffers("other/cameras-v0", buffers, observation_space=space,
                                       action_space=spaces.Box(-1, 1, (1,)))  # fmt: skip
    found = read_minari("other/cameras-v0")
    assert found.record.names(PICTURE) == ["top", "wrist"] and found["observations"].shape == (8, 2)
    large, small = (np.concatenate(parts) for parts in zip(*seen))
    assert np.array_equal(found["wrist"], small) and np.abs(found["top"][:].astype(int) - large).max() <= 3
    for name, whole in (("top", found["top"][:]), ("wrist", small)):
        for first in range(8):
            assert np.array_equal(np.concatenate([block for _, block in found[name].read(first)]), whole[first:])


def test_minari_sees_what_gymnasium_would_have_given():
    episodes = make(("observations", "costs"))
    export_minari(episodes, "toy-v0")
    second = minari.load_dataset("toy-v0")[2]
    rows = episodes.rows(2)
    assert len(second.rewards) == 40 and len(second.observations) == 41
    assert np.array_equal(second.infos["costs"][1:], episodes["costs"][rows][:-1])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari's, on authors and links that were not given
def test_a_foreign_dataset():
    space = spaces.Dict({"goal": spaces.Box(-9, 9, (2,)), "view": spaces.Box(0, 255, (8, 8, 3), np.uint8)})
    random = np.random.default_rng(0)
    goal, view = random.normal(size=(5, 2)), random.integers(0, 256, (5, 8, 8, 3), np.uint8)
    buffer = minari.data_collector.EpisodeBuffer(
        observations={"goal": goal, "view": view},
        actions=random.normal(size=(4, 3)),
        rewards=[1.0, 2.0, 3.0, 4.0],
        terminations=[False, False, False, True],
        truncations=[False] * 4,
        infos={"cost": np.arange(5.0), "speed": np.zeros(5)},
    )
    minari.create_dataset_from_buffers(
        "foreign-v0", [buffer], observation_space=space, action_space=spaces.Box(-9, 9, (3,)), jpeg_encoding=False
    )
    episodes = read_minari("foreign-v0")
    assert np.array_equal(episodes["frames"], view) and np.array_equal(
        episodes["observations"], goal.astype(np.float32)
    )
    assert episodes["rewards"].tolist() == [1, 2, 3, 4, 0] and episodes["terminations"].tolist() == [False] * 3 + [
        True,
        False,
    ]
    assert episodes["costs"].tolist() == [1, 2, 3, 4, 0]
    assert "speed" not in episodes and episodes.info.pop("left_out").keys() == {"infos/speed"}
    assert episodes.info == {"source": "Minari foreign-v0", "missing": []}


def test_errors(monkeypatch):
    export_minari(make(("observations",)), "toy-v0")
    with pytest.raises(InputError, match=r"toy-v0.*exists"):
        export_minari(make(("observations",)), "toy-v0")
    with pytest.raises(InputError, match="absent-v0"):
        read_minari("absent-v0")
    monkeypatch.setitem(sys.modules, "minari", None)
    read_minari("toy-v0")
    with pytest.raises(InputError, match=r"pip install 'mpdiffuser\[minari\]'"):
        export_minari(make(("observations",)), "other-v0")


def test_command(tmp_path, capsys):
    episodes = make(("frames", "observations", "physics"))
    episodes.save(tmp_path / "one")
    assert minari_command.main(["export", str(tmp_path / "one"), "toy-v0"]) == 0
    assert minari_command.main(["import", "toy-v0", str(tmp_path / "two")]) == 0
    assert_equal(Episodes.load(tmp_path / "two"), episodes)
    assert minari_command.main(["fly"]) == 2 and "export PATH ID" in capsys.readouterr().out


def test_compare_reads_both_layouts(tmp_path):
    make(("frames", "observations"), lengths=(40, 40)).save(tmp_path / "one")
    speeds = compare(tmp_path / "one", length=8, count=5)
    assert set(speeds) == {"episodes", "minari", "h5py"} and min(speeds.values()) > 0
