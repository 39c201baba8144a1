"""Fixtures of the evaluation's tests, made once: a small recording of `rooms`, its scenes, a run with all stages."""

import pytest
from eval_toys import TINY, small_world

from forcing.data.shards import Recording
from forcing.envs.gym import Record, record
from forcing.eval.rooms import evaluate
from forcing.eval.scenes import gather
from forcing.eval.scores import Judge
from forcing.recipes.rooms import PIPELINE


@pytest.fixture(scope="session")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval") / "recording"
    return Recording.open(record(Record("rooms", 1200, 0, 39, holdout=0.25), folder))


@pytest.fixture(scope="session")
def judge(recording):
    return Judge.appoint(gather(recording, TINY), TINY)


@pytest.fixture(scope="session")
def folder(recording, tmp_path_factory):
    """A run with all stages, untrained."""
    run = tmp_path_factory.mktemp("run")
    for name in PIPELINE:
        small_world(recording, name).save(run / name / "world")
    return run


@pytest.fixture(scope="session")
def evaluated(folder, recording):
    """The same run, evaluated: the results, and what `progress` was told."""
    said = []
    results = evaluate(
        folder, recording, TINY, progress=lambda what, share: said.append((what, share)), command="forcing eval <run>"
    )
    return results, said
