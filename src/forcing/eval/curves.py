"""How the stages were trained: loss and controllability over the steps, from each one's metrics.jsonl."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forcing.eval.page import legend, missing
from forcing.eval.plots import Axes, Point, Series, chart, smoothed, thinned

STAGES = ("base", "ar", "cd", "dmd-4step", "dmd-2step", "dmd-1step")
JOURNAL = "metrics.jsonl"
LINES = {"student/loss": ("student", "student loss"), "critic/loss": ("critic", "critic loss")}


def journal(run: Path, name: str, shipped: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The lines that training stage `name` left, in the run or beside the shipped world; none if there are none."""
    places = [run / name / JOURNAL]
    if name in shipped:
        places += [shipped[name] / JOURNAL, shipped[name].parent / JOURNAL]
    for path in places:
        if path.is_file():
            return _read(path)
    return []


def training(run: Path, shipped: Mapping[str, Path]) -> str:
    """Charts of every stage that left a journal."""
    found = {name: lines for name in STAGES if (lines := journal(run, name, shipped))}
    if not found:
        return missing(f"No stage of this run left a {JOURNAL}.")
    losses = "".join(f"<figure>{_losses(name, lines)}</figure>" for name, lines in found.items())
    gauges = "".join(f"<figure>{figure}</figure>" for name, lines in found.items() if (figure := _gauge(name, lines)))
    untold = [name for name in STAGES if name not in found]
    note = missing(f"No journal of {', '.join(untold)}: shipped, or not trained yet.") if untold else ""
    return (
        legend([(row, label) for row, label in LINES.values()])
        + f"<div class=charts>{losses}</div>"
        + "<h3>Does it listen?</h3><p class=lead>The controllability gauge: error with other clips' keys over error "
        + "with the true ones, on held-out clips; 1 is deaf.</p>"
        + f"<div class=charts>{gauges}</div>{note}"
    )


def _losses(name: str, lines: list[dict[str, Any]]) -> str:
    series = []
    for key, (row, label) in LINES.items():
        points = _points(lines, key)
        if points:
            series.append(Series(row, label, thinned(points), faint=True))
            series.append(Series(row, label, thinned(smoothed(points))))
    return chart(series, Axes(f"{name}: loss", "step", log_y=True))


def _gauge(name: str, lines: list[dict[str, Any]]) -> str:
    points = _points(lines, "gauge/control")
    return chart([Series("gauge", "controllability", points)], Axes(f"{name}: controllability", "step", floor=True))


def _points(lines: list[dict[str, Any]], key: str) -> list[Point]:
    return [(float(line["step"]), float(line[key])) for line in lines if key in line]


def _read(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break  # cut short by a crash
    return lines
