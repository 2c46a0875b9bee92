"""Encoders, which map pixels to latents, and the decoder, which maps latents to pixels."""

from vision.decoder import Decoder
from vision.encoder import IdentityEncoder, PixelEncoder, Representation

__all__ = ["Decoder", "IdentityEncoder", "PixelEncoder", "Representation"]
