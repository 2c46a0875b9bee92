"""Pixels to latents and back. Importing it makes its classes known to saved pipelines."""

from vision.decoder import Decoder
from vision.encoder import IdentityEncoder, PixelEncoder, Representation

__all__ = ["Decoder", "IdentityEncoder", "PixelEncoder", "Representation"]
