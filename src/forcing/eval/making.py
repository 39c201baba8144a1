"""How a run was made: stages, protocol, machine and commands, as the report tells them."""

import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from safetensors import safe_open

from forcing.eval.curves import STAGES
from forcing.eval.results import Results
from forcing.eval.rows import home


def making(run: Path, shipped: Mapping[str, Path], results: Results | None) -> str:
    """A table of stages, where and how it was measured, and every recipe in full."""
    lines = [_stage(run, name, home(run, name, shipped)) for name in STAGES]
    head = "".join(f"<th scope=col>{name}</th>" for name in ("stage", "method", "steps", "batch", "parameters", "gate"))
    table = f"<table class=plain><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"<div class=scroll>{table}</div>" + (_measured(results) if results else "") + _recipes(run, shipped)


def parameters(world: Path) -> int:
    """Numbers that the model of a world has, read without loading them."""
    with safe_open(world / "model.safetensors", "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _stage(run: Path, name: str, world: Path | None) -> str:
    if world is None:
        return f"<tr><th scope=row>{escape(name)}</th><td colspan=5 class=missing>not in this run</td></tr>"
    recipe = json.loads((world / "world.json").read_text())["recipe"]
    own = world.is_relative_to(run)
    cells = (
        recipe["stage"]["kind"] + ("" if own else " (shipped)"),
        f"{recipe['steps']:,}",
        str(recipe["batch"]),
        f"{parameters(world) / 1e6:.1f} M",
        _gate(run / name / "gate.json"),
    )
    return f"<tr><th scope=row>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _gate(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
        control = f"control {found['control']:.2f} (before {found['control_before']:.2f})"
        return f"{control}, distance {found['quality']:.1f} (before {found['quality_before']:.1f})"
    except (OSError, ValueError, KeyError):
        return "-"


def _measured(results: Results) -> str:
    about = results.about
    machine, recording = about.get("machine", {}), about.get("recording", {})
    spec = recording.get("spec") or {}
    rows = [
        ("command", about.get("command")),
        ("revision", about.get("revision")),
        ("processor", f"{machine.get('processor')}, {machine.get('cores')} cores, {machine.get('threads')} threads"),
        ("software", f"forcing {machine.get('forcing')}, torch {machine.get('torch')}, Python {machine.get('python')}"),
        ("recording", f"{spec.get('frames'):,} frames of {spec.get('env')}, seed {spec.get('seed')}" if spec else None),
        ("evaluation", f"{about['measure']['name']}, seeds {', '.join(map(str, about['measure']['seeds']))}"),
    ]
    listed = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in rows if value)
    return f"<dl class=facts>{listed}</dl>" + _folded("The evaluation in full", about)


def _recipes(run: Path, shipped: Mapping[str, Path]) -> str:
    parts = []
    for name in STAGES:
        world = home(run, name, shipped)
        if world is not None:
            parts.append(_folded(f"Recipe {name}", json.loads((world / "world.json").read_text())["recipe"]))
    return "".join(parts)


def _folded(title: str, value: Any) -> str:
    text = escape(json.dumps(value, indent=1, ensure_ascii=False))
    return f"<details><summary>{escape(title)}</summary><pre>{text}</pre></details>"
