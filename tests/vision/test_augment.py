"""Random shift against a loop over pixels."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.augment import random_shift


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(2, 6), st.integers(2, 6), st.data())
def test_random_shift(batch: int, frames: int, height: int, width: int, data) -> None:
    shift = data.draw(st.lists(st.tuples(st.integers(-7, 7), st.integers(-7, 7)), min_size=batch, max_size=batch))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, frames, height, width, 3), dtype=torch.uint8, generator=generator)
    found = random_shift(pixels, torch.tensor(shift))
    assert found.shape == pixels.shape and found.dtype == torch.uint8
    for b, (down, right) in enumerate(shift):
        for y in range(height):
            for x in range(width):
                source = pixels[b, :, min(max(y - down, 0), height - 1), min(max(x - right, 0), width - 1)]
                assert torch.equal(found[b, :, y, x], source)
