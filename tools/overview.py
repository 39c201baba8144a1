"""Draw the picture at the top of the README from a finished run.

python tools/overview.py runs/rooms-full docs/images/overview.png
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
INK, PAPER, ACCENT = "#1f2430", "#ffffff", "#c8412b"
STAGES = (
    ("0  base", "bidirectional diffusion:\nall frames at once"),
    ("1  AR teacher", "teacher forcing: each noisy\nframe sees the clean ones"),
    ("2  causal CD", "the same answer at both ends\nof one teacher step"),
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
    figure, axes = plt.subplots(figsize=(13, 8.6), facecolor=PAPER)
    axes.set(xlim=(0, 100), ylim=(0, 66))
    axes.axis("off")
    for i, (name, text) in enumerate(STAGES):
        left = 1.5 + 25 * i
        axes.add_patch(FancyBboxPatch((left, 54), 20, 10.5, boxstyle="round,pad=0.4", fc="#f3f1ec", ec=INK, lw=1.2))
        axes.text(left + 10, 61.8, name, ha="center", va="center", fontsize=14, weight="bold", color=INK)
        axes.text(left + 10, 57, text, ha="center", va="center", fontsize=10.5, color=INK)
        if i:
            arrow = FancyArrowPatch(
                (left - 4.4, 59.2), (left - 0.6, 59.2), arrowstyle="-|>", mutation_scale=18, color=ACCENT
            )
            axes.add_patch(arrow)
    height = 50 / len(made)
    for i, (label, video) in enumerate(made):
        top = 51 - i * height
        axes.text(15, top - height / 2, label, ha="right", va="center", fontsize=12, color=INK)
        for t, frame in enumerate(video):
            x = 16 + t * 5.25
            axes.imshow(
                frame, extent=(x, x + 4.9, top - height + 1.2, top - 1.2), interpolation="nearest", aspect="auto"
            )
    axes.axvline(16 + HISTORY * 5.25 - 0.18, 0.01, 0.77, color=ACCENT, lw=1.5)
    axes.text(16 + HISTORY * 5.25 - 0.6, 51.2, "given", ha="right", fontsize=11, color=ACCENT)
    axes.text(16 + HISTORY * 5.25 + 0.3, 51.2, "imagined, no keys told", ha="left", fontsize=11, color=ACCENT)
    axes.set(xlim=(0, 100), ylim=(0, 66))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor=PAPER)


if __name__ == "__main__":
    draw(strips(Path(sys.argv[1])), Path(sys.argv[2]))
