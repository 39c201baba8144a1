"""Which items a step sees, as a function of (seed, step): resuming is exact because nothing is remembered."""

import hashlib

import numpy as np
import torch


def seeded(seed: int, *path: int | str, device: str = "cpu") -> torch.Generator:
    """A random stream of its own for every `path`, e.g. (step, update)."""
    name = "/".join(str(part) for part in (seed, *path))
    # a CPU generator keeps the low 32 bits of its seed only: all of them must be well mixed
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))


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
