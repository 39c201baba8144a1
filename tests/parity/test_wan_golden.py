"""Ours against numbers that the public network put out: every attention pattern, windows and sinks, the schedules."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from forcing import flow
from forcing.backbones.wan import Wan, WanConfig
from forcing.cond import Cond
from forcing.layout import after, causal, full, teacher_forced

HOME = Path(__file__).parent / "golden"
SIZES = json.loads((HOME / "config.json").read_text())
FRAMES = SIZES["frames"]
NEAR = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def vectors() -> dict[str, Tensor]:
    found = load_file(HOME / "vectors.safetensors")
    return {name: value.transpose(1, 2) if value.ndim == 5 else value for name, value in found.items()}


@pytest.fixture(scope="module")
def model() -> Wan:
    names = {field.name for field in fields(WanConfig)}
    made = WanConfig(**{name: value for name, value in SIZES.items() if name in names}).build()
    made.load_state_dict(load_file(HOME / "weights.safetensors"), strict=True)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def cond(vectors) -> Cond:
    text = vectors["context"]
    assert text.shape[1] < SIZES["text_len"]  # the backbone pads it
    return Cond({"text": text}, {})


def test_bidirectional(model, vectors, cond):
    sigma = (vectors["t_uniform"] / 1000)[:, None].expand(-1, FRAMES)
    out = model(vectors["noisy"], sigma, cond, full(FRAMES))
    torch.testing.assert_close(out, vectors["out_bidirectional"], **NEAR)


@pytest.mark.parametrize("chunk", [1, 2])
def test_teacher_forced(model, vectors, cond, chunk):
    sigma = vectors[f"t_block{chunk}"] / 1000
    both, levels = torch.cat([vectors["clean"], vectors["noisy"]], 1), torch.cat([0 * sigma, sigma], 1)
    out = model(both, levels, cond.twice(), teacher_forced(FRAMES, chunk))[:, FRAMES:]
    torch.testing.assert_close(out, vectors[f"out_teacher_forcing_block{chunk}"], **NEAR)


@pytest.mark.parametrize("chunk", [1, 2])
def test_chunk_causal(model, vectors, cond, chunk):
    out = model(vectors["noisy"], vectors[f"t_block{chunk}"] / 1000, cond, causal(FRAMES, chunk))
    torch.testing.assert_close(out, vectors[f"out_diffusion_forcing_block{chunk}"], **NEAR)


@pytest.mark.parametrize(
    ("chunk", "window", "sink", "name"),
    [
        (1, FRAMES, 0, "block1_global"),
        (2, FRAMES, 0, "block2_global"),
        (1, 3, 0, "block1_window3_sink0"),
        (1, 4, 1, "block1_window4_sink1"),
    ],
)
def test_cached(model, vectors, cond, chunk, window, sink, name):
    sigma, out = vectors[f"t_block{chunk}"] / 1000, []
    cache = model.cache(SIZES["batch"], window=window, sink=sink)
    for first in range(0, FRAMES, chunk):
        here = slice(first, first + chunk)
        out.append(model(vectors["noisy"][:, here], sigma[:, here], cond, after(cache.past(room=chunk), chunk)))
        model(vectors["clean"][:, here], 0 * sigma[:, here], cond, after(cache.past(room=chunk), chunk))
        cache.settle(chunk)
    torch.testing.assert_close(torch.cat(out, 1), vectors[f"out_cached_{name}"], **NEAR)


def test_grids(vectors):
    for name, steps in (("cd_grid_48_shift5", 48), ("train_grid_1000_shift5", 1000)):
        torch.testing.assert_close(1000 * flow.grid(steps, 5.0)[:-1], vectors[name], atol=1e-3, rtol=0)


def test_training_weights(vectors):
    weights = flow.bell(vectors["train_grid_1000_shift5"] / 1000, 5.0)
    torch.testing.assert_close(weights, vectors["train_weight_1000_shift5"], **NEAR)
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["warped_1000_750_500_250", "warped_1000_500"])
def test_few_step_levels_are_an_even_grid_shifted(vectors, name):
    steps = len(vectors[name])
    torch.testing.assert_close(1000 * flow.grid(steps, 5.0)[:-1], vectors[name], atol=1e-2, rtol=0)
