"""Record any Gymnasium environment that renders RGB frames, keys held as a player would hold them."""

from __future__ import annotations

import contextlib
import difflib
import enum
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from forcing import __version__, files
from forcing.data.shards import ARRAYS, FORMAT, MANIFEST, checksum, read_manifest, write_shard
from forcing.envs import rooms

ROOMS = "rooms"
SHARD = 4096  # most frames in a shard file, unless a single episode needs more

_HOSTS = {"ALE/": ("ale_py", "ale-py")}  # packages whose ids exist only once they are imported, beside MiniGrid
_PREFIXES = 16  # situations in which two actions must look the same to count as one
_PREFIX = 32  # longest random walk into such a situation, in steps
_HELD = 4  # steps that each action is then held


@dataclass(frozen=True)
class Record:
    """What to record. The same Record gives the same bytes.

    env: "rooms" for every layout of the default world, or a Gymnasium id, also as "module:Id".
    frames: frames in all; the last episode is cut to fit.
    seed: of the environments and of the keys.
    episode: most steps in an episode, which then has one frame more.
    size: shrink frames by box averaging so that the longer side is this many pixels; None keeps them as they are.
    shard: most frames in a shard file.
    holdout: share of the episodes kept for evaluation (every 1/holdout-th), 0 for none.
    hold: probability that a key stays pressed for another step.
    """

    env: str
    frames: int
    seed: int
    episode: int
    size: int | None = None
    shard: int = SHARD
    holdout: float = 0.1
    hold: float = 0.6

    def __post_init__(self) -> None:
        if not isinstance(self.env, str) or not self.env:
            raise ValueError(f'env is {self.env!r}: give "rooms" or a Gymnasium id')
        for name, low in (("frames", 1), ("seed", 0), ("episode", 1), ("size", 1), ("shard", 2)):
            value = getattr(self, name)
            if name == "size" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ValueError(f"{name} is {value!r}: it must be a whole number of at least {low}")
        if self.shard < self.episode + 1:
            raise ValueError(
                f"shard is {self.shard} frames: an episode of {self.episode} steps needs {self.episode + 1}"
            )
        if not 0 <= self.holdout <= 0.5:
            raise ValueError(f"holdout is {self.holdout!r}: it must lie in 0..0.5")
        if not 0 <= self.hold < 1:
            raise ValueError(f"hold is {self.hold!r}: it must be at least 0 and below 1")


