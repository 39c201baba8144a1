"""A ring holds what a cache holds, and one merged pass is the two passes that it stands for."""

import pytest
import torch
from toys import SIZE, normal, told, wild

from forcing.cond import Cond
from forcing.layout import Cache, after, merged
from forcing.ring import Ring
from forcing.rollout import remember

CHUNKS = 8
SIZES = [  # chunk, window, sink
    (1, 1, 0),
    (1, 2, 0),
    (1, 3, 1),
    (1, 4, 3),
    (1, 6, 2),
    (1, 99, 2),
    (2, 4, 0),
    (2, 4, 2),
    (2, 5, 1),
    (2, 7, 3),
    (3, 5, 2),
    (3, 9, 0),
]
sizes = pytest.mark.parametrize(("chunk", "window", "sink"), SIZES)


def ring(model, chunk: int, window: int, sink: int) -> Ring:
    return Ring(model.config.layers, window=window, sink=sink, chunk=chunk)


def clip(chunk: int):
    """(noisy, clean, conditions) of each chunk, and the noisy ones' level."""
    frames = CHUNKS * chunk
    noisy, clean, cond = normal(2, frames, *SIZE, seed=1), normal(2, frames, *SIZE, seed=2), told(2, frames)
    spans = [(at, at + chunk) for at in range(0, frames, chunk)]
    return [(noisy[:, a:b], clean[:, a:b], cond.frames(a, b)) for a, b in spans], torch.full((2, chunk), 0.7)


@sizes
@torch.no_grad()
def test_a_ring_is_a_cache(double, chunk, window, sink):
    model = wild()
    cache, fast = model.cache(2, window=window, sink=sink), ring(model, chunk, window, sink)
    chunks, sigma = clip(chunk)
    for noisy, clean, cond in chunks:
        for _ in range(2):  # passes that are not settled leave no trace
            slow, quick = (model(noisy, sigma, cond, after(c.past(room=chunk), chunk)) for c in (cache, fast))
            assert torch.allclose(slow, quick, rtol=0, atol=1e-12)
        for each in (cache, fast):
            remember(model, clean, cond, each)
        assert fast.end == cache.end and fast.held == min(cache.end, window - chunk)


@sizes
@pytest.mark.parametrize("kind", ["cache", "ring"])
@torch.no_grad()
def test_a_merged_pass_is_settling_and_the_next_pass(double, kind, chunk, window, sink):
    model = wild()
    plain = model.cache(2, window=window, sink=sink)
    other = model.cache(2, window=window, sink=sink) if kind == "cache" else ring(model, chunk, window, sink)
    chunks, sigma = clip(chunk)
    before = None
    for noisy, clean, cond in chunks:
        expected = model(noisy, sigma, cond, after(plain.past(room=chunk), chunk))
        if before is None:
            seen = model(noisy, sigma, cond, after(other.past(room=chunk), chunk))
        else:
            given, was = before
            both = Cond(cond.static, {k: torch.cat([was.per_frame[k], cond.per_frame[k]], 1) for k in cond.per_frame})
            levels, x = torch.cat([0 * sigma, sigma], 1), torch.cat([given, noisy], 1)
            seen = model(x, levels, both, merged(other.past(room=chunk), chunk))
            other.settle(chunk)
            # the noisy half, which is not settled, stays in no memory that is kept
            kept = [each for pair in (other.layers[0][-1:] if kind == "cache" else ()) for each in pair]
            assert all(each.untyped_storage().nbytes() == each.numel() * each.element_size() for each in kept)
        assert torch.allclose(seen, expected, rtol=0, atol=1e-12)
        remember(model, clean, cond, plain)
        before = clean, cond


@torch.no_grad()
def test_a_ring_does_not_grow(double):
    model, cond = wild(), told(1, 1)
    fast = ring(model, 1, 4, 1)
    where = set()
    for i in range(60):
        remember(model, normal(1, 1, *SIZE, seed=i), cond, fast)
        where.add(fast._store.data_ptr())
    assert len(where) == 1 and fast._store.shape[3] == 3 + 2 and fast.held == 3 and fast.end == 60
    assert sorted(fast._places) == [0, 1, 2]


@torch.no_grad()
def test_a_shorter_first_piece(double):
    # an image before chunks of three
    model, cond = wild(), told(1, 10)
    cache, fast = model.cache(1, window=7), ring(model, 3, 7, 0)
    x = normal(1, 10, *SIZE)
    for a, b in ((0, 1), (1, 4), (4, 7), (7, 10)):
        for each in (cache, fast):
            remember(model, x[:, a:b], cond.frames(a, b), each)
    sigma = torch.full((1, 3), 0.5)
    slow, quick = (model(x[:, :3], sigma, cond.frames(0, 3), after(c.past(3), 3)) for c in (cache, fast))
    assert torch.allclose(slow, quick, rtol=0, atol=1e-12)


@torch.no_grad()
def test_misuse_is_named(double):
    model, cond = wild(), told(1, 3)
    with pytest.raises(ValueError, match="no room for chunks of 3"):
        Ring(1, window=3, sink=1, chunk=3)
    fast = ring(model, 1, 3, 0)
    with pytest.raises(ValueError, match="keeps room for 1 frames, not for 2"):
        fast.past(room=2)
    with pytest.raises(RuntimeError, match="needs a forward pass"):
        fast.settle(1)
    past = fast.past(room=1)
    with pytest.raises(RuntimeError, match="needs a forward pass"):
        fast.settle(1)
    with pytest.raises(ValueError, match="2 frames, not for 3"):
        model(normal(1, 3, *SIZE), torch.ones(1, 3), cond, after(past, 3))
    assert isinstance(fast, Cache)
