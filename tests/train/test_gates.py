"""A stage that makes the model worse than it may does not pass, today or tomorrow."""

import json
import math
import os
import signal

import pytest
import torch
from toys import (
    FRAMES,
    SIZE,
    Formula,
    Spy,
    contents,
    normal,
    recording,
    rng,
    shrunk,
    silent,
    starts,
    told,
    toy_material,
    toy_world,
)

from forcing.data.clips import Sampler
from forcing.pipeline import Pipeline
from forcing.recipe import Gate
from forcing.train import gate as gates
from forcing.train.gate import GateClosed, Verdict, check, judge
from forcing.train.gauge import controllability
from forcing.train.material import gauge
from forcing.train.run import Interrupted, train
from forcing.world import World

GOOD = Verdict(control=3.0, control_before=3.0, quality=1.0, quality_before=1.0)


@pytest.fixture(scope="module")
def data():
    return toy_material()


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(gates, "CLIPS", 8)


def verdict(**changes):
    return Verdict(**(GOOD.as_dict() | changes))


def test_a_stage_that_changes_nothing_passes():
    check("cd", "ar", Gate(control=1.0, quality=1.0), GOOD)
    check("cd", "ar", Gate(), verdict(control=0.0, quality=99.0))


@pytest.mark.parametrize("control", [1.0, 0.5, 2.1, math.nan])
def test_a_stage_that_listens_less_is_stopped(control):
    # a deaf model's gauge is 1: of the 2.0 that ar has above it, 60 % must stay
    with pytest.raises(GateClosed, match=r"cd listens less than it may: controllability gauge .*ar .*\(3\.00\)"):
        check("cd", "ar", Gate(control=0.6, quality=1.0), verdict(control=control))
    check("cd", "ar", Gate(control=0.6), verdict(control=2.3))


@pytest.mark.parametrize("quality", [1.3, 9.0, math.nan, math.inf])
def test_a_stage_that_looks_worse_is_stopped(quality):
    with pytest.raises(GateClosed, match=r"cd looks worse than it may: Frechet distance .*1\.25 x that of ar"):
        check("cd", "ar", Gate(control=0.6, quality=1.25), verdict(quality=quality))
    check("cd", "ar", Gate(quality=1.25), verdict(quality=1.2))


def test_a_verdict_is_about_the_product_beside_its_start(data):
    world, before = toy_world(data, "dmd-2step", seed=1), toy_world(data, "cd", seed=2)
    seen = judge(world, before, data)
    turned = judge(before, world, data)
    assert all(math.isfinite(value) for value in seen.as_dict().values()) and seen.quality > 0
    assert (seen.control, seen.control_before) == (turned.control_before, turned.control)
    assert judge(world, before, data) == seen
    assert judge(world, world, data).control == judge(world, world, data).control_before


@pytest.mark.parametrize(("name", "start", "sigma"), [("ar", "base", 0.9), ("cd", "ar", 0.9), ("dmd-2step", "cd", 1.0)])
def test_both_are_gauged_where_the_start_is(data, name, start, sigma):
    world, before = toy_world(data, name, seed=1), toy_world(data, start, seed=2)
    seen = judge(world, before, data)
    for each, control in ((world, seen.control), (before, seen.control_before)):
        spy = Spy(each.model)
        assert gauge(spy, each.recipe, data, sigma=sigma)["control"] == control
        assert {call.sigma[0, -1].item() for call in spy.calls} == {torch.tensor(sigma).item()}
    assert gauge(before.model, before.recipe, data)["control"] == seen.control_before


def test_quality_is_that_of_imagined_clips_at_the_products_own_steps(data, monkeypatch):
    asked, stream = [], World.stream

    def spied(self, conds, clips, rng, *, sampling):
        each = list(conds)
        asked.append((each, sampling))
        return stream(self, each, clips, rng, sampling=sampling)

    monkeypatch.setattr(World, "stream", spied)
    world, before = toy_world(data, "cd", seed=1), toy_world(data, "ar", seed=2)
    judge(world, before, data)
    for conds, _ in asked:
        assert len(conds) == FRAMES and all((cond.per_frame["action"] == 0).all() for cond in conds)
        assert all((cond.static["text"].sum(1) == 1).all() for cond in conds)
    assert [how.plan for _, how in asked] == [world.recipe.sampling.plan] * 2
    assert [how.guidance for _, how in asked] == [1.0, before.recipe.sampling.guidance]


@pytest.mark.parametrize(("steps", "at"), [(36, [10, 30, 36]), (45, [10, 30, 45]), (5, [5])])
def test_a_short_run_sees_its_gauge_move(data, tmp_path, steps, at):
    train(shrunk("ar", data, steps=steps, log=10), tmp_path, starts(data), data, silent())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "gauge/control" in line] == at


@pytest.mark.parametrize("name", ["base", "ar"])
def test_the_gauge_of_a_deaf_model_is_1(data, name):
    world = toy_world(data, name)
    assert gauge(world.model, world.recipe, data)["control"] != 1
    torch.nn.init.zeros_(world.model.action.weight)
    assert gauge(world.model, world.recipe, data)["control"] == 1


def test_the_gauge_of_a_model_that_listens_is_more():
    latents, cond = normal(16, 4, *SIZE), told(16, 4)

    def v(x, sigma, other):  # off by 0.1, and by as much as the action is another one
        gap = 0.1 + (other.per_frame["action"] - cond.per_frame["action"]).mean(-1)
        return (x - latents - gap[..., None, None, None]) / sigma[..., None, None, None]

    seen = controllability(Formula(v), latents, cond, None, 0.9, rng())
    assert seen["control"] > 5 and abs(seen["error"] - 0.01) < 1e-4


