"""What a step sees is a function of (seed, step): the order of the data, and streams of random numbers."""

import numpy as np
import pytest
import torch

from forcing.data.order import indices, seeded


@pytest.mark.parametrize(("batch", "items"), [(4, 12), (5, 12), (1, 7), (7, 7), (30, 12)])
def test_an_epoch_is_a_permutation(batch, items):
    stream = np.concatenate([indices(3, step, batch, items) for step in range(4 * items // batch + 2)])
    epochs = [stream[i * items : (i + 1) * items] for i in range(4)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(items))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_depends_on_seed_and_step_alone():
    later = indices(3, 17, 5, 40)
    for step in range(17):
        indices(3, step, 5, 40)
    assert (indices(3, 17, 5, 40) == later).all()
    assert (indices(4, 17, 5, 40) != later).any()
    with pytest.raises(ValueError, match="nothing to draw"):
        indices(0, 0, 1, 0)


def test_no_two_paths_share_a_stream():
    # a CPU generator keeps 32 bits of its seed; names that differ in a digit or two must still be far apart
    paths = [(seed, "step", step, update) for seed in (0, 1) for step in range(4000) for update in (0, 1)]
    paths += [(0, "withhold", step, 0) for step in range(4000)] + [(0,), (1,), (0, "gauge"), (0, "gate")]
    draws = {torch.randint(2**62, (2,), generator=seeded(*path)).numpy().tobytes() for path in paths}
    assert len(draws) == len(paths)


def test_streams_are_uncorrelated_from_step_to_step():
    noise = torch.stack([torch.randn(256, generator=seeded(0, "step", step, 0)) for step in range(64)])
    gram = noise @ noise.T / 256
    assert (gram - torch.eye(64)).abs().max() < 0.5 and gram.fill_diagonal_(0).square().mean().sqrt() < 0.08


def test_a_stream_can_be_had_again():
    first, second = (torch.randn(3, generator=seeded(5, "a", 1)) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, torch.randn(3, generator=seeded(5, "a", 2)))
