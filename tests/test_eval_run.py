"""What models make of the scenes, and an evaluation as a whole: rows, resuming, tables, the verdict."""

import io
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from eval_toys import TINY, small_world
from rich.console import Console
from toys import shaken

from forcing.cli import eval as evaluation
from forcing.eval.cost import cost
from forcing.eval.measure import FULL, QUICK
from forcing.eval.results import METRICS, Results, Row
from forcing.eval.rooms import evaluate, results_path
from forcing.eval.rows import candidates, fitting
from forcing.eval.samples import GivenClean, Player, effort, sample
from forcing.eval.tables import markdown, number, table
from forcing.eval.verdict import verdict
from forcing.flow import randn
from forcing.guidance import Guided
from forcing.layout import after, full
from forcing.rollout import Plan, denoise, remember
from forcing.world import World

pytest_plugins = ("eval_fixtures",)

# ---- samples: what models make


def test_one_frame_ahead_is_the_rollout_given_the_truth(recording):
    # frame t of all at once equals the first frame generated after t true frames
    world = small_world(recording, "cd")
    clean = randn((2, 4, *world.codec.config.latents), torch.Generator().manual_seed(1))
    actions = [[-1, 0, 1, 2], [-1, 3, 2, 2]]
    cond = world.cond(list(recording.prompts[:2]), actions, 4)
    noise = randn(tuple(clean.shape), torch.Generator().manual_seed(0))
    plan = Plan.ode(2, 3.0)
    model = GivenClean(Guided(world.model, 1.5), clean, 1)
    made = denoise(model, noise, cond, full(4), plan, torch.Generator())
    guided = Guided(world.model, 1.5)
    cache = guided.cache(2, window=12)
    for at in range(3):
        remember(guided, clean[:, at : at + 1], cond.frames(at, at + 1), cache)
    layout = after(cache.past(1), 1)
    last = denoise(guided, noise[:, 3:], cond.frames(3, 4), layout, plan, torch.Generator())
    assert torch.allclose(made[:, 3:], last, atol=1e-5)


@pytest.mark.parametrize("name", ["base", "ar", "cd-2"])
def test_samples_cost_what_was_planned(folder, judge, name):
    row = next(row for row in candidates(folder, TINY, {}) if row.name == name)
    world, ticks = World.load(row.world), []
    samples = sample(world, row, judge.scenes, 0, ticks.append)
    assert sum(ticks) == effort(row, TINY)
    assert samples.nothing.shape == (6, 12, 56, 56, 3)
    if name == "base":
        assert samples.ahead is None and samples.free is None and samples.told.shape[:2] == (3, 12)
    else:
        assert samples.ahead.shape[:2] == (3, 12)
        assert samples.told.shape[:2] == (3, 16) and samples.free.shape[:2] == (6, 16)
    assert cost(world, row, 2).passes == row.passes


def test_told_means_told_and_free_means_free(recording, judge, folder):
    row = next(row for row in candidates(folder, TINY, {}) if row.name == "cd-1")
    world = World.load(row.world)
    player, footage = Player(world, row, 0), judge.scenes.told
    other = replace(footage, led=np.where(footage.led < 0, -1, (footage.led + 1) % 4))
    assert (player.told(footage, 4, 4) != player.told(other, 4, 4)).any()
    assert (player.free(footage, 4, 4) == player.free(other, 4, 4)).all()
    assert (player.free(footage, 4, 4) != Player(world, row, 1).free(footage, 4, 4)).any()
    together, others = player.both(footage, judge.scenes.free, 4, 4), player.both(other, judge.scenes.free, 4, 4)
    assert [len(clips) for clips in together] == [3, 6]
    assert (together[0] != others[0]).any() and (together[1] == others[1]).all()


