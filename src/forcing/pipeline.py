"""All stages in order: what is finished is skipped, what is not is resumed, and each must pass its gate."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from forcing.data.shards import Recording
from forcing.recipe import Recipe, dump
from forcing.train.gate import Verdict, check, judge
from forcing.train.run import Material, material, train
from forcing.world import World


@dataclass
class Pipeline:
    """`folder`: the run; one folder inside for each recipe. `shipped`: worlds that need no training, by recipe name."""

    folder: Path
    recipes: Mapping[str, Recipe]
    shipped: Mapping[str, Path]
    console: Console

    def run(self, names: Sequence[str], recording: Recording) -> dict[str, World]:
        """Train or skip `names`, in order, on `recording`. Raises GateClosed or Interrupted."""
        worlds: dict[str, World] = {}
        data: Material | None = None
        for name in names:
            world = self.finished(name)
            if world is None:
                data = data or material(recording, self._codec(), self.recipes[name].frames)
                world = self.train(name, data)
            worlds[name] = world
        return worlds

    def train(self, name: str, data: Material) -> World:
        """One recipe, whose starts must be finished or shipped."""
        recipe, home = self.recipes[name], self.folder / name
        starts = {start: self.need(start) for start in sorted({r.start for r in recipe.roles.values() if r.start})}
        world = train(recipe, home, starts, data, self.console)
        start = recipe.roles["student"].start
        if start is not None and (recipe.gate.control is not None or recipe.gate.quality is not None):
            verdict = judge(world, starts[start], data)
            _write(home / "gate.json", verdict)
            check(world, verdict)
            self.console.print(
                f"{name}: passed its gate (control {verdict.control:.2f}, before {verdict.control_before:.2f}; "
                f"distance {verdict.quality:.2f}, before {verdict.quality_before:.2f})",
                highlight=False,
            )
        return world

    def finished(self, name: str) -> World | None:
        """The product of `name` if this run has it, with this very recipe, or if it is shipped."""
        path = self.folder / name / "world"
        if path.exists():
            world = World.load(path)
            if dump(world.recipe) == dump(self.recipes[name]):
                self._recheck(name, world)
                self.console.print(f"{name}: finished already", highlight=False)
                return world
        if name in self.shipped:
            self.console.print(f"{name}: shipped, not trained here (--from-scratch trains it)", highlight=False)
            return World.load(self.shipped[name])
        return None

    def need(self, name: str) -> World:
        """A world to start from."""
        for path in (self.folder / name / "world", self.shipped.get(name)):
            if path is not None and path.exists():
                return World.load(path)
        raise ValueError(f"{name} must be trained first: no world in {self.folder / name}")

    def _recheck(self, name: str, world: World) -> None:
        gate = self.folder / name / "gate.json"
        if gate.exists():
            check(world, Verdict(**json.loads(gate.read_text())))

    def _codec(self):
        for path in (self.folder / "base" / "world", self.shipped.get("base")):
            if path is not None and path.exists():
                return World.load(path).codec
        return None


def _write(path: Path, verdict: Verdict) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(verdict.as_dict(), indent=1) + "\n")
    draft.replace(path)
