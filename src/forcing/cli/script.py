"""Action scripts: "forward*3, left, for*2" is six keys, by name or by any unambiguous beginning."""

from __future__ import annotations

import itertools
import re

import numpy as np

from forcing.actions.keys import Keys

_MOST = 100_000  # keys in a script


def read(script: str, keys: Keys) -> tuple[int, ...]:
    """The keys of a script, as numbers. Separated by commas or spaces; NAME*COUNT presses one COUNT times."""
    pressed: list[int] = []
    for word in re.sub(r"\s*\*\s*", "*", script).replace(",", " ").split():
        name, star, count = word.partition("*")
        if star and not (count.isascii() and count.isdigit() and 0 < int(count) <= _MOST):
            raise ValueError(f"{word!r} in the action script: behind * belongs a whole number from 1 to {_MOST}")
        pressed += [keys.number(name)] * (int(count) if star else 1)
    if not 0 < len(pressed) <= _MOST:
        raise ValueError(
            f"the action script {script!r} has {len(pressed)} keys; it needs 1 to {_MOST}, "
            f'such as "{keys.names[0]}*3, {keys.names[-1]}", of {", ".join(keys.names)}'
        )
    return tuple(pressed)


def lasting(pressed: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The script, from its beginning again until `count` keys are pressed."""
    if len(pressed) > count:
        raise ValueError(f"the action script has {len(pressed)} keys, but only {count} lead to a frame: raise --frames")
    return tuple(itertools.islice(itertools.cycle(pressed), count))


def wander(keys: Keys, count: int, seed: int, clip: int, hold: float = 0.6) -> tuple[int, ...]:
    """Random keys, each held for another frame with probability `hold`."""
    rng = np.random.default_rng([seed, clip])
    pressed: list[int] = []
    for _ in range(count):
        if pressed and rng.random() < hold:
            pressed.append(pressed[-1])
        else:
            pressed.append(int(rng.integers(keys.width)))
    return tuple(pressed)
