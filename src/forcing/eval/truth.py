"""What the next view must show: dead reckoning over symbolic views of rooms, without the world itself.

Views hold palette ids (forcing.envs.rooms.TILES), row 0 farthest ahead, the agent at the middle of the last row looking
up. From the views of the last few frames and the keys, some tiles of the present view are determined; the rest is
newly revealed and left open. The views may be real or imagined: only views and keys are used.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from forcing.envs.rooms import ACTIONS, AGENT, FLOOR, FORWARD, GOAL, LAVA, LEFT, RIGHT, TILES, UNSEEN, VIEW, WALL

UNKNOWN = -1

_ROW, _COLUMN = VIEW - 1, VIEW // 2  # where the agent stands in its own view
_PASSABLE = np.isin(np.arange(len(TILES)), (FLOOR, GOAL, LAVA))
_AHEAD = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # (y, x) of one step ahead, by heading: up, right, down, left
_NEVER = -(2**30)
_CELLS = 1_000_000  # map cells held at once; with the places of the views' tiles about 100 MB


def visible(opaque: np.ndarray) -> np.ndarray:
    """Which tiles the agent sees, bool [..., 7, 7], where `opaque` bool [..., 7, 7] says what blocks sight.

    MiniGrid's rule: light spreads row by row from the agent, sideways and ahead, out of every lit tile that is not
    opaque. More transparency never hides a tile.
    """
    lit_by, up_by = _row_tables()
    bits = 1 << np.arange(VIEW)
    rows = opaque @ bits
    seen = np.empty(rows.shape, np.int64)
    light = np.full(rows.shape[:-1], 1 << _COLUMN)
    for row in range(_ROW, -1, -1):
        seen[..., row] = lit_by[light, rows[..., row]]
        light = up_by[light, rows[..., row]]
    return (seen[..., None] & bits) > 0


@lru_cache(maxsize=1)
def _row_tables() -> tuple[np.ndarray, np.ndarray]:
    # For a row entered by `light` with `opaque` tiles, both as bit sets: the tiles lit in it, and in the row ahead.
    light, opaque = np.meshgrid(*[np.arange(1 << VIEW)] * 2, indexing="ij")
    ahead = np.zeros_like(light)
    for column, beside in [(i, i + 1) for i in range(VIEW - 1)] + [(i, i - 1) for i in range(VIEW - 1, 0, -1)]:
        shines = (light & ~opaque) >> column & 1
        light = light | shines << beside
        ahead |= shines << beside | shines << column
    return light, ahead


def walk(views: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the agent stands in each view: places int64 [N, T, 2] as (y, x) from the start, headings int64 [N, T].

    views [N, T, 7, 7], actions [N, T-1]. Heading 0 is the way it looks at the start, 1 a right turn from there. A step
    forward succeeds where the tile in front, in the view it was pressed in, can be walked on.
    """
    turns = np.where(actions == RIGHT, 1, 0) - np.where(actions == LEFT, 1, 0)
    headings = np.zeros(views.shape[:2], np.int64)
    headings[:, 1:] = np.cumsum(turns, 1) % len(_AHEAD)
    moved = (actions == FORWARD) & _PASSABLE[views[:, :-1, _ROW - 1, _COLUMN]]
    places = np.zeros((*views.shape[:2], 2), np.int64)
    places[:, 1:] = np.cumsum(moved[..., None] * _AHEAD[headings[:, :-1]], 1)
    return places, headings


def expect(views: np.ndarray, actions: np.ndarray, memory: int | None) -> tuple[np.ndarray, np.ndarray]:
    """`expect_batch` for one clip: views [T, 7, 7], actions [T-1]; ids int64 and known bool, both [T, 7, 7]."""
    ids, known = expect_batch(np.asarray(views)[None], np.asarray(actions)[None], memory)
    return ids[0], known[0]


