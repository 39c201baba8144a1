"""Wan with random weights: the four attention patterns, a teacher-forced training step, a 2-step stream.

    python benchmarks/wan.py --preset 1.3B --size 832x480 --frames 21 --device cuda --out docs/benchmarks/wan-NAME.json
    python benchmarks/wan.py --preset tiny --size 128x64 --frames 6 --device cpu

Times are medians of `--rounds` runs after one of warm-up, memory the allocator's peak (GPU only). Absolute times mean
something on a GPU only; on a CPU read the ratios.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from forcing import flow
from forcing.backbones.wan import Wan
from forcing.cond import Cond
from forcing.engine.bench.drawn import SIZES, random_wan
from forcing.layout import after, causal, full
from forcing.recipes.wan import PLANS
from forcing.rollout import remember, rollout
from forcing.stages.diffusion import given_clean


def main() -> None:
    given = _asked()
    width, height = (int(side) // 8 for side in given.size.split("x"))
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    rng = torch.Generator(device).manual_seed(0)
    config = SIZES[given.preset]
    model = random_wan(config, device=str(device), dtype=dtype)
    x = torch.randn(1, given.frames, config.in_channels, height, width, generator=rng, device=device)
    sigma = torch.rand(1, given.frames, generator=rng, device=device)
    cond = Cond({"text": torch.randn(1, config.text_len, config.text_dim, generator=rng, device=device)})
    tokens = (height // config.patch[1]) * (width // config.patch[2])
    about = {
        "preset": given.preset,
        "size": given.size,
        "latent frames": given.frames,
        "tokens a frame": tokens,
        "dtype": given.dtype,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
    }
    print(json.dumps(about))
    rows = {}
    with torch.inference_mode():
        one, level = x[:, :1], sigma[:, :1]
        cache = model.cache(1, window=given.window)
        for _ in range(given.window - 1):
            remember(model, one, cond, cache)
        rows["bidirectional"] = _timed(lambda: model(x, sigma, cond, full(given.frames)), given.rounds, device)
        rows["chunk-causal"] = _timed(lambda: model(x, sigma, cond, causal(given.frames, 1)), given.rounds, device)
        rows["teacher-forced"] = _timed(lambda: given_clean(model, x, sigma, x, cond, 1), given.rounds, device)
        rows["one cached frame"] = _timed(
            lambda: model(one, level, cond, after(cache.past(1), 1)), given.rounds, device
        )
        rows["2-step stream, a frame"] = _stream(model, cond, tuple(one.shape), given, rng, device)
    if not given.no_training:
        del model
        model = random_wan(replace(config, checkpoint=True), device=str(device))
        rows["teacher-forced step"] = _timed(lambda: _step(model, x, sigma, cond), given.rounds, device)
    for name, row in rows.items():
        print(f"{name:24} {1000 * row['seconds']:10.1f} ms {row.get('gigabytes', float('nan')):8.1f} GB")
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


def _asked() -> argparse.Namespace:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--preset", choices=SIZES, default="tiny")
    asked.add_argument("--size", default="832x480", help="width x height in pixels")
    asked.add_argument("--frames", type=int, default=21, help="latent frames")
    asked.add_argument("--window", type=int, default=9)
    asked.add_argument("--device", default="cuda")
    asked.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--no-training", action="store_true")
    asked.add_argument("--out", type=Path)
    return asked.parse_args()


def _step(model: Wan, x: torch.Tensor, sigma: torch.Tensor, cond: Cond) -> None:
    with torch.autocast(x.device.type, torch.bfloat16):
        v = given_clean(model, x, sigma, x, cond, 1)
    flow.velocity(v, x).square().mean().backward()
    model.zero_grad(set_to_none=True)


def _stream(
    model: Wan,
    cond: Cond,
    shape: tuple[int, ...],
    given: argparse.Namespace,
    rng: torch.Generator,
    device: torch.device,
) -> dict[str, float]:
    clock, frames = [], given.window + 3 * given.rounds
    with _measured(device) as row:
        for _ in rollout(model, [cond] * frames, shape, PLANS[2], model.cache(1, window=given.window), rng):
            _wait(device)
            clock.append(time.perf_counter())
    gaps = [late - early for early, late in zip(clock[given.window :], clock[given.window + 1 :], strict=False)]
    return row | {"seconds": statistics.median(gaps)}


def _timed(run: Callable[[], object], rounds: int, device: torch.device) -> dict[str, float]:
    took = []
    with _measured(device) as row:
        for _ in range(rounds + 1):
            began = time.perf_counter()
            run()
            _wait(device)
            took.append(time.perf_counter() - began)
    return row | {"seconds": statistics.median(took[1:])}


@contextmanager
def _measured(device: torch.device) -> Iterator[dict[str, float]]:
    row: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield row
    if device.type == "cuda":
        row["gigabytes"] = torch.cuda.max_memory_allocated() / 1e9


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
