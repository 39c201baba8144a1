"""The real footage an evaluation in `rooms` works with: what is continued, and what it is compared with.

Everything is drawn from a recording by a fixed seed, prompts in turn, or played in the environment itself: what the
world does from a state is known, because an episode can be replayed to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forcing.data.shards import Recording
from forcing.envs import rooms
from forcing.eval.measure import Measure

ENV = "rooms"
_REFERENCE = -1  # the seed of the forks that others are compared with


@dataclass(frozen=True)
class Footage:
    """frames uint8 [N, T, H, W, 3]; led int64 [N, T], the action that led to each frame, -1 for the first; prompts."""

    frames: np.ndarray
    led: np.ndarray
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.frames)

    def repeat(self, times: int) -> "Footage":
        """Each clip `times` times in a row."""
        prompts = tuple(prompt for prompt in self.prompts for _ in range(times))
        return Footage(self.frames.repeat(times, 0), self.led.repeat(times, 0), prompts)


@dataclass(frozen=True)
class Origin:
    """A state of the world: an episode's prompt and seed, and the keys pressed up to there."""

    prompt: str
    seed: int
    actions: tuple[int, ...]


@dataclass(frozen=True)
class Scenes:
    """ahead, told: held-out clips with their keys; told ones are `start` + `frames` long.

    free: what the free regime continues, each start `forks` times in a row, and `forks` [M, frames, ...] what the
    world does from there, for each seed and (`reference`) once more. nothing: held-out clips, prompts in turn, and
    `others` training clips of the same prompts for each seed. train: clips to fit features to.
    """

    ahead: Footage
    told: Footage
    free: Footage
    reference: np.ndarray
    forks: dict[int, np.ndarray]
    nothing: Footage
    others: dict[int, np.ndarray]
    train: np.ndarray


def gather(recording: Recording, measure: Measure) -> Scenes:
    """All footage for `measure`. ValueError if the recording is not of `rooms` or its episodes are too short."""
    spec = recording.manifest["spec"]
    if spec["env"] != ENV:
        raise ValueError(
            f"{recording.path} is a recording of {spec['env']!r}: only worlds whose truth is known can be evaluated "
            f"({ENV!r})"
        )
    held, seen = (recording.episodes(split) for split in ("heldout", "train"))
    picks = {
        "ahead": _windows(held, recording.prompts, measure.ahead, measure.clip, 1),
        "told": _windows(held, recording.prompts, measure.told, measure.start + measure.frames, 2),
        "free": _windows(held, recording.prompts, measure.starts, measure.start, 3),
        "nothing": _windows(held, recording.prompts, measure.nothing, measure.clip, 4),
    }
    cut = _cut(recording, "heldout", picks)
    drawn = {
        str(seed): _windows(seen, recording.prompts, measure.nothing, measure.clip, 5, seed) for seed in measure.seeds
    }
    drawn["train"] = _windows(seen, recording.prompts, measure.train, measure.clip, 6)
    train = _cut(recording, "train", drawn)
    table = {row["episode"]: row for row in held}
    origins = [
        _origin(table[window.episode], cut.actions[window.episode], window)
        for window in picks["free"]
        for _ in range(measure.forks)
    ]
    forks = {seed: fork(origins, measure.frames, seed, spec["hold"]) for seed in (_REFERENCE, *measure.seeds)}
    return Scenes(
        cut.footage["ahead"],
        cut.footage["told"],
        cut.footage["free"].repeat(measure.forks),
        forks.pop(_REFERENCE),
        forks,
        cut.footage["nothing"],
        {seed: train.footage[str(seed)].frames for seed in measure.seeds},
        train.footage["train"].frames,
    )


def showcase(recording: Recording, frames: int) -> Footage:
    """One held-out clip of `frames` frames for each prompt, to be looked at; fewer frames where episodes are short."""
    held = recording.episodes("heldout")
    longest = {row["prompt"]: row["length"] for row in sorted(held, key=lambda row: row["length"])}
    frames = min([frames, *longest.values()])
    windows = _windows(held, recording.prompts, len(recording.prompts), frames, 7)
    return _cut(recording, "heldout", {"shown": windows}).footage["shown"]


def fork(origins: Sequence[Origin], frames: int, seed: int, hold: float) -> np.ndarray:
    """What the world shows when a player wanders on from `origins`: uint8 [N, frames, H, W, 3].

    `seed` draws the keys; `hold` is the recording's probability that one stays pressed.
    """
    worlds = {prompt: rooms.Rooms(prompt) for prompt in sorted({origin.prompt for origin in origins})}
    clips = []
    for number, origin in enumerate(origins):
        world = worlds[origin.prompt]
        world.reset(seed=origin.seed)
        for action in origin.actions:
            world.step(int(action))
        rng = np.random.default_rng([seed - _REFERENCE, number])
        key = int(origin.actions[-1]) if origin.actions else None
        shown = []
        for _ in range(frames):
            key = rooms.policy(world, rng, key, hold)
            shown.append(world.step(key)[0])
        clips.append(np.stack(shown))
    return np.stack(clips)


def _origin(row: dict[str, Any], actions: np.ndarray, window: "_Window") -> Origin:
    last = window.first + window.frames - 1
    return Origin(row["prompt"], row["seed"], tuple(int(action) for action in actions[:last]))


@dataclass(frozen=True)
class _Window:
    episode: int
    first: int
    frames: int


@dataclass(frozen=True)
class _Cut:
    footage: dict[str, Footage]
    actions: dict[int, np.ndarray]  # of the episodes that were cut from


def _windows(
    table: Sequence[dict[str, Any]], prompts: Sequence[str], count: int, frames: int, *seed: int
) -> list[_Window]:
    # Prompts in turn, and for each prompt its episodes in turn; where in an episode is drawn.
    rng = np.random.default_rng(seed)
    long = {prompt: [row for row in table if row["prompt"] == prompt and row["length"] >= frames] for prompt in prompts}
    rows = [[rows[i] for i in rng.permutation(len(rows))] for rows in long.values() if rows]
    if not rows:
        longest = max((row["length"] for row in table), default=0)
        raise ValueError(
            f"an evaluation of this size needs episodes of at least {frames} frames in either split; the longest of "
            f"{len(table)} has {longest}"
        )
    out = []
    for number in range(count):
        mine = rows[number % len(rows)]
        row = mine[number // len(rows) % len(mine)]
        out.append(_Window(row["episode"], int(rng.integers(row["length"] - frames + 1)), frames))
    return out


def _cut(recording: Recording, split: str, windows: dict[str, list[_Window]]) -> _Cut:
    # One pass over the shards, which together may not fit in memory.
    wanted = {window.episode for each in windows.values() for window in each}
    pieces: dict[_Window, tuple[str, np.ndarray]] = {}
    actions = {}
    for episode in recording.stream(split):
        if episode.index not in wanted:
            continue
        actions[episode.index] = episode.actions.copy()
        for window in {window for each in windows.values() for window in each if window.episode == episode.index}:
            pieces[window] = (episode.prompt, episode.frames[window.first : window.first + window.frames].copy())
    footage = {}
    for name, each in windows.items():
        led = np.stack([_led(actions[window.episode], window) for window in each])
        prompts = tuple(pieces[window][0] for window in each)
        footage[name] = Footage(np.stack([pieces[window][1] for window in each]), led, prompts)
    return _Cut(footage, actions)


def _led(actions: np.ndarray, window: _Window) -> np.ndarray:
    # Action t of an episode leads to frame t + 1; what led to a clip's first frame is not in the clip.
    led = actions[window.first : window.first + window.frames - 1]
    return np.concatenate([[-1], led])
