"""A recipe is a value that survives JSON, and refuses what it does not know."""

import json
import math
from dataclasses import replace

import pytest

from forcing.recipe import Gate, Optim, Recipe, Role, Sampling, Schedule, dump, parse
from forcing.recipes import find
from forcing.recipes.rooms import PIPELINE, Facts, recipes
from forcing.rollout import Plan
from forcing.stages.consistency import Consistency
from forcing.stages.diffusion import Bidirectional, DiffusionForcing, TeacherForcing

EVERY = [
    recipe
    for arguments in ({}, {"scale": "demo"}, {"chunk": 3}, {"facts": Facts((8, 4, 12), 1, 9)})
    for recipe in recipes(**arguments).values()
]


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_a_recipe_survives_json(recipe):
    again = parse(Recipe, json.loads(json.dumps(dump(recipe))))
    assert again == recipe and dump(again) == dump(recipe)
    assert type(again.stage) is type(recipe.stage) and isinstance(again.sampling.plan.rest, tuple)


def test_every_field_survives():
    recipe = replace(
        EVERY[0],
        name="odd",
        roles={"student": Role("x", Optim("adamw", 0.5, 0.25, (0.1, 0.2), 0.3), 0.0), "other": Role()},
        seed=9,
        clip=2.5,
        schedule=Schedule(1, 0.5, 0.0),
        gate=Gate(0.5, None),
        log=3,
        save=4,
        keep=5,
    )
    assert parse(Recipe, json.loads(json.dumps(dump(recipe)))) == recipe


def test_whole_numbers_become_the_floats_they_stand_for():
    data = dump(EVERY[0]) | {"clip": 1}
    assert isinstance(parse(Recipe, data).clip, float)


def test_unknown_names_are_errors():
    data = dump(EVERY[0])
    with pytest.raises(ValueError, match=r"Recipe has no \['sede'\]"):
        parse(Recipe, data | {"sede": 1})
    with pytest.raises(ValueError, match=r"Bidirectional has no \['chunk'\]"):
        parse(Recipe, data | {"stage": data["stage"] | {"chunk": 1}})
    with pytest.raises(ValueError, match="unknown kind 'Trajectory'"):
        parse(Recipe, data | {"stage": {"kind": "Trajectory"}})
    with pytest.raises(ValueError, match="unknown kind 'Plan'"):
        parse(Recipe, data | {"gate": {"kind": "Plan", "rest": [1.0]}})
    with pytest.raises(ValueError, match="Did you mean 'dmd-2step'"):
        find(recipes(), "dmd-2steps")


def test_what_a_stage_needs_must_be_there():
    base, cd = recipes()["base"], recipes()["cd"]
    with pytest.raises(ValueError, match="teacher"):
        replace(cd, roles={"student": cd.roles["student"]})
    with pytest.raises(ValueError, match="student_ema"):
        replace(cd, roles=dict(cd.roles) | {"student": replace(cd.roles["student"], ema=None)})
    with pytest.raises(ValueError, match="optimizer"):
        replace(base, roles={"student": Role()})
    for name in ("steps", "batch", "frames", "log", "save", "keep"):
        with pytest.raises(ValueError, match=name):
            replace(base, **{name: 0})
    with pytest.raises(ValueError, match="do not divide"):
        replace(cd, frames=10, sampling=replace(cd.sampling, chunk=4))
    with pytest.raises(ValueError, match="ema"):
        Role(ema=1.0)
    with pytest.raises(ValueError, match="positive"):
        Optim(lr=0.0)


