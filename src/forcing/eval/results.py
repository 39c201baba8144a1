"""What an evaluation found: one number for each row, metric and seed, and what it was measured with."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from forcing import files

FORMAT = 1


@dataclass(frozen=True)
class Metric:
    """How a metric is called and read. better: "high", "low", or "one" for a ratio to the real world.

    kind: "share" of 1, "ratio", or a plain "number". drift: it also has a curve over the frames of a rollout.
    """

    name: str
    group: str
    title: str
    better: str
    kind: str
    meaning: str
    drift: bool = False


METRICS = (
    Metric(
        "control",
        "Control (told)",
        "one frame ahead",
        "high",
        "share",
        "Given the true frames before it and the key, the share of tiles of the next view that are as they must be, "
        "where the past determines that there is something to see.",
    ),
    Metric(
        "control_frames",
        "Control (told)",
        "whole view",
        "high",
        "share",
        "Share of frames in which every determined tile is right, darkness included.",
    ),
    Metric(
        "control_rollout",
        "Control (told)",
        "in rollouts",
        "high",
        "share",
        "The same in long rollouts, judged by what the model itself showed before.",
        drift=True,
    ),
    Metric(
        "prompt",
        "Prompt",
        "from nothing",
        "high",
        "share",
        "Share of clips begun from a prompt alone whose kinds of tiles are most like those of held-out clips of that "
        "prompt, among all prompts.",
    ),
    Metric(
        "valid_determined",
        "Validity",
        "determined",
        "high",
        "share",
        "Share of tiles that are tiles of the world, where the past determines them (told rollouts).",
        drift=True,
    ),
    Metric(
        "valid_new",
        "Validity",
        "newly revealed",
        "high",
        "share",
        "The same for tiles that nothing determines: what comes into view. This asks whether each is a tile, and is no "
        "distribution: walls without end are valid, too. The distance of told rollouts asks for the rest.",
        drift=True,
    ),
    Metric(
        "valid_free",
        "Validity",
        "free",
        "high",
        "share",
        "The same for all tiles of rollouts in which no key is told.",
        drift=True,
    ),
    Metric(
        "valid_nothing",
        "Validity",
        "from nothing",
        "high",
        "share",
        "The same for clips begun from a prompt alone.",
    ),
    Metric(
        "frechet_told",
        "Frechet distance",
        "told",
        "low",
        "number",
        "Distance between frame pairs of told rollouts and of the recorded frames that they were given the start and "
        "the keys of.",
        drift=True,
    ),
    Metric(
        "frechet_free",
        "Frechet distance",
        "free",
        "low",
        "number",
        "Distance between frame pairs of free rollouts and of what the world does from the same starts. "
        "The real world's own figure is no bound that a model can reach: both its sides play on the same hidden map, "
        "which a model must imagine.",
        drift=True,
    ),
    Metric(
        "frechet_nothing",
        "Frechet distance",
        "from nothing",
        "low",
        "number",
        "Distance between frame pairs of clips begun from nothing and of held-out clips.",
    ),
    Metric(
        "diversity_free",
        "Diversity / real",
        "free",
        "one",
        "ratio",
        "How much rollouts from the same start differ at the same frame, over how much the real world's do. "
        "A perfect model lies above 1: the world's rollouts share a hidden map, of which a model imagines another each "
        "time.",
        drift=True,
    ),
    Metric(
        "diversity_nothing",
        "Diversity / real",
        "from nothing",
        "one",
        "ratio",
        "How much clips of the same prompt differ at their last frame, over how much held-out clips do.",
    ),
    Metric(
        "motion_told",
        "Motion / real",
        "told",
        "one",
        "ratio",
        "Change from frame to frame in told rollouts, over that of the recorded frames with the same keys.",
        drift=True,
    ),
    Metric(
        "motion_free",
        "Motion / real",
        "free",
        "one",
        "ratio",
        "Change from frame to frame in free rollouts, over that of the real world from the same starts.",
        drift=True,
    ),
    Metric(
        "motion_nothing",
        "Motion / real",
        "from nothing",
        "one",
        "ratio",
        "Change from frame to frame in clips begun from nothing, over that of held-out clips.",
    ),
    Metric(
        "passes",
        "Cost",
        "passes a frame",
        "low",
        "number",
        "Network evaluations of one frame for each frame generated; guidance counts twice, settling the frame into "
        "the past is included.",
    ),
    Metric("ms", "Cost", "ms a frame", "low", "number", "Milliseconds a frame, one clip at a time (median)."),
)
SHORT = frozenset({"control_rollout", "valid_determined", "valid_new"})  # of a rollout, or of a base's clip
SHORT_NOTE = "* of short clips begun from nothing: the base makes no rollouts"
BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}


@dataclass(frozen=True)
class Row:
    """One line of the table. values: metric -> one number a seed. curves: metric -> for each seed, one a bucket.

    name: "real", "base", "ar", "ar-4", ..., "cd-2", ..., "dmd-1"; a number is of sampling steps a frame.
    """

    name: str
    label: str
    values: Mapping[str, tuple[float, ...]]
    curves: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)

    def mean(self, metric: str) -> float | None:
        """The mean over seeds; None where it was not measured."""
        found = self.values.get(metric)
        return float(np.mean(found)) if found else None

    def span(self, metric: str) -> tuple[float, float] | None:
        """The least and the greatest over seeds; None where it was not measured."""
        found = self.values.get(metric)
        return (min(found), max(found)) if found else None

    def curve(self, metric: str) -> list[float]:
        """The mean curve over seeds; empty where there is none."""
        found = self.curves.get(metric)
        return [float(value) for value in np.mean(found, 0)] if found else []


def short(metric: Metric, row: Row) -> bool:
    """Whether this figure is of the base's own short clips, where the other rows' are of long rollouts."""
    return row.name == "base" and metric.name in SHORT and metric.name in row.values


@dataclass(frozen=True)
class Results:
    """`about`: protocol, seeds, machine, recipes and checkpoints, revision, command: all it takes to repeat it."""

    about: Mapping[str, Any]
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row | None:
        """The row called `name`, if it was measured."""
        return next((row for row in self.rows if row.name == name), None)

    def save(self, path: Path) -> Path:
        """Write JSON to `path`, whole or not at all."""
        document = {"format": FORMAT, "about": dict(self.about), "rows": [asdict(row) for row in self.rows]}
        return files.write_json(path, document)

    @staticmethod
    def load(path: Path) -> "Results":
        """The results in `path`; ValueError if they are missing or not such a file."""
        try:
            document = json.loads(path.read_text())
        except (OSError, ValueError) as damage:
            raise ValueError(f"{path} holds no results: {damage}") from damage
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            found = document.get("format") if isinstance(document, dict) else None
            raise ValueError(f"{path} has format {found!r}; this version reads format {FORMAT}")
        rows = tuple(Row(row["name"], row["label"], *_frozen(row["values"], row["curves"])) for row in document["rows"])
        return Results(document["about"], rows)


def _frozen(
    values: Mapping[str, list[float]], curves: Mapping[str, list[list[float]]]
) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[tuple[float, ...], ...]]]:
    return (
        {name: tuple(numbers) for name, numbers in values.items()},
        {name: tuple(tuple(numbers) for numbers in seeds) for name, seeds in curves.items()},
    )
