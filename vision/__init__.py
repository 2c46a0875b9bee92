"""Encoders, which map pixels to latents, and the decoder, which maps latents to pixels."""

from vision.decoder import Decoder
from vision.encoder import IdentityEncoder, PixelEncoder
from vision.representation import Representation, StateEstimator

__all__ = ["Decoder", "IdentityEncoder", "PixelEncoder", "Representation", "StateEstimator"]
