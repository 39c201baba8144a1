"""Is it any good, in a world whose truth is known: every row of the table, measured on held-out episodes of `rooms`."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from forcing import files
from forcing.data.shards import MANIFEST, Recording, checksum
from forcing.eval.cost import cost
from forcing.eval.machine import machine, revision
from forcing.eval.measure import FULL, Measure
from forcing.eval.results import Results, Row
from forcing.eval.rows import Candidate, candidates, facts, fitting
from forcing.eval.samples import effort, real, sample
from forcing.eval.scenes import gather
from forcing.eval.scores import Judge, Scores
from forcing.eval.workers import Tick, side_by_side
from forcing.world import World

VERSION = 3  # raise it where a figure of an unchanged world would change
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
    only what has changed. The rollouts' real start is lengthened until it divides into the chunks of all rows.
    ValueError if there is nothing to measure, or the recording is not of `rooms`.
    """
    began = time.monotonic()
    rows = candidates(run, measure, shipped or {})
    measure = replace(measure, start=fitting(rows, measure.start))
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
    """One row at one seed. candidate: None for the real world. path: of its scores; `priced`: of its cost."""

    row: str
    seed: int
    candidate: Candidate | None
    path: Path

    @property
    def priced(self) -> Path:
        return self.path.with_suffix(".cost.json")

    @property
    def label(self) -> str:
        return f"{self.candidate.label if self.candidate else 'the real world'}, seed {self.seed}"

    def read(self) -> Scores | None:
        """What was measured; None if something is not yet."""
        found, price = _read(self.path), _read(self.priced) if self.candidate else {}
        if found is None or price is None or not {"values", "curves"} <= found.keys():
            return None
        return Scores(found["values"] | price, found["curves"])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


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
    worlds = {each.world: World.load(each.world) for unit in units if (each := unit.candidate)}
    unscored = [unit for unit in units if _read(unit.path) is None]
    total = sum(_effort(unit, measure) for unit in unscored) or 1
    if unscored:
        judge = Judge.appoint(gather(recording, measure), measure)
        # the longest first, so that no worker is left alone with it in the end
        order = sorted(unscored, key=lambda unit: -_effort(unit, measure))
        jobs = [(unit.label, partial(_score, unit, worlds, judge)) for unit in order]
        side_by_side(jobs, lambda what, done: progress(what, 0.95 * min(1.0, done / total)))
    unpriced = [unit for unit in units if unit.candidate and _read(unit.priced) is None]
    for number, unit in enumerate(unpriced):  # alone, or they would slow each other down
        progress(f"cost: {unit.label}", 0.95 + 0.05 * number / len(unpriced))
        if unit.candidate:
            price = cost(worlds[unit.candidate.world], unit.candidate, measure.timed)
            files.write_json(unit.priced, asdict(price))
    progress("done", 1.0)


def _score(unit: _Unit, worlds: Mapping[Path, World], judge: Judge, tick: Tick) -> None:
    row = unit.candidate
    if row is None:
        scores = judge.score(real(judge.scenes, unit.seed), judge.measure.clip - 1, 1)
    else:
        samples = sample(worlds[row.world], row, judge.scenes, unit.seed, tick)
        scores = judge.score(samples, row.memory, row.sampling.chunk)
    files.write_json(unit.path, asdict(scores))


def _effort(unit: _Unit, measure: Measure) -> int:
    return effort(unit.candidate, measure) if unit.candidate else 0


def _row(name: str, label: str, units: Sequence[_Unit]) -> Row:
    scores = [scores for scores in (unit.read() for unit in units) if scores is not None]
    # a figure that a seed could not take (nothing was seen that could be right) is left out for all, and the verdict
    # takes what is left out for missed
    values = {key: tuple(each.values[key] for each in scores) for key in _shared([each.values for each in scores])}
    curves = {
        key: tuple(tuple(each.curves[key]) for each in scores) for key in _shared([each.curves for each in scores])
    }
    return Row(name, label, values, curves)


def _shared(maps: Sequence[Mapping[str, Any]]) -> list[str]:
    return [key for key in maps[0] if all(key in each for each in maps)] if maps else []
