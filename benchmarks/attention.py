"""One masked call against one call for each group of frames, for the tables of training.

    python benchmarks/attention.py [--frames 12] [--heads 4] [--dim 64]

Ratios of the medians of interleaved runs (forward and backward), by tokens a frame.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from forcing.backbones.attention import grouped, masked
from forcing.layout import causal, teacher_forced


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("frames", 12), ("heads", 4), ("dim", 64), ("rounds", 7)):
        asked.add_argument(f"--{name}", type=int, default=default)
    given = asked.parse_args()
    print(f"{given.frames} frames, {given.heads} heads of {given.dim}, {torch.get_num_threads()} threads")
    print(
        f"{'tokens':>6} {'mask entries':>13} {'causal':>8} {'teacher forced':>15}   (masked / grouped: above 1, group)"
    )
    for tokens in (1, 4, 16, 32, 64, 128, 256):
        ratios, entries = [], 0
        for table in (causal(given.frames, 1).table(), teacher_forced(given.frames, 1).table()):
            assert table is not None
            entries = table.numel() * tokens**2
            shape = (1, len(table) * tokens, given.heads, given.dim)
            qkv = [torch.randn(shape, requires_grad=True) for _ in range(3)]
            ratios.append(_ratio(partial(masked, *qkv, table), partial(grouped, *qkv, table), given.rounds))
        print(f"{tokens:6} {entries:13} {ratios[0]:8.2f} {ratios[1]:15.2f}", flush=True)


def _ratio(one: Callable[[], Tensor], other: Callable[[], Tensor], rounds: int) -> float:
    took: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for times, run in zip(took, (one, other), strict=True):
            began = time.perf_counter()
            run().sum().backward()
            times.append(time.perf_counter() - began)
    return statistics.median(took[0][1:]) / statistics.median(took[1][1:])


if __name__ == "__main__":
    main()
