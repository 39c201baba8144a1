"""What all measurements have in common: rounds, in which every contestant has its turn, and what viewers tell."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from forcing.codecs import Memoryless
from forcing.engine.passes import run
from forcing.engine.session import Session, Setup, Told

UNSEEN = Memoryless(lambda latents: np.zeros((len(latents), 0, 1, 1, 3), np.uint8))  # shows nothing, at no cost
Row = dict[str, object]  # of plain JSON values


@dataclass(frozen=True)
class Trial:
    """How thoroughly to measure. frames: latent ones that each contestant makes in each of `rounds` rounds.

    seed: of noise and keys. tick: told after every turn whose it was.
    """

    rounds: int = 5
    frames: int = 6
    seed: int = 0
    tick: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        for name, value, least in (("rounds", self.rounds, 1), ("frames", self.frames, 1), ("seed", self.seed, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}: it must be at least {least}")

    def chunks(self, setup: Setup) -> int:
        """How many chunks are a turn."""
        return -(-self.frames // setup.how.chunk)

    def race(self, runs: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, list[float]]:
        """Seconds that each run takes in each round.

        They take turns, for a machine's speed wanders; every second round backwards, so that none always goes first.
        """
        took: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(self.rounds):
            for name in list(runs)[:: -1 if turn % 2 else 1]:
                began = time.perf_counter()
                runs[name]()
                finished(device)
                took[name].append(time.perf_counter() - began)
                self.tick(name)
        return took


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Median over rounds of how many times as long `one` takes as `other`."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def percentiles(seconds: Sequence[float], *shares: int) -> dict[str, float]:
    """In milliseconds."""
    return {f"p{share}": 1000 * float(np.percentile(seconds, share)) for share in shares}


def finished(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: torch.device) -> float:
    """Most megabytes in use so far: on a GPU of tensors, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else 1024 * most / 1e6  # bytes there, else KiB


def resident(device: torch.device) -> float:
    """Megabytes in use now; where the system does not say, the most so far."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e6
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * resource.getpagesize() / 1e6 if pages.is_file() else peak(device)


def full(setup: Setup) -> int:
    """Chunks after which the window is full."""
    return -(-setup.how.window // setup.how.chunk)


@torch.no_grad()
def fill(session: Session) -> None:
    """Fill the window of one that has begun, a pass for each chunk: with what makes no difference to speed."""
    newest = session.history.last
    assert newest is not None
    for _ in range(full(session.setup)):
        run(session.setup.world.model, session.stream.remember(newest.latents, newest.cond))


def viewer(setup: Setup, seed: int) -> Callable[[int], Told]:
    """Someone who presses another key with every frame, where there are keys."""
    keys, chunk = setup.world.keys.width, setup.how.chunk

    def listen(frame: int) -> Told:
        pressed = np.random.default_rng([seed, frame]).integers(keys, size=chunk).tolist() if keys else None
        return Told(actions=pressed)

    return listen
