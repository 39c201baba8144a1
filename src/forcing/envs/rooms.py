"""The default world: three MiniGrid layouts in the agent's own 7x7 view, drawn with 8-pixel tiles.

Importing this module is cheap; MiniGrid itself is loaded by the first `Rooms` or `palette()`.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    import gymnasium

LAYOUTS = {
    "multi room": "MiniGrid-MultiRoom-N4-S5-v1",
    "four rooms": "MiniGrid-FourRooms-v0",
    "lava crossing": "MiniGrid-LavaCrossingS11N5-v0",
}
VIEW = 7  # tiles along each side of the view
TILE = 8  # pixels along each side of a tile
ACTIONS = ("left", "right", "forward", "wait")
TILES = ("unseen", "floor", "wall", "goal", "lava", "agent")
UNSEEN, FLOOR, WALL, GOAL, LAVA, AGENT = range(len(TILES))
LEFT, RIGHT, FORWARD, WAIT = range(len(ACTIONS))

_MINIGRID_ACTIONS = (0, 1, 2, 6)
_WEIGHTS = (0.2, 0.2, 0.53, 0.07)  # of a fresh key: left, right, forward, wait
_TURN_WHEN_BLOCKED = 0.85
_CHUNK = 256  # frames classified at once: about 10 MB of float32 pixels


class MissingPackageError(ValueError):
    """A package that an optional part needs is not installed."""


def worlds() -> Any:
    """The gymnasium module with MiniGrid's ids registered; MissingPackageError says how to install either."""
    try:
        import gymnasium
        import minigrid  # noqa: F401  (importing it registers its ids)
    except ModuleNotFoundError as missing:
        raise MissingPackageError(f'{missing.name} is not installed: pip install "forcing[worlds]"') from missing
    return gymnasium


