"""Collected data against the simulator, and every way a collection can go wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import envs.collect as collect_module
from envs import experts, make
from envs.collect import DISTURBANCES, DISTURBED, Actor, choose_actions, collect, plan_policies
from envs.collect_command import main
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError

pytestmark = pytest.mark.slow  # each test collects episodes

TINY = {
    "kind": "dm_control",
    "task": "cartpole_swingup",
    "action_repeat": 4,
    "size": 16,
    "camera": 0,
    "rendering": "fast",
    "time_limit": 0.2,
}
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A dataset of 20 steps in 5 decisions, 18 episodes: two rounds."""
    return collect(TINY, "mixed", 18, 3, tmp_path_factory.mktemp("data"), processes=1)


def copy(folder, to):
    """A dataset's copy under another root, which may be damaged."""
    return shutil.copytree(folder, to / folder.name)


def again(folder, environment=TINY, **changes):
    options = {"quality": "mixed", "episodes": 18, "seed": 3, "data_root": folder.parent, "processes": 1}
    return collect(environment, **{**options, **changes})


def test_data_replay_in_the_simulator(mixed):
    episodes = Episodes.load(mixed)
    assert mixed.name == "cartpole_swingup-mixed-ar4-18ep-seed3"
    assert len(episodes) == 18 and (episodes.lengths == 5).all()
    shapes = {key: (array.shape[1:], str(array.dtype)) for key, array in episodes.arrays.items()}
    assert shapes == {
        "frames": ((16, 16, 3), "uint8"),
        "observations": ((5,), "float32"),
        "actions": ((1,), "float32"),
        "rewards": ((), "float32"),
        "terminations": ((), "bool"),
        "truncations": ((), "bool"),
        "physics": ((7,), "float64"),
    }
    env = make(episodes.info["environment"], "both")
    for index in (0, 17):
        rows = episodes.rows(index)
        observation, info = env.reset(seed=episodes.info["episode_seeds"][index])
        for row in range(rows.start, rows.stop):
            assert np.array_equal(episodes["frames"][row], observation["frames"])
            assert np.array_equal(episodes["observations"][row], observation["states"])
            assert np.array_equal(episodes["physics"][row], info["physics"])
            if row == rows.stop - 1:
                break
            observation, reward, terminated, truncated, info = env.step(episodes["actions"][row])
            assert episodes["rewards"][row] == np.float32(reward)
            assert (episodes["terminations"][row], episodes["truncations"][row]) == (terminated, truncated)
        assert truncated and not episodes["actions"][row].any() and episodes["rewards"][row] == 0


def test_info_says_where_the_data_come_from(mixed):
    info = Episodes.load(mixed).info
    assert info["environment"] == TINY and info["task"] == "cartpole_swingup"
    assert not set(TINY) & set(info) - {"task"}  # what the record says is said once
    assert info["quality"] == "mixed" and info["seed"] == 3
    assert info["back_end"].split(":")[0] == info["MUJOCO_GL"] or info["MUJOCO_GL"] == ""
    assert len(info["policies"]) == len(info["disturbances"]) == len(set(info["episode_seeds"])) == 18
    assert info["decision_seconds"] == 0.04
    assert info["versions"]["mujoco"] and info["policy_info"]["expert"]["return_mean"] > 0


def test_the_number_of_processes_changes_nothing(mixed, tmp_path):
    twin = Episodes.load(again(mixed, processes=2, data_root=tmp_path))
    first = Episodes.load(mixed)
    assert all(np.array_equal(first[key], twin[key]) for key in first.arrays)
    other = Episodes.load(again(mixed, seed=4, data_root=tmp_path))
    assert not np.array_equal(first["observations"], other["observations"])


@pytest.mark.parametrize("quality", ["expert", "medium", "random"])
def test_each_quality(quality, tmp_path):
    episodes = Episodes.load(collect(TINY, quality, 2, 0, tmp_path, processes=1))
    assert len(set(map(tuple, episodes.info["policies"]))) == 1
    if quality == "random":
        assert episodes.info["policies"] == [["random"]] * 2 and episodes["actions"][:5].std() > 0
        return
    assert episodes.info["disturbances"] == [0.0, 0.02]
    policy = experts.load_policy("cartpole_swingup", *episodes.info["policies"][0])
    acted, meant = episodes["actions"], policy(np.array(episodes["observations"]))
    np.testing.assert_allclose(acted[episodes.rows(0)][:-1], meant[episodes.rows(0)][:-1], atol=1e-5)


