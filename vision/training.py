"""From frames to latent episodes: the encoder's head (or all of it), the latents of every row, the decoder."""

from collections.abc import Mapping
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
from mpdiffuser.trainer import Trainer
from mpdiffuser.training import common_options
from mpdiffuser.windows import split_indices
from vision.data import FrameSteps, Pictures, cached_features, encode, encode_frames, weights_fingerprint
from vision.decoder import Decoder
from vision.encoder import PixelEncoder, Representation


def build_representation(cfg: DictConfig, episodes: Episodes) -> Representation:
    """The untrained encoder with its training heads; a pretrained backbone has its weights.

    Raises:
        InputError: if the dataset has no frames, or the backbone's weights are not on this machine.
    """
    if "frames" not in episodes:
        raise InputError(f"{episodes.path}: holds no frames; for states use train_state.py")
    options = settings(cfg.encoder) | {"action_dim": episodes["actions"].shape[1]}
    pretrained, download = options.pop("pretrained"), options.pop("download")
    torch.manual_seed(cfg.seed)
    encoder = PixelEncoder.pretrained(download, **options) if pretrained else PixelEncoder(**options)
    has_states = "observations" in episodes and cfg.true_states
    representation = Representation(options, episodes["observations"].shape[1] if has_states else 0)
    representation.encoder.load_state_dict(encoder.state_dict())
    return representation.eval()


def encoder_identities(cfg: DictConfig, data: str, representation: Representation) -> dict[str, dict[str, Any]]:
    """What the representation and the decoder depend on: the dataset's checksum, options, and pretrained weights.

    The representation's identity is also that of the latents.
    """
    encoder = settings(cfg.encoder)
    weights = weights_fingerprint(representation.encoder.frame_net) if encoder["pretrained"] else None
    options = {**common_options(cfg), "encoder": encoder, "train_section": settings(cfg.train.representation)}
    latents = {"data": data, "encoder": {**options, "backbone_weights": weights}}
    return {"representation": latents, "decoder": {**latents, "train_section": settings(cfg.train.decoder)}}


def train_encoder(
    cfg: DictConfig,
    episodes: Episodes,
    representation: Representation,
    identities: Mapping[str, Any],
    accelerator: Accelerator,
    clock: Clock,
) -> tuple[PixelEncoder, Decoder, Episodes]:
    """Train the encoder and the decoder under cfg.output_dir.

    Args:
        representation, identities: of `build_representation` and `encoder_identities`.

    Returns:
        The encoder, the decoder, and the episodes with `observations` replaced by latents.

    Raises:
        InputError: if the folder holds another run.
    """
    output, cache = Path(cfg.output_dir), Path(cfg.data_root) / "cache"
    encoder = representation.to(accelerator.device).encoder
    features = None
    if not encoder.config["trainable"]:
        with clock("features"), accelerator.main_process_first():
            features = cached_features(encoder, episodes, cache)
        encoder.standard.fit(features[:: max(1, len(features) // 4096)].astype(np.float32))
    train, held_out = split_indices(len(episodes), cfg.validation, cfg.seed)
    data = FrameSteps(episodes, train, encoder.history, features)
    validation = FrameSteps(episodes, held_out, encoder.history, features, data.statistics)

    def fit(name: str, model: Any, data: Any, validation: Any) -> Any:
        where = (train_config(cfg, name), output / name, accelerator)
        with clock(name):
            return Trainer(name, model, data, validation, *where, identity=identities[name]).train()

    encoder = fit("representation", representation, data, validation).encoder.eval()
    with clock("latents"):
        latents = encode(encoder, episodes, features) if features is not None else encode_frames(encoder, episodes)
    decoder = Decoder(encoder.config["latent_dim"], episodes["frames"].shape[1])
    decoder.latents.fit(latents)
    decoder = fit("decoder", decoder, Pictures(episodes, train, latents), Pictures(episodes, held_out, latents))
    kept = {key: episodes[key] for key in episodes.arrays if key not in ("frames", "observations", "physics")}
    latent = Episodes({**kept, "observations": latents}, np.asarray(episodes.offsets), episodes.info, episodes.path)
    return encoder, decoder, latent