class _Rooms:
    """A layout as a Gymnasium environment: RGB frames uint8 [56, 56, 3], four keys (ACTIONS), no end.

    The doors of "multi room" are removed, goal and lava can be walked over, and neither they nor MiniGrid's step
    limit ends an episode. The reward is 1 for each step onto the goal.
    """

    metadata: ClassVar[dict] = {"render_modes": ["rgb_array"], "render_fps": 10}
    render_mode = "rgb_array"

    def __init__(self, layout: str) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"unknown layout {layout!r}: choose from {', '.join(map(repr, LAYOUTS))}")
        gymnasium = worlds()
        self.layout = layout
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        self.observation_space = gymnasium.spaces.Box(0, 255, (VIEW * TILE, VIEW * TILE, 3), np.uint8)
        self._inner = gymnasium.make(LAYOUTS[layout], agent_view_size=VIEW, disable_env_checker=True).unwrapped
        # Past its step limit MiniGrid would reward the goal with less than nothing.
        self._inner.max_steps = sys.maxsize
        self._frame: np.ndarray | None = None  # drawn once a step, whoever asks for it

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """A fresh world drawn from `seed`; the same seed gives the same world."""
        self._inner.reset(seed=seed, options=options)
        cells = self._inner.grid.grid
        for place, cell in enumerate(cells):
            if cell is not None and cell.type == "door":
                cells[place] = None
        return self._draw(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Press one key (0..3); never terminated, never truncated."""
        if not 0 <= action < len(ACTIONS):
            raise ValueError(f"action {action} is not one of 0..{len(ACTIONS) - 1} ({', '.join(ACTIONS)})")
        if self._frame is None:
            raise ValueError("step before reset: call reset(seed=...) first")
        reward = self._inner.step(_MINIGRID_ACTIONS[action])[1]
        return self._draw(), float(reward > 0), False, False, {}

    def render(self) -> np.ndarray:
        """The frame as it stands, uint8 [56, 56, 3]."""
        if self._frame is None:
            raise ValueError("render before reset: call reset(seed=...) first")
        return self._frame.copy()

    def close(self) -> None:
        """Nothing can be drawn after this."""
        self._inner.close()

    def get_action_meanings(self) -> list[str]:
        """The names of the four keys, as Gymnasium environments tell them."""
        return list(ACTIONS)

    @property
    def blocked(self) -> bool:
        """Whether a wall stands directly in front of the agent."""
        cell = self._inner.grid.get(*self._inner.front_pos)
        return cell is not None and not cell.can_overlap()

    def _draw(self) -> np.ndarray:
        frame = self._inner.get_frame(highlight=True, tile_size=TILE, agent_pov=True)
        self._frame = frame
        return frame.copy()


def __getattr__(name: str) -> Any:
    # `Rooms` becomes a true gymnasium.Env the first time it is asked for, so that importing the module stays cheap.
    if name != "Rooms":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    body = {"__doc__": _Rooms.__doc__, "__module__": __name__}
    made = type("Rooms", (_Rooms, worlds().Env), body)
    globals()["Rooms"] = made
    return made


def policy(env: gymnasium.Env, rng: np.random.Generator, held: int | None, hold: float = 0.6) -> int:
    """The next key of a wandering player: `held` again with probability `hold` (half that for a turn), else fresh.

    Mostly forward; in front of a wall usually a turn instead, so that clips move.
    """
    world: Any = env.unwrapped
    turning = held in (LEFT, RIGHT)
    # A turn held as long as a walk would spin in place.
    if held is None or rng.random() >= (hold / 2 if turning else hold):
        key = int(rng.choice(len(ACTIONS), p=_WEIGHTS))
    else:
        key = held
    if key == FORWARD and world.blocked and rng.random() < _TURN_WHEN_BLOCKED:
        key = held if turning else int(rng.integers(2))  # keep turning the same way: no dithering in a corner
    return key


@lru_cache(maxsize=1)
def palette() -> tuple[tuple[str, ...], np.ndarray]:
    """Every tile that the world can show: names (TILES) and pixels, uint8 [K, 8, 8, 3], read-only."""
    worlds()
    from minigrid.core.grid import Grid
    from minigrid.core.world_object import Goal, Lava, Wall

    def draw(thing: Any, seen: bool = True, facing: int | None = None) -> np.ndarray:
        return Grid.render_tile(thing, agent_dir=facing, highlight=seen, tile_size=TILE)

    # The agent always faces up in its own view, and hides whatever it stands on.
    drawn = (draw(None, seen=False), draw(None), draw(Wall()), draw(Goal()), draw(Lava()), draw(None, facing=3))
    tiles = np.stack(drawn).astype(np.uint8)
    tiles.setflags(write=False)
    return TILES, tiles


def classify(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest palette tile of each tile of frames [..., 56, 56, 3], uint8 or float in [0, 1].

    Returns ids, int64 [..., 7, 7], and the root-mean-square pixel distance to that tile in [0, 1] units, float32
    [..., 7, 7]: 0 for a tile drawn exactly as the world draws it.
    """
    frames = np.asarray(frames)
    side = VIEW * TILE
    if frames.shape[-3:] != (side, side, 3):
        raise ValueError(f"frames have shape {list(frames.shape)}, not [..., {side}, {side}, 3]")
    if frames.dtype != np.uint8 and not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"frames are {frames.dtype}, not uint8 or float in [0, 1]")
    lead = frames.shape[:-3]
    frames = frames.reshape(-1, side, side, 3)
    ids = np.empty((len(frames), VIEW, VIEW), np.int64)
    distance = np.empty(ids.shape, np.float32)
    for start in range(0, len(frames), _CHUNK):
        part = slice(start, start + _CHUNK)
        ids[part], distance[part] = _nearest(frames[part])
    if not np.isfinite(distance).all():
        raise ValueError("frames hold values that are not finite")
    return ids.reshape(*lead, VIEW, VIEW), distance.reshape(*lead, VIEW, VIEW)


def _nearest(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # In 0..255 units every product and sum of uint8 pixels is a whole number below 2**24: exact in float32.
    tiles = palette()[1].reshape(len(TILES), -1).astype(np.float32)
    grid = frames.reshape(-1, VIEW, TILE, VIEW, TILE, 3).swapaxes(2, 3).reshape(-1, TILE * TILE * 3)
    pixels = grid.astype(np.float32)
    if frames.dtype != np.uint8:
        pixels *= 255.0
    ids = np.argmin((tiles**2).sum(1) / 2 - pixels @ tiles.T, axis=1)
    pixels -= tiles[ids]
    distance = np.sqrt(np.einsum("np,np->n", pixels, pixels) / pixels.shape[1]) / 255.0
    shape = (len(frames), VIEW, VIEW)
    return ids.reshape(shape), distance.reshape(shape)
