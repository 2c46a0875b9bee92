"""The trainer's random choices, each a pure function of (seed, number, stream)."""

import functools

import torch


def data_order(size: int, seed: int, start: int, count: int) -> torch.Tensor:
    """Return indices start : start + count, (count,), of an infinite stream of per-epoch permutations of `size`."""
    parts = []
    while count:
        epoch, offset = divmod(start, size)
        parts.append(_permutation(size, seed, epoch)[offset : offset + count])
        start += len(parts[-1])
        count -= len(parts[-1])
    return torch.cat(parts)


@functools.lru_cache(8)  # a permutation of a million windows takes longer than a batch
def _permutation(size: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(size, generator=seeded_generator(seed, epoch, 1))


def seeded_generator(seed: int, number: int, stream: int) -> torch.Generator:
    """Return an independent generator for each (seed, number, stream); Philox-like mixing with odd 64-bit constants."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % 2**63
    return torch.Generator().manual_seed(mixed)
