"""Encoders, which map pixels to latents, and the decoder, which maps latents to pixels."""

from vision.decoder import Decoder
from vision.encoder import IdentityEncoder, PixelEncoder
from vision.representation import StateEstimator, WorldModel

__all__ = ["Decoder", "IdentityEncoder", "PixelEncoder", "StateEstimator", "WorldModel"]
