"""Which items a step sees, as a function of (seed, step): resuming is exact because nothing is remembered."""

import zlib

import numpy as np
import torch


def seeded(seed: int, *path: int | str, device: str = "cpu") -> torch.Generator:
    """A random stream of its own for every `path`, e.g. (step, update)."""
    name = "/".join(str(part) for part in (seed, *path))
    state = (zlib.crc32(name.encode()) << 31) ^ zlib.adler32(name[::-1].encode())
    return torch.Generator(device).manual_seed(state)


def indices(seed: int, step: int, batch: int, items: int) -> np.ndarray:
    """The items of one step: consecutive pieces of one permutation an epoch."""
    if items < 1:
        raise ValueError("there is nothing to draw from")
    wanted = np.arange(step * batch, (step + 1) * batch)
    out = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(wanted // items):
        order = np.random.default_rng([seed, int(epoch)]).permutation(items)
        here = wanted // items == epoch
        out[here] = order[wanted[here] % items]
    return out
