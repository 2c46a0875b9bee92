"""Pixels to latents and back."""

from vision.decoder import Decoder
from vision.encoder import IdentityEncoder, PixelEncoder, Representation

__all__ = ["Decoder", "IdentityEncoder", "PixelEncoder", "Representation"]
