"""What a run folder is about: the recording it learns, the scale and the chunk, kept in `RUN/run.json`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from forcing import files
from forcing.cli.record import kept, lacks
from forcing.codecs.linear import LinearCodec
from forcing.data.shards import MANIFEST, Recording
from forcing.envs.gym import ROOMS, Record
from forcing.kit import SmallKit
from forcing.pipeline import Pipeline
from forcing.recipe import Recipe
from forcing.recipes import rooms
from forcing.train.material import fit_codec
from forcing.world import World

SETTING = "run.json"
SHIPPED = Path(__file__).resolve().parent.parent / "shipped" / ROOMS
# One seed for both, so that the demo's episodes are the first of the full ones: what the shipped base never saw stays
# unseen at either scale.
RECORDS = {"full": Record(ROOMS, 121_500, 0, 80), "demo": Record(ROOMS, 40_500, 0, 80)}


@dataclass(frozen=True)
class Setting:
    """recording: "rooms", recorded into the run folder, or the folder of any recording."""

    recording: str = ROOMS
    scale: rooms.Scale = "full"
    chunk: int = 1

    def __post_init__(self) -> None:
        # The recipes know what is allowed; asking them costs nothing and fails before any work.
        rooms.recipes(None, self.scale, self.chunk)
        if self.recording != ROOMS and not (Path(self.recording) / MANIFEST).is_file():
            near = " Did you mean 'rooms'?" if difflib.get_close_matches(self.recording, [ROOMS], 1) else ""
            raise ValueError(
                f"{self.recording!r} is neither 'rooms' nor the folder of a recording (forcing record makes one).{near}"
            )


def known(run: Path) -> Setting | None:
    """The setting of a run folder that has one."""
    path = run / SETTING
    if not path.is_file():
        return None
    try:
        about = json.loads(path.read_text())
        about["recording"] = _placed(about["recording"], [Path(), *path.resolve().parents])
    except (TypeError, KeyError, ValueError) as damage:
        raise ValueError(f"{path} is damaged ({damage}); delete it to start this run's setting again") from damage
    unknown = about.keys() - asdict(Setting())
    if unknown:
        raise ValueError(f"{path} is damaged (it has {sorted(unknown)}); delete it to start this run's setting again")
    return Setting(**about)


def _placed(recording: str, bases: Sequence[Path]) -> str:
    # Absolute, so that a run can be continued from any folder. Older runs kept it relative to where they were begun,
    # which most likely is above the run.
    if recording == ROOMS:
        return recording
    places = [base / recording for base in bases]
    return str(next((place for place in places if (place / MANIFEST).is_file()), places[0]).resolve())


def settle(run: Path, **asked: Any) -> Setting:
    """What was asked (None: whatever the run is about, else the default); a run is about one setting only."""
    given = {name: value for name, value in asked.items() if value is not None}
    if "recording" in given:
        Setting(recording=given["recording"])  # complains about what was asked, not about what was made of it
        given["recording"] = _placed(given["recording"], [Path()])
    before = known(run)
    if before is None:
        return Setting(**given)
    now = replace(before, **given)
    changes = [
        f"{name} {value!r}, not {asdict(now)[name]!r}"
        for name, value in asdict(before).items()
        if value != asdict(now)[name]
    ]
    if changes:
        raise ValueError(f"{run} is a run with {' and '.join(changes)}: give another --run")
    return now


def keep(run: Path, setting: Setting) -> None:
    """Write `RUN/run.json`, whole or not at all."""
    files.write_json(run / SETTING, asdict(setting))


def shipped() -> dict[str, Path]:
    """The trained worlds that came with the package, by recipe name."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob("*/world.json"))}


def shipped_base() -> dict[str, Path]:
    """The one shipped world that runs start from, if there is one; the others are for generating."""
    return {name: path for name, path in shipped().items() if name == "base"}


def where(run: Path) -> Path:
    """Where the run's recording is, or would be."""
    about = known(run) or Setting()
    return run / "recording" if about.recording == ROOMS else Path(about.recording)


def recorded(run: Path) -> Path:
    """Where the run's recording is."""
    path = where(run)
    if not (path / MANIFEST).is_file():
        raise ValueError(f"{run} has no recording in {path}: name one by --recording")
    return path


def recording(run: Path, setting: Setting, console: Console) -> Recording:
    """The run's recording; rooms is recorded now if it is not there."""
    if setting.recording == ROOMS:
        return kept(RECORDS[setting.scale], where(run), console)
    opened = Recording.open(setting.recording)
    lack = lacks(opened)
    if lack:
        raise ValueError(f"{opened.path} cannot be trained on: {lack}")
    return opened


def pipeline(run: Path, setting: Setting, data: Recording, console: Console, *, from_scratch: bool) -> Pipeline:
    """Every recipe, fitted to what was recorded. The shipped base is where rooms starts, unless from scratch."""
    base = {} if from_scratch or setting.recording != ROOMS else shipped_base()
    if setting.recording == ROOMS and not base and not from_scratch:
        console.print("no base is shipped with this installation: it is trained here, too")
    codec = _codec(run, base, data)
    recipes = rooms.recipes(facts(data, codec), setting.scale, setting.chunk)
    return Pipeline(run, recipes, base, codec, console)


def ready(run: Path, setting: Setting, recipe: Recipe) -> None:
    """ValueError if a world that `recipe` starts from is neither in the run nor shipped for it."""
    base = shipped_base() if setting.recording == ROOMS else {}
    for name in sorted({role.start for role in recipe.roles.values() if role.start}):
        if name not in base and not (run / name / "world").exists():
            raise ValueError(f"{name} must be trained first: no world in {run / name}")


def facts(data: Recording, codec: LinearCodec) -> rooms.Facts:
    """What the recipes must know of a recorded world."""
    return rooms.Facts(codec.config.latents, len(data.prompts), len(data.actions))


def _codec(run: Path, base: dict[str, Path], data: Recording) -> LinearCodec:
    for path in (run / "base" / "world", base.get("base")):
        if path is not None and path.exists():
            kit = World.load(path).kit
            if isinstance(kit, SmallKit):
                return kit.codec
    return fit_codec(data)
