"""Figures that are known beforehand: of the real world, of models that cheat, and of formulas done by hand."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import shaken

from forcing.actions.keys import Keys
from forcing.backbones.tiny import TinyConfig
from forcing.codecs.linear import LinearCodec
from forcing.data.shards import Recording
from forcing.envs.gym import Record, record, replay
from forcing.envs.rooms import TILE, palette
from forcing.eval.cost import cost
from forcing.eval.distribution import Features, diversity, frechet, motion
from forcing.eval.measure import FULL, QUICK, Measure
from forcing.eval.results import METRICS, Results, Row
from forcing.eval.rooms import evaluate, results_path
from forcing.eval.rows import candidates
from forcing.eval.samples import GivenClean, Player, effort, real, sample
from forcing.eval.scenes import Origin, fork, gather
from forcing.eval.scores import Judge
from forcing.eval.tables import markdown, number, table
from forcing.eval.tiles import Views, against_itself, against_truth
from forcing.eval.verdict import verdict
from forcing.flow import randn
from forcing.guidance import Guided
from forcing.layout import after, full
from forcing.recipes.rooms import PIPELINE, recipes
from forcing.rollout import Plan, denoise, remember
from forcing.text.names import Names
from forcing.world import World

TINY = Measure(
    "tiny",
    ahead=3,
    told=3,
    starts=3,
    nothing=6,
    train=12,
    frames=16,
    bucket=8,
    many=3,
    few=(2, 1),
    seeds=(0, 1),
    keep=8,
    timed=1,
)


@pytest.fixture(scope="session")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval") / "recording"
    return Recording.open(record(Record("rooms", 1200, 0, 39, holdout=0.25), folder))


@pytest.fixture(scope="session")
def judge(recording):
    return Judge.appoint(gather(recording, TINY), TINY)


def small_world(recording: Recording, name: str, chunk: int = 1) -> World:
    """A world of `rooms` with random weights."""
    frames = np.concatenate([episode.frames[::5] for episode in recording.load("train")])
    codec = LinearCodec.fit(frames, multiple=4)
    recipe = recipes(chunk=chunk)[name]
    sizes = {"patch": 4, "dim": 16, "heads": 2, "layers": 1, "text_dim": 3, "action_dim": 4}
    recipe = replace(recipe, backbone=TinyConfig(codec.config.latents, **sizes))
    model = shaken(recipe.backbone.build(), len(name)).eval().requires_grad_(False)
    return World(model, codec, Names(tuple(recording.prompts)), Keys(tuple(recording.actions)), recipe)


@pytest.fixture(scope="session")
def folder(recording, tmp_path_factory):
    """A run with all stages, untrained."""
    run = tmp_path_factory.mktemp("run")
    for name in PIPELINE:
        small_world(recording, name).save(run / name / "world")
    return run


# ---- the real world, and models that cheat


def test_the_real_world_is_perfect(judge):
    scores = judge.score(real(judge.scenes, 0), TINY.clip - 1, 1)
    for name in ("control", "control_frames", "control_rollout", "valid_determined", "valid_new", "valid_nothing"):
        assert scores.values[name] == 1.0, name
    assert scores.curves["control_rollout"] == [1.0, 1.0] and scores.curves["valid_free"] == [1.0, 1.0]
    assert 0.5 < scores.values["motion_free"] < 2 and 0.5 < scores.values["motion_nothing"] < 2


def test_a_frozen_picture_neither_moves_nor_listens(judge):
    scenes, honest = judge.scenes, real(judge.scenes, 0)
    stuck = replace(
        honest,
        ahead=np.roll(honest.ahead, 1, 1),
        told=scenes.told.frames[:, 3:4].repeat(TINY.frames, 1),
        free=scenes.free.frames[:, -1:].repeat(TINY.frames, 1),
        nothing=honest.nothing[:, :1].repeat(TINY.clip, 1),
    )
    scores = judge.score(stuck, TINY.clip - 1, 1).values
    assert scores["motion_free"] == scores["motion_nothing"] == scores["diversity_free"] == 0.0
    assert scores["valid_free"] == 1.0  # each frame looks fine
    assert scores["control"] < 0.8 and scores["control_rollout"] < 0.8
    honest = judge.score(honest, TINY.clip - 1, 1).values
    assert scores["frechet_free"] > 2 * honest["frechet_free"]
    assert scores["diversity_nothing"] > 0.5  # the pictures still differ


def test_a_deaf_model_is_caught(judge):
    # It does what some player would have done, beautifully, but not what it was told.
    footage = judge.scenes.told
    other = np.roll(footage.led, 1, 0)
    start = TINY.start
    honest = Views.read(footage.frames, 0.05)
    assert against_itself(honest, footage.led, 11).control(slice(start, None)) == 1.0
    assert against_itself(honest, other, 11).control(slice(start, None)) < 0.9


def test_mush_is_not_a_tile(judge):
    honest = real(judge.scenes, 0)
    grey = np.full_like(honest.free, 128)
    scores = judge.score(replace(honest, free=grey, nothing=grey[:, : TINY.clip]), 11, 1).values
    assert scores["valid_free"] == scores["valid_nothing"] == 0.0


def test_a_tile_must_be_right_and_well_drawn(judge):
    footage = judge.scenes.ahead
    true = Views.read(footage.frames, 0.05)
    blurred = (0.5 * footage.frames + 60).astype(np.uint8)
    smeared = against_truth(Views.read(blurred, 0.05), true, footage.led, 11)
    assert smeared.control(slice(1, None)) < 0.5 <= 1.0
    wrong = footage.frames.copy()
    wrong[:, 1:, :TILE, :TILE] = palette()[1][3]  # a goal in the corner, in every frame but the first
    judged = against_truth(Views.read(wrong, 0.05), true, footage.led, 11)
    assert judged.validity(slice(None), determined=True) == 1.0
    assert 0.9 < judged.control(slice(1, None)) <= 1.0 and judged.control_frames(slice(1, None)) < 0.5


def test_remembering_nothing_is_not_control(judge):
    # In the dark every frame agrees with the last: there is nothing to see, so there is nothing to be right about.
    dark = Views(np.zeros((2, 6, 7, 7), np.int64), np.ones((2, 6, 7, 7), bool))
    dark.ids[:, :, 6, 3] = 5
    judged = against_itself(dark, np.full((2, 6), 2), 5)
    assert np.isnan(judged.control(slice(1, None)))
    honest = real(judge.scenes, 0)
    black = replace(honest, told=np.zeros_like(honest.told))
    assert judge.score(black, 11, 1).values["control_rollout"] < 0.2


# ---- formulas


def test_frechet_distance_by_hand():
    draw = np.random.default_rng(0)
    a = draw.normal(size=(400, 5))
    assert abs(frechet(a, a)) < 1e-8
    steps = [frechet(a, a + shift) for shift in (0.1, 0.5, 2.0)]
    assert steps == pytest.approx([5 * shift**2 for shift in (0.1, 0.5, 2.0)], abs=1e-8)
    assert frechet(a, 3 * a) == pytest.approx(2**2 * np.trace(np.cov(a, rowvar=False)) + 4 * (a.mean(0) ** 2).sum())
    b = a @ draw.normal(size=(5, 5))
    assert frechet(a, b) == pytest.approx(frechet(b, a)) and frechet(a, b) > 0.1


def test_features_see_looks_and_motion(judge):
    clips = judge.scenes.nothing.frames
    features = Features.fit(clips, 8)
    assert features.axes.T @ features.axes == pytest.approx(np.eye(8), abs=1e-4)
    assert features.of(clips).shape == (len(clips) * (clips.shape[1] - 1), 8)
    still = clips[:, :1].repeat(clips.shape[1], 1)
    assert frechet(features.of(still), features.of(clips)) > 1
    assert abs(frechet(features.of(clips), features.of(clips))) < 1e-3


@pytest.mark.parametrize("clips", [2, 3, 6])
def test_diversity_is_the_mean_over_pairs(clips):
    frames = np.random.default_rng(clips).integers(0, 256, (clips, 2, 4, 4, 3), dtype=np.uint8)
    pairs = [np.abs(a / 255 - b / 255).mean() for a, b in itertools.combinations(frames.astype(float), 2)]
    assert diversity(frames) == pytest.approx(np.mean(pairs), rel=1e-5)


def test_diversity_compares_only_clips_of_one_start_or_prompt(judge):
    scenes, honest = judge.scenes, real(judge.scenes, 0)
    same = honest.free.copy()
    same[1::2] = same[::2]
    assert judge.score(replace(honest, free=same), 11, 1).values["diversity_free"] == 0.0
    each = [np.abs(a[-1] / 255 - b[-1] / 255).mean() for a, b in zip(honest.free[::2], honest.free[1::2], strict=True)]
    base = [
        np.abs(a[-1] / 255 - b[-1] / 255).mean()
        for a, b in zip(scenes.reference[::2], scenes.reference[1::2], strict=True)
    ]
    expected = np.mean(each) / np.mean(base)
    assert judge.score(honest, 11, 1).values["diversity_free"] == pytest.approx(expected, rel=1e-4)
    alike = honest.nothing.copy()
    for prompt in set(scenes.nothing.prompts):
        mine = np.array([p == prompt for p in scenes.nothing.prompts])
        alike[mine] = alike[mine][:1]
    scores = judge.score(replace(honest, nothing=alike), 11, 1).values
    assert scores["diversity_nothing"] == pytest.approx(0, abs=1e-6) and scores["motion_nothing"] > 0.3


def test_motion_by_hand():
    clips = np.zeros((1, 3, 2, 2, 3), np.uint8)
    clips[:, 1] = 51
    assert motion(clips) == pytest.approx(0.2)


# ---- scenes: the real footage


def test_scenes_are_held_out_and_line_up(recording, judge):
    scenes = judge.scenes
    held = recording.load("heldout")
    for footage, frames in ((scenes.ahead, 12), (scenes.told, 20), (scenes.nothing, 12)):
        assert footage.frames.shape[1:] == (frames, 56, 56, 3) and (footage.led[:, 0] == -1).all()
        for clip, led, prompt in zip(footage.frames, footage.led, footage.prompts, strict=True):
            found = [
                (episode, at)
                for episode in held
                if episode.prompt == prompt
                for at in range(len(episode) - frames + 1)
                if (episode.frames[at : at + frames] == clip).all()
                and (episode.actions[at : at + frames - 1] == led[1:]).all()
            ]
            assert found
    assert set(scenes.nothing.prompts) == set(recording.prompts)
    assert scenes.free.frames.shape[:2] == (6, 4) and scenes.reference.shape[:2] == (6, 16)
    assert (scenes.free.frames[::2] == scenes.free.frames[1::2]).all()


def test_forks_go_on_from_where_the_start_ends(recording, judge):
    episode = recording.load("heldout")[0]
    keys = tuple(int(key) for key in episode.actions[:9])
    origin = Origin(episode.prompt, episode.seed, keys)
    first, second = fork([origin], 6, 0, 0.6), fork([origin], 6, 1, 0.6)
    shown = [replay(episode.prompt, episode.seed, [*keys, key])[-1] for key in range(4)]
    for clips in (first, second):
        assert any((clips[0, 0] == frame).all() for frame in shown)
    assert (first == fork([origin], 6, 0, 0.6)).all() and (first != second).any()
    assert not (judge.scenes.forks[0] == judge.scenes.forks[1]).all()


def test_scenes_that_cannot_be(recording, tmp_path):
    with pytest.raises(ValueError, match=r"at least 104 frames in either split; the longest of .* has 40"):
        gather(recording, replace(TINY, frames=100, bucket=10))
    other = record(Record("MiniGrid-Empty-5x5-v0", 60, 0, 20), tmp_path / "other")
    with pytest.raises(ValueError, match=r"MiniGrid-Empty-5x5-v0.*only worlds whose truth is known"):
        gather(Recording.open(other), TINY)


@pytest.mark.parametrize("change", [{"told": 0}, {"forks": 1}, {"frames": 15}, {"seeds": ()}, {"seeds": (1, 1)}])
def test_a_measure_that_makes_no_sense(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(TINY, **change)


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
    made = denoise(model, noise, cond, full(4), plan.rest, torch.Generator(), fresh=False)
    guided = Guided(world.model, 1.5)
    cache = guided.cache(2, window=12)
    for at in range(3):
        remember(guided, clean[:, at : at + 1], cond.frames(at, at + 1), cache)
    layout = after(cache.past(1), 1)
    last = denoise(guided, noise[:, 3:], cond.frames(3, 4), layout, plan.rest, torch.Generator(), fresh=False)
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


def test_passes_of_the_rows(folder):
    rows = {row.name: row for row in candidates(folder, replace(FULL, few=(4, 2, 1)), {})}
    passes = {name: row.passes for name, row in rows.items()}
    students = {f"{family}-{n}": n + 1 for family in ("cd", "dmd") for n in (4, 2, 1)}
    assert passes == {"base": 64, "ar": 66, "ar-4": 10, "ar-2": 6, "ar-1": 4} | students
    assert rows["cd-2"].sampling.plan == rows["dmd-2"].sampling.plan != rows["ar-2"].sampling.plan
    assert rows["ar-1"].sampling.plan.first == rows["ar-4"].sampling.plan.rest  # as many for a frame out of nothing
    assert rows["base"].memory is None and rows["ar"].memory == 11


# ---- the whole


def test_an_evaluation_ends_and_continues_where_it_was(folder, recording, monkeypatch):
    said = []
    results = evaluate(folder, recording, TINY, progress=lambda what, share: said.append((what, share)), command="me")
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
    assert facts["command"] == "me" and facts["measure"]["seeds"] == (0, 1) and facts["machine"]["threads"] == 1
    assert facts["worlds"]["ar-2"]["recipe"] == "ar" and len(facts["worlds"]["ar"]["sha256"]) == 3

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


def test_chunks_must_fit(recording, tmp_path):
    small_world(recording, "ar", chunk=3).save(tmp_path / "ar" / "world")
    with pytest.raises(ValueError, match="chunks of 3 frames: start 4 and clip 12 must be multiples"):
        candidates(tmp_path, FULL, {})
    measure = replace(TINY, start=3, frames=12, bucket=6, seeds=(0,))
    results = evaluate(tmp_path, recording, measure)
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
}


def test_the_verdict_follows_the_bounds():
    worse = GOOD | {"frechet_free": 40.0, "frechet_nothing": 50.0}
    rows = {"ar": GOOD, "ar_2": worse, "ar_1": worse, "cd_2": GOOD, "dmd_2": GOOD, "dmd_1": GOOD}
    claims = verdict(made_up(**rows))
    assert len(claims) == 10 and all(claim.passed for claim in claims)
    for metric, bad in (
        ("control", 0.9),
        ("frechet_free", 13.0),
        ("valid_new", 0.9),
        ("diversity_nothing", 0.7),
        ("motion_free", 0.7),
    ):
        failed = [claim for claim in verdict(made_up(**rows | {"dmd_2": GOOD | {metric: bad}})) if not claim.passed]
        assert failed and all(claim.claim.startswith("dmd_2") for claim in failed), metric
    close = verdict(made_up(**rows | {"ar_2": worse | {"frechet_free": 10.015}}))
    assert [claim.passed for claim in close].count(False) == 2  # within the spread of the seeds is not clearly better
    assert verdict(made_up(ar=GOOD)) == []


def test_tables_show_every_row():
    results = made_up(real=GOOD, ar=GOOD, cd_2=GOOD | {"frechet_free": 9.0}, dmd_2=GOOD | {"frechet_free": 11.0})
    text = markdown(results)
    assert "| cd_2 | **9.0** | **12.0** |" in text and "| dmd_2 | 11.0 | **12.0** |" in text
    assert "| real | 97.0 (96.0-98.0) |" in text
    assert table(results).row_count == 4
    shares = {metric.name: metric for metric in METRICS}
    assert number(shares["control"], 0.9666) == "96.7" and number(shares["ms"], None) == "-"


def test_presets_are_what_they_say():
    assert FULL.frames >= 64 and len(FULL.seeds) >= 3 and len(QUICK.seeds) >= 3
    assert FULL.few == QUICK.few == (4, 2, 1) and FULL.many == 32