def test_passes_of_the_rows(folder):
    rows = {row.name: row for row in candidates(folder, replace(FULL, few=(4, 2, 1)), {})}
    passes = {name: row.passes for name, row in rows.items()}
    students = {f"{family}-{n}": n + 1 for family in ("cd", "dmd") for n in (4, 2, 1)}
    assert passes == {"base": 64, "ar": 66, "ar-4": 10, "ar-2": 6, "ar-1": 4} | students
    assert rows["cd-2"].sampling.plan == rows["dmd-2"].sampling.plan != rows["ar-2"].sampling.plan
    shift = rows["ar"].recipe.stage.shift
    for n in (4, 2, 1):  # even levels; and as many steps as the student for a frame out of nothing
        first = rows[f"dmd-{n}"].sampling.plan.first
        assert rows[f"ar-{n}"].sampling.plan == replace(Plan.ode(n, shift), first=first)
    assert rows["base"].memory is None and rows["ar"].memory == 11


# ---- the whole


def test_an_evaluation_ends_with_every_row(folder, evaluated):
    results, said = evaluated
    names = ["real", "base", "ar", "ar-2", "ar-1", "cd-2", "cd-1", "dmd-2", "dmd-1"]
    assert [row.name for row in results.rows] == names and said[-1][1] == 1.0
    assert [share for _, share in said] == sorted(share for _, share in said)
    assert Results.load(results_path(folder)) == replace(results, about=Results.load(results_path(folder)).about)
    every = {metric.name for metric in METRICS}
    for row in results.rows:
        assert all(len(values) == 2 for values in row.values.values())
        if row.name not in ("real", "base"):
            assert every - set(row.values) <= {"control_rollout", "valid_new", "valid_determined"}
            assert len(row.curve("frechet_free")) == 2
    facts = results.about
    assert (
        facts["command"] == "forcing eval <run>"
        and facts["measure"]["seeds"] == (0, 1)
        and facts["machine"]["threads"] == 1
    )
    assert facts["worlds"]["ar-2"]["recipe"] == "ar" and len(facts["worlds"]["ar"]["sha256"]) == 3


def test_an_evaluation_continues_where_it_was(folder, evaluated, recording, monkeypatch):
    results, _ = evaluated
    units = sorted((folder / "eval" / "units").iterdir())
    lost = [path for path in units if path.name.startswith(("cd-1-seed1", "real-seed0"))]
    lost[0].unlink()
    lost[1].write_text("{")  # cut short by a crash
    loaded = []
    load = World.load
    monkeypatch.setattr(World, "load", staticmethod(lambda path: loaded.append(path.parent.name) or load(path)))
    again = evaluate(folder, recording, TINY)
    assert loaded == ["cd"] and sorted((folder / "eval" / "units").iterdir()) == units
    for row, before in zip(again.rows, results.rows, strict=True):
        untimed = [{k: v for k, v in each.values.items() if k != "ms"} for each in (row, before)]
        assert untimed[0] == untimed[1] and row.curves == before.curves
    loaded.clear()
    evaluate(folder, recording, replace(TINY, name="other"))
    assert not loaded


def test_what_changes_is_measured_again(recording, tmp_path):
    measure = replace(TINY, few=(), seeds=(0,), ahead=1, told=1, starts=1, nothing=2)
    small_world(recording, "ar").save(tmp_path / "ar" / "world")
    before = evaluate(tmp_path, recording, measure)
    other = small_world(recording, "ar")
    shaken(other.model, 5)
    other.save(tmp_path / "ar" / "world")
    again = evaluate(tmp_path, recording, measure)
    assert again.row("ar").values["frechet_free"] != before.row("ar").values["frechet_free"]
    assert again.row("real") == before.row("real")
    longer = evaluate(tmp_path, recording, replace(measure, frames=8, bucket=4))
    assert longer.row("ar").values["control"] == again.row("ar").values["control"]
    assert longer.row("ar").values["frechet_free"] != again.row("ar").values["frechet_free"]


