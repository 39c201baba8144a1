"""A recipe is a value that survives JSON, and refuses what it does not know."""

import json
from dataclasses import replace

import pytest

from forcing.recipe import Gate, Optim, Recipe, Role, Schedule, dump, parse
from forcing.recipes import find
from forcing.recipes.rooms import PIPELINE, Facts, recipes
from forcing.rollout import Plan
from forcing.stages.consistency import Consistency
from forcing.stages.diffusion import Bidirectional

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
