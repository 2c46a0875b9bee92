"""The decoder: sizes, learning, saving."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mpdiffuser.errors import InputError
from vision.data import Pictures
from vision.decoder import Decoder

SIZE = 32


@pytest.mark.parametrize("size", [8, 32, 64])
def test_decoder_draws_frames(size: int) -> None:
    decoder = Decoder(4, size).eval()
    frames = decoder.frames(10 * torch.randn(3, 4))
    assert frames.shape == (3, size, size, 3) and frames.dtype == torch.uint8


@pytest.mark.parametrize("size", [0, 4, 7, 24, 63, 65, 100])
def test_sizes_that_cannot_be_drawn(size: int) -> None:
    with pytest.raises(InputError, match=rf"decoder\.size: must be 8, 16, 32, 64.*found {size}"):
        Decoder(4, size)


def test_decoder_learns_pictures(fit, make_pointer_episodes, tmp_path: Path) -> None:
    data = make_pointer_episodes(count=3)
    torch.manual_seed(0)
    decoder = Decoder(2, SIZE, width=8)
    decoder.latents.fit(data["observations"])
    pictures = Pictures(data, np.array([0, 2]), data["observations"])
    assert len(pictures) == 26
    batch = pictures.batch(torch.tensor([0, 13]))
    np.testing.assert_array_equal(batch["frames"], data["frames"][[0, 26]])
    np.testing.assert_array_equal(batch["latents"], data["observations"][[0, 26]])

    def error() -> float:
        drawn = decoder.frames(torch.from_numpy(data["observations"][:13])).numpy().astype(float)
        return np.abs(drawn - data["frames"][:13]).mean()

    before = error()
    decoder = fit(decoder, pictures, tmp_path, steps=80, ema_decay=0.9)
    assert error() < 0.3 * before


def test_decoder_saving(tmp_path: Path) -> None:
    decoder = Decoder(3, 16).eval()
    decoder.latents.fit(np.random.default_rng(0).normal(5, 2, (30, 3)))
    decoder.save_pretrained(tmp_path)
    latents = torch.randn(2, 3)
    assert torch.equal(Decoder.from_pretrained(tmp_path).frames(latents), decoder.frames(latents))