def test_absent_stages_are_absent_rows(recording, tmp_path):
    with pytest.raises(ValueError, match="holds no worlds"):
        evaluate(tmp_path, recording, TINY)
    world = small_world(recording, "cd")
    world.save(tmp_path / "cd" / "world")
    world = small_world(recording, "base")
    world.save(tmp_path / "elsewhere")
    rows = candidates(tmp_path, FULL, {"base": tmp_path / "elsewhere"})
    assert [row.name for row in rows] == ["base", "cd-4", "cd-2", "cd-1"]
    # no student says which levels: the stage's own grid
    assert [len(row.sampling.plan.rest) for row in rows[1:]] == [4, 2, 1] and rows[1].sampling.plan.fresh
    small_world(recording, "ar").save(tmp_path / "ar" / "world")
    plans = {row.name: row.sampling.plan for row in candidates(tmp_path, FULL, {})}
    for n in (4, 2, 1):  # even levels, and the student's for a frame out of nothing
        assert plans[f"ar-{n}"] == replace(Plan.ode(n, 3.0), first=plans[f"cd-{n}"].first)
    shutil.rmtree(tmp_path / "cd")
    plans = {row.name: row.sampling.plan for row in candidates(tmp_path, FULL, {})}
    assert plans["ar-2"] == Plan.ode(2, 3.0)


def test_chunks_must_fit(recording, tmp_path):
    small_world(recording, "ar", chunk=3).save(tmp_path / "ar" / "world")
    with pytest.raises(ValueError, match="chunks of 3 frames: clip 11 must be a multiple"):
        candidates(tmp_path, replace(FULL, clip=11), {})
    small_world(recording, "base").save(tmp_path / "base" / "world")
    rows = candidates(tmp_path, FULL, {})
    assert fitting(rows, 4) == fitting(rows, 6) == 6 and fitting(rows[:1], 4) == 4  # the base continues nothing
    two = replace(rows[1], sampling=replace(rows[1].sampling, chunk=2))
    assert fitting([*rows, two], 4) == 6 and fitting([*rows, two], 7) == 12
    results = evaluate(tmp_path, recording, replace(TINY, few=(), seeds=(0,)))
    assert results.about["measure"]["start"] == 6 and len(results.row("ar").curve("frechet_free")) == 2
    assert results.row("ar").mean("passes") == 8 and 0 <= results.row("ar").mean("control") <= 1


def made_up(**rows: dict[str, float]) -> Results:
    """Results with three seeds around the values given."""
    about = {"measure": {"name": "full", "seeds": [0, 1, 2], "frames": 64, "bucket": 16, "many": 32}}
    found = [
        Row(
            name.replace("_", "-"),
            name,
            {metric: (value - 0.01, value, value + 0.01) for metric, value in values.items()},
            {metric: ((value,) * 4,) for metric, value in values.items()},
        )
        for name, values in rows.items()
    ]
    return Results(about, tuple(found))


HELD = ("control_rollout", "valid_free", "frechet_free", "diversity_free", "motion_free")
GOOD = {
    "control": 0.97,
    "control_rollout": 0.95,
    "valid_new": 0.99,
    "valid_free": 0.99,
    "valid_nothing": 0.98,
    "frechet_free": 10.0,
    "frechet_nothing": 12.0,
    "diversity_free": 0.95,
    "diversity_nothing": 0.97,
    "motion_free": 1.0,
    "motion_nothing": 1.0,
    "frechet_told": 8.0,
    "motion_told": 1.0,
    "prompt": 0.97,
}


