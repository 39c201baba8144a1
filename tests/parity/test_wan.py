"""What must hold of Wan beside the golden vectors: positions without end, any size, precision, exact checkpointing."""

import math
from dataclasses import replace

import pytest
import torch

from forcing.backbones import attention
from forcing.backbones.rope import turns
from forcing.backbones.wan import SIGMA, T2V_1_3B, T2V_14B, Wan, WanConfig
from forcing.cond import Cond
from forcing.layout import Layout, after, causal, full, teacher_forced

SMALL = WanConfig(
    dim=48, ffn_dim=64, freq_dim=16, text_dim=8, text_len=6, num_heads=2, num_layers=2, in_channels=4, patch=(1, 2, 2)
)


def made(config: WanConfig = SMALL, dtype: torch.dtype = torch.float64, seed: int = 0) -> Wan:
    model = config.build().to(dtype)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
            parameter.copy_(1 + 0.1 * drawn if "norm" in name and name.endswith("weight") else 0.2 * drawn)
    return model


def drawn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def told(clips: int = 1, length: int = 6, dtype: torch.dtype = torch.float64) -> Cond:
    return Cond({"text": drawn(clips, length, SMALL.text_dim, seed=2, dtype=dtype)})


def test_released_sizes():
    with torch.device("meta"):
        for config, parameters, tensors in ((T2V_1_3B, 1_418_996_800, 825), (T2V_14B, 14_288_491_584, 1095)):
            shapes = [parameter.numel() for parameter in config.build().parameters()]
            assert (sum(shapes), len(shapes)) == (parameters, tensors)


@pytest.mark.parametrize("layout", [causal(6, 1), causal(6, 3), teacher_forced(3, 1), teacher_forced(4, 2)])
def test_groups_of_frames_equal_one_masked_call(layout):
    q, k, v = (drawn(2, len(layout.times) * 5, 2, 4, seed=seed) for seed in range(3))
    table = layout.table()
    torch.testing.assert_close(attention.grouped(q, k, v, table), attention.masked(q, k, v, table))


def test_groups_of_frames_have_the_gradients_of_one_masked_call():
    table, grads = teacher_forced(3, 1).table(), []
    for attend in (attention.grouped, attention.masked):
        qkv = [drawn(1, 6 * 2, 1, 4, seed=seed).requires_grad_() for seed in range(3)]
        attend(*qkv, table).square().sum().backward()
        grads.append([x.grad for x in qkv])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dense", [0, 2**30])
def test_long_sequences_take_the_same_answer_in_groups(dense, monkeypatch):
    model, x, sigma = made(), drawn(1, 6, 4, 4, 4), torch.linspace(0, 1, 6)[None]
    expected = model(x, sigma, told(), teacher_forced(3, 1))
    monkeypatch.setattr(attention, "DENSE", dense)
    torch.testing.assert_close(model(x, sigma, told(), teacher_forced(3, 1)), expected)


@pytest.mark.parametrize("size", [(16, 32), (2, 2), (6, 10), (32, 16)])  # 128 tokens, 1, 15, and 128 again
def test_any_size(size):
    model, frames = made(), 3
    x, sigma = drawn(2, frames, 4, *size), torch.full((2, frames), 0.5)
    whole = model(x, sigma, told(2), causal(frames, 1))
    cache, parts = model.cache(2, window=frames), []
    for i in range(frames):
        parts.append(model(x[:, i : i + 1], sigma[:, :1], told(2), after(cache.past(room=1), 1)))
        cache.settle(1)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert whole.shape == x.shape


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-7), (torch.float32, 1e-4)])
def test_a_stream_goes_on_past_every_table_of_positions(dtype, near):
    # far beyond 1024 frames the answer is that of the beginning: only distances count
    model, x, sigma = made(dtype=dtype), drawn(1, 2, 4, 4, 4, dtype=dtype), torch.full((1, 2), 0.3)
    here = model(x, sigma, told(dtype=dtype), Layout(torch.arange(2.0)))
    there = model(x, sigma, told(dtype=dtype), Layout(torch.arange(2.0) + 1_000_000))
    torch.testing.assert_close(there, here, atol=near, rtol=near)


def test_turns_are_as_precise_as_what_they_turn():
    angle = torch.tensor([[1e6 + 0.25]], dtype=torch.float64)
    for dtype, kind in ((torch.bfloat16, torch.complex64), (torch.float32, torch.complex64)):
        turn = turns(angle, dtype)
        assert turn.dtype == kind and turn.real.item() == pytest.approx(math.cos(1e6 + 0.25), abs=1e-6)
    assert turns(angle, torch.float64).dtype == torch.complex128


def test_a_window_slides_for_thousands_of_frames():
    model, cond, sigma = made(), told(), torch.zeros(1, 1)
    cache, window = model.cache(1, window=3), drawn(1, 3, 4, 2, 2)
    with torch.no_grad():
        for i in range(1500):
            x = window[:, i % 3 : i % 3 + 1]
            out = model(x, sigma, cond, after(cache.past(room=1), 1))
            cache.settle(1)
            if i == 8:
                early = out
    assert cache.end == 1500
    torch.testing.assert_close(out, early, atol=1e-7, rtol=1e-7)  # 1499 = 8 modulo 3: the same window of frames


