"""The latents of training and of acting, the cache of features, and training examples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpdiffuser.episodes import Episodes
from mpdiffuser.history import LatentHistory
from mpdiffuser.record import PICTURE, PROPRIOCEPTION, TRUE_STATE, Actions, Observation, Record
from vision.data import (
    FrameSteps,
    Rows,
    cached_features,
    encode,
    encode_frames,
    following_rows,
    history_actions,
    history_rows,
    inputs,
    picture_targets,
)
from vision.encoder import PixelEncoder

SIZE = 32


def test_history_rows_stay_in_their_episode(episodes: Episodes) -> None:
    found = history_rows(episodes, np.array([0, 1, 5, 7, 8, 11, 12, 14]), 3)
    assert found.tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [3, 4, 5],
        [7, 7, 7],
        [7, 7, 8],
        [9, 10, 11],
        [12, 12, 12],
        [12, 13, 14],
    ]


def test_history_actions_lie_between_the_frames(episodes: Episodes) -> None:
    found = history_actions(episodes, history_rows(episodes, np.array([0, 1, 5, 7, 12]), 3))
    taken, none = episodes["actions"], np.zeros(2, np.float32)
    expected = [[none, none], [none, taken[0]], [taken[3], taken[4]], [none, none], [none, none]]
    np.testing.assert_array_equal(found, expected)


def test_following_rows_are_known_within_their_episode(episodes: Episodes) -> None:
    found, known = following_rows(episodes, np.array([0, 4, 5, 7, 16]), 3)
    assert found.tolist() == [[0, 1, 2], [4, 5, 5], [5, 5, 5], [7, 8, 9], [16, 16, 16]]
    assert known.astype(int).tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("history", [1, 2, 4])
def test_acting_sees_what_training_saw(make_encoder, episodes: Episodes, tmp_path: Path, history: int) -> None:
    """The stream of an episode, frame by frame, gives the latents that the models were trained on."""
    encoder = make_encoder(history)
    trained_on = encode(encoder, episodes, cached_features(encoder, episodes, tmp_path, batch=4), batch=5)
    np.testing.assert_allclose(trained_on, encode_frames(encoder, episodes), rtol=0, atol=1e-3)
    stream = LatentHistory(encoder)
    for e in range(len(episodes)):
        rows = episodes.rows(e)
        stream.reset()
        for row in range(rows.start, rows.stop):
            latent = stream(episodes["frames"][row][None])[0].numpy()
            stream.record_actions(episodes["actions"][row][None])
            # the cache holds features in half precision
            np.testing.assert_allclose(latent, trained_on[row], rtol=0, atol=2e-3)
    spread = trained_on.std(0).min()
    assert spread > 0.02  # so that the tolerance means something


@pytest.fixture
def robot(episodes: Episodes) -> Episodes:
    """Two cameras of different size, measured joints, and true states that a policy does not see."""
    random, rows = np.random.default_rng(4), len(episodes["actions"])
    arrays = episodes.arrays | {
        "wrist": random.integers(0, 256, (rows, 16, 24, 3), np.uint8),
        "joints": random.normal([5, -3], [2, 0.1], (rows, 2)).astype(np.float32),
    }
    seen = {
        "joints": Observation(PROPRIOCEPTION, (2,)),
        "frames": Observation(PICTURE, (SIZE, SIZE, 3)),
        "observations": Observation(TRUE_STATE, (3,)),
        "wrist": Observation(PICTURE, (16, 24, 3)),
    }
    return Episodes(arrays, episodes.offsets, record=Record(seen, Actions((-2.0, -2.0), (2.0, 6.0))))


@pytest.mark.parametrize("history", [1, 3])
def test_acting_with_two_cameras_and_joints_sees_what_training_saw(
    make_encoder, robot: Episodes, tmp_path: Path, history: int
) -> None:
    """The joints are the last entries of the latent, standardised. Actions come in the data's units."""
    encoder = make_encoder(history, cameras=2, proprioception=2, latent_dim=6)
    assert inputs(robot) == (["frames", "wrist"], ["joints"])
    features = cached_features(encoder, robot, tmp_path, batch=4)
    encoder.standard.fit(features[:])
    trained_on = encode(encoder, robot, features, batch=5)
    np.testing.assert_allclose(trained_on, encode_frames(encoder, robot), rtol=0, atol=1e-3)
    joints = robot["joints"]
    np.testing.assert_allclose(trained_on[:, 4:], (joints - joints.mean(0)) / joints.std(0), rtol=2e-3, atol=2e-3)
    sees = robot.record.only(PICTURE, PROPRIOCEPTION)
    stream = LatentHistory(encoder, record=sees, scale=robot.record.actions.scale())
    scale = np.float32([2, 4])
    for e in range(len(robot)):
        stream.reset()
        for row in range(robot.rows(e).start, robot.rows(e).stop):
            latent = stream({name: robot[name][row][None] for name in sorted(sees.observations, reverse=True)})
            stream.record_actions(robot["actions"][row][None] * scale + np.float32([0, 2]))
            np.testing.assert_allclose(latent[0], trained_on[row], rtol=0, atol=3e-3)
    assert trained_on.std(0).min() > 0.02


