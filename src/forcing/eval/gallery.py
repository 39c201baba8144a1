"""The clips of the report: every row beside every other, moving together, drawn pixel for pixel.

A clip is one PNG of its frames side by side, shown through a window of one frame that steps along it: no script, no
video codec, crisp at any size, and all clips of a scene in step.
"""

from collections.abc import Sequence
from html import escape

import numpy as np

from forcing.eval.films import Reel, Shooting, Take, strip
from forcing.eval.rows import FAMILIES

GLYPHS = {"left": "←", "right": "→", "forward": "↑", "up": "↑", "down": "↓", "wait": "·", "noop": "·"}
REGIMES = {
    "told": ("Told", "Every key is given: an interactive world. All rows share the start and the keys pressed."),
    "free": ("Free", "No key is told: from the same start, every row imagines where to go."),
    "nothing": ("From nothing", "A prompt alone. The real clip is one of many that the prompt allows."),
}


def gallery(reel: Reel, shooting: Shooting, steps: Sequence[int], actions: Sequence[str]) -> str:
    """Three regimes, one scene a prompt: the real world on top, a column a family, a line a number of steps.

    steps: the teacher's, then the few of the students. actions: what the keys of the recording are called.
    """
    parts = []
    keys = [_called(keys, shooting.start, actions) for keys in reel.keys]
    for regime, (title, lead) in REGIMES.items():
        scenes = "".join(_scene(reel, regime, number, keys[number], steps) for number in range(len(reel.prompts)))
        parts.append(f"<h3>{escape(title)}</h3><p class=lead>{escape(lead)}</p><div class=scenes>{scenes}</div>")
    return "".join(parts)


def _scene(reel: Reel, regime: str, number: int, keys: Sequence[str], steps: Sequence[int]) -> str:
    takes = {take.name: (take, clips[number]) for take in reel.takes if (clips := getattr(take, regime)) is not None}
    seen = {name.partition("-")[0] for name in takes}
    families = {family: label for family, label in FAMILIES.items() if family in seen}
    beside = _keys(keys) if regime == "told" else ""
    if "base" in takes:
        take, clip = takes["base"]
        beside = f"{_film(take, clip)}<small>base: {len(clip)} frames at once</small>"
    lines = [
        f"<tr><th scope=row>real</th><td>{_film(*takes['real'])}</td><td colspan=2 class=beside>{beside}</td></tr>"
    ]
    head = "".join(f"<th scope=col>{escape(label)}</th>" for label in families.values())
    lines.append(f"<tr><td></td>{head}</tr>")
    for count in steps:
        names = [family if count == steps[0] else f"{family}-{count}" for family in families]
        if any(name in takes for name in names):
            cells = "".join(f"<td>{_film(*takes[name]) if name in takes else ''}</td>" for name in names)
            lines.append(f"<tr><th scope=row>{count} step{'s' * (count > 1)}</th>{cells}</tr>")
    return f"<article class=scene><h4>{escape(reel.prompts[number])}</h4><table>{''.join(lines)}</table></article>"


def _film(take: Take, clip: np.ndarray) -> str:
    return (
        f'<i class=film role=img aria-label="{escape(take.label)}" title="{escape(take.label)}" '
        f'style="--n:{len(clip)};background-image:url({strip(clip)})"></i>'
    )


def _called(keys: np.ndarray, start: int, actions: Sequence[str]) -> list[str]:
    # the frames given are marked, not the keys within them
    return ["start" if at < start else actions[int(key)] for at, key in enumerate(keys)]


def _keys(names: Sequence[str]) -> str:
    # one line a frame, rolled along in step with the films
    lines = "".join(
        f"<li>{GLYPHS[name]} <small>{name}</small></li>" if name in GLYPHS else f"<li>{escape(name)}</li>"
        for name in names
    )
    return f'<div class=keys aria-hidden=true><ol style="--n:{len(names)}">{lines}</ol></div>'
