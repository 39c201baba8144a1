"""Is it any good, in a world whose truth is known: every row of the table, measured on held-out episodes of `rooms`."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forcing.data.shards import MANIFEST, Recording, checksum
from forcing.eval.cost import cost
from forcing.eval.machine import machine, revision
from forcing.eval.measure import FULL, Measure
from forcing.eval.results import Results, Row, write
from forcing.eval.rows import Candidate, candidates, facts
from forcing.eval.samples import effort, real, sample
from forcing.eval.scenes import gather
from forcing.eval.scores import Judge, Scores
from forcing.world import World

VERSION = 1  # raise it where a figure of an unchanged world would change
REAL = "real"
Progress = Callable[[str, float], None]  # what is being measured, and the share of the work that is done


def results_path(run: Path) -> Path:
    """Where `evaluate` leaves the results of a run."""
    return run / "eval" / "results.json"


def evaluate(
    run: Path,
    recording: Recording,
    measure: Measure = FULL,
    *,
    shipped: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
    command: str | None = None,
) -> Results:
    """Measure every world of the run folder; the results are also left in `results_path(run)`.

    A row is absent where its stage is. shipped: worlds, by recipe name, that the run need not have made. Each row at
    each seed is kept as soon as it is measured, so the same call continues an interrupted evaluation, and measures
    only what has changed. ValueError if there is nothing to measure, or the recording is not of `rooms`.
    """
    began = time.monotonic()
    rows = candidates(run, measure, shipped or {})
    units = [unit for row in (None, *rows) for unit in _units(run, recording, measure, row)]
    _measure(
        [unit for unit in units if unit.read() is None], recording, measure, progress or (lambda _what, _done: None)
    )
    labels = {REAL: "the real world"} | {row.name: row.label for row in rows}
    found = tuple(_row(name, label, [unit for unit in units if unit.row == name]) for name, label in labels.items())
    about = {
        "measure": asdict(measure),
        "command": command,
        "seconds": round(time.monotonic() - began, 1),
        "revision": revision(),
        "machine": machine(),
        "recording": {"path": str(recording.path), "sha256": checksum(recording.path / MANIFEST)}
        | {name: recording.manifest.get(name) for name in ("spec", "versions")},
        "worlds": {row.name: facts(row) for row in rows},
    }
    results = Results(about, found)
    results.save(results_path(run))
    return results


@dataclass(frozen=True)
class _Unit:
    """One row at one seed: `path` holds its scores once they are measured. candidate: None for the real world."""

    row: str
    seed: int
    candidate: Candidate | None
    path: Path

    def read(self) -> Scores | None:
        try:
            found = json.loads(self.path.read_text())
            return Scores(found["values"], found["curves"])
        except (OSError, ValueError, KeyError):
            return None


def _units(run: Path, recording: Recording, measure: Measure, row: Candidate | None) -> list[_Unit]:
    # Named by everything that the scores depend on, so that whatever changes is measured again.
    sizes = {name: value for name, value in asdict(measure).items() if name not in ("name", "seeds")}
    causes = [VERSION, sizes, checksum(recording.path / MANIFEST), facts(row) if row else None]
    key = hashlib.sha256(json.dumps(causes, sort_keys=True).encode()).hexdigest()[:16]
    name = row.name if row else REAL
    folder = results_path(run).parent / "units"
    return [_Unit(name, seed, row, folder / f"{name}-seed{seed}-{key}.json") for seed in measure.seeds]


def _measure(units: Sequence[_Unit], recording: Recording, measure: Measure, progress: Progress) -> None:
    if not units:
        return
    progress("real footage", 0.0)
    judge = Judge.appoint(gather(recording, measure), measure)
    total = sum(effort(unit.candidate, measure) for unit in units if unit.candidate) or 1
    spent, worlds = 0, {}
    for unit in units:
        what = f"{unit.candidate.label if unit.candidate else 'the real world'}, seed {unit.seed}"

        def tick(passes: int, what: str = what) -> None:
            nonlocal spent
            spent += passes
            progress(what, min(1.0, spent / total))

        tick(0)
        if unit.candidate is None:
            scores = judge.score(real(judge.scenes, unit.seed), measure.clip - 1, 1)
        else:
            path = unit.candidate.world
            world = worlds[path] if path in worlds else World.load(path)
            worlds = {path: world}  # rows of one world follow each other
            scores = _scored(world, unit.candidate, unit.seed, judge, tick)
        write(unit.path, asdict(scores))


def _scored(world: World, row: Candidate, seed: int, judge: Judge, tick: Callable[[int], None]) -> Scores:
    samples = sample(world, row, judge.scenes, seed, tick)
    scores = judge.score(samples, row.memory, row.sampling.chunk)
    price = cost(world, row, judge.measure.timed)
    return Scores(scores.values | {"passes": price.passes, "ms": price.ms}, scores.curves)


def _row(name: str, label: str, units: Sequence[_Unit]) -> Row:
    scores = [scores for scores in (unit.read() for unit in units) if scores is not None]
    # a figure that a seed could not take (no tile was newly revealed) is left out for all
    values = {key: tuple(each.values[key] for each in scores) for key in _shared([each.values for each in scores])}
    curves = {
        key: tuple(tuple(each.curves[key]) for each in scores) for key in _shared([each.curves for each in scores])
    }
    return Row(name, label, values, curves)


def _shared(maps: Sequence[Mapping[str, Any]]) -> list[str]:
    return [key for key in maps[0] if all(key in each for each in maps)] if maps else []
