"""Draw the picture at the top of the README from a finished run.

python tools/overview.py runs/rooms docs/images/overview.png
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

from forcing.data.clips import Clips
from forcing.data.order import seeded
from forcing.data.shards import Recording
from forcing.recipe import Sampling
from forcing.rollout import Plan
from forcing.world import World

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HISTORY, SHOWN, SEED = 4, 12, 7
ROW, STEP, SIDE = 5.6, 5.25, 4.9  # of the picture's strips, in hundredths of its width
INK, PAPER, ACCENT = "#1f2430", "#ffffff", "#c8412b"
STAGES = (
    ("0  base", "bidirectional diffusion:\nall frames at once"),
    ("1  AR teacher", "teacher forcing: each noisy\nframe sees the clean ones"),
    ("2  causal CD", "the same answer at either\nend of a teacher step"),
    ("3  asymmetric DMD", "on its own rollouts, judged\nby base and critic"),
)


@dataclass(frozen=True)
class Strip:
    label: str
    recipe: str
    sampling: Sampling | None = None


def strips(run: Path) -> list[tuple[str, np.ndarray]]:
    """Labelled clips [F, H, W, 3] that begin with the same real frames and imagine the rest, no keys told."""
    ar, two = World.load(run / "ar" / "world"), World.load(run / "dmd-2step" / "world").recipe.sampling
    cut = replace(ar.recipe.sampling, plan=Plan.ode(2, ar.recipe.stage.shift))
    rows = [
        Strip("AR teacher, 32 steps", "ar"),
        Strip("AR teacher cut to 2", "ar", cut),
        Strip("causal CD, 2 steps", "cd", two),
        Strip("+ DMD, 2 steps", "dmd-2step"),
    ]
    episodes = Recording.open(run / "recording").stream("heldout")
    clips = Clips(episodes, ar.codec, ar.text.prompts, ar.keys.width, frames=HISTORY + SHOWN)
    which = np.array([len(clips) * 2 // 5])
    latents, cond = clips.cut(which)
    made = [("the real world", ar.codec.decode(latents)[0])]
    told = cond.frames(0, HISTORY)
    free = replace(cond, per_frame={name: torch.zeros_like(value) for name, value in cond.per_frame.items()})
    for row in rows:
        world = World.load(run / row.recipe / "world")
        rest = free.frames(HISTORY, HISTORY + SHOWN).chunks(SHOWN, 1)
        start = (latents[:, :HISTORY], told)
        chunks = world.stream(rest, 1, seeded(SEED), sampling=row.sampling, start=start)
        made.append((row.label, ar.codec.decode(torch.cat([latents[:, :HISTORY], *chunks], 1))[0]))
    return made


def draw(made: list[tuple[str, np.ndarray]], path: Path) -> None:
    tall = 14 + ROW * len(made) + 2.5
    figure, axes = plt.subplots(figsize=(13, 0.13 * tall), facecolor=PAPER)
    for i, (name, text) in enumerate(STAGES):
        left = 1 + 25 * i
        box = FancyBboxPatch((left, tall - 11.5), 21.2, 10, boxstyle="round,pad=0.4", fc="#f3f1ec", ec=INK, lw=1.2)
        axes.add_patch(box)
        axes.text(left + 10.6, tall - 4.2, name, ha="center", va="center", fontsize=13, weight="bold", color=INK)
        axes.text(left + 10.6, tall - 8.6, text, ha="center", va="center", fontsize=9, color=INK)
        if i:
            ends = (left - 3.2, tall - 6.5), (left - 0.6, tall - 6.5)
            axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=14, color=ACCENT))
    top = tall - 16.5
    for i, (label, video) in enumerate(made):
        y = top - (i + 1) * ROW
        axes.text(15, y + SIDE / 2, label, ha="right", va="center", fontsize=12, color=INK)
        for t, frame in enumerate(video):
            x = 16 + t * STEP
            axes.imshow(frame, extent=(x, x + SIDE, y, y + SIDE), interpolation="nearest")
    now = 16 + HISTORY * STEP - (STEP - SIDE) / 2
    axes.plot([now, now], [top - len(made) * ROW - 0.5, top + 2], color=ACCENT, lw=1.5)
    axes.text(now - 0.6, top + 0.6, "given", ha="right", fontsize=11, color=ACCENT)
    axes.text(now + 0.6, top + 0.6, "imagined, no keys told", ha="left", fontsize=11, color=ACCENT)
    axes.set(xlim=(0, 100), ylim=(0, tall), aspect="equal")
    axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor=PAPER)


if __name__ == "__main__":
    draw(strips(Path(sys.argv[1])), Path(sys.argv[2]))
