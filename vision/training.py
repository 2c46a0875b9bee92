"""From frames to latent episodes: the encoder's head (or all of it), the latents of every row, the decoder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from omegaconf import DictConfig

from mpdiffuser.config import settings
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.trainer import Trainer
from mpdiffuser.training import Clock, train_config
from mpdiffuser.windows import split_indices
from vision.data import Pictures, Transitions, cached_features, encode, encode_frames
from vision.decoder import Decoder
from vision.encoder import PixelEncoder, Representation


def train_encoder(
    cfg: DictConfig, episodes: Episodes, accelerator: Accelerator, clock: Clock
) -> tuple[PixelEncoder, Decoder, Episodes]:
    """Train the encoder and the decoder under cfg.output_dir.

    Returns:
        the encoder, the decoder, and the episodes with `observations` replaced by latents.

    Raises:
        InputError: if the dataset has no frames, or the backbone's weights are not on this machine.
    """
    if "frames" not in episodes:
        raise InputError(f"{episodes.path}: holds no frames; for states use train_state.py")
    output, cache = Path(cfg.output_dir), Path(cfg.data_root) / "cache"
    options = settings(cfg.encoder) | {"action_dim": episodes["actions"].shape[1]}
    pretrained, download = options.pop("pretrained"), options.pop("download")
    torch.manual_seed(cfg.seed)
    encoder = PixelEncoder.pretrained(download, **options) if pretrained else PixelEncoder(**options)
    encoder.to(accelerator.device)
    features = None
    if not options["trainable"]:
        with clock("features"), accelerator.main_process_first():
            features = cached_features(encoder, episodes, cache)
        encoder.standard.fit(features[:: max(1, len(features) // 4096)].astype(np.float32))
    train, held_out = split_indices(len(episodes), cfg.validation, cfg.seed)
    known = "observations" in episodes and cfg.true_states
    representation = Representation(options, episodes["observations"].shape[1] if known else 0)
    representation.encoder.load_state_dict(encoder.state_dict())
    data = Transitions(episodes, train, encoder.history, features)
    validation = Transitions(episodes, held_out, encoder.history, features, data.statistics)
    identity = {"data": episodes.checksum()}

    def fit(name: str, model: Any, data: Any, validation: Any) -> Any:
        config = train_config(cfg, name)
        with clock(name):
            return Trainer(name, model, data, validation, config, output / name, accelerator, identity=identity).train()

    encoder = fit("representation", representation, data, validation).encoder.eval()
    with clock("latents"):
        latents = encode(encoder, episodes, features) if features is not None else encode_frames(encoder, episodes)
    decoder = Decoder(encoder.config["latent_dim"], episodes["frames"].shape[1])
    decoder.latents.fit(latents)
    decoder = fit("decoder", decoder, Pictures(episodes, train, latents), Pictures(episodes, held_out, latents))
    kept = {key: episodes[key] for key in episodes.arrays if key not in ("frames", "observations", "physics")}
    latent = Episodes({**kept, "observations": latents}, np.asarray(episodes.offsets), episodes.info, episodes.path)
    return encoder, decoder, latent
