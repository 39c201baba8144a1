"""Dead reckoning: whatever it claims to know about a real episode is what the world shows."""

import itertools
import time

import numpy as np
import pytest
from minigrid.core.grid import Grid
from minigrid.core.world_object import Wall

from forcing.envs import rooms
from forcing.envs.rooms import AGENT, FLOOR, FORWARD, GOAL, LAYOUTS, LEFT, RIGHT, UNSEEN, WAIT, WALL
from forcing.eval.truth import UNKNOWN, expect, expect_batch, visible, walk


@pytest.fixture(scope="module", params=LAYOUTS)
def episodes(request):
    """Views [10, 81, 7, 7] and actions [10, 80] of real episodes of one layout."""
    world = rooms.Rooms(request.param)
    frames, actions = [], []
    for seed in range(10):
        rng, held = np.random.default_rng(seed), None
        frames.append(world.reset(seed=100 + seed)[0])
        for _ in range(80):
            held = rooms.policy(world, rng, held)
            actions.append(held)
            frames.append(world.step(held)[0])
    views, _ = rooms.classify(np.stack(frames))
    return views.reshape(10, 81, 7, 7), np.array(actions).reshape(10, 80)


def room(**tiles: int) -> np.ndarray:
    """A view of open floor, but for tiles named like r5c3."""
    view = np.full((7, 7), FLOOR)
    view[6, 3] = AGENT
    for name, tile in tiles.items():
        view[int(name[1]), int(name[3])] = tile
    return view


def test_visible_is_minigrids_own_rule():
    rng = np.random.default_rng(0)
    opaque = rng.random((400, 7, 7)) < rng.random((400, 1, 1))
    for mine, blocks in zip(visible(opaque), opaque, strict=True):
        grid = Grid(7, 7)
        for row, column in zip(*np.nonzero(blocks), strict=True):
            grid.set(int(column), int(row), Wall())
        assert (mine == grid.process_vis((3, 6)).T).all()


def test_less_wall_never_hides_a_tile():
    rng = np.random.default_rng(1)
    opaque = rng.random((2000, 7, 7)) < 0.4
    fewer = opaque & (rng.random(opaque.shape) < 0.7)
    assert (visible(fewer) >= visible(opaque)).all()


@pytest.mark.parametrize("memory", [1, 12, None])
def test_everything_known_is_true(episodes, memory):
    views, actions = episodes
    ids, known = expect_batch(views, actions, memory)
    assert (ids[known] == views[known]).all()
    assert not known[:, 0].any() and (ids[~known] == UNKNOWN).all()
    lit = views[:, 1:] != UNSEEN
    assert known[:, 1:].mean() > (0.5 if memory == 1 else 0.85)
    assert known[:, 1:][lit].mean() > (0.5 if memory == 1 else 0.85)


def test_longer_memory_knows_more(episodes):
    views, actions = episodes
    shares = [expect_batch(views, actions, memory)[1] for memory in (1, 3, 12, 80)]
    for short, long in itertools.pairwise(shares):
        assert (long >= short).all() and long.sum() > short.sum()
    assert (shares[-1] == expect_batch(views, actions, None)[1]).all()


def test_a_wrong_view_is_caught(episodes):
    # A world that ignores its keys, or jumps, disagrees with what was known.
    views, actions = episodes
    ids, known = expect_batch(views, np.where(actions == LEFT, RIGHT, actions), 12)
    assert (ids[known] != views[known]).mean() > 0.05
    swapped = views.copy()
    swapped[:, 40:] = np.roll(views, 1, axis=0)[:, 40:]
    ids, known = expect_batch(swapped, actions, 12)
    after = known[:, 40]
    assert (ids[:, 40][after] != swapped[:, 40][after]).mean() > 0.05


def test_only_the_past_counts(episodes):
    views, actions = episodes
    changed = views.copy()
    changed[:, 50:] = np.random.default_rng(0).integers(len(rooms.TILES), size=changed[:, 50:].shape)
    before, after = expect_batch(views, actions, 12)[0], expect_batch(changed, actions, 12)[0]
    assert (before[:, :51] == after[:, :51]).all()