def test_what_modulates_stays_precise_in_half_precision():
    model = made(dtype=torch.float32)
    exact = model(drawn(1, 2, 4, 4, 4).float(), torch.tensor([[0.9981, 0.9985]]), told(dtype=torch.float32), full(2))
    for name, parameter in model.named_parameters():
        if not Wan.keeps_float32(name):
            parameter.data = parameter.data.bfloat16()
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert {
        "time_embedding.0.weight",
        "blocks.0.modulation",
        "head.modulation",
        "blocks.1.self_attn.norm_q.weight",
    } <= kept
    assert "blocks.0.ffn.0.weight" not in kept
    e = [model.embed(torch.tensor([[sigma]]))[SIGMA] for sigma in (0.9981, 0.9985)]
    assert e[0].dtype == torch.float32 and not torch.equal(e[0], e[1])  # in bfloat16 both are 1
    half = model(drawn(1, 2, 4, 4, 4).float(), torch.tensor([[0.9981, 0.9985]]), told(dtype=torch.float32), full(2))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.1 * exact.abs().max().item(), rtol=0)


def test_autocast_leaves_the_embedding_of_sigma_alone():
    model, sigma = made(dtype=torch.float32), torch.tensor([[0.9981]])
    expected = model.embed(sigma)
    with torch.autocast("cpu", torch.bfloat16):
        for name, value in model.embed(sigma).items():
            assert torch.equal(value, expected[name])
        out = model(drawn(1, 1, 4, 4, 4).float(), sigma, told(dtype=torch.float32), full(1))
    assert out.dtype == torch.float32


def test_autocast_rounds_neither_latents_nor_velocity():
    model, seen = made(dtype=torch.float32), []
    model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = drawn(1, 1, 4, 4, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, torch.tensor([[0.5]]), told(dtype=torch.float32), full(1))
        other = model(x + 1e-5, torch.tensor([[0.5]]), told(dtype=torch.float32), full(1))
    assert seen[0].dtype == torch.float32 and (seen[0] != seen[1]).float().mean() > 0.9
    assert (out != out.bfloat16().float()).float().mean() > 0.9 and (out != other).any()


def test_checkpointing_changes_no_gradient():
    grads = []
    for config in (SMALL, replace(SMALL, checkpoint=True)):
        model = made(config)
        cache = model.cache(1, window=3)
        for i in range(2):
            x = drawn(1, 1, 4, 4, 4, seed=i)
            out = model(x, torch.full((1, 1), 0.5), told(), after(cache.past(room=1), 1))
            cache.settle(1)
        out.square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(*grads)


def test_a_text_is_padded_with_nothing():
    model, x, sigma = made(), drawn(1, 2, 4, 4, 4), torch.full((1, 2), 0.5)
    short = told(length=4)
    long = Cond({"text": torch.nn.functional.pad(short.static["text"], (0, 0, 0, 2))})
    assert torch.equal(model(x, sigma, short, full(2)), model(x, sigma, long, full(2)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ((1, 7, 8), "at most 6"),
        ((1, 6, 9), "at most 6, 8"),
        ((2, 6, 8), "for 1 clips"),
    ],
)
def test_a_text_of_another_shape_is_named(text, says):
    with pytest.raises(ValueError, match=says):
        made()(drawn(1, 2, 4, 4, 4), torch.full((1, 2), 0.5), Cond({"text": drawn(*text)}), full(2))


def test_no_text_is_named():
    with pytest.raises(ValueError, match="'text'"):
        made()(drawn(1, 2, 4, 4, 4), torch.full((1, 2), 0.5), Cond(), full(2))


@pytest.mark.parametrize("size", [(4, 5, 4), (4, 4, 3), (3, 4, 4)])
def test_latents_that_do_not_fit_are_named(size):
    with pytest.raises(ValueError, match=r"need 4 channels and sides that are multiples of 2 and 2"):
        made()(drawn(1, 2, *size), torch.full((1, 2), 0.5), told(), full(2))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dim": 50, "num_heads": 4}, "dim 50"),
        ({"freq_dim": 3}, "freq_dim"),
        ({"patch": (2, 2, 2)}, "patch"),
        ({"num_layers": 0}, "num_layers"),
    ],
)
def test_sizes_that_cannot_be_are_named(changes, says):
    with pytest.raises(ValueError, match=says):
        replace(SMALL, **changes)


@torch.no_grad()
def test_prepared_conditions_change_nothing():
    model, x, sigma, cond = made(), drawn(2, 3, 4, 4, 4), torch.rand(2, 3), told(2, length=4)
    ready = model.prepare(cond)
    assert list(ready.static) != list(cond.static)
    for layout in (full(3), causal(3, 1)):
        assert torch.equal(model(x, sigma, ready, layout), model(x, sigma, cond, layout))