def test_the_verdict_follows_the_bounds():
    worse = GOOD | {"frechet_free": 40.0, "frechet_nothing": 50.0}
    rows = {"ar": GOOD, "ar_2": worse, "ar_1": worse, "cd_2": GOOD, "dmd_2": GOOD, "dmd_1": GOOD}
    claims = verdict(made_up(**rows))
    assert len(claims) == 13 and all(claim.passed for claim in claims)
    for metric, bad in (
        ("control", 0.9),
        ("frechet_free", 13.0),
        ("valid_new", 0.9),
        ("diversity_nothing", 0.7),
        ("motion_free", 0.7),
        ("frechet_told", 11.0),
        ("motion_told", 0.7),
        ("prompt", 0.6),
    ):
        failed = [claim for claim in verdict(made_up(**rows | {"dmd_2": GOOD | {metric: bad}})) if not claim.passed]
        assert failed and all(claim.claim.startswith("dmd_2") for claim in failed), metric
    close = verdict(made_up(**rows | {"ar_2": worse | {"frechet_free": 10.015}}))
    assert [claim.passed for claim in close].count(False) == 2  # within the spread of the seeds is not clearly better
    assert verdict(made_up(ar=GOOD)) == []


@pytest.mark.parametrize("metric", [name for name in GOOD if name != "control_frames"])
def test_what_could_not_be_measured_is_not_kept(metric):
    worse = GOOD | {"frechet_free": 40.0, "frechet_nothing": 50.0}
    rows = {"ar": GOOD, "ar_2": worse, "cd_2": GOOD}
    for lost in ({name: value for name, value in GOOD.items() if name != metric}, GOOD | {metric: math.nan}):
        claims = verdict(made_up(**rows, dmd_2=lost))
        failed = [claim for claim in claims if not claim.passed]
        expected = 1 + metric.startswith("frechet_") + (metric in HELD) - (metric == "frechet_told")
        assert len(failed) == expected and all("could not be measured" in claim.numbers for claim in failed), claims
        # nobody asks for what the teacher and its cuts do not have either
        absent = {name: {k: v for k, v in row.items() if k != metric} for name, row in rows.items()}
        assert all(claim.passed for claim in verdict(made_up(**absent, dmd_2=lost)))


def test_long_rollouts_hold_only_if_everything_does():
    good = made_up(ar=GOOD, dmd_2=GOOD)
    for metric in ("control_rollout", "valid_free", "diversity_free", "motion_free"):
        fallen = dict(good.row("dmd-2").curves) | {metric: ((1.0, 1.0, 0.9, 0.75),)}
        claims = verdict(replace(good, rows=(good.rows[0], replace(good.rows[1], curves=fallen))))
        assert [claim.claim for claim in claims if not claim.passed] == ["dmd_2: rollouts of 64 frames hold"]


def test_a_figure_of_short_clips_is_marked():
    results = made_up(real=GOOD, base=GOOD, ar=GOOD)
    text = markdown(results)
    assert "| base | 97.0 (96.0-98.0) | 95.0\\* (94.0-96.0) |" in text and text.count("\\* of short clips") == 2
    shown = io.StringIO()
    Console(file=shown, width=200).print(table(results))
    assert shown.getvalue().count("*") == 3 and "* of short clips begun from nothing" in shown.getvalue()
    shown = io.StringIO()
    evaluation.show(results, Console(file=shown, width=40))
    pieces = re.split(r"\n +real ", shown.getvalue())[1:]
    assert len(pieces) > 2
    assert "* of short clips" in pieces[0] and "*" not in pieces[-1]
    assert "short clips" not in markdown(made_up(real=GOOD, ar=GOOD))


def test_tables_show_every_row():
    results = made_up(real=GOOD, ar=GOOD, cd_2=GOOD | {"frechet_free": 9.0}, dmd_2=GOOD | {"frechet_free": 11.0})
    text = markdown(results)
    assert "| cd_2 | **8.0** | **9.0** | **12.0** |" in text and "| dmd_2 | **8.0** | 11.0 | **12.0** |" in text
    assert "| real | 97.0 (96.0-98.0) |" in text
    assert table(results).row_count == 4
    shares = {metric.name: metric for metric in METRICS}
    assert number(shares["control"], 0.9666) == "96.7" and number(shares["ms"], None) == "-"


def test_presets_are_what_they_say():
    assert FULL.frames >= 64 and len(FULL.seeds) >= 3 and len(QUICK.seeds) >= 3
    assert FULL.few == QUICK.few == (4, 2, 1) and FULL.many == 32