SAMPLING = Sampling(Plan((1.0, 0.5)))
CANNOT_BE = [
    (SAMPLING, {"window": 0}, "window is 0 frames: it must hold a chunk of 1"),
    (SAMPLING, {"window": 6, "chunk": 4, "sink": 3}, "window is 6 .* chunk of 4 and 3 sink"),
    (SAMPLING, {"chunk": 0}, "chunk must be at least 1 frame, got 0"),
    (SAMPLING, {"sink": -1}, "sink must be at least 0 frames, got -1"),
    (SAMPLING, {"guidance": -1.0}, "guidance must be at least 0 .*got -1"),
    (SAMPLING, {"guidance": math.inf}, "guidance must be at least 0 .*got inf"),
    (Bidirectional(), {"shift": 0.0}, "shift must be a positive number .*got 0"),
    (TeacherForcing(), {"shift": -1.0}, "shift must be a positive number .*got -1"),
    (TeacherForcing(), {"chunk": 0}, "chunk must be at least 1 frame, got 0"),
    (DiffusionForcing(), {"shift": math.nan}, "shift must be a positive number .*got nan"),
    (DiffusionForcing(), {"chunk": -2}, "chunk must be at least 1 frame, got -2"),
    (Consistency(), {"steps": 0}, "steps, of the teacher's grid, must be at least 1, got 0"),
    (Consistency(), {"shift": -1.0}, "shift must be a positive number .*got -1"),
    (Consistency(), {"chunk": 0}, "chunk must be at least 1 frame, got 0"),
    (Consistency(), {"guidance": -0.5}, "guidance must be at least 0 .*got -0.5"),
    (Schedule(), {"warmup": -1}, "warmup must be at least 0 steps, got -1"),
    (Schedule(), {"decay": 1.5}, "decay is a share and must lie in 0..1, got 1.5"),
    (Schedule(), {"floor": -0.1}, "floor is a share and must lie in 0..1, got -0.1"),
    (EVERY[0], {"clip": -1.0}, "clip, the greatest gradient norm, must be positive, got -1"),
    (EVERY[0], {"clip": math.nan}, "clip, .*got nan"),
    (EVERY[0], {"seed": -1}, "seed must be at least 0, got -1"),
]


@pytest.mark.parametrize(("value", "changes", "message"), CANNOT_BE)
def test_what_cannot_be_is_refused_with_what_may(value, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(value, **changes)


@pytest.mark.parametrize("name", ["ar", "df", "cd", "dmd-2step"])
def test_what_is_trained_is_what_is_sampled(name):
    made = recipes()[name]
    with pytest.raises(ValueError, match=r"stage.chunk is 3 and sampling.chunk 1"):
        replace(made, stage=replace(made.stage, chunk=3))
    with pytest.raises(ValueError, match=r"stage.chunk is 1 and sampling.chunk 3"):
        replace(made, sampling=replace(made.sampling, chunk=3))
    both = replace(made, stage=replace(made.stage, chunk=3), sampling=replace(made.sampling, chunk=3))
    assert both.stage.chunk == both.sampling.chunk == 3
    with pytest.raises(ValueError, match="12 frames do not divide into chunks of 5"):
        replace(made, stage=replace(made.stage, chunk=5), sampling=replace(made.sampling, chunk=5))


def test_a_bidirectional_model_makes_its_clip_at_once():
    base = recipes()["base"]
    with pytest.raises(ValueError, match=r"sampling.chunk is 4: .* 12 frames at once"):
        replace(base, sampling=replace(base.sampling, chunk=4))


def test_a_students_plan_is_the_one_it_trains_on():
    made, other = recipes()["dmd-2step"], Plan((1.0, 0.25))
    with pytest.raises(ValueError, match=r"stage.plan visits \(1.0, 0.25\) and sampling.plan \(1.0, "):
        replace(made, stage=replace(made.stage, plan=other))
    with pytest.raises(ValueError, match="sampled as it was trained"):
        replace(made, sampling=replace(made.sampling, plan=replace(made.sampling.plan, fresh=False)))
    replace(made, stage=replace(made.stage, plan=other), sampling=replace(made.sampling, plan=other))


def test_every_start_of_the_pipeline_is_made_before_it():
    made = recipes()
    for place, name in enumerate(PIPELINE):
        for role in made[name].roles.values():
            assert role.start is None or role.start in PIPELINE[:place]
    assert isinstance(made["base"].stage, Bidirectional) and isinstance(made["cd"].stage, Consistency)
    assert made["dmd-2step"].sampling.plan == made["dmd-2step"].stage.plan != made["dmd-4step"].stage.plan


def test_rates_rise_then_fall_to_their_floor():
    schedule = Schedule(warmup=10, decay=0.5, floor=0.1)
    rates = [schedule.at(step, 100) for step in range(100)]
    assert rates[0] == 0.1 and rates[9:51] == [1.0] * 42
    assert all(a > b for a, b in zip(rates[50:94], rates[51:95], strict=True)) and rates[-1] == 0.1
    assert Schedule(warmup=0).at(0, 5) == 1.0
    assert Plan.ode(4, 1.0).rest == (1.0, 0.75, 0.5, 0.25)
