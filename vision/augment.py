"""Augmentation of frames."""

import torch


def random_shift(frames: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Move frames by whole pixels, repeating the border (Yarats et al. 2022).

    Args:
        frames: (B, K, height, width, 3); all K frames of an example move together.
        shift: (B, 2) pixels, down and right.

    Returns:
        like frames.
    """
    _, _, height, width, _ = frames.shape
    rows = (torch.arange(height, device=frames.device) - shift[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=frames.device) - shift[:, 1:]).clamp(0, width - 1)
    example = torch.arange(len(frames), device=frames.device)[:, None, None]
    return frames.transpose(1, 2).transpose(2, 3)[example, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2, 4)
