"""The whole method on a tiny recording of rooms, from the shipped base to a two-step student, on one core."""

from dataclasses import replace
from pathlib import Path

import pytest
from toys import silent

from forcing.cli import setting
from forcing.data.shards import Recording
from forcing.envs.gym import ROOMS, Record, record
from forcing.pipeline import Pipeline
from forcing.recipe import Gate
from forcing.recipes import rooms
from forcing.train.gate import judge
from forcing.train.log import read
from forcing.train.material import recorded

RECORDED = Record(ROOMS, frames=12_000, seed=11, episode=80)
STEPS = {"ar": 60, "cd": 60, "dmd-2step": 30}


def short(folder: Path, data: Recording) -> Pipeline:
    """The pipeline of `forcing pipeline rooms`, with fewer steps, smaller batches and no gates."""
    whole = setting.pipeline(folder, setting.Setting(), data, silent(), from_scratch=False)
    small = {"batch": 16, "gate": Gate()}
    recipes = {name: replace(each, steps=STEPS.get(name, 1), **small) for name, each in whole.recipes.items()}
    student = recipes["dmd-2step"]
    recipes["dmd-2step"] = replace(student, stage=replace(student.stage, critic_first=5))
    return replace(whole, recipes=recipes)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_two_step_student_is_distilled(tmp_path):
    assert setting.shipped_base(), "no base is shipped"
    data = Recording.open(record(RECORDED, tmp_path / "recording"))
    worlds = short(tmp_path / "run", data).run(["base", *STEPS], data)
    assert not (tmp_path / "run" / "base").exists()
    student, teacher = worlds["dmd-2step"], worlds["ar"]
    assert len(student.recipe.sampling.plan.rest) == 2

    seen = judge(student, teacher, recorded(data, student.codec, rooms.FRAMES))
    assert seen.control > 1.5, seen  # 1 is deaf
    assert seen.control - 1 > 0.5 * (seen.control_before - 1), seen
    assert seen.quality < seen.quality_before, seen  # the teacher cut to the student's own two steps

    for name in STEPS:
        lines = read(tmp_path / "run" / name / "metrics.jsonl")
        assert sum("gauge/control" in line for line in lines) >= 2, name
