"""All stages in order: what is finished is skipped, what is not is resumed, and each must pass its gate."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rich.console import Console

from forcing import files
from forcing.codecs.linear import LinearCodec
from forcing.data.shards import Recording
from forcing.recipe import Recipe, differences
from forcing.train.gate import Verdict, check, judge
from forcing.train.material import Recorded, recorded
from forcing.train.run import train
from forcing.world import World


@dataclass
class Pipeline:
    """`folder`: the run; one folder inside for each recipe. `shipped`: worlds that need no training, by recipe name."""

    folder: Path
    recipes: Mapping[str, Recipe]
    shipped: Mapping[str, Path]
    codec: LinearCodec
    console: Console

    def run(self, names: Sequence[str], recording: Recording) -> dict[str, World]:
        """Train or skip `names`, in order, on `recording`. Raises GateClosed or Interrupted."""

        @lru_cache(maxsize=1)
        def data() -> Recorded:  # encoding a recording takes a while, and a finished run needs none of it
            return recorded(recording, self.codec, self.recipes[names[0]].frames)

        return {name: self.finished(name, data) or self.train(name, data()) for name in names}

    def train(self, name: str, data: Recorded) -> World:
        """One recipe, whose starts must be finished or shipped."""
        recipe, home = self.recipes[name], self.folder / name
        (home / "gate.json").unlink(missing_ok=True)
        world = train(recipe, home, self._starts(name), data, self.console)
        self._pass_gate(world, lambda: data)
        return world

    def finished(self, name: str, data: Callable[[], Recorded]) -> World | None:
        """The product of `name` if this run has it, made by this recipe from these starts, or if it is shipped."""
        path = self.folder / name / "world"
        if not path.exists():
            if name not in self.shipped:
                return None
            self.console.print(f"{name}: shipped, not trained here (--from-scratch trains it)", highlight=False)
            return World.load(self.shipped[name])
        world = World.load(path)
        different = differences(world.recipe, self.recipes[name])
        if different:
            raise ValueError(
                f"{path.parent} was made by a different recipe (differs in: {', '.join(different)}); use another run "
                "folder, or delete this one to train it again"
            )
        starts = self._starts(name)
        silent = [start for start in starts if start not in world.starts]
        if silent:
            raise ValueError(
                f"{path} does not say which {', '.join(silent)} it started from; delete it to train it again"
            )
        stale = [start for start, its in starts.items() if world.starts[start] != its.digest]
        if stale:
            raise ValueError(f"{path.parent} started from another {', '.join(stale)}; delete it to train it again")
        self._pass_gate(world, data)
        self.console.print(f"{name}: finished already", highlight=False)
        return world

    def need(self, name: str) -> World:
        """A world to start from."""
        for path in (self.folder / name / "world", self.shipped.get(name)):
            if path is not None and path.exists():
                return World.load(path)
        raise ValueError(f"{name} must be trained first: no world in {self.folder / name}")

    def _starts(self, name: str) -> dict[str, World]:
        return {
            start: self.need(start) for start in sorted({r.start for r in self.recipes[name].roles.values() if r.start})
        }

    def _pass_gate(self, world: World, data: Callable[[], Recorded]) -> None:
        """Judge a product, once, and check the verdict against the recipe's gate."""
        name, start = world.recipe.name, world.recipe.roles["student"].start
        gate = self.recipes[name].gate
        if start is None or (gate.control is None and gate.quality is None):
            return
        path = self.folder / name / "gate.json"
        if path.exists():
            verdict = _read(path)
        else:
            verdict = judge(world, self.need(start), data())
            files.write_json(path, verdict.as_dict())
        check(name, start, gate, verdict)
        self.console.print(
            f"{name}: passed its gate (control {verdict.control:.2f}, before {verdict.control_before:.2f}; "
            f"distance {verdict.quality:.2f}, before {verdict.quality_before:.2f})",
            highlight=False,
        )


def _read(path: Path) -> Verdict:
    try:
        return Verdict(**{name: float(value) for name, value in json.loads(path.read_text()).items()})
    except (ValueError, TypeError, AttributeError) as damage:
        raise ValueError(f"{path} is damaged ({damage}); delete it to judge this stage again") from damage
