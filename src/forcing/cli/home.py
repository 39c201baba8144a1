"""Where a world is, and what its world.json says: for the gateway's process, which does without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcing.cli.options import check_size

# as in cli.setting and in world, which load torch
SHIPPED = Path(__file__).resolve().parent.parent / "shipped" / "rooms"
FORMAT, FILES = 1, ("world.json", "model.safetensors", "codec.safetensors")
SIDE = 8  # pixels that a latent covers, where Wan's VAE does not say
STUDENTS = ("dmd-2step", "dmd-4step", "dmd-1step", "cd", "ar")
FAVOURITES = (*STUDENTS, *(f"wan-{name}" for name in STUDENTS))


@dataclass(frozen=True)
class Home:
    """A world's folder. name: of what made it. passes: network evaluations a frame. pipeline: of Wan's worlds."""

    path: Path
    name: str
    causal: bool
    passes: int
    prompts: tuple[str, ...]
    pipeline: Path | None
    patch: tuple[int, ...]

    @staticmethod
    def read(path: Path) -> Home:
        """ValueError for what is no world, or is damaged; weights are not looked at."""
        document = _json(path / "world.json", f"the world in {path}")
        if document.get("format") != FORMAT:
            raise ValueError(f"{path} has format {document.get('format')}, this version reads {FORMAT}")
        try:
            recipe, pipeline = document["recipe"], document.get("pipeline")
            sampling = recipe["sampling"]
            return Home(
                path,
                str(recipe["name"]),
                recipe["stage"]["kind"] != "Bidirectional",
                passes(sampling["plan"]["rest"], sampling["guidance"]),
                tuple(document.get("prompts", ())),
                None if pipeline is None else Path(pipeline),
                tuple(recipe["backbone"]["patch"]) if pipeline is not None else (),
            )
        except (LookupError, TypeError) as damage:
            told = f"{type(damage).__name__}: {damage}"
            raise ValueError(f"the world in {path} is damaged: world.json says not what it should ({told})") from damage

    def check(self, size: tuple[int, int] | None) -> None:
        """ValueError where files are missing, or pictures of `size` (height, width) cannot be."""
        small = self.pipeline is None
        missing = [name for name in FILES[: 3 if small else 2] if not (self.path / name).is_file()]
        if missing:
            raise ValueError(f"{self.path} is not a world: {', '.join(missing)} missing")
        if self.pipeline is None:
            if size is not None:
                raise ValueError(f"--size is for Wan: pictures of the small world in {self.path} have one size")
            return
        vae = self.pipeline / "vae" / "config.json"
        if not vae.is_file():
            raise ValueError(f"the world in {self.path} needs the pipeline in {self.pipeline}: there is no {vae}")
        side = _json(vae, str(vae)).get("scale_factor_spatial", SIDE)
        if size is not None:
            check_size(size, (1, side, side), self.patch)


def passes(levels: Sequence[float], guidance: float) -> int:
    """Network evaluations of a frame that visits so many noise levels: guidance asks twice."""
    return len(levels) * (1 if guidance == 1 else 2)


def find(run: Path | None, recipe: str | None = None) -> Home:
    """The world to play: in a run's folder (None: those that are shipped), or that folder itself.

    ValueError where there is none, or none that streams.
    """
    if run is not None and (run / "world.json").is_file():
        if recipe is not None:
            raise ValueError(f"--recipe is for a run's folder, and {run} is one world")
        home = Home.read(run)
        if not home.causal:
            raise ValueError(f"{home.name} in {run} is bidirectional: it makes clips at once and does not stream")
        return home
    where = run or SHIPPED
    found = {
        path.parent.name if path.parent.name != "world" else path.parent.parent.name: path.parent
        for pattern in ("*/world.json", "*/world/world.json")
        for path in where.glob(pattern)
    }
    if not found:
        raise ValueError(f"there is no world in {where}: give a run's folder or a world's, or leave it out")
    if recipe is not None and recipe not in found:
        raise ValueError(f"there is no world {recipe!r} in {where}: choose from {', '.join(sorted(found))}")
    if recipe is not None and (asked := Home.read(found[recipe])).causal:
        return asked
    best = [name for name in FAVOURITES if name in found]
    homes = {name: Home.read(found[name]) for name in (*best, *sorted(found.keys() - {*best}))}
    streams = {name: home for name, home in homes.items() if home.causal}
    if not streams:
        raise ValueError(f"{where} has only {', '.join(sorted(found))}: a bidirectional model does not stream")
    if recipe is not None:
        raise ValueError(f"{recipe} is bidirectional and does not stream: choose from {', '.join(streams)}")
    return next(iter(streams.values()))


def _json(path: Path, what: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as damage:
        raise ValueError(f"{what} is damaged: {path.name} is not readable ({damage})") from damage
    if not isinstance(document, dict):
        raise ValueError(f"{what} is damaged: {path.name} is not readable (it is no object)")  # noqa: TRY004
    return document
