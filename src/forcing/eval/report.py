"""One self-contained page about a run: what was made, how good it is, and what it looks like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from forcing import files
from forcing.data.shards import Recording, RecordingError
from forcing.eval.curves import STAGES, training
from forcing.eval.films import Shooting, shoot
from forcing.eval.gallery import gallery
from forcing.eval.making import making, parameters
from forcing.eval.measure import FULL, Measure
from forcing.eval.page import drift, headline, missing, results_table, section, trade
from forcing.eval.results import Results
from forcing.eval.rooms import results_path
from forcing.eval.rows import Candidate, NoWorldsError, candidates, facts, fitting, home


def report(
    run: Path,
    out: Path | None = None,
    *,
    recording: Path | None = None,
    shipped: Mapping[str, Path] | None = None,
) -> Path:
    """Write the page of the run folder to `out` (default: `run`/report.html) and return where it lies.

    recording: where the run's recording is (default: `run`/recording, else where the evaluation found it); shipped:
    worlds, by recipe name, that the run did not make. What is missing (stages, evaluation, recording) is said so.
    """
    story = _Story.read(run, recording, shipped or {})
    return files.write(out or run / "report.html", _document(story))


@dataclass(frozen=True)
class _Story:
    """All that the page tells; `results` and `recording` are None where there are none."""

    run: Path
    shipped: Mapping[str, Path]
    results: Results | None
    recording: Recording | None
    rows: list[Candidate]

    @property
    def env(self) -> str | None:
        """The world that the run learned, by the name it was recorded by."""
        recorded = self.results.about["recording"] if self.results else {}
        spec = self.recording.manifest["spec"] if self.recording else recorded.get("spec")
        return spec["env"] if spec else None

    @staticmethod
    def read(run: Path, recording: Path | None, shipped: Mapping[str, Path]) -> "_Story":
        if not run.is_dir():
            raise ValueError(f"{run} is not a folder: give the folder of a run")
        results = Results.load(results_path(run)) if results_path(run).exists() else None
        told = results.about["recording"]["path"] if results else None
        places = [recording] if recording else [run / "recording", *([Path(told)] if told else [])]
        try:
            rows = candidates(run, _measure(results), shipped)
        except NoWorldsError:
            rows = []
        return _Story(run, shipped, results, _opened(places), rows)


def _measure(results: Results | None) -> Measure:
    if results is None:
        return FULL
    told = results.about["measure"]
    sizes: dict[str, Any] = {
        field.name: tuple(told[field.name]) if field.name in ("few", "seeds") else told[field.name]
        for field in fields(Measure)
        if field.name in told
    }
    return Measure(**sizes)


def _opened(places: Sequence[Path]) -> Recording | None:
    for place in places:
        try:
            return Recording.open(place, verify=False)
        except RecordingError:
            continue
    return None


def _document(story: _Story) -> str:
    results = story.results
    css = resources.files("forcing.eval").joinpath("report.css").read_text(encoding="utf-8")
    # the animations begin together only if they are switched on once, after everything they move is there
    still, _, moving = css.partition("/* moving */")
    unmeasured = missing(f"Not evaluated yet: run `forcing eval {story.run}`, then make this report again.")
    body = [
        f"<header><p class=eyebrow>forcing · {escape(str(story.run.name))}</p><h1>{escape(_title(story))}</h1>"
        f"<p class=lead>{escape(_lead(story))}</p>{headline(results) if results else unmeasured}</header>",
        section("films", "What it looks like", _films(story)),
    ]
    if results is not None:
        table = results_table(results) + _unmeasured(story.rows, results)
        body.append(section("results", "What was measured", table, _measured_lead(results)))
        body.append(section("trade", "Quality against price", trade(results)))
        body.append(section("drift", "Drift over long rollouts", drift(results), _drift_lead(results)))
    body.append(section("training", "How the stages learned", training(story.run, story.shipped)))
    body.append(section("making", "How it was made", making(story.run, story.shipped, results)))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>forcing: {escape(story.run.name)}</title><style>{still}</style></head>'
        f"<body><main>{''.join(body)}</main><style>{moving}</style></body></html>\n"
    )


def _title(story: _Story) -> str:
    return f"Causal Forcing++ in {story.env}" if story.env else "Causal Forcing++"


def _lead(story: _Story) -> str:
    made = [name for name in STAGES if home(story.run, name, story.shipped) is not None]
    if not made:
        return "No stage of this run is finished yet."
    last = home(story.run, made[-1], story.shipped)
    size = f"A video diffusion model of {parameters(last) / 1e6:.1f} million parameters" if last else "A model"
    absent = [name for name in STAGES if name not in made]
    text = (
        f"{size}, taken from a bidirectional model of whole clips to a causal one that draws each next frame in a few "
        "steps: bidirectional base, autoregressive teacher, causal consistency distillation, asymmetric DMD."
    )
    return text + (f" Not finished yet: {', '.join(absent)}." if absent else "")


def _measured_lead(results: Results) -> str:
    measure = results.about["measure"]
    return (
        f"{measure['told']} told and {measure['starts'] * measure['forks']} free rollouts of {measure['frames']} "
        f"frames (training clips have {measure['clip']}), and {measure['nothing']} clips from nothing, for each row "
        f"and each of {len(measure['seeds'])} seeds. Shares in percent; mean over seeds, below it the range; the best "
        "few-step row is bold."
    )


def _unmeasured(rows: Sequence[Candidate], results: Results) -> str:
    measured = results.about["worlds"]
    late = [row.label for row in rows if row.name not in measured]
    stale = [row.label for row in rows if row.name in measured and measured[row.name]["sha256"] != facts(row)["sha256"]]
    notes = [f"Not measured yet: {', '.join(late)}."] if late else []
    notes += [f"Trained again since they were measured: {', '.join(stale)}."] if stale else []
    return missing(" ".join([*notes, "Run `forcing eval` and make this report again."])) if notes else ""


def _drift_lead(results: Results) -> str:
    measure = results.about["measure"]
    return f"Each point averages {measure['bucket']} frames; the band is the range over seeds."


def _films(story: _Story) -> str:
    if story.recording is None:
        return missing(f"No recording found at {story.run / 'recording'}: its clips are what every row continues.")
    if not story.rows:
        return missing("No world of this run is finished: nothing to show.")
    measure, shooting = _measure(story.results), Shooting()
    shooting = replace(shooting, start=fitting(story.rows, shooting.start))
    reel = shoot(story.rows, story.recording, story.run / "eval" / "films", shooting)
    return gallery(reel, shooting, (measure.many, *measure.few), story.recording.actions)