def test_medium_is_the_policy_nearest_half_of_the_expert():
    ((name,), *_), _ = plan_policies("cartpole_swingup", "medium", 3, 4, 0)
    returns = {
        each: experts.load_policy("cartpole_swingup", each).info["return_mean"]
        for each in experts.policy_names("cartpole_swingup")
    }
    gap = abs(returns[name] - returns["expert"] / 2)
    assert all(gap <= abs(value - returns["expert"] / 2) for value in returns.values())


def test_mixed_has_equal_shares_in_seeded_order():
    names = ["random", *experts.policy_names("cartpole_swingup")]
    chosen, policies = plan_policies("cartpole_swingup", "mixed", 4 * len(names), 4, 0)
    for turn in zip(*chosen):
        assert {name: turn.count(name) for name in names} == dict.fromkeys(names, 4) and set(policies) == set(names)
    assert any(first != second for first, second in chosen)
    assert plan_policies("cartpole_swingup", "mixed", 4 * len(names), 4, 0)[0] == chosen
    assert plan_policies("cartpole_swingup", "mixed", 4 * len(names), 4, 1)[0] != chosen != sorted(chosen)


def test_handovers(mixed):
    """In a real dataset: before it the first policy's actions, from it on the second's, wherever nothing disturbs."""
    episodes = Episodes.load(mixed)
    checked = 0
    for e, (names, at) in enumerate(zip(episodes.info["policies"], episodes.info["handovers"])):
        assert 0 <= at < episodes.lengths[e]
        rows = np.arange(episodes.rows(e).start, episodes.rows(e).stop - 1)
        for name, part in ((names[0], rows[:at]), (names[1], rows[at:])):
            if name == "random" or episodes.info["disturbances"][e] or not len(part):
                continue
            meant = experts.load_policy("cartpole_swingup", name)(np.array(episodes["observations"][part]))
            np.testing.assert_allclose(episodes["actions"][part], meant, atol=1e-5)
            checked += len(part)
    assert checked >= 5
    assert episodes.info["disturbances"] == [DISTURBANCES[e % 4] for e in range(len(episodes))]


def test_a_disturbance_holds_a_random_action_for_a_while():
    actor, twin, calm = (Actor([lambda states: states], rate, 7, 20_000) for rate in (0.02, 0.02, 0.0))
    meant = np.random.default_rng(0).uniform(-1, 1, (20_000, 2))
    done = np.stack([actor.decide(action) for action in meant])
    assert np.array_equal(done, np.stack([twin.decide(action) for action in meant]))
    assert np.array_equal(meant[:500], np.stack([calm.decide(action) for action in meant[:500]]))
    assert np.abs(done).max() <= 1
    pushed = (done != meant).any(1)
    starts = np.flatnonzero(pushed & ~np.r_[False, pushed[:-1] & (done[1:] == done[:-1]).all(1)])
    lengths = [int((done[start : start + 20] == done[start]).all(1).cumprod().sum()) for start in starts]
    assert set(lengths) == set(range(DISTURBED[0], DISTURBED[1] + 1))
    assert sum(lengths) == pushed.sum()
    assert len(starts) == pytest.approx(0.02 * (~pushed).sum(), rel=0.15)  # 0.02 of the decisions that were free
    assert done[starts].std(0) == pytest.approx(3**-0.5, rel=0.1)


def test_actors_of_different_policies_act_side_by_side():
    double, half = (lambda states: 2 * states), (lambda states: states / 2)
    states = np.array([[0.1], [0.2], [0.3], [0.9]], np.float32)
    actions = choose_actions([Actor([p], 0.0, 0, 9) for p in (double, half, None, double)], states, 1)
    np.testing.assert_allclose(actions[[0, 1, 3], 0], [0.2, 0.1, 1.0], rtol=1e-6)
    assert actions.dtype == np.float32 and abs(actions[2, 0]) <= 1


