"""The future is exactly invisible: not small, but absent, bit for bit."""

import pytest
import torch
from toys import SIZE, normal, told, uniform, wild

from forcing.cond import Cond
from forcing.layout import causal, teacher_forced
from forcing.stages.diffusion import given_clean

FRAMES, CHUNK = 6, 2
CHUNKS = FRAMES // CHUNK


@pytest.fixture(scope="module")
def model():
    return wild(dtype=torch.float32)


@pytest.fixture(scope="module")
def clip():
    """x, sigma, clean, conditions."""
    sigma = uniform(2, CHUNKS, seed=3).repeat_interleave(CHUNK, 1)
    return normal(2, FRAMES, *SIZE, seed=1), sigma, normal(2, FRAMES, *SIZE, seed=2), told(2, FRAMES)


def changed(value, chunk, by=1.0):
    """`value` [B, F, ...] with the frames of one chunk moved."""
    value = value.clone()
    value[:, chunk * CHUNK : (chunk + 1) * CHUNK] += by
    return value


def heard(before, after):
    """Which chunks differ at all: [chunks] bool."""
    return [not torch.equal(a, b) for a, b in zip(before.split(CHUNK, 1), after.split(CHUNK, 1), strict=True)]


@pytest.mark.parametrize("k", range(CHUNKS))
@torch.no_grad()
def test_a_clean_chunk_is_seen_by_later_noisy_chunks_only(model, clip, k):
    x, sigma, clean, cond = clip
    before = given_clean(model, x, sigma, clean, cond, CHUNK)
    after = given_clean(model, x, sigma, changed(clean, k), cond, CHUNK)
    assert heard(before, after) == [i > k for i in range(CHUNKS)]


@pytest.mark.parametrize("what", ["x", "sigma"])
@pytest.mark.parametrize("k", range(CHUNKS))
@torch.no_grad()
def test_a_noisy_chunk_is_seen_by_itself_only(model, clip, k, what):
    x, sigma, clean, cond = clip
    before = given_clean(model, x, sigma, clean, cond, CHUNK)
    x, sigma = (changed(x, k), sigma) if what == "x" else (x, changed(sigma, k, -0.1))
    after = given_clean(model, x, sigma, clean, cond, CHUNK)
    assert heard(before, after) == [i == k for i in range(CHUNKS)]


@pytest.mark.parametrize("k", range(CHUNKS))
@torch.no_grad()
def test_a_condition_is_never_heard_before_its_chunk(model, clip, k):
    x, sigma, clean, cond = clip
    other = Cond(cond.static, {"action": changed(cond.per_frame["action"], k)})
    before = given_clean(model, x, sigma, clean, cond, CHUNK)
    assert heard(before, given_clean(model, x, sigma, clean, other, CHUNK)) == [i >= k for i in range(CHUNKS)]
    before = model(x, sigma, cond, causal(FRAMES, CHUNK))
    assert heard(before, model(x, sigma, other, causal(FRAMES, CHUNK))) == [i >= k for i in range(CHUNKS)]


@pytest.mark.parametrize("k", range(CHUNKS))
@torch.no_grad()
def test_the_condition_of_a_noisy_chunk_reaches_nothing_else(model, clip, k):
    x, sigma, clean, cond = clip
    layout, both = teacher_forced(FRAMES, CHUNK), torch.cat([clean, x], 1)
    levels, action = torch.cat([torch.zeros_like(sigma), sigma], 1), cond.twice().per_frame["action"]
    before = model(both, levels, Cond(cond.static, {"action": action}), layout)
    after = model(both, levels, Cond(cond.static, {"action": changed(action, CHUNKS + k)}), layout)
    assert heard(before, after) == [i == CHUNKS + k for i in range(2 * CHUNKS)]


@pytest.mark.parametrize("k", range(CHUNKS))
@torch.no_grad()
def test_clean_frames_see_neither_the_noisy_nor_the_future(model, clip, k):
    x, sigma, clean, cond = clip
    layout, levels = teacher_forced(FRAMES, CHUNK), torch.cat([torch.zeros_like(sigma), sigma], 1)

    def clean_half(clean, x):
        return model(torch.cat([clean, x], 1), levels, cond.twice(), layout)[:, :FRAMES]

    before = clean_half(clean, x)
    assert torch.equal(before, clean_half(clean, x + 1))
    assert heard(before, clean_half(changed(clean, k), x)) == [i >= k for i in range(CHUNKS)]


@pytest.mark.parametrize("k", range(CHUNKS))
@torch.no_grad()
def test_block_causal_attention_sees_no_later_chunk(model, clip, k):
    x, sigma, _, cond = clip
    before = model(x, sigma, cond, causal(FRAMES, CHUNK))
    assert heard(before, model(changed(x, k), sigma, cond, causal(FRAMES, CHUNK))) == [i >= k for i in range(CHUNKS)]