# ---- the pipeline


def pipeline(folder, data, *, gate=None, shipped=None, **changes):
    made = {name: shrunk(name, data, **changes) for name in ("base", "ar")}
    made["ar"] = shrunk("ar", data, gate=gate or Gate(), **changes)
    return Pipeline(folder, made, shipped or {}, data.codec, silent())


def said(line):
    return line.console.file.getvalue()


def test_what_is_finished_is_skipped_and_what_is_not_is_resumed(data, tmp_path, monkeypatch):
    whole = pipeline(tmp_path / "whole", data)
    whole.run(["base", "ar"], recording())

    original = Sampler.batch_at
    first = pipeline(tmp_path / "halves", data)

    def batch_at(self, step, update):
        if step == 3 and (tmp_path / "halves" / "base" / "world").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step, update)

    monkeypatch.setattr(Sampler, "batch_at", batch_at)
    with pytest.raises(Interrupted, match="ar stopped at step 4 of 6"):
        first.run(["base", "ar"], recording())
    monkeypatch.setattr(Sampler, "batch_at", original)

    base = {path: path.stat().st_mtime_ns for path in (tmp_path / "halves" / "base").rglob("*")}
    second = pipeline(tmp_path / "halves", data)
    worlds = second.run(["base", "ar"], recording())
    assert "base: finished already" in said(second) and "ar: continuing from step 4 of 6" in said(second)
    assert base == {path: path.stat().st_mtime_ns for path in (tmp_path / "halves" / "base").rglob("*")}
    assert list(worlds) == ["base", "ar"]
    worlds_of = {name: contents(tmp_path / name / "ar" / "world") for name in ("whole", "halves")}
    assert worlds_of["whole"] == worlds_of["halves"]

    third = pipeline(tmp_path / "halves", data)
    monkeypatch.setattr(Sampler, "batch_at", None)  # nothing is trained, and nothing drawn
    third.run(["base", "ar"], recording())
    assert said(third).count("finished already") == 2 and "continuing" not in said(third)


def test_a_closed_gate_stays_closed(data, tmp_path):
    with pytest.raises(GateClosed, match="ar looks worse than it may"):
        pipeline(tmp_path, data, gate=Gate(quality=0.0)).run(["base", "ar"], recording())
    written = json.loads((tmp_path / "ar" / "gate.json").read_text())
    assert Verdict(**written).quality > 0
    with pytest.raises(GateClosed, match="ar looks worse than it may"):  # finished, but no better than yesterday
        pipeline(tmp_path, data, gate=Gate(quality=0.0)).run(["base", "ar"], recording())


@pytest.mark.parametrize("harm", ['{"control": 1', "[]", "{}", '{"control": null}'])
def test_a_damaged_verdict_is_named(data, tmp_path, harm):
    asked = Gate(control=-1e6, quality=1e6)
    pipeline(tmp_path, data, gate=asked).run(["base", "ar"], recording())
    (tmp_path / "ar" / "gate.json").write_text(harm)
    with pytest.raises(ValueError, match=r"ar/gate.json is damaged .*delete it to judge this stage again"):
        pipeline(tmp_path, data, gate=asked).run(["base", "ar"], recording())


def test_a_product_of_another_start_is_not_taken_for_finished(data, tmp_path):
    pipeline(tmp_path, data).run(["base", "ar"], recording())
    home = tmp_path / "base" / "world"
    world = World.load(home)
    world.save(home)  # what was saved again is the same, and still knows where it came from
    World.load(tmp_path / "ar" / "world").save(tmp_path / "ar" / "world")
    pipeline(tmp_path, data).run(["base", "ar"], recording())
    with torch.no_grad():
        next(world.model.parameters()).add_(1)
    world.save(home)
    with pytest.raises(ValueError, match="ar started from another base; delete it to train it again"):
        pipeline(tmp_path, data).run(["base", "ar"], recording())


def test_a_product_that_does_not_know_its_start_is_named(data, tmp_path):
    pipeline(tmp_path, data).run(["base", "ar"], recording())
    path = tmp_path / "ar" / "world" / "world.json"
    document = json.loads(path.read_text())
    del document["starts"]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="ar/world does not say which base it started from; delete it"):
        pipeline(tmp_path, data).run(["base", "ar"], recording())


def test_a_run_killed_before_its_verdict_is_judged_later(data, tmp_path):
    with pytest.raises(GateClosed):
        pipeline(tmp_path, data, gate=Gate(quality=0.0)).run(["base", "ar"], recording())
    (tmp_path / "ar" / "gate.json").unlink()
    with pytest.raises(GateClosed):
        pipeline(tmp_path, data, gate=Gate(quality=0.0)).run(["base", "ar"], recording())


def test_an_open_gate_says_what_it_measured(data, tmp_path):
    line = pipeline(tmp_path, data, gate=Gate(control=-1e6, quality=1e6))
    line.run(["base", "ar"], recording())
    assert "ar: passed its gate (control" in said(line)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_shipped_world_needs_no_training(data, tmp_path):
    starts(data)["base"].save(tmp_path / "shipped")
    line = pipeline(tmp_path / "run", data, shipped={"base": tmp_path / "shipped"})
    worlds = line.run(["base", "ar"], recording())
    assert "base: shipped, not trained here" in said(line) and not (tmp_path / "run" / "base").exists()
    assert worlds["ar"].recipe.frames == FRAMES


def test_a_stage_needs_its_start(data, tmp_path):
    with pytest.raises(ValueError, match="base must be trained first"):
        pipeline(tmp_path, data).run(["ar"], recording())
