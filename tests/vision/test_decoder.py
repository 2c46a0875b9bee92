"""The decoder: sizes, learning, saving."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mpdiffuser.errors import InputError
from vision.data import Pictures
from vision.decoder import Decoder


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 64), (100, 100), (48, 80), (33, 20), (3, 9), (1, 1)])
def test_decoder_draws_frames_of_any_size(height: int, width: int) -> None:
    decoder = Decoder(4, height, width).eval()
    frames = decoder.frames(10 * torch.randn(3, 4))
    assert frames.shape == (3, height, width, 3) and frames.dtype == torch.uint8


def test_powers_of_two_have_a_grid_of_4_x_4_cells() -> None:
    shapes = [tuple(p.shape) for name, p in Decoder(3).named_parameters() if "latents" not in name]
    assert shapes[:4] == [(256, 3), (256,), (2048, 256), (2048,)]
    assert [s[:2] for s in shapes if len(s) == 4] == [(128, 64), (64, 32), (32, 16), (16, 8), (3, 8)]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"height": 0}, r"decoder\.height: must be at least 1 pixel, found 0"),
        ({"width": -3}, r"decoder\.width: must be at least 1 pixel, found -3"),
        ({"channels": 12}, r"decoder\.channels: must be a multiple of 8, found 12"),
    ],
)
def test_sizes_that_cannot_be_drawn(sizes: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Decoder(4, **sizes)


@pytest.mark.parametrize("cut", [(0, 0), (5, 2)])  # frames of 32 x 32, and of 27 x 30
def test_decoder_learns_pictures(fit, make_pointer_episodes, tmp_path: Path, cut: tuple[int, int]) -> None:
    data = make_pointer_episodes(count=3)
    data.arrays["frames"] = data["frames"][:, cut[0] :, cut[1] :]
    torch.manual_seed(0)
    decoder = Decoder(2, *data["frames"].shape[1:3])
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
    decoder = Decoder(3, 16, 20).eval()
    decoder.latents.fit(np.random.default_rng(0).normal(5, 2, (30, 3)))
    decoder.save_pretrained(tmp_path)
    latents = torch.randn(2, 3)
    assert torch.equal(Decoder.from_pretrained(tmp_path).frames(latents), decoder.frames(latents))