def expect_batch(views: np.ndarray, actions: np.ndarray, memory: int | None) -> tuple[np.ndarray, np.ndarray]:
    """What each view must show, given the `memory` views before it (None: all of them) and all keys.

    views: palette ids [N, T, 7, 7]; actions: [N, T-1], where action t leads from view t to view t+1. Returns ids int64
    [N, T, 7, 7], UNKNOWN (-1) where open, and known bool [N, T, 7, 7]; of view 0 nothing is known. ValueError for
    shapes, ids or actions that do not fit.
    """
    views, actions = np.asarray(views), np.asarray(actions)
    _check(views, actions, memory)
    clips, length = views.shape[:2]
    ids = np.full(views.shape, UNKNOWN, np.int64)
    places, headings = walk(views, actions)
    reach = int(np.ptp(places, axis=1).max(initial=0)) + 2 * VIEW
    chunk = max(1, min(_CELLS // int(reach) ** 2, _CELLS // (length * VIEW)))
    for start in range(0, clips, chunk):
        part = slice(start, start + chunk)
        cells = _cells(places[part], headings[part], int(reach))
        ids[part] = _reckon(views[part], cells, reach**2, length if memory is None else memory)
    return ids, ids != UNKNOWN


def _cells(places: np.ndarray, headings: np.ndarray, reach: int) -> np.ndarray:
    # For every tile of every view the index of its cell in the clips' maps laid end to end: [N, T, 7, 7].
    ahead = _AHEAD[headings][:, :, None, None]
    aside = _AHEAD[(headings + 1) % len(_AHEAD)][:, :, None, None]
    far = (_ROW - np.arange(VIEW))[:, None, None]
    right = (np.arange(VIEW) - _COLUMN)[None, :, None]
    corner = places.min(1)[:, None, None, None] - VIEW + 1
    spots = places[:, :, None, None] + far * ahead + right * aside - corner
    base = np.arange(len(places))[:, None, None, None] * reach**2
    return base + spots[..., 0] * reach + spots[..., 1]


def _reckon(views: np.ndarray, cells: np.ndarray, area: int, memory: int) -> np.ndarray:
    size = len(views) * area
    tile = np.full(size, UNKNOWN, np.int8)
    when = np.full(size, _NEVER, np.int32)  # the frame of a cell's latest sighting
    stood = np.full(size, _NEVER, np.int32)  # the frame when the agent last stood on it: it cannot block sight
    ids = np.full(views.shape, UNKNOWN, np.int64)
    # The agent hides what it stands on, and an imagined second agent hides what it is drawn on.
    sighted = (views != UNSEEN) & (views != AGENT)
    sighted[:, :, _ROW, _COLUMN] = False
    for now in range(1, views.shape[1]):
        last = now - 1
        fresh = cells[:, last][sighted[:, last]]
        tile[fresh] = views[:, last][sighted[:, last]]
        when[fresh] = last
        stood[cells[:, last, _ROW, _COLUMN]] = last
        stood[cells[:, now, _ROW, _COLUMN]] = now
        place = cells[:, now]
        held = np.where(when[place] >= now - memory, tile[place], UNKNOWN)
        ids[:, now] = _view(held, stood[place] >= now - memory)
    return ids


def _view(held: np.ndarray, clear: np.ndarray) -> np.ndarray:
    # The view [N, 7, 7] of cells remembered as `held`, or only known to be `clear`.
    blind = (held == WALL) & ~clear
    doubtful = ((held == WALL) | (held == UNKNOWN)) & ~clear
    surely, possibly = visible(np.stack([doubtful, blind]))
    ids = np.where(surely, held, UNKNOWN)
    ids[~possibly] = UNSEEN
    ids[:, _ROW, _COLUMN] = AGENT
    return ids


def _check(views: np.ndarray, actions: np.ndarray, memory: int | None) -> None:
    if views.ndim != 4 or views.shape[2:] != (VIEW, VIEW) or views.shape[1] < 1:
        raise ValueError(f"views have shape {list(views.shape)}, not [clips, frames, {VIEW}, {VIEW}]")
    if actions.shape != (views.shape[0], views.shape[1] - 1):
        raise ValueError(
            f"actions have shape {list(actions.shape)}, not [{views.shape[0]}, {views.shape[1] - 1}]: one between views"
        )
    for name, array, count in (("views", views, len(TILES)), ("actions", actions, len(ACTIONS))):
        if not np.issubdtype(array.dtype, np.integer) and array.size:
            raise ValueError(f"{name} are {array.dtype}, not whole numbers")
        if array.size and (array.min() < 0 or array.max() >= count):
            raise ValueError(f"{name} reach from {array.min()} to {array.max()}: they must lie in 0..{count - 1}")
    if memory is not None and memory < 1:
        raise ValueError(f"memory is {memory}: it must be at least 1 frame, or None for all")
