"""Figures that are known beforehand: of the real world, of models that cheat, and of formulas done by hand."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from eval_toys import TINY

from forcing.data.shards import Recording
from forcing.envs.gym import Record, record, replay
from forcing.envs.rooms import AGENT, TILE, WALL, palette
from forcing.eval.distribution import Features, diversity, frechet, motion
from forcing.eval.samples import real
from forcing.eval.scenes import Origin, fork, gather
from forcing.eval.tiles import Views, against_itself, against_truth, recognised

pytest_plugins = ("eval_fixtures",)

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


def test_a_closed_cell_is_consistent_and_unlike_the_world(judge):
    # Walls on every side agree with every key for ever, and each of them is a tile.
    honest = real(judge.scenes, 0)
    view = np.zeros((7, 7), np.int64)
    view[5:, 2:5], view[6, 3] = WALL, AGENT
    cell = palette()[1][view].transpose(0, 2, 1, 3, 4).reshape(56, 56, 3)
    dream = np.broadcast_to(cell, honest.told.shape)
    scores = judge.score(replace(honest, told=dream), 4, 1)
    assert scores.curves["control_rollout"][-1] == scores.values["valid_new"] == scores.values["valid_determined"] == 1
    assert scores.curves["valid_new"] == scores.curves["valid_determined"] == [1.0, 1.0]
    assert scores.values["motion_told"] == 0.0 and scores.curves["motion_told"] == [0.0, 0.0]
    # other wanderings from other starts are nearer
    fair = judge.score(replace(honest, told=judge.scenes.reference[: TINY.told]), 4, 1)
    assert scores.values["frechet_told"] > 2 * fair.values["frechet_told"]
    assert len(scores.curves["frechet_told"]) == 2 and 0.3 < fair.values["motion_told"] < 3
    # the recorded frames have no distance to themselves
    assert not {"frechet_told", "motion_told"} & set(judge.score(honest, 4, 1).values)


def test_swapped_prompts_are_noticed(recording, judge):
    many = gather(recording, replace(TINY, nothing=45, seeds=(0,)))
    prompts = many.nothing.prompts
    true, fair = Views.read(many.nothing.frames, 0.05), Views.read(many.others[0], 0.05)
    assert recognised(true, true, prompts) > 0.9 and recognised(fair, true, prompts) > 0.8
    swapped = Views(np.roll(fair.ids, 1, 0), np.roll(fair.valid, 1, 0))  # prompts come in turn
    assert recognised(swapped, true, prompts) < 0.2
    assert np.isnan(recognised(fair, true, ["one"] * len(prompts)))
    honest = real(judge.scenes, 0)
    swapped = judge.score(replace(honest, nothing=np.roll(judge.scenes.nothing.frames, 1, 0)), 4, 1).values
    assert swapped["prompt"] < 0.5 and swapped["frechet_nothing"] < 1e-3  # which distances alone do not see


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


def test_what_is_determined_and_what_is_new_are_judged_apart(judge):
    footage = judge.scenes.told
    true = Views.read(footage.frames, 0.05)
    known = against_itself(true, footage.led, 11).known
    part = slice(1, None)
    smudged = replace(true, valid=known)  # only what nothing determines is badly drawn
    judged = against_truth(smudged, true, footage.led, 11)
    assert judged.validity(part, determined=True) == 1.0 and judged.validity(part, determined=False) == 0.0
    judged = against_truth(replace(true, valid=~known), true, footage.led, 11)
    assert judged.validity(part, determined=True) == 0.0 and judged.validity(part, determined=False) == 1.0


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
    order = np.random.default_rng(0).permuted(np.tile(np.arange(clips.shape[1]), (len(clips), 1)), axis=1)
    shuffled = np.take_along_axis(clips, order[:, :, None, None, None], 1)
    assert frechet(features.of(shuffled), features.of(clips)) > 1  # the same pictures, moving wildly
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
    apart = [
        np.mean([np.abs(a[at] / 255 - b[at] / 255).mean() for a, b in zip(clips[::2], clips[1::2], strict=True)])
        for clips in (honest.free, scenes.reference)
        for at in (7, 15)
    ]
    scores = judge.score(honest, 11, 1)
    assert scores.values["diversity_free"] == pytest.approx((apart[0] + apart[1]) / (apart[2] + apart[3]), rel=1e-4)
    assert scores.curves["diversity_free"] == pytest.approx([apart[0] / apart[2], apart[1] / apart[3]], rel=1e-4)
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
    held = recording.load("heldout")
    origins = [Origin(e.prompt, e.seed, tuple(int(key) for key in e.actions[:9])) for e in held]
    first, second = fork(origins, 6, 0, 0.6), fork(origins, 6, 1, 0.6)
    for number, origin in enumerate(origins):
        shown = [replay(origin.prompt, origin.seed, [*origin.actions, key])[-1] for key in range(4)]
        for clips in (first, second):
            assert any((clips[number, 0] == frame).all() for frame in shown)
    assert (first == fork(origins, 6, 0, 0.6)).all() and (first != second).any()
    scenes = judge.scenes
    assert (scenes.forks[0] != scenes.forks[1]).any() and (scenes.forks[0] != scenes.reference).any()
    for start, after in zip(scenes.free.frames, scenes.reference, strict=True):
        found = [(e, at) for e in held for at in range(len(e) - 3) if (e.frames[at : at + 4] == start).all()]
        shown = [
            replay(e.prompt, e.seed, [*e.actions[: at + 3].tolist(), key])[-1] for e, at in found for key in range(4)
        ]
        assert any((after[0] == frame).all() for frame in shown)


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
