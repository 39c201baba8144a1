"""A windowed cache is dense attention over what it keeps, and it refuses to be misused."""

import pytest
import torch
from toys import SIZE, normal, told, uniform, wild

from forcing.layout import Cache, Layout, after
from forcing.rollout import remember


def kept(at, chunk, window, sink):
    """The earlier frames that a chunk beginning at frame `at` may see."""
    return [f for f in range(at) if f < sink or f >= at - (window - chunk - sink)]


def dense(model, x, sigma, clean, cond, chunk, window, sink):
    """One pass over [clean; noisy], every frame with exactly the frames that the cache would hold for its chunk.

    The keys and values of a kept frame are then those that it had when it saw frames which are gone by now, in every
    layer, as in the cache.
    """
    frames = x.shape[1]
    see = torch.zeros(2 * frames, 2 * frames, dtype=torch.bool)
    for f in range(frames):
        at = f - f % chunk
        for half in (0, frames):
            see[half + f, kept(at, chunk, window, sink)] = True
            see[half + f, half + at : half + at + chunk] = True
    times = torch.arange(frames, dtype=torch.float32).repeat(2)
    both, levels = torch.cat([clean, x], 1), torch.cat([torch.zeros_like(sigma), sigma], 1)
    return model(both, levels, cond.twice(), Layout(times, see))[:, frames:]


@pytest.mark.parametrize(
    ("chunk", "window", "sink"),
    [(1, 1, 0), (1, 3, 0), (1, 3, 1), (1, 4, 3), (2, 4, 0), (2, 5, 1), (2, 4, 2), (3, 5, 2), (1, 99, 2)],
)
@torch.no_grad()
def test_a_windowed_cache_is_dense_attention_over_the_kept_frames(double, chunk, window, sink):
    frames, model = 6 if chunk == 3 else 8, wild()
    x, clean, cond = normal(2, frames, *SIZE, seed=1), normal(2, frames, *SIZE, seed=2), told(2, frames)
    sigma = uniform(2, frames // chunk, seed=3).repeat_interleave(chunk, 1)
    cache, pieces = model.cache(2, window=window, sink=sink), []
    for at in range(0, frames, chunk):
        here, condition = slice(at, at + chunk), cond.frames(at, at + chunk)
        for level in (1.0, 0.5):  # forward passes that are not settled leave no trace
            model(x[:, here], torch.full((2, chunk), level), condition, after(cache.past(chunk), chunk))
        past = cache.past(chunk)
        assert past.held == len(kept(at, chunk, window, sink)) and past.end == at
        pieces.append(model(x[:, here], sigma[:, here], condition, after(past, chunk)))
        remember(model, clean[:, here], condition, cache)
        assert cache.held <= window and cache.end == at + chunk
    oracle = dense(model, x, sigma, clean, cond, chunk, window, sink)
    assert torch.allclose(torch.cat(pieces, 1), oracle, rtol=0, atol=1e-9)
    if window < frames:
        everything = dense(model, x, sigma, clean, cond, chunk, frames, 0)
        assert (everything[:, -1] - oracle[:, -1]).abs().mean() > 1e-4


@torch.no_grad()
def test_a_snapshot_stays_as_it_was():
    model = wild()
    cache = model.cache(1, window=4, sink=1)
    for f in range(3):
        remember(model, normal(1, 1, *SIZE, seed=f), told(1, 1), cache)
    past = cache.past(1)  # evicts nothing, so it holds the very tensors that the next lines evict from and add to
    seen = [tensor for frames in past.layers for pair in frames for tensor in pair]
    before = [tensor.clone() for tensor in seen]
    for frames in (2, 1, 3, 1):
        remember(model, normal(1, frames, *SIZE, seed=9 + frames), told(1, frames), cache)
    assert seen and all(torch.equal(a, b) for a, b in zip(before, seen, strict=True))
    assert [len(frames) for frames in past.layers] == [3] * len(past.layers)
    assert past.held == 3 and past.end == 3 and cache.end == 10


def test_a_recomputed_block_sees_the_snapshot_of_its_forward(double):
    def gradients(*, checkpoint):
        model, x, cond = wild(checkpoint=checkpoint), normal(1, 1, *SIZE, seed=5), told(1, 1)
        cache = model.cache(1, window=4, sink=1)
        with torch.no_grad():
            for f in range(3):
                remember(model, normal(1, 1, *SIZE, seed=f), told(1, 1), cache)
        out = model(x, torch.ones(1, 1), cond, after(cache.past(1), 1))
        with torch.no_grad():
            remember(model, normal(1, 3, *SIZE), told(1, 3), cache)  # evicts two of the frames that `out` has seen
        return torch.autograd.grad(out.square().sum(), model.parameters())

    pairs = list(zip(gradients(checkpoint=False), gradients(checkpoint=True), strict=True))
    assert all(torch.allclose(plain, recomputed, rtol=1e-9, atol=1e-9) for plain, recomputed in pairs)
    assert sum(plain.abs().sum() for plain, _ in pairs) > 1


@torch.no_grad()
def test_two_rooms_of_a_mixed_stream_fit_the_window():
    # chunks of different sizes, as when a video of 4 frames is continued frame by frame
    model = wild()
    cache = model.cache(1, window=5, sink=1)
    for frames in (4, 1, 2, 1):
        remember(model, normal(1, frames, *SIZE), told(1, frames), cache)
        assert cache.held <= 5
    assert cache.held == 5 and cache.end == 8
    assert [key.shape[1] for key, _ in cache.layers[0]] == [8] * 5


def test_a_frame_is_in_memory_once_however_many_chunks_saw_it(double):
    # a copy for each snapshot is what keeps a rollout with gradients of a large model from fitting
    model, frames = wild(), 8
    cache, pasts = model.cache(1, window=frames), []
    for f in range(frames - 1):
        remember(model, normal(1, 1, *SIZE, seed=f), told(1, 1), cache)
        pasts.append(cache.past(1))
    places = {tensor.data_ptr() for past in pasts for pair in past.layers[0] for tensor in pair}
    assert len(places) == 2 * (frames - 1)


@pytest.mark.parametrize(("window", "sink"), [(0, 0), (-1, 0), (3, 3), (3, 4), (3, -1)])
def test_a_window_must_hold_more_than_its_sink(window, sink):
    with pytest.raises(ValueError, match="window"):
        Cache(2, window=window, sink=sink)
    with pytest.raises(ValueError, match="window"):
        wild().cache(1, window=window, sink=sink)


@pytest.mark.parametrize("room", [3, 4, 0, -1])
def test_a_chunk_must_fit_beside_the_sink(room):
    with pytest.raises(ValueError, match="no room"):
        Cache(2, window=4, sink=2).past(room)


@torch.no_grad()
def test_settling_needs_a_forward_pass():
    model = wild()
    cache = model.cache(1, window=4)
    with pytest.raises(RuntimeError, match="forward pass"):
        cache.settle(1)
    cache.past(1)
    with pytest.raises(RuntimeError, match="forward pass"):
        cache.settle(1)
    remember(model, normal(1, 1, *SIZE), told(1, 1), cache)
    with pytest.raises(RuntimeError, match="forward pass"):  # once for each forward
        cache.settle(1)
    assert cache.held == cache.end == 1