def test_one_clip_equals_its_batch_row_and_chunks_do_not_show(episodes, monkeypatch):
    views, actions = episodes
    ids, known = expect_batch(views, actions, 12)
    one, sure = expect(views[3], actions[3], 12)
    assert (one == ids[3]).all() and (sure == known[3]).all()
    monkeypatch.setattr("forcing.eval.truth._CELLS", 1)
    assert (expect_batch(views, actions, 12)[0] == ids).all()


def test_turning_about_and_waiting():
    view = room(r5c3=WALL, r6c2=GOAL)
    views = np.stack([view] * 5)
    places, headings = walk(views[None], np.array([[LEFT, FORWARD, RIGHT, FORWARD]]))
    assert headings[0].tolist() == [0, 3, 3, 0, 0]
    assert places[0].tolist() == [[0, 0]] * 5  # every view has a wall in front
    ids, known = expect(views[:2], np.array([WAIT]), 1)
    assert (ids[1][known[1]] == view[known[1]]).all() and known[1].all()
    ids, known = expect(views[:2], np.array([LEFT]), 1)
    # After a left turn what stood on the left is in front, and what was in front is on the right.
    assert ids[1, 5, 3] == GOAL and ids[1, 6, 4] == WALL
    assert not known[1, 6, 2]


def test_what_the_agent_stood_on_is_open_but_clear():
    # Turn right, step off the start, look up again: the start lies to the left and nobody ever saw what it is, but the
    # goal seen beyond it at first must be in sight, because the agent stood there.
    views = np.stack([room(r6c2=GOAL), room(), room(), room()])
    ids, known = expect(views, np.array([RIGHT, FORWARD, LEFT]), 12)
    assert not known[3, 6, 2] and ids[3, 6, 1] == GOAL
    assert not expect(views, np.array([RIGHT, FORWARD, LEFT]), 2)[1][3, 6, 1]


def test_a_step_that_fails_leaves_the_agent_in_place():
    views = np.stack([room(), room(r5c3=WALL), room(r5c3=WALL)])
    places, _ = walk(views[None], np.array([[FORWARD, FORWARD]]))
    assert places[0].tolist() == [[0, 0], [-1, 0], [-1, 0]]


@pytest.mark.parametrize("front", [UNSEEN, AGENT, WALL])
def test_an_impossible_tile_in_front_blocks(front):
    places, _ = walk(np.stack([room(r5c3=front), room()])[None], np.array([[FORWARD]]))
    assert (places == 0).all()


def test_any_imagined_views_are_taken():
    rng = np.random.default_rng(2)
    views = rng.integers(len(rooms.TILES), size=(64, 40, 7, 7))
    actions = rng.integers(4, size=(64, 39))
    began = time.perf_counter()
    ids, known = expect_batch(views, actions, 12)
    assert (time.perf_counter() - began) / views[..., 0, 0].size < 5e-4
    assert known[:, 1:, 6, 3].all() and (ids[:, 1:, 6, 3] == AGENT).all()
    assert expect(views[0, :1], actions[0, :0], 12)[1].sum() == 0


def test_errors_name_what_is_wrong():
    views, actions = np.stack([room()] * 3), np.array([WAIT, WAIT])
    with pytest.raises(ValueError, match=r"\[1, 3, 6, 7\]"):
        expect(views[:, :6], actions, 12)
    with pytest.raises(ValueError, match=r"\[1, 1\], not \[1, 2\]"):
        expect(views, actions[:1], 12)
    with pytest.raises(ValueError, match="float32"):
        expect(views.astype(np.float32), actions, 12)
    with pytest.raises(ValueError, match="-1"):
        expect(views, np.array([WAIT, -1]), 12)
    with pytest.raises(ValueError, match="0 to 9"):
        expect(np.where(views == AGENT, 9, views - 1), actions, 12)
    with pytest.raises(ValueError, match="memory is 0"):
        expect(views, actions, 0)
