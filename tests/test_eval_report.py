"""The page: whole without anything else, and honest about what is missing."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from eval_toys import TINY, small_world
from PIL import Image

from forcing.cli import eval as evaluation
from forcing.cli import setting
from forcing.data.shards import Recording
from forcing.envs.gym import Record, record
from forcing.eval.films import Reel, Shooting, Take, shoot, strip
from forcing.eval.gallery import gallery
from forcing.eval.page import trade
from forcing.eval.plots import Axes, Series, chart, smoothed, thinned
from forcing.eval.report import report
from forcing.eval.results import Results
from forcing.eval.rooms import evaluate, results_path
from forcing.eval.rows import candidates

pytest_plugins = ("eval_fixtures",)
RESULTS = Path(__file__).parents[1] / "docs/results/rooms/results.json"


class Balanced(HTMLParser):
    """Notes tags left open, and everything a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.wrong, self.fetched, self.ids = [], [], [], []

    def handle_starttag(self, tag, attrs):
        names = dict(attrs)
        self.fetched += [names[name] for name in ("src", "href", "srcset", "data") if name in names]
        self.ids += [names["id"]] if "id" in names else []
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """<line/> and such leave nothing open."""

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def read(path):
    """The page, checked: tags in balance, nothing fetched from anywhere, not too large."""
    text = path.read_text(encoding="utf-8")
    page = Balanced()
    page.feed(text)
    assert not page.wrong and not page.open and not page.fetched, (page.wrong, page.open, page.fetched)
    assert "<script" not in text and "@import" not in text
    assert all(address.startswith("data:image/png;base64,") for address in re.findall(r"url\(([^)]*)\)", text))
    assert len(text) < 8_000_000
    return text, page.ids


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Short films."""
    monkeypatch.setattr("forcing.eval.report.Shooting", lambda: Shooting(frames=8, clip=8))


@pytest.fixture
def run(folder, evaluated, tmp_path):
    """A copy of the run with all stages, evaluated."""
    return shutil.copytree(folder, tmp_path / "run")


def journal(path, values):
    lines = [{"step": step, **each} for step, each in enumerate(values, 1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99')


def test_a_page_of_everything(run, recording):
    journal(run / "cd" / "metrics.jsonl", [{"student/loss": 2.0**-i, "gauge/control": 1 + i / 4} for i in range(9)])
    journal(run / "dmd-2step" / "metrics.jsonl", [{"critic/loss": 0.5}, {"student/loss": 0.3, "critic/loss": 0.4}])
    (run / "cd" / "gate.json").write_text(
        json.dumps({"control": 3.25, "control_before": 3.5, "quality": 12.25, "quality_before": 20.5})
    )
    path = report(run, recording=recording.path)
    text, ids = read(path)
    assert path == run / "report.html" and ids == ["films", "results", "trade", "drift", "training", "making"]
    for words in (
        "promises kept",
        "AR teacher cut to 2 steps",
        "cd: loss",
        "cd: controllability",
        "dmd-2step: loss",
        "control 3.25 (before 3.50), distance 12.2 (before 20.5)",
        "forcing eval &lt;run&gt;",
        "Recipe dmd-1step",
        "No journal of base, ar, dmd-4step, dmd-1step",
        "from nothing",
        "forward",
    ):
        assert words in text, words
    rows = candidates(run, TINY, {})
    causal = [row for row in rows if row.causal]
    assert text.count("class=film ") == 3 * (2 * (1 + len(causal)) + 1 + len(rows))
    again = report(run, run / "again" / "page.html", recording=recording.path)
    assert read(again)[0] == text  # what was played is kept, and nothing of the page is drawn anew


def test_a_page_of_what_there_is(run, tmp_path):
    results = results_path(run).rename(tmp_path / "results.json")
    text, ids = read(report(run))
    assert "Not evaluated yet: run `forcing eval" in text and ids == ["films", "training", "making"]
    assert "No recording found" in text and "No stage of this run left a metrics.jsonl" in text
    for name in ("cd", "dmd-4step", "dmd-2step", "dmd-1step"):
        shutil.rmtree(run / name)
    whole = Results.load(results)
    kept = tuple(row for row in whole.rows if row.name in ("real", "base", "ar", "ar-2", "ar-1"))
    worlds = {name: facts for name, facts in whole.about["worlds"].items() if name != "ar-1"}
    worlds["ar-2"]["sha256"]["model.safetensors"] = "another"
    about = {**whole.about, "worlds": worlds}  # which also tells where the recording is
    Results(about, kept).save(results_path(run))
    text, _ = read(report(run))
    assert "Not finished yet: cd, dmd-4step, dmd-2step, dmd-1step" in text and "causal CD, 2 steps" not in text
    assert "class=film " in text and text.count("not in this run") == 4
    assert "Not measured yet: AR teacher cut to 1 step. Trained again since they were measured: AR teacher" in text
    (tmp_path / "bare").mkdir()
    text, _ = read(report(tmp_path / "bare"))
    assert "No stage of this run is finished yet." in text
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        report(tmp_path / "nowhere")


def test_a_page_of_chunks(recording, tmp_path):
    for name in ("ar", "cd"):
        small_world(recording, name, chunk=3).save(tmp_path / name / "world")
    text, _ = read(report(tmp_path, recording=recording.path))
    rows = 1 + 4 + 3  # the real world, the teacher and its cuts, CD
    assert text.count("class=film ") == 3 * 3 * rows
    evaluate(tmp_path, recording, replace(TINY, few=(2,), seeds=(0,), ahead=1, told=1, starts=1, nothing=3))
    text, ids = read(report(tmp_path, recording=recording.path))
    assert "class=film " in text and "AR teacher cut to 2 steps" in text and "drift" in ids
    shutil.rmtree(tmp_path / "eval")
    recipe = json.loads((tmp_path / "ar" / "world" / "world.json").read_text())
    recipe["recipe"]["sampling"]["chunk"] = 5  # which no clip divides into: said, not hidden
    (tmp_path / "ar" / "world" / "world.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match="chunk"):
        report(tmp_path, recording=recording.path)


def test_a_page_of_another_world(recording, tmp_path, monkeypatch):
    other = Recording.open(record(Record("MiniGrid-Empty-5x5-v0", 160, 0, 20, holdout=0.25), tmp_path / "other"))
    assert other.actions == ("left", "right", "forward", "pickup")
    run = tmp_path / "run"
    small_world(other, "ar").save(run / "ar" / "world")
    text, _ = read(report(run, recording=other.path))
    assert "<h1>Causal Forcing++ in MiniGrid-Empty-5x5-v0</h1>" in text
    keys = set(re.findall(r"<li>(?:. <small>)?([^<]+)(?:</small>)?</li>", text)) - {"start"}
    assert keys and keys <= set(other.actions)
    clips = np.zeros((1, 3, 8, 8, 3), np.uint8)
    reel = Reel(("p",), np.array([[-1, 1, 5]]), (Take("real", "real", clips, clips, clips),))
    text = gallery(reel, Shooting(start=1), (32, 2), ("a", "left", "c", "d", "e", "<jump>"))
    assert "<li>start</li><li>← <small>left</small></li><li>&lt;jump&gt;</li>" in text
    text, _ = read(report(run))
    assert "<h1>Causal Forcing++</h1>" in text  # nobody says which world it is
    # the shipped base knows rooms: it is no stage of a run that learns another world
    small_world(recording, "base").save(tmp_path / "shipped" / "base")
    monkeypatch.setattr(setting, "SHIPPED", tmp_path / "shipped")
    assert set(evaluation.shipped(run)) == {"base"}
    setting.keep(run, setting.Setting(str(other.path)))
    assert evaluation.shipped(run) == {}


def test_a_shipped_stage_is_called_so(recording, tmp_path):
    small_world(recording, "base").save(tmp_path / "shipped" / "world")
    journal(tmp_path / "shipped" / "metrics.jsonl", [{"student/loss": 1.0}, {"student/loss": 0.5}])
    (tmp_path / "run").mkdir()
    shipped = {"base": tmp_path / "shipped" / "world"}
    text, _ = read(report(tmp_path / "run", recording=recording.path, shipped=shipped))
    assert "Bidirectional (shipped)" in text and "base: loss" in text


def test_damaged_results_are_named(run):
    results_path(run).write_text('{"format": 99}')
    with pytest.raises(ValueError, match=r"results.json has format 99; this version reads format 1"):
        report(run)


def test_every_row_continues_the_same_start(run, recording, tmp_path):
    how = Shooting(start=4, frames=6, clip=8)
    rows = [row for row in candidates(run, TINY, {}) if row.name in ("base", "cd-2")]
    reel = shoot(rows, recording, tmp_path / "films", how)
    real, base, student = reel.takes
    assert [take.name for take in reel.takes] == ["real", "base", "cd-2"] and len(reel.prompts) == 3
    assert real.told.shape == student.told.shape == student.free.shape == (3, 10, 56, 56, 3)
    assert (student.told[:, :4] == real.told[:, :4]).all() and (student.free[:, :4] == real.free[:, :4]).all()
    assert base.told is None and base.nothing.shape[1] == 12 and student.nothing.shape[1] == 8
    assert reel.keys.shape == (3, 10)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "films").iterdir()}
    again = shoot(rows, recording, tmp_path / "films", how)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (again.takes[2].told == student.told).all()


def test_a_strip_holds_every_frame(recording):
    clip = recording.load("heldout")[0].frames[:5]
    packed = base64.b64decode(strip(clip).removeprefix("data:image/png;base64,"))
    shown = np.asarray(Image.open(io.BytesIO(packed)).convert("RGB"))
    assert (shown == np.concatenate(list(clip), 1)).all()  # a drawn world has few colours: none is lost
    blends = np.random.default_rng(0).integers(60, 90, (40, 56, 56, 3), dtype=np.uint8)
    blends[20, :3, :3] = (255, 0, 0)
    shown = Image.open(io.BytesIO(base64.b64decode(strip(blends).partition(",")[2]))).convert("RGB")
    assert np.abs(np.asarray(shown)[:3, 20 * 56 : 20 * 56 + 3].astype(int) - (255, 0, 0)).max() < 30


def test_charts():
    line = Series(
        "ar", "<AR>", [(1.0, 1.0), (10.0, 100.0)], band=[(1.0, 0.5, 2.0), (10.0, 90.0, 110.0)], notes=["a", "b"]
    )
    figure = chart([line], Axes("loss & more", "step", log_x=True, log_y=True))
    page = Balanced()
    page.feed(figure)
    assert not page.wrong and not page.open
    assert figure.count("loss &amp; more") == 2 and "&lt;AR&gt;" in figure and figure.count("<circle") == 2
    numbers = [float(number) for number in re.findall(r'points="([^"]*)"', figure)[1].replace(",", " ").split()]
    assert numbers[0] < numbers[2] and numbers[1] > numbers[3]  # right and up
    assert chart([], Axes("nothing", "step")) == ""
    assert chart([Series("ar", "zero", [(1.0, 0.0)])], Axes("none on a log scale", "step", log_y=True)) == ""
    assert "<circle" in chart([Series("ar", "one", [(5.0, 2.0)])], Axes("a single point", "step", floor=True))


def boxes(figure):
    """Of the notes of a figure and of its dots: left, top, right, bottom."""
    notes = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="note[^>]*>([^<]*)<', figure)
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', figure)
    wide = [(float(x), float(y), 3.0 * len(text)) for x, y, text in notes]  # letters of 10 pixels are 6 wide
    around = [(float(x), float(y), float(r)) for x, y, r in dots]
    return [(x - w, y - 7.5, x + w, y) for x, y, w in wide], [(x - r, y - r, x + r, y + r) for x, y, r in around]


def meet(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_notes_of_a_chart_do_not_lie_on_each_other():
    """As they did where CD and DMD need as many passes, and do as well."""
    figures = trade(Results.load(RESULTS)).split("<svg")[1:]
    close = [Series(name, name, [(2.0, 1.0 + n / 50), (2.1, 1.0)], notes=["1", "32"]) for n, name in enumerate("abc")]
    figures.append(chart(close, Axes("close together", "passes", log_x=True, log_y=True)))
    for figure in figures:
        notes, dots = boxes(figure)
        assert len(notes) == len(dots) >= 6
        wrong = [(one, other) for n, one in enumerate(notes) for other in (*notes[:n], *dots) if meet(one, other)]
        assert not wrong, wrong
        assert all(left >= 0 and right <= 360 and top >= 0 and low <= 230 for left, top, right, low in notes)


def test_a_note_is_above_its_dot_if_nothing_is_there():
    line = Series("ar", "a line", [(1.0, 1.0), (2.0, 2.0), (3.0, 1.0)], notes=["a", "b", "c"])
    notes, dots = boxes(chart([line], Axes("peak", "step")))
    assert all(
        note[3] < dot[1] and (note[0] + note[2]) == pytest.approx(dot[0] + dot[2])
        for note, dot in zip(notes, dots, strict=True)
    )


def test_smoothing_and_thinning_keep_the_ends():
    points = [(float(i), float(i % 2)) for i in range(1000)]
    assert smoothed(points)[0] == points[0] and abs(smoothed(points)[-1][1] - 0.5) < 0.1
    few = thinned(points, 50)
    assert few[0] == points[0] and few[-1] == points[-1] and len(few) <= 52
    assert thinned([]) == smoothed([]) == []
