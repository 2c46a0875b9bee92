"""Augmentation of frames."""

import torch


def random_shift(frames: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Shift frames by whole pixels and repeat the border pixels (Yarats et al. 2022).

    Args:
        frames: (B, K, height, width, 3). All K frames of an example have the same shift.
        shift: (B, 2) pixels, down and to the right.

    Returns:
        The shifted frames, (B, K, height, width, 3).
    """
    _, _, height, width, _ = frames.shape
    rows = (torch.arange(height, device=frames.device) - shift[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=frames.device) - shift[:, 1:]).clamp(0, width - 1)
    example = torch.arange(len(frames), device=frames.device)[:, None, None]
    return frames.transpose(1, 2).transpose(2, 3)[example, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2, 4)
