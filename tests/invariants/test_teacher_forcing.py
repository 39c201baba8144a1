"""One pass over [clean; noisy] is chunk-by-chunk inference, and one chunk of everything is bidirectional."""

import pytest
import torch
from toys import SIZE, Spy, normal, told, uniform, wild

from forcing.layout import after, causal, full, teacher_forced
from forcing.rollout import remember
from forcing.stages.diffusion import given_clean

pytestmark = pytest.mark.usefixtures("double")

FRAMES = 6


def clip(chunk):
    """x, sigma (one level a chunk), clean and conditions of 2 clips."""
    x, clean = normal(2, FRAMES, *SIZE, seed=1), normal(2, FRAMES, *SIZE, seed=2)
    return x, uniform(2, FRAMES // chunk, seed=3).repeat_interleave(chunk, 1), clean, told(2, FRAMES)


@pytest.mark.parametrize("predict", ["velocity", "x0"])
@pytest.mark.parametrize("patch", [2, 4])
@pytest.mark.parametrize("chunk", [1, 2, 3])
@torch.no_grad()
def test_one_pass_equals_cached_inference(chunk, patch, predict):
    model = wild(patch=patch, predict=predict)
    x, sigma, clean, cond = clip(chunk)
    cache, pieces = model.cache(2, window=FRAMES), []
    for at in range(0, FRAMES, chunk):
        here, condition = slice(at, at + chunk), cond.frames(at, at + chunk)
        pieces.append(model(x[:, here], sigma[:, here], condition, after(cache.past(chunk), chunk)))
        remember(model, clean[:, here], condition, cache)
    once = given_clean(model, x, sigma, clean, cond, chunk)
    assert once.abs().mean() > 0.1
    assert torch.allclose(torch.cat(pieces, 1), once, rtol=0, atol=1e-9)


@torch.no_grad()
def test_every_input_of_that_pass_is_heard():
    # else the equality above would hold for a network that ignores what is compared
    model, (x, sigma, clean, cond) = wild(), clip(1)
    base = given_clean(model, x, sigma, clean, cond, 1)[:, -1]
    others = {
        "own frame": given_clean(model, x + 0.1, sigma, clean, cond, 1),
        "own level": given_clean(model, x, sigma * 0.9, clean, cond, 1),
        "clean past": given_clean(
            model, x, sigma, clean + 0.1 * (torch.arange(FRAMES) == 2)[:, None, None, None], cond, 1
        ),
        "conditions": given_clean(model, x, sigma, clean, told(2, FRAMES, seed=9), 1),
        "chunk": given_clean(model, x, sigma, clean, cond, 2),
    }
    for name, other in others.items():
        assert (other[:, -1] - base).abs().mean() > 1e-4, name


def test_the_clean_half_is_clean_and_shares_times_and_conditions():
    x, sigma, clean, cond = clip(2)
    spy = Spy(wild())
    given_clean(spy, x, sigma, clean, cond, 2)
    call = spy.calls[0]
    assert torch.equal(call.x, torch.cat([clean, x], 1))
    assert torch.equal(call.sigma, torch.cat([torch.zeros_like(sigma), sigma], 1))
    assert torch.equal(call.layout.times, torch.arange(FRAMES).double().repeat(2))
    assert torch.equal(call.cond.per_frame["action"], cond.per_frame["action"].repeat(1, 2, 1))
    assert torch.equal(call.cond.static["text"], cond.static["text"])


@torch.no_grad()
def test_one_chunk_of_all_frames_is_bidirectional():
    model, (x, sigma, clean, cond) = wild(), clip(FRAMES)
    whole = model(x, sigma, cond, full(FRAMES))
    cached = model(x, sigma, cond, after(model.cache(2, window=FRAMES).past(FRAMES), FRAMES))
    for other in (
        model(x, sigma, cond, causal(FRAMES, FRAMES)),
        given_clean(model, x, sigma, clean, cond, FRAMES),
        cached,
    ):
        assert torch.allclose(other, whole, rtol=0, atol=1e-9)
    assert (model(x, sigma, cond, causal(FRAMES, 1)) - whole).abs().mean() > 1e-3


@torch.no_grad()
def test_time_is_heard_and_only_differences_of_it():
    model, (x, sigma, _, cond) = wild(), clip(1)
    layout = causal(FRAMES, 1)
    out = model(x, sigma, cond, layout)
    later = model(x, sigma, cond, type(layout)(layout.times + 7, layout.mask))
    stretched = model(x, sigma, cond, type(layout)(layout.times * 2, layout.mask))
    assert torch.allclose(later, out, rtol=0, atol=1e-5)  # angles are float32
    assert (stretched - out).abs().mean() > 1e-4


def test_masks_by_hand():
    t, f = True, False
    assert causal(4, 2).mask.tolist() == [[t, t, f, f], [t, t, f, f], [t, t, t, t], [t, t, t, t]]
    assert teacher_forced(2, 1).mask.tolist() == [[t, f, f, f], [t, t, f, f], [f, f, t, f], [t, f, f, t]]
    for layout in (causal, teacher_forced):
        with pytest.raises(ValueError, match="do not divide"):
            layout(5, 2)
        with pytest.raises(ValueError, match="do not divide"):
            layout(4, 0)
