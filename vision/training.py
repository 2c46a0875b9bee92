"""Check and train the encoder, compute the latents of all rows, and train the decoder."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from omegaconf import DictConfig

from mpdiffuser.config import settings
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.launch import Clock, train_config
from mpdiffuser.preparation import imitates
from mpdiffuser.trainer import Trainer
from mpdiffuser.training import common_options
from mpdiffuser.windows import split_indices
from vision.data import (
    FrameSteps,
    Pictures,
    Rows,
    cached_features,
    encode,
    encode_frames,
    inputs,
    picture_targets,
    true_state_rows,
    weights_fingerprint,
)
from vision.decoder import Decoder
from vision.encoder import PixelEncoder
from vision.representation import EncoderTraining, StateEstimator, WorldModel
from vision.states import with_latents

COMPONENTS = 64  # of a frame's features, that a `WorldModel` predicts


def check_encoder(cfg: DictConfig, episodes: Episodes | None) -> None:
    """Check that the encoder can be made and takes the frames, before data are collected.

    Args:
        cfg: the whole configuration.
        episodes: the dataset; None: it will be collected, with frames of cfg.task.size.

    Raises:
        InputError: if it does not, or if the run's folder has the evaluation of a pipeline with another `decoder`.
    """
    shapes = [(cfg.task.size,) * 2] if episodes is None else _cameras(episodes)
    options = settings(cfg.encoder)
    pretrained, download = options.pop("pretrained"), options.pop("download")
    encoder = PixelEncoder.pretrained(download, **options) if pretrained else PixelEncoder(**options)
    for height, width, *_ in shapes:
        encoder.eval().frame_net.check_frames(height, width)
    output = Path(cfg.output_dir)
    if (output / "metrics.json").exists() and (output / "pipeline" / "decoder").is_dir() != cfg.decoder:
        raise InputError(
            f"decoder={cfg.decoder}: {output} holds a run with {not cfg.decoder}; choose another output_dir="
        )


def _cameras(episodes: Episodes) -> list[tuple[int, ...]]:
    """Return the shapes of the pictures of each camera. Raise InputError if the dataset has none."""
    shapes = [episodes[name].shape[1:] for name in inputs(episodes)[0]]
    if not shapes:
        raise InputError(f"{episodes.path}: holds no pictures; for states use train_state.py")
    return shapes


def build_representation(cfg: DictConfig, episodes: Episodes) -> EncoderTraining:
    """Build the untrained model that trains the encoder, and load the pretrained weights of the backbone.

    With true states, cfg.encoder.latent_dim has no effect.

    Raises:
        InputError: if the dataset has no pictures, or the backbone's weights are not on this machine.
    """
    _cameras(episodes)
    pictures, measured = inputs(episodes)
    options = settings(cfg.encoder) | {"action_dim": episodes["actions"].shape[1], "cameras": len(pictures)}
    options["proprioception"] = sum(episodes[name].shape[1] for name in measured)
    states = true_state_rows(episodes).width if cfg.true_states else 0
    options["latent_dim"] = (states or options["latent_dim"]) + options["proprioception"]
    pretrained, download = options.pop("pretrained"), options.pop("download")
    torch.manual_seed(cfg.seed)
    encoder = PixelEncoder.pretrained(download, **options) if pretrained else PixelEncoder(**options)
    ahead = cfg.horizon if imitates(cfg, episodes) else 0
    targets = min(COMPONENTS, encoder.picture_dim) + options["proprioception"]
    representation: EncoderTraining = StateEstimator(options) if states else WorldModel(options, targets, ahead=ahead)
    representation.encoder.load_state_dict(encoder.state_dict())
    return representation.eval()


def encoder_identities(cfg: DictConfig, data: str, representation: EncoderTraining) -> dict[str, dict[str, Any]]:
    """Return the identities of the representation and the decoder (see `mpdiffuser.identity`).

    An identity has the dataset's checksum, the options, the checksum of the pretrained weights, and the class of the
    representation.

    Args:
        cfg: the whole configuration.
        data: the dataset's checksum.
        representation: result of `build_representation`.
    """
    encoder = {key: value for key, value in settings(cfg.encoder).items() if key != "download"}
    weights = weights_fingerprint(representation.encoder.frame_net) if encoder["pretrained"] else None
    options = {**common_options(cfg), "encoder": encoder, "train_section": settings(cfg.train.representation)}
    options |= {"backbone_weights": weights, "trained_as": type(representation).__name__}
    latents = {"data": data, "latents": options}
    decoder = {"decoder": {**latents, "train_section": settings(cfg.train.decoder)}} if cfg.decoder else {}
    return {"representation": latents, **decoder}


def latents_identity(
    cfg: DictConfig, representation: EncoderTraining, stages: Mapping[str, dict[str, Any]], *data: Episodes
) -> dict[str, Any]:
    """Return the identity of the latents that the other models are trained on (see `exact_latents`).

    True states do not depend on the encoder, so runs with different encoders have the same other models.

    Args:
        cfg: the whole configuration.
        representation: result of `build_representation`.
        stages: result of `encoder_identities`.
        data: all datasets of these models.
    """
    encoder = stages["representation"]
    if all(_has_states(representation, episodes) for episodes in data):
        return {"data": encoder["data"], "latents": {**common_options(cfg), "exact": True}}
    return encoder


def _has_states(representation: EncoderTraining, episodes: Episodes) -> bool:
    """Return whether the encoder was trained to estimate the true states that the dataset has."""
    width = true_state_rows(episodes).width
    return isinstance(representation, StateEstimator) and width == representation.states.config["dim"]


def fit_inputs(encoder: PixelEncoder, episodes: Episodes, features: Rows | None) -> None:
    """Fit the standardisation of the encoder's inputs: features of a frozen backbone (M, F), and measured values."""
    if features is not None:
        encoder.standard.fit(features[:: max(1, len(features) // 4096)])
    if measured := inputs(episodes)[1]:
        encoder.standard.fit_last(Rows([episodes[name] for name in measured])[:])


def train_encoder(
    cfg: DictConfig,
    episodes: Episodes,
    representation: EncoderTraining,
    identities: Mapping[str, Any],
    accelerator: Accelerator,
    clock: Clock,
) -> tuple[PixelEncoder, Decoder | None, Episodes]:
    """Train the encoder and, with cfg.decoder, the decoder under cfg.output_dir.

    Args:
        cfg: the whole configuration.
        episodes: the dataset, with `frames`.
        representation: result of `build_representation`.
        identities: result of `encoder_identities`.
        accelerator, clock: of the run.

    Returns:
        The encoder, the decoder or None, and the episodes with latents (M, d) as `observations`.

    Raises:
        InputError: if the folder has a run with another identity.
    """
    output, cache = Path(cfg.output_dir), Path(cfg.data_root) / "cache"
    encoder = representation.to(accelerator.device).encoder
    features, targets = None, None
    if not encoder.config["trainable"] or isinstance(representation, WorldModel):
        with clock("features"), accelerator.main_process_first():
            features = cached_features(encoder, episodes, cache)
        if isinstance(representation, WorldModel):  # the features of a backbone before it is trained are targets too
            targets = picture_targets(features, encoder.picture_dim, COMPONENTS)
    if encoder.config["trainable"]:
        features = None
    fit_inputs(encoder, episodes, features)
    train, held_out = split_indices(len(episodes), cfg.validation, cfg.seed)
    kind = {"targets": targets, "future": representation.future} if targets is not None else {"true_states": True}
    data = FrameSteps(episodes, train, encoder.history, features, **kind)
    validation = FrameSteps(episodes, held_out, encoder.history, features, **kind, statistics=data.statistics)
    if isinstance(representation, StateEstimator):
        representation.states.fit(data.states)

    def fit(name: str, model: Any, data: Any, validation: Any) -> Any:
        where = (train_config(cfg, name), output / name, accelerator)
        with clock(name):
            return Trainer(name, model, data, validation, *where, identity=identities[name]).train()

    decoder = Decoder(encoder.config["latent_dim"], *_cameras(episodes)[0][:2]) if cfg.decoder else None
    encoder = fit("representation", representation, data, validation).encoder.eval()
    with clock("latents"):
        latents = encode_frames(encoder, episodes) if features is None else encode(encoder, episodes, features)
    if decoder is not None:
        decoder.latents.fit(latents)
        decoder = fit("decoder", decoder, Pictures(episodes, train, latents), Pictures(episodes, held_out, latents))
    return encoder, decoder, with_latents(episodes, latents)


def exact_latents(representation: EncoderTraining, episodes: Episodes, encoded: Episodes) -> Episodes:
    """Return the latent episodes that the other models are trained on (`StateEstimator.exact`).

    They are those of the encoder, if it was trained without true states or the dataset has none.

    Args:
        representation: trained by `train_encoder`.
        episodes: the dataset.
        encoded: the same episodes with the encoder's latents (M, d) as `observations`.
    """
    if not _has_states(representation, episodes):
        return encoded
    assert isinstance(representation, StateEstimator)
    exact = representation.exact(np.asarray(encoded["observations"]), true_state_rows(episodes)[:])
    return replace(encoded, arrays=encoded.arrays | {"observations": exact})


def encode_episodes(
    cfg: DictConfig, encoder: PixelEncoder, episodes: Episodes, accelerator: Accelerator, clock: Clock
) -> Episodes:
    """Return further episodes with the latents (M, d) of a trained encoder as `observations`.

    Args:
        cfg: the whole configuration.
        encoder: the trained encoder.
        episodes: with the observations that the encoder was trained on.
        accelerator, clock: of the run.
    """
    if encoder.config["trainable"]:
        with clock("latents"):
            return with_latents(episodes, encode_frames(encoder, episodes))
    with clock("features"), accelerator.main_process_first():
        features = cached_features(encoder, episodes, Path(cfg.data_root) / "cache")
    with clock("latents"):
        return with_latents(episodes, encode(encoder, episodes, features))
