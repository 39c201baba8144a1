"""Which models an evaluation compares: the worlds of a run, each with the ways it is sampled."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forcing import flow
from forcing.data.shards import checksum
from forcing.eval.measure import Measure
from forcing.recipe import Recipe, Sampling, dump, parse
from forcing.rollout import Plan
from forcing.world import FILES

FAMILIES = {"ar": "AR teacher", "cd": "causal CD", "dmd": "DMD"}
STAGES = {"base": "bidirectional base", **FAMILIES}


class NoWorldsError(ValueError):
    """A run folder in which no stage is finished."""


@dataclass(frozen=True)
class Candidate:
    """A row to be measured. `world`: its folder. `recipe`: what made it. `sampling`: how it generates here."""

    name: str
    label: str
    world: Path
    recipe: Recipe
    sampling: Sampling

    @property
    def causal(self) -> bool:
        return self.recipe.causal

    @property
    def passes(self) -> int:
        """Network evaluations a generated frame, once something precedes it: its steps and settling it."""
        # the bidirectional model generates whole clips, and settles nothing
        return (len(self.sampling.plan.rest) + self.causal) * (1 if self.sampling.guidance == 1 else 2)

    @property
    def memory(self) -> int | None:
        """Frames before a frame that the model can look back on for certain; None: the whole clip."""
        return self.sampling.window - self.sampling.chunk if self.causal else None


def home(run: Path, name: str, shipped: Mapping[str, Path]) -> Path | None:
    """The folder of the world that recipe `name` made: in the run, or shipped, or nowhere."""
    for path in (run / name / "world", shipped.get(name)):
        if path is not None and (path / "world.json").is_file():
            return path
    return None


def recipe_of(world: Path) -> Recipe:
    """The recipe that made a world, without loading its weights."""
    return parse(Recipe, json.loads((world / "world.json").read_text())["recipe"])


def facts(row: Candidate) -> dict[str, Any]:
    """All that a row's clips depend on: the files of its world, and how it is sampled."""
    return {
        "recipe": row.recipe.name,
        "steps": row.recipe.steps,
        "sampling": dump(row.sampling),
        "sha256": {name: checksum(row.world / name) for name in FILES},
    }


def candidates(run: Path, measure: Measure, shipped: Mapping[str, Path]) -> list[Candidate]:
    """Every row the run has worlds for: teachers at many steps, the AR teacher cut to few, and the students.

    NoWorldsError if there are none.
    """
    plans = _plans(run, measure, shipped)
    found = [*_teachers(run, measure, shipped, plans), *_students(run, measure, shipped, plans)]
    if not found:
        raise NoWorldsError(f"{run} holds no worlds to evaluate: expected folders such as {run / 'ar' / 'world'}")
    for each in found:
        # frames ahead of a true past are predicted in whole chunks
        if each.causal and measure.clip % each.sampling.chunk:
            raise ValueError(
                f"{each.name} generates chunks of {each.sampling.chunk} frames: clip {measure.clip} must be a multiple "
                "of it"
            )
        if not each.causal and each.recipe.frames < measure.clip:
            raise ValueError(f"{each.name} makes clips of {each.recipe.frames} frames, fewer than clip {measure.clip}")
    return found


def fitting(rows: Sequence[Candidate], start: int) -> int:
    """The least number of real frames, `start` or more, that divides into the chunks of every row.

    One number for all: rows that continued starts of different lengths could not be compared.
    """
    chunk = math.lcm(*(row.sampling.chunk for row in rows if row.causal))
    return -(-start // chunk) * chunk


def _plans(run: Path, measure: Measure, shipped: Mapping[str, Path]) -> dict[int, Plan]:
    # The levels at which each number of steps is compared: those of the DMD student of so many, else CD's.
    cd = home(run, "cd", shipped)
    plans = {n: _stretched(recipe_of(cd), n) for n in measure.few} if cd is not None else {}
    made = {n: home(run, f"dmd-{n}step", shipped) for n in measure.few}
    return plans | {n: recipe_of(world).sampling.plan for n, world in made.items() if world is not None}


def _teachers(run: Path, measure: Measure, shipped: Mapping[str, Path], plans: Mapping[int, Plan]) -> list[Candidate]:
    found = []
    for name in ("base", "ar"):
        world = home(run, name, shipped)
        if world is None:
            continue
        recipe = recipe_of(world)
        shift = recipe.stage.shift
        cuts = [steps for steps in measure.few if steps < measure.many] if name == "ar" else []
        for steps in (measure.many, *cuts):
            plan, many = Plan.ode(steps, shift), steps == measure.many
            if not many and steps in plans:
                # Even levels, where a cut teacher's distribution is closest (at a student's (1, 0.5) it was twice as
                # far, docs/log.md), and as many steps as the student for a frame that nothing precedes.
                plan = replace(plan, first=plans[steps].first)
            label = f"{STAGES[name]}, {_steps(steps)}" if many else f"{STAGES[name]} cut to {_steps(steps)}"
            sampling = replace(recipe.sampling, plan=plan)
            found.append(Candidate(name if many else f"{name}-{steps}", label, world, recipe, sampling))
    return found


def _students(run: Path, measure: Measure, shipped: Mapping[str, Path], plans: Mapping[int, Plan]) -> list[Candidate]:
    found = []
    cd = home(run, "cd", shipped)
    if cd is not None:
        recipe = recipe_of(cd)
        for n in measure.few:
            how = replace(recipe.sampling, plan=plans[n], guidance=1.0)
            found.append(Candidate(f"cd-{n}", f"{STAGES['cd']}, {_steps(n)}", cd, recipe, how))
    for n in measure.few:
        world = home(run, f"dmd-{n}step", shipped)
        if world is not None:
            recipe = recipe_of(world)
            how = replace(recipe.sampling, guidance=1.0)
            found.append(Candidate(f"dmd-{n}", f"{STAGES['dmd']}, {_steps(n)}", world, recipe, how))
    return found


def _stretched(recipe: Recipe, steps: int) -> Plan:
    # no student says which levels to visit: the recipe's own plan if it fits, else evenly spaced ones of its stage
    own = recipe.sampling.plan
    if len(own.rest) == steps:
        return own
    rest = tuple(flow.grid(steps, recipe.stage.shift)[:-1].tolist())
    return replace(own, rest=rest, first=own.first if steps < len(own.first or ()) else None)


def _steps(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"