def test_a_dataset_with_other_disturbances_is_not_reused(mixed, monkeypatch):
    monkeypatch.setattr("envs.collect.DISTURBED", (5, 15))
    with pytest.raises(InputError, match=r"exists with other settings: disturbance_decisions is \[2, 10\]"):
        again(mixed)


def test_a_dataset_of_other_policies_is_not_reused(mixed, monkeypatch):
    """The expert of a task was trained again, say."""
    expert = experts.load_policy("cartpole_swingup")
    expert.info["decisions"] += 1
    policies = [*experts.ladder("cartpole_swingup")[:-1], expert]
    monkeypatch.setattr("envs.collect.ladder", lambda task: policies)
    with pytest.raises(InputError, match=r"exists, of other policies than today's; remove it"):
        again(mixed)


def test_a_whole_dataset_is_reused(mixed, capsys):
    before = (mixed / "meta.json").stat().st_mtime_ns
    assert again(mixed) == mixed
    assert "exists already, reused (18 episodes" in capsys.readouterr().out
    assert (mixed / "meta.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_second_process_waits_and_reuses_what_the_first_collected(tmp_path):
    program = f"from envs.collect import collect; print(collect({TINY!r}, 'random', 12, 0, {str(tmp_path)!r}, 1))"
    command = [sys.executable, "-c", program]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
    assert sum("exists already, reused (12 episodes" in output for output in outputs) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 32}, r"environment\.size is 16, not 32"),
        ({"time_limit": 0.4}, r"environment\.time_limit is 0\.2, not 0\.4"),
        ({"time_limit": None}, r"environment\.time_limit is 0\.2, not None"),
    ],
)
def test_other_settings_are_refused(mixed, changes, words):
    with pytest.raises(InputError, match=words):
        again(mixed, TINY | changes)


def test_damage_is_refused(mixed, tmp_path):
    truncated = copy(mixed, tmp_path / "truncated")
    with open(truncated / "frames.npy", "r+b") as file:
        file.truncate(2000)
    foreign = copy(mixed, tmp_path / "foreign")
    (foreign / "meta.json").write_text(json.dumps({"format": "video", "files": []}))
    unfinished = copy(mixed, tmp_path / "unfinished")
    (unfinished / "meta.json").unlink()
    for folder, words in (
        (truncated, "frames.npy: truncated"),
        (foreign, "'format'"),
        (unfinished, "meta.json is missing"),
    ):
        with pytest.raises(InputError, match=words) as error:
            again(folder)
        assert f"remove {folder}" in str(error.value)


def test_a_killed_collector_leaves_nothing_that_loads(tmp_path):
    arguments = f"{TINY | {'time_limit': None}}, 'random', 16, 0, {str(tmp_path)!r}, 1"
    code = f"from envs.collect import collect; collect({arguments})"
    path = tmp_path / "cartpole_swingup-random-ar4-16ep-seed0"
    partial = path.with_name(path.name + ".partial")
    environment = {**os.environ, "PYTHONPATH": ROOT}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 600
        while not (partial / "physics.npy").exists() and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert partial.is_dir() and not path.exists()
    for folder in (path, partial):
        with pytest.raises(InputError, match=r"meta\.json is missing"):
            Episodes.load(folder)
    assert Episodes.load(collect(TINY, "random", 16, 0, tmp_path, 1)).lengths.tolist() == [5] * 16
    assert not partial.exists()