def test_steps_with_two_cameras_and_joints(robot: Episodes) -> None:
    batch = FrameSteps(robot, np.arange(3), 2, None, True).batch(torch.tensor([3]))
    rows = [2, 3]
    assert set(batch) == {"frames_0", "frames_1", "measured", "actions", "states"}
    for key, name in (("frames_0", "frames"), ("frames_1", "wrist"), ("measured", "joints")):
        np.testing.assert_array_equal(batch[key][0], robot[name][rows])
    assert batch["states"].shape == (1, 3)  # the joints are no target


def counted(encoder: PixelEncoder) -> list[int]:
    """Frames that the backbone is shown from now on."""
    seen: list[int] = []
    encoder.frame_net.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    return seen


def test_features_are_computed_once(make_encoder, episodes: Episodes, tmp_path: Path, capsys) -> None:
    encoder = make_encoder()
    seen = counted(encoder)
    first = cached_features(encoder, episodes, tmp_path, batch=4)
    assert sum(seen) == len(episodes["frames"]) == 18
    expected = encoder.features(torch.from_numpy(episodes["frames"])).detach().numpy()
    np.testing.assert_allclose(first[:], expected, rtol=2e-3, atol=2e-3)
    again = cached_features(encoder, episodes, tmp_path)
    assert sum(seen) == 18 + 18  # only by this test's own call above
    np.testing.assert_array_equal(first[:], again[:])
    assert "reusing" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["weights", "frames", "pool", "stride", "episodes"])
