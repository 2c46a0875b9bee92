"""From episodes with frames to latent episodes, and what their identity holds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mpdiffuser.config import load
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.launch import Clock
from mpdiffuser.record import PICTURE
from vision.data import encode
from vision.representation import StateEstimator, WorldModel
from vision.training import (
    build_representation,
    check_encoder,
    encoder_identities,
    exact_latents,
    latents_identity,
    train_encoder,
)

TINY = ["encoder=conv", "encoder.pool=2", "encoder.latent_dim=4", "encoder.history=2", "encoder.projection=16"]
TINY += ["encoder.hidden=16", "trackers=[]"]
TINY += [f"train.{name}.{key}" for name in ("representation", "decoder") for key in ("steps=3", "batch_size=8")]
PRETRAINED = ["encoder.pretrained=true", "encoder.trainable=false"]


def configuration(folder: Path, *options: str) -> Any:
    return load("vision", [*TINY, f"output_dir={folder / 'out'}", f"data_root={folder}", *options])


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Pretrained weights that need no file: all of one value."""
    found = {"value": 0.01}

    def fill(backbone: torch.nn.Module, name: str, download: bool = False) -> None:
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.fill_(found["value"])

    monkeypatch.setattr("vision.encoder.load_pretrained", fill)
    return found


def identity(cfg: Any, episodes: Episodes) -> dict[str, Any]:
    return encoder_identities(cfg, "checksum", build_representation(cfg, episodes))


@pytest.mark.slow
def test_the_representation_has_the_weights_of_the_encoder(episodes: Episodes, tmp_path: Path, weights: Any) -> None:
    representation = build_representation(configuration(tmp_path, *PRETRAINED), episodes)
    assert all((parameter == 0.01).all() for parameter in representation.encoder.frame_net.parameters())
    assert representation.encoder.config["action_dim"] == 2 and not representation.training
    fresh = build_representation(configuration(tmp_path, *PRETRAINED, "encoder.pretrained=false"), episodes)
    assert not all((parameter == 0.01).all() for parameter in fresh.encoder.frame_net.parameters())


@pytest.mark.slow
def test_true_states_are_a_target_where_they_may_be(episodes: Episodes, tmp_path: Path) -> None:
    known = build_representation(configuration(tmp_path), episodes)
    assert isinstance(known, StateEstimator) and known.encoder.config["latent_dim"] == 3
    unknown = build_representation(configuration(tmp_path, "true_states=false"), episodes)
    assert isinstance(unknown, WorldModel) and unknown.encoder.config["latent_dim"] == 4
    episodes.record = episodes.record.only(PICTURE)
    assert isinstance(build_representation(configuration(tmp_path), episodes), WorldModel)


@pytest.mark.slow
def test_following_actions_are_a_target_of_demonstrations(episodes: Episodes, tmp_path: Path) -> None:
    """That is, where there are neither rewards nor true states."""
    cfg = configuration(tmp_path, "horizon=8")
    states, pictures = episodes.record, episodes.record.only(PICTURE)
    for missing, record, ahead in (
        (["rewards"], pictures, 8),
        (["rewards"], states, 0),
        ([], pictures, 0),
    ):
        episodes.info["missing"], episodes.record = missing, record
        assert build_representation(cfg, episodes).config.get("ahead", 0) == ahead