def test_a_collection_that_was_cut_off_goes_on(mixed, tmp_path, monkeypatch, capsys):
    """In its second round of 9 episodes; the data are those of a collection that was not."""
    calls = iter(range(8))

    def write(*inputs, whole=collect_module._write_rows):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        whole(*inputs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(collect_module, "_write_rows", write)
        again(mixed, data_root=tmp_path)
    assert not (tmp_path / mixed.name).exists()
    whole, other = Episodes.load(mixed), Episodes.load(again(mixed, data_root=tmp_path))
    assert "continuing after 9 episodes" in capsys.readouterr().out
    assert other.checksum() == whole.checksum() and other.info == whole.info
    assert [path.name for path in tmp_path.iterdir()] == [mixed.name]


def test_a_last_round_that_is_smaller_is_gone_on_with(tmp_path, monkeypatch):
    """3 episodes in rounds of 2 and 1, cut off after the first: one environment of the second has nothing to do."""
    monkeypatch.setattr(collect_module, "PARALLEL", 2)
    whole = Episodes.load(collect(TINY, "random", 3, 0, tmp_path / "whole", 1))

    def keep(writer, progress, kept=collect_module.EpisodesWriter.keep):
        kept(writer, progress)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(collect_module.EpisodesWriter, "keep", keep)
        collect(TINY, "random", 3, 0, tmp_path / "cut", 1)
    assert Episodes.load(collect(TINY, "random", 3, 0, tmp_path / "cut", 1)).checksum() == whole.checksum()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_full_disk_is_an_error_at_the_start(small_disk):
    with pytest.raises(InputError, match=r"no space for frames: 0\.\d+ GB needed, 0\.\d+ GB free.*data_root="):
        collect(TINY, "random", 18, 0, small_disk, 1)
    assert list(small_disk.iterdir()) == []


def test_a_failed_collection_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(InputError, match="no rendering with this back-end"):
        collect(TINY, "random", 1, 0, tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quality": "best"}, "quality='best'.*expert, medium, mixed, random"),
        ({"episodes": 0}, "episodes=0"),
        ({"seed": -1}, "seed=-1"),
        ({"processes": 0}, "processes=0"),
        ({"environment": TINY | {"action_repeat": 3}}, "action_repeat=3.*made for 4"),
        ({"environment": TINY | {"task": "hopper_hop"}}, "hopper_hop"),
        ({"environment": TINY | {"task": "lqr_lqr_2_1", "time_limit": None}}, "no time limit"),
        ({"environment": TINY | {"colour": "red"}}, r"environment: no field 'colour'"),
        ({"environment": {"kind": "gymnasium", "env_id": "Hopper-v4"}}, "in dm_control only, found 'gymnasium'"),
        ({"data_root": "/proc/version/here"}, "data_root='/proc/version/here'"),
    ],
)
def test_bad_arguments(changes, words, tmp_path):
    with pytest.raises(InputError, match=words):
        collect(**{"environment": TINY, "quality": "mixed", "episodes": 2, "seed": 0, "data_root": tmp_path, **changes})
    assert list(tmp_path.iterdir()) == []


def run_command(*arguments):
    command = [sys.executable, os.path.join(ROOT, "collect.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_command(tmp_path):
    done = run_command("task=pendulum_swingup", "task.size=8", "quality=random", "episodes=1", f"data_root={tmp_path}")
    path = tmp_path / "pendulum_swingup-random-ar4-1ep-seed0"
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(path) and "0.000 GB" in done.stdout
    assert Episodes.load(path).lengths.tolist() == [250]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("quality=best", "mixed"),
        ("epsodes=3", "episodes"),
        ("episodes=many", "whole number"),
        ("task=tetris", "walker_walk"),
    ],
)
def test_command_refuses_in_one_line(argument, words):
    done = run_command(argument)
    assert done.returncode == 2 and words in done.stderr and argument.partition("=")[2] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("task.size=0", "error: task.size=0: must be between 1 and"),
        ("task.camera=5", "error: task.camera=5: this model has cameras 0 to 1"),
        ("task.action_repeat=0", "error: task.action_repeat=0: must be"),
        ("episode_seconds=-1", "error: episode_seconds=-1.0: must be a positive number of seconds"),
        ("task.name=cartpole_swing", "error: task.name='cartpole_swing': no such dm_control task"),
        ("seed=-2", "error: seed=-2: must be a whole number"),
    ],
)
def test_command_names_the_option(argument, words, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["collect.py", "episodes=1", argument, f"data_root={tmp_path / 'a=b'}"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith(words)
    assert list(tmp_path.iterdir()) == []