def test_whatever_features_depend_on_makes_another_file(
    make_encoder, episodes: Episodes, make_episodes, tmp_path: Path, change: str
) -> None:
    cached_features(make_encoder(), episodes, tmp_path)
    other, frames = make_encoder(), episodes
    if change == "weights":
        with torch.no_grad():
            next(other.frame_net.parameters())[0, 0, 0, 0] += 1e-3
    elif change in ("pool", "stride"):
        other = make_encoder(**{change: 4})
    elif change == "frames":
        frames = make_episodes([6, 4, 5], frame_size=SIZE, seed=1)
    else:
        frames = make_episodes([4, 6, 5], frame_size=SIZE)
    found = cached_features(other, frames, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 2
    expected = other.features(torch.from_numpy(frames["frames"])).detach().numpy()
    np.testing.assert_allclose(found[:], expected, rtol=2e-3, atol=2e-3)


def test_the_head_does_not_matter_to_the_cache(make_encoder, episodes: Episodes, tmp_path: Path) -> None:
    encoder = make_encoder()
    cached_features(encoder, episodes, tmp_path)
    torch.nn.init.zeros_(encoder.frame_head[0].weight)
    cached_features(encoder, episodes, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_a_killed_write_leaves_nothing_that_is_used(make_encoder, episodes: Episodes, tmp_path: Path) -> None:
    encoder = make_encoder()

    def kill(module: Any, inputs: Any, output: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    calls: list[int] = []
    handle = encoder.frame_net.register_forward_hook(kill)
    with pytest.raises(KeyboardInterrupt):
        cached_features(encoder, episodes, tmp_path, batch=4)
    handle.remove()
    assert not list(tmp_path.glob("*.npy"))
    found = cached_features(encoder, episodes, tmp_path, batch=4)
    expected = encoder.features(torch.from_numpy(episodes["frames"])).detach().numpy()
    np.testing.assert_allclose(found[:], expected, rtol=2e-3, atol=2e-3)
    assert sorted(file.suffix or file.name for file in tmp_path.iterdir()) == [".lock", ".npy"]


def test_steps_hold_their_history(episodes: Episodes) -> None:
    data = FrameSteps(episodes, np.array([0, 2]), 2, None, True)
    assert len(data) == 6 + 5
    batch = data.batch(torch.tensor([0, 5, 6]))
    assert batch["measured"].shape == (3, 2, 0)  # the states are a target
    rows = [0, 5, 12]
    for i, (before, row) in enumerate([(0, 0), (4, 5), (12, 12)]):
        np.testing.assert_array_equal(batch["frames_0"][i], episodes["frames"][[before, row]])
    before = [np.zeros(2), episodes["actions"][4], np.zeros(2)]
    np.testing.assert_array_equal(batch["actions"][:, 0], np.float32(before))
    np.testing.assert_array_equal(batch["states"], episodes["observations"][rows])
    assert "states" not in FrameSteps(episodes, np.array([2]), 2, None, False).batch(torch.arange(5))


def test_what_follows_is_standardised_as_in_training(episodes: Episodes) -> None:
    episodes.arrays["actions"][:, 1] = 0.25  # a gripper that does not move
    targets = np.arange(len(episodes["actions"]), dtype=np.float32)[:, None]
    train = FrameSteps(episodes, np.array([0, 1]), 2, None, targets=targets, future=3)
    held_out = FrameSteps(episodes, np.array([2]), 2, None, targets=targets, future=3, statistics=train.statistics)
    batch = held_out.batch(torch.tensor([0, 4]))
    used = [*range(6), *range(7, 11)]
    rows, known = following_rows(episodes, np.array([12, 16]), 3)
    np.testing.assert_array_equal(batch["known"], known)
    actions, rewards = episodes["actions"], episodes["rewards"]
    expected = (actions[rows] - actions[used].mean(0)) / [actions[used, 0].std(), 1]
    np.testing.assert_allclose(batch["following"], expected, rtol=1e-4, atol=1e-6)
    expected = (rewards[rows] - rewards[used].mean()) / rewards[used].std()
    np.testing.assert_allclose(batch["rewards"], expected, rtol=1e-3, atol=1e-6)
    assert batch["targets"][..., 0].tolist() == [[12, 13, 14, 15], [16, 17, 17, 17]]


def test_picture_targets_are_main_components_and_measured_values() -> None:
    """The components explain what varies, and a constant feature does no harm."""
    random = np.random.default_rng(0)
    sources = random.normal(size=(5000, 2)) * [3, 1]
    pictures = np.concatenate([sources @ random.normal(size=(2, 6)), np.ones((5000, 1))], 1)
    measured = random.normal(size=(5000, 1)) * 5 + 2
    features = Rows([pictures.astype(np.float16), measured.astype(np.float32)])
    targets = picture_targets(features, 7, count=2)
    assert targets.shape == (5000, 3)
    np.testing.assert_allclose(targets[:, 2], (measured[:, 0] - 2) / 5, atol=0.15)
    np.testing.assert_allclose(np.corrcoef(targets[:, 0], targets[:, 1])[0, 1], 0, atol=0.05)
    np.testing.assert_allclose(targets[:, :2].std(), 1, rtol=0.05)
    design = np.concatenate([targets[:, :2], np.ones((5000, 1))], 1)
    residual = pictures - design @ np.linalg.lstsq(design, pictures, rcond=None)[0]
    assert np.abs(residual).max() < 0.02
    assert picture_targets(features, 7, count=99).shape == (5000, 8)
