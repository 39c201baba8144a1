"""The default world: layouts, keys that never end an episode, and tiles that classify exactly."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from forcing.envs import rooms
from forcing.envs.rooms import ACTIONS, AGENT, FORWARD, GOAL, LAYOUTS, LEFT, TILES, UNSEEN, WALL, Rooms, classify


def wander(layout: str, seed: int, steps: int, hold: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Frames [steps + 1, 56, 56, 3] and actions [steps] of one recorded wander."""
    world, rng = Rooms(layout), np.random.default_rng(seed)
    frames, actions = [world.reset(seed=seed)[0]], []
    for _ in range(steps):
        actions.append(rooms.policy(world, rng, actions[-1] if actions else None, hold))
        frames.append(world.step(actions[-1])[0])
    return np.stack(frames), np.array(actions)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_recorded_tile_is_in_the_palette(layout):
    frames = np.concatenate([wander(layout, seed, 60)[0] for seed in range(12)])
    ids, distance = classify(frames)
    assert distance.max() == 0
    assert (ids[:, -1, 3] == AGENT).all() and (ids == AGENT).sum() == len(ids)
    names, tiles = rooms.palette()
    assert names == TILES
    drawn = tiles[ids].swapaxes(2, 3).reshape(frames.shape)
    assert (drawn == frames).all()


def test_palette_tiles_differ_and_cannot_be_changed():
    _, tiles = rooms.palette()
    assert tiles.shape == (len(TILES), 8, 8, 3) and tiles.dtype == np.uint8
    assert len(np.unique(tiles.reshape(len(TILES), -1), axis=0)) == len(TILES)
    with pytest.raises(ValueError):
        tiles[0] = 0


def test_classify_takes_floats_batches_and_noise():
    frames, _ = wander("lava crossing", 3, 39)
    ids, _ = classify(frames)
    rng = np.random.default_rng(0)
    noisy = frames.astype(np.float32) / 255 + rng.normal(0, 0.05, frames.shape).astype(np.float32)
    found, distance = classify(noisy.reshape(2, 20, 56, 56, 3))
    assert found.shape == distance.shape == (2, 20, 7, 7)
    assert found.dtype == np.int64 and distance.dtype == np.float32
    assert (found.reshape(ids.shape) == ids).all()
    assert abs(distance.mean() - 0.05) < 0.002
    assert classify(frames[0] / 255.0)[1].max() < 1e-6
    assert classify(frames[:0])[0].shape == (0, 7, 7)


def test_classify_rejects_what_it_cannot_read():
    with pytest.raises(ValueError, match=r"\[1, 7, 7, 3\]"):
        classify(np.zeros((1, 7, 7, 3), np.uint8))
    with pytest.raises(ValueError, match="int64"):
        classify(np.zeros((56, 56, 3), np.int64))
    with pytest.raises(ValueError, match="finite"):
        classify(np.full((56, 56, 3), np.nan, np.float32))


def test_doors_are_open_doorways():
    for seed in range(5):
        world = Rooms("multi room")
        world.reset(seed=seed)
        assert not [cell for cell in world._inner.grid.grid if cell is not None and cell.type == "door"]


def test_nothing_ends_an_episode():
    # Far past MiniGrid's own step limits, over lava and goals alike; the goal pays 1 each time.
    world = Rooms("lava crossing")
    rng = np.random.default_rng(1)
    world.reset(seed=1)
    held, rewards, lava = None, [], 0
    for _ in range(900):
        held = rooms.policy(world, rng, held)
        _, reward, terminated, truncated, _ = world.step(held)
        assert not terminated and not truncated
        rewards.append(reward)
        under = world._inner.grid.get(*world._inner.agent_pos)
        lava += under is not None and under.type == "lava"
    assert set(rewards) == {0.0, 1.0} and rewards[400:].count(1.0) > 0
    assert lava > 0


def test_keys_do_what_they_say():
    world = Rooms("four rooms")
    first, _ = world.reset(seed=4)
    assert (world.step(ACTIONS.index("wait"))[0] == first).all()
    turned, *_ = world.step(ACTIONS.index("left"))
    assert not (turned == first).all()
    assert (world.step(ACTIONS.index("right"))[0] == first).all()
    for _ in range(30):
        if world.blocked:
            break
        before = classify(world.render())[0]
        after = classify(world.step(FORWARD)[0])[0]
        assert before[5, 3] != WALL and not (before == after).all()
    assert classify(world.render())[0][5, 3] == WALL
    assert (world.render() == world.step(FORWARD)[0]).all()


def test_the_same_seed_gives_the_same_world():
    world = Rooms("multi room")
    first, _ = world.reset(seed=7)
    kept = first.copy()
    other, _ = world.reset(seed=8)
    assert (first == kept).all() and not (other == first).all()
    assert (world.reset(seed=7)[0] == first).all()


def test_the_wanderer_moves():
    shares = []
    for layout in LAYOUTS:
        clips = [wander(layout, seed, 80) for seed in range(10)]
        actions = np.concatenate([keys for _, keys in clips])
        shares.append(np.bincount(actions, minlength=4) / len(actions))
        changed = np.mean([(frames[1:] != frames[:-1]).any((1, 2, 3)).mean() for frames, _ in clips])
        assert changed > 0.8
    left, right, forward, wait = np.mean(shares, axis=0)
    assert 0.3 < forward < 0.6 and 0.15 < left < 0.4 and 0.15 < right < 0.4 and 0.02 < wait < 0.15
    ids = classify(np.concatenate([frames for frames, _ in clips]))[0]
    assert (ids == GOAL).any() and (ids == UNSEEN).any()


def test_it_is_a_gymnasium_environment():
    world = Rooms("four rooms")
    assert isinstance(world, gymnasium.Env) and world.action_space == gymnasium.spaces.Discrete(4)
    frame, info = gymnasium.wrappers.TimeLimit(world, 2).reset(seed=0)
    assert world.observation_space.contains(frame) and info == {}


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"'five rooms'.*'four rooms'"):
        Rooms("five rooms")
    world = Rooms("four rooms")
    with pytest.raises(ValueError, match="reset"):
        world.step(LEFT)
    with pytest.raises(ValueError, match="reset"):
        world.render()
    world.reset(seed=0)
    with pytest.raises(ValueError, match=r"action 4 .*0\.\.3"):
        world.step(4)


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(rooms.MissingPackageError, match=r'pip install "forcing\[worlds\]"'):
        Rooms("four rooms")


def test_importing_the_module_does_not_load_gymnasium():
    code = "import sys, forcing.envs.rooms; sys.exit('gymnasium' in sys.modules or 'minigrid' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