def record(spec: Record, out: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """Record `spec` into the folder `out` and return it; at once if it already holds that recording.

    `progress(done, total)` is called in frames after every episode. ValueError before any work starts if the
    environment cannot be recorded or `out` holds something else. Until complete, nothing appears under `out`.
    """
    out = Path(out)
    if _recorded(spec, out):
        return out
    with contextlib.ExitStack() as closing:
        envs = open_envs(spec.env, spec.size)
        for env in envs:
            closing.callback(env.close)
        keys = _keys(envs, spec)
        partial = closing.enter_context(files.whole(out))
        partial.mkdir()
        _write(spec, envs, keys, partial, progress)
    return out


def replay(prompt: str, seed: int, actions: Sequence[int] | np.ndarray) -> np.ndarray:
    """Step the true rooms world `prompt` from `seed` with `actions` [T]; frames uint8 [T + 1, 56, 56, 3]."""
    pressed = [int(action) for action in actions]
    for action in pressed:
        if not 0 <= action < len(rooms.ACTIONS):
            raise ValueError(f"action {action} is not one of 0..{len(rooms.ACTIONS) - 1}: {', '.join(rooms.ACTIONS)}")
    env = rooms.Rooms(prompt)
    frames = [env.reset(seed=seed)[0]]
    frames.extend(env.step(action)[0] for action in pressed)
    return np.stack(frames)


class Env:
    """A Gymnasium environment as an `Environment`: frames in, frames out, checked.

    Actions count from 0 whatever the environment's own first action is. After a step, `reward` and `ended` hold what
    the environment said.
    """

    def __init__(self, env: Any, prompt: str, ident: str, size: int | None = None) -> None:
        space = env.action_space
        if not isinstance(space, rooms.worlds().spaces.Discrete):
            raise ValueError(f"{ident} has the action space {space}: only Discrete actions can be recorded")
        self.prompt, self.ident = prompt, ident
        self.inner = env
        self.names = _names(env.unwrapped, int(space.n), int(space.start))
        self.reward, self.ended = 0.0, True
        self._first, self._size = int(space.start), size

    def reset(self, seed: int) -> np.ndarray:
        """The first frame, uint8 [H, W, 3], of the episode that `seed` draws."""
        self.restart(seed)
        return self.frame()

    def step(self, action: int) -> np.ndarray:
        """The frame, uint8 [H, W, 3], that `action` leads to."""
        self.advance(action)
        return self.frame()

    def restart(self, seed: int) -> None:
        """Reset without drawing a frame."""
        self.inner.reset(seed=seed)
        self.reward, self.ended = 0.0, False

    def advance(self, action: int) -> None:
        """Step without drawing a frame."""
        if self.ended:
            raise ValueError(f"{self.ident}: the episode has ended; reset it first")
        _, reward, terminated, truncated, _ = self.inner.step(self._first + action)
        self.reward, self.ended = float(reward), bool(terminated or truncated)

    def frame(self) -> np.ndarray:
        """The present frame, uint8 [H, W, 3]; ValueError if the environment draws anything else."""
        frame = self.inner.render()
        if not isinstance(frame, np.ndarray):
            raise ValueError(f"{self.ident} renders {type(frame).__name__}, not an RGB array (render_mode rgb_array)")
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise ValueError(f"{self.ident} renders {frame.dtype} {list(frame.shape)}, not uint8 [H, W, 3]")
        return shrink(frame, self._size) if self._size else np.array(frame)

    def close(self) -> None:
        self.inner.close()


def open_envs(name: str, size: int | None = None) -> list[Env]:
    """The environments that `name` stands for, each checked by one reset; ValueError says what is wrong with it."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame, which many draw with, needs no screen for it
    if name == ROOMS:
        envs = [Env(rooms.Rooms(prompt), prompt, ident, size) for prompt, ident in rooms.LAYOUTS.items()]
    else:
        envs = [Env(_make(name), name.rpartition(":")[2], name, size)]
    gymnasium = rooms.worlds()
    for env in envs:
        try:
            env.reset(seed=0)
        except (gymnasium.error.Error, ImportError, NotImplementedError) as failure:
            raise ValueError(f"{env.ident} cannot be rendered as RGB frames: {failure}") from failure
    return envs


def shrink(frame: np.ndarray, size: int) -> np.ndarray:
    """Box-average uint8 [H, W, 3] so that its longer side is `size`; as it is where it already fits."""
    height, width = frame.shape[:2]
    longer = max(height, width)
    if longer <= size:
        return np.array(frame)
    rows, columns = (_box(side, max(1, round(side * size / longer))) for side in (height, width))
    tall = (rows @ frame.reshape(height, -1)).reshape(len(rows), width, 3)
    return np.rint(columns @ tall).astype(np.uint8)


@lru_cache(maxsize=8)
def _box(before: int, after: int) -> np.ndarray:
    # Weights [after, before]: how much of each old pixel lies in each new one; every row sums to 1.
    edges = np.arange(after + 1) * (before / after)
    old = np.arange(before)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    weights = np.clip(overlap, 0, None)
    return weights / weights.sum(1, keepdims=True)


def _make(name: str) -> Any:
    gymnasium = rooms.worlds()
    for start, (module, package) in _HOSTS.items():
        if name.startswith(start) and importlib.util.find_spec(module) is None:
            raise rooms.MissingPackageError(f"{name} needs the package {package}: pip install {package}")
        if name.startswith(start):
            importlib.import_module(module)
    try:
        with warnings.catch_warnings():
            # Gymnasium warns where the id is old or rgb_array is not offered; the first is the user's choice and
            # the second is an error below.
            warnings.simplefilter("ignore")
            return gymnasium.make(name, render_mode="rgb_array", disable_env_checker=True)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as unknown:
        raise ValueError(f"unknown environment {name!r}{_like(name, gymnasium.registry)}") from unknown
    except (gymnasium.error.Error, ImportError) as failure:
        raise ValueError(f"environment {name!r} cannot be made: {failure}") from failure
    except TypeError as failure:
        if "render_mode" not in str(failure):
            raise
        raise ValueError(f"environment {name!r} does not render RGB arrays: {failure}") from failure


def _like(name: str, registry: Iterable[str]) -> str:
    known = {ident.lower(): ident for ident in (ROOMS, *registry)}
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if not near:
        return ': give "rooms" or the id of an installed Gymnasium environment'
    return f": did you mean {' or '.join(known[ident] for ident in near)}?"


def _names(env: Any, count: int, first: int) -> list[str]:
    meanings = getattr(env, "get_action_meanings", None)
    members = getattr(env, "actions", None)
    names: list[str] = []
    if callable(meanings):
        told: Any = meanings()
        names = [str(name) for name in told]
    elif isinstance(members, type) and issubclass(members, enum.Enum):
        by_value = {member.value: member.name for member in members}
        names = [by_value.get(first + action, str(first + action)) for action in range(count)]
    if len(names) != count or len(set(names)) != count:
        return [str(first + action) for action in range(count)]
    return names


def same_actions(env: Env, seed: int, episode: int) -> list[int]:
    """For each action, the first action from which it could not be told apart.

    From the same seed and the same random walk, each action is held for a few steps and the frames are compared, in
    several such situations.
    """
    count = len(env.names)
    first = [0] * count
    rng = np.random.default_rng([seed, 1])
    for trial in range(_PREFIXES):
        if first == list(range(count)):
            break
        start = int(rng.integers(2**31))
        steps = int(rng.integers(min(episode, _PREFIX) + 1)) if trial else 0
        walk = _walk(env, start, rng.integers(count, size=steps).tolist())
        groups: dict[tuple[int, bytes | int], int] = {}
        for action in range(count):
            seen = _shown(env, start, walk, action) if first.count(first[action]) > 1 else action
            first[action] = groups.setdefault((first[action], seen), action)
    return first


def _walk(env: Env, seed: int, actions: list[int]) -> list[int]:
    # As much of the walk as the episode survives, less its second half where it ends on the way.
    env.restart(seed)
    for done, action in enumerate(actions):
        env.advance(action)
        if env.ended:
            return actions[: done // 2]
    return actions


def _shown(env: Env, seed: int, walk: list[int], action: int) -> bytes:
    env.restart(seed)
    for step in walk:
        env.advance(step)
    digest = hashlib.blake2b()
    for _ in range(_HELD):
        if env.ended:
            break
        digest.update(env.step(action).tobytes())
    return digest.digest()


def _keys(envs: list[Env], spec: Record) -> list[int]:
    # For each action, the first one that is the same; the four keys of rooms are all kept.
    if spec.env == ROOMS:
        return list(range(len(rooms.ACTIONS)))
    return same_actions(envs[0], spec.seed, spec.episode)


def _recorded(spec: Record, out: Path) -> bool:
    # Whether `out` already holds this very recording; ValueError if it holds anything else.
    if not out.exists():
        return False
    if not out.is_dir():
        raise ValueError(f"{out} is a file: give a folder to record into")
    if not (out / MANIFEST).exists():
        if any(out.iterdir()):
            raise ValueError(f"{out} is not empty and holds no recording: give another folder")
        return False
    manifest = read_manifest(out)
    there, asked = manifest["spec"], asdict(spec)
    if there != asked:
        changes = [f"{key} {there.get(key)!r}, not {asked[key]!r}" for key in asked if there.get(key) != asked[key]]
        raise ValueError(f"{out} holds a different recording ({'; '.join(changes)}): give another folder")
    for shard in manifest["shards"]:
        if not (out / shard["file"]).is_file():
            raise ValueError(f"{out / shard['file']} is missing: delete {out} to record it again")
    return True


def _write(
    spec: Record, envs: list[Env], keys: list[int], folder: Path, progress: Callable[[int, int], None] | None
) -> None:
    table: list[dict[str, Any]] = []
    shards: list[dict[str, Any]] = []
    waiting: list[dict[str, np.ndarray]] = []
    filled, done = 0, 0
    shape: list[int] = []
    for row, arrays in _episodes(spec, envs, keys):
        length, shape = row["length"], list(arrays["frames"].shape[1:])
        if filled + length > spec.shard:
            shards.append(_flush(folder, len(shards), waiting))
            filled = 0
        table.append(row | {"shard": len(shards), "start": filled})
        waiting.append(arrays)
        filled += length
        done += length
        if progress:
            progress(done, spec.frames)
    shards.append(_flush(folder, len(shards), waiting))
    manifest = _manifest(spec, envs, keys) | {"shape": shape, "episodes": table, "shards": shards}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _flush(folder: Path, number: int, waiting: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    path = folder / f"shard-{number:05d}.npz"
    arrays = {name: np.concatenate([episode[name] for episode in waiting]) for name in ARRAYS}
    waiting.clear()
    write_shard(path, arrays)
    frames = len(arrays["actions"])
    return {"file": path.name, "frames": frames, "bytes": path.stat().st_size, "sha256": checksum(path)}


def _episodes(spec: Record, envs: list[Env], keys: list[int]) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    kept = sorted(set(keys))
    left, index = spec.frames, 0
    while left:
        env = envs[index % len(envs)]
        rng = np.random.default_rng([spec.seed, 0, index])
        seed = int(rng.integers(2**31))
        arrays = _play(env, seed, rng, kept, spec, min(left, spec.episode + 1))
        length = len(arrays["actions"])
        arrays["episode"] = np.full(length, index, np.int64)
        split = "heldout" if _held_out(index, spec.holdout, len(envs)) else "train"
        yield {"episode": index, "prompt": env.prompt, "seed": seed, "split": split, "length": length}, arrays
        left -= length
        index += 1


def _play(
    env: Env, seed: int, rng: np.random.Generator, kept: list[int], spec: Record, limit: int
) -> dict[str, np.ndarray]:
    frames, actions, rewards = [env.reset(seed)], [], []
    key: int | None = None
    while len(frames) < limit and not env.ended:
        if spec.env == ROOMS:
            key = rooms.policy(env.inner, rng, key, spec.hold)
        elif key is None or rng.random() >= spec.hold:
            key = int(rng.integers(len(kept)))
        frames.append(env.step(kept[key]))
        actions.append(key)
        rewards.append(env.reward)
        if frames[-1].shape != frames[0].shape:
            raise ValueError(f"{env.ident} changes its frame size from {frames[0].shape} to {frames[-1].shape}")
    ends = np.arange(len(frames)) == len(frames) - 1
    return {
        "frames": np.stack(frames),
        "actions": np.array([*actions, -1], np.int64),
        "rewards": np.array([*rewards, 0], np.float32),
        "ends": ends,
    }


def _held_out(index: int, share: float, envs: int) -> bool:
    if share == 0:
        return False
    every = round(1 / share)
    # The second of every block, so that two episodes are enough to have one; moved on by one from block to block
    # where a fixed place would always meet the same world.
    shift = index // every if math.gcd(every, envs) > 1 else 0
    return (index - 1 - shift) % every == 0


def _manifest(spec: Record, envs: list[Env], keys: list[int]) -> dict[str, Any]:
    names = envs[0].names
    pairs = list(enumerate(keys))
    return {
        "format": FORMAT,
        "spec": asdict(spec),
        "worlds": [{"prompt": env.prompt, "env": env.ident} for env in envs],
        "actions": [{"index": action, "name": names[action]} for action, same in pairs if action == same],
        "dropped": [
            {"index": action, "name": names[action], "same_as": names[same]} for action, same in pairs if action != same
        ],
        "versions": _versions(envs),
    }


def _versions(envs: list[Env]) -> dict[str, str]:
    makers = {type(env.inner.unwrapped).__module__.partition(".")[0] for env in envs}
    found = {"python": platform.python_version(), "forcing": __version__}
    for package in sorted({"gymnasium", "minigrid", "numpy", *makers} - {"forcing"}):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