def test_episodes_without_frames(make_episodes: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no pictures; for states use train_state\.py"):
        build_representation(configuration(tmp_path), make_episodes([4, 4]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        "seed=1",
        "validation=0.5",
        "true_states=false",
        "encoder.latent_dim=8",
        "encoder.trainable=true",
        "train.representation.steps=4",
        "train.representation.learning_rate=0.5",
        "weights",
        "data",
    ],
)
def test_whatever_changes_the_latents_changes_their_identity(
    episodes: Episodes, tmp_path: Path, weights: dict[str, float], option: str
) -> None:
    before = identity(configuration(tmp_path, *PRETRAINED), episodes)["representation"]
    assert identity(configuration(tmp_path, *PRETRAINED), episodes)["representation"] == before
    if option == "weights":
        weights["value"] = 0.02
    cfg = configuration(tmp_path, *PRETRAINED, *([option] if "=" in option else []))
    data = "other" if option == "data" else "checksum"
    after = encoder_identities(cfg, data, build_representation(cfg, episodes))["representation"]
    assert after != before


@pytest.mark.parametrize("option", ["processes=3", "threads=2", "checkpoint_every=7", "quality=expert", "debug=false"])
def test_what_changes_no_latent_is_not_in_it(episodes: Episodes, tmp_path: Path, option: str) -> None:
    assert identity(configuration(tmp_path, option), episodes) == identity(configuration(tmp_path), episodes)


def test_the_decoder_has_an_identity_of_its_own(episodes: Episodes, tmp_path: Path) -> None:
    before = identity(configuration(tmp_path), episodes)
    after = identity(configuration(tmp_path, "train.decoder.steps=4"), episodes)
    assert after["representation"] == before["representation"] and after["decoder"] != before["decoder"]
    assert identity(configuration(tmp_path, "seed=1"), episodes)["decoder"] != before["decoder"]


@pytest.mark.parametrize("trainable", [True, False])
def test_latent_episodes(episodes: Episodes, tmp_path: Path, trainable: bool) -> None:
    cfg, clock = configuration(tmp_path, f"encoder.trainable={str(trainable).lower()}"), Clock()
    representation = build_representation(cfg, episodes)
    stages = encoder_identities(cfg, "checksum", representation)
    encoder, decoder, latent = train_encoder(cfg, episodes, representation, stages, Accelerator(cpu=True), clock)
    rows = len(episodes["actions"])
    assert latent["observations"].shape == (rows, 3) and not {"frames", "physics"} & set(latent.arrays)
    for key in ("actions", "rewards", "terminations", "truncations"):
        np.testing.assert_array_equal(latent[key], episodes[key])
    np.testing.assert_array_equal(latent.offsets, episodes.offsets)
    with torch.inference_mode():
        features = encoder.features(torch.from_numpy(episodes["frames"])).numpy()
    np.testing.assert_allclose(latent["observations"], encode(encoder, episodes, features), atol=2e-3)
    assert decoder.frames(torch.from_numpy(latent["observations"][:2])).shape == (2, 32, 32, 3)
    assert {"representation", "latents", "decoder"} <= set(clock.seconds)
    assert ("features" in clock.seconds) == (not trainable)
    assert bool(list(tmp_path.glob("cache/*.npy"))) == (not trainable)


def test_the_other_models_get_true_states_where_the_data_have_them(episodes: Episodes, tmp_path: Path) -> None:
    def trained(*options: str) -> tuple[Any, Episodes]:
        cfg = configuration(tmp_path / str(len(options)), *options)
        representation = build_representation(cfg, episodes)
        stages = encoder_identities(cfg, "checksum", representation)
        return representation, train_encoder(cfg, episodes, representation, stages, Accelerator(cpu=True), Clock())[2]

    estimator, encoded = trained()
    exact = exact_latents(estimator, episodes, encoded)
    states = estimator.states.denormalize(torch.from_numpy(exact["observations"])).numpy()
    np.testing.assert_allclose(states, episodes["observations"], atol=1e-5)
    assert not np.allclose(exact["observations"], encoded["observations"], atol=1e-2)
    pictures = replace(episodes, record=episodes.record.only(PICTURE))
    assert exact_latents(estimator, pictures, encoded) is encoded
    representation, encoded = trained("true_states=false")
    assert exact_latents(representation, episodes, encoded) is encoded


def test_models_of_true_states_do_not_depend_on_the_encoder(episodes: Episodes, tmp_path: Path) -> None:
    def latents(*options: str, data: tuple[Episodes, ...] = (episodes,)) -> dict[str, Any]:
        cfg = configuration(tmp_path, *options)
        representation = build_representation(cfg, episodes)
        return latents_identity(cfg, representation, encoder_identities(cfg, "checksum", representation), *data)

    assert latents() == latents("encoder.hidden=9", "train.representation.steps=7") != latents("validation=0.5")
    assert latents("true_states=false") != latents("true_states=false", "encoder.hidden=9")
    both = (episodes, replace(episodes, record=episodes.record.only(PICTURE)))
    assert latents(data=both) != latents("encoder.hidden=9", data=both)


def test_a_folder_of_another_run(episodes: Episodes, tmp_path: Path) -> None:
    cfg = configuration(tmp_path)
    representation = build_representation(cfg, episodes)
    stages = encoder_identities(cfg, "checksum", representation)
    train_encoder(cfg, episodes, representation, stages, Accelerator(cpu=True), Clock())
    cfg = configuration(tmp_path, "validation=0.5")
    representation = build_representation(cfg, episodes)
    stages = encoder_identities(cfg, "checksum", representation)
    with pytest.raises(InputError, match=r"validation: 0\.1 there, 0\.5 now"):
        train_encoder(cfg, episodes, representation, stages, Accelerator(cpu=True), Clock())


def test_no_decoder_on_frames_of_two_sides(episodes: Episodes, tmp_path: Path) -> None:
    """And the latents are those of a run with a decoder."""
    episodes.arrays["frames"] = episodes["frames"][:, :, :21]
    latents = {}
    for word in ("true", "false"):
        cfg = configuration(tmp_path / word, f"decoder={word}")
        representation = build_representation(cfg, episodes)
        stages = encoder_identities(cfg, "checksum", representation)
        assert ("decoder" in stages) == (word == "true")
        encoded = train_encoder(cfg, episodes, representation, stages, Accelerator(cpu=True), Clock())
        latents[word] = encoded[2]["observations"]
        if word == "true":
            assert encoded[1].frames(torch.from_numpy(latents[word][:2])).shape == (2, 32, 21, 3)
        else:
            assert encoded[1] is None and not (tmp_path / word / "out" / "decoder").exists()
    np.testing.assert_array_equal(latents["true"], latents["false"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["encoder.pool=5", "task.size=32"],
            r"encoder\.pool: must be at most 4, since frames of 32 x 32 have .* 4 x 4 cells",
        ),
        (["task.size=7"], r"encoder\.pool: must be at most 1, since frames of 7 x 7 .*task\.size"),
        (["encoder.pool=0"], r"encoder\.pool: must be at least 1, found 0"),
        (["encoder.latent_dim=0"], r"encoder\.latent_dim: must be at least 1, found 0"),
        (["encoder.hidden=-1"], r"encoder\.hidden: must be at least 1, found -1"),
        (["encoder.backbone=timm:nothing_of_this_name"], r"encoder\.backbone: timm has no model"),
    ],
)
def test_an_encoder_that_cannot_be_is_refused(tmp_path: Path, options: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_encoder(configuration(tmp_path, *options), None)


def test_the_frames_of_a_dataset_count_and_not_the_tasks_size(
    episodes: Episodes, make_episodes: Any, tmp_path: Path
) -> None:
    cfg = configuration(tmp_path, "task.size=7", "encoder.pool=3")
    check_encoder(cfg, episodes)
    episodes.arrays["frames"] = episodes["frames"][:, :16]
    with pytest.raises(InputError, match=r"encoder\.pool: must be at most 2, since frames of 16 x 32 .* 2 x 4 cells"):
        check_encoder(cfg, episodes)
    with pytest.raises(InputError, match=r"holds no pictures; for states use train_state\.py"):
        check_encoder(cfg, make_episodes([4, 4]))


def test_a_finished_run_keeps_its_decoder(episodes: Episodes, tmp_path: Path) -> None:
    (tmp_path / "out" / "pipeline" / "decoder").mkdir(parents=True)
    (tmp_path / "out" / "metrics.json").write_text("{}")
    check_encoder(configuration(tmp_path), episodes)
    with pytest.raises(InputError, match=r"decoder=False: .*out holds a run with True; choose another output_dir="):
        check_encoder(configuration(tmp_path, "decoder=false"), episodes)
