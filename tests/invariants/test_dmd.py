"""Distribution matching: which way the student's clips are moved, and what the critic learns from."""

import pytest
import torch
from toys import SIZE, Spy, normal, rng, told, wild

from forcing import flow
from forcing.layout import full
from forcing.rollout import Plan
from forcing.stages import Batch
from forcing.stages.dmd import DMD, descend, direction

FRAMES, CLIPS = 3, 2
FOUR = (1.0, 0.9375, 0.8333, 0.625)
STAGE = DMD(Plan(FOUR), guidance=4.0)


@pytest.fixture
def models():
    return {role: wild(seed) for seed, role in enumerate(STAGE.roles)}


@pytest.fixture
def batch():
    cond = told(CLIPS, FRAMES)
    return Batch(normal(CLIPS, FRAMES, *SIZE), cond, cond.blank())


def by_hand(stage, models, batch, seed):
    """The student's clip, the noise level and noise that it is judged at, and the generator's numbers in order."""
    draw = rng(seed)
    video = stage.generate(models, batch, draw)
    sigma = flow.shift(torch.rand(CLIPS, 1, generator=draw), stage.shift).clamp(stage.lowest, stage.highest)
    return video, sigma.expand(-1, FRAMES), flow.randn(tuple(video.shape), draw)


def grads(model):
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def test_the_gradient_at_the_video_is_the_direction_over_its_size(double):
    video, towards = normal(2, 3, 1, 4, 4, seed=1).requires_grad_(), normal(2, 3, 1, 4, 4, seed=2)
    descend(video, towards).backward()
    assert torch.allclose(video.grad, towards / video.numel(), rtol=0, atol=1e-15)


def test_the_direction_is_in_units_of_each_clips_distance(double):
    video, real, fake = (normal(2, 3, 1, 4, 4, seed=seed) for seed in (1, 2, 3))
    towards = direction(video, real, fake)
    for i in range(2):
        expected = (fake[i] - real[i]) / (video[i] - real[i]).abs().mean()
        assert torch.allclose(towards[i], expected, rtol=0, atol=1e-12)
    scale = torch.tensor([3.0, 0.01])[:, None, None, None, None]  # of latents: it changes nothing, clip by clip
    assert torch.allclose(direction(scale * video, scale * real, scale * fake), towards, rtol=0, atol=1e-9)
    assert torch.allclose(direction(video, real, real + 2 * (fake - real)), 2 * towards, rtol=0, atol=1e-12)
    assert torch.equal(direction(video, real, real), torch.zeros_like(video))
    assert torch.isfinite(direction(real, real, fake)).all()


def test_the_student_descends_that_direction(double, models, batch):
    loss = STAGE.student_loss(models, batch, rng(3))
    loss.value.backward()
    video, sigma, eps = by_hand(STAGE, models, batch, 3)
    with torch.no_grad():
        x = flow.mix(video, eps, sigma)
        v, u = (models["teacher"](x, sigma, cond, full(FRAMES)) for cond in (batch.cond, batch.uncond))
        real = x - sigma[..., None, None, None] * (u + 4.0 * (v - u))
        fake = x - sigma[..., None, None, None] * models["critic"](x, sigma, batch.cond, full(FRAMES))
        towards = (fake - real) / (video - real).abs().mean((1, 2, 3, 4), keepdim=True)
    expected = torch.autograd.grad(video, list(models["student"].parameters()), towards / video.numel())
    assert sum(grad.abs().sum() for grad in expected) > 1e-2
    for ours, theirs in zip(grads(models["student"]), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert torch.allclose(loss.metrics["direction"], towards.abs().mean())
    assert all(p.grad is None for role in ("teacher", "critic") for p in models[role].parameters())


def test_a_critic_that_is_the_teacher_moves_nothing(models, batch):
    models["critic"] = models["teacher"]
    loss = DMD(Plan(FOUR), guidance=1.0).student_loss(models, batch, rng(3))
    loss.value.backward()
    assert loss.value == 0 and all(grad.abs().max() == 0 for grad in grads(models["student"]))
    assert STAGE.student_loss(models, batch, rng(3)).value > 1e-4  # guidance does move it


def test_an_averaged_critic_judges_and_the_critic_itself_learns(models, batch):
    spies = {role: Spy(model) for role, model in (models | {"critic_ema": wild(7)}).items()}
    STAGE.student_loss(spies, batch, rng())
    assert len(spies["critic_ema"].calls) == 1 and not spies["critic"].calls
    STAGE.critic_loss(spies, batch, rng())
    assert len(spies["critic_ema"].calls) == 1 and len(spies["critic"].calls) == 1


def test_guidance_is_the_teachers_alone(models, batch):
    spies = {role: Spy(model) for role, model in models.items()}
    STAGE.student_loss(spies, batch, rng())
    (teacher,), (critic,) = spies["teacher"].calls, spies["critic"].calls
    assert torch.equal(teacher.cond.per_frame["action"][:CLIPS], batch.cond.per_frame["action"])
    assert len(teacher.x) == 2 * CLIPS and teacher.cond.per_frame["action"][CLIPS:].abs().max() == 0
    assert len(critic.x) == CLIPS and torch.equal(critic.cond.per_frame["action"], batch.cond.per_frame["action"])
    assert torch.equal(teacher.x[:CLIPS], critic.x) and not teacher.grad and not critic.grad
    assert all(call.layout.mask is None and len(call.layout.times) == FRAMES for call in (teacher, critic))
    assert all(len(call.x) == CLIPS for call in spies["student"].calls)


def test_the_critic_learns_by_flow_matching_on_the_students_clips(double, models, batch):
    loss = STAGE.critic_loss(models, batch, rng(3))
    loss.value.backward()
    video, sigma, eps = by_hand(STAGE, models, batch, 3)
    x = (1 - sigma[..., None, None, None]) * video + sigma[..., None, None, None] * eps
    v = models["critic"](x.detach(), sigma, batch.cond, full(FRAMES))
    expected = (v - (eps - video).detach()).square().mean()
    assert torch.allclose(loss.value, expected, rtol=0, atol=1e-9)
    theirs = torch.autograd.grad(expected, list(models["critic"].parameters()))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in zip(grads(models["critic"]), theirs, strict=True))
    assert all(p.grad is None for role in ("teacher", "student") for p in models[role].parameters())


def test_levels_are_one_a_clip_and_keep_away_from_both_ends():
    stage, video = DMD(shift=5.0, lowest=0.3, highest=0.7), normal(400, FRAMES, 1, 1, 1)
    sigma = stage._levels(video, rng())
    assert (sigma == sigma[:, :1]).all() and sigma.dtype == torch.float32
    assert abs(sigma.min() - 0.3) < 1e-6 and abs(sigma.max() - 0.7) < 1e-6 and len(sigma[:, 0].unique()) > 50


def test_a_training_rollout_ends_at_every_level(models, batch):
    ends = set()
    for seed in range(40):
        spy = Spy(models["student"])
        STAGE.generate({"student": spy}, batch, rng(seed))
        levels = [level for level, *_ in spy.levels()]
        first = levels[: levels.index(0.0)]
        assert tuple(first) == FOUR[: len(first)]
        assert levels == [*first, 0.0] * FRAMES  # the same exit for all chunks of a step
        ends.add(first[-1])
    assert ends == set(FOUR)


def test_the_first_chunk_has_its_own_exits(models, batch):
    stage, first, rest = DMD(Plan((1.0, 0.75), first=FOUR)), set(), set()
    for seed in range(40):
        spy = Spy(models["student"])
        stage.generate({"student": spy}, batch, rng(seed))
        levels = [level for level, *_ in spy.levels()]
        chunks = "".join("|" if level == 0 else f"{level}," for level in levels).split("|")[:FRAMES]
        first.add(chunks[0])
        rest.update(chunks[1:])
    assert len(first) == 4 and rest == {"1.0,", "1.0,0.75,"}


@pytest.mark.parametrize("chunk", [1, 3])
def test_the_clip_is_as_long_as_the_batchs_and_made_from_its_conditions(models, batch, chunk):
    spy = Spy(models["student"])
    video = DMD(Plan((1.0,)), chunk=chunk).generate({"student": spy}, batch, rng())
    assert video.shape == batch.latents.shape
    denoising = [call for call in spy.calls if call.sigma[0, 0] == 1]
    heard = torch.cat([call.cond.per_frame["action"] for call in denoising], 1)
    assert len(denoising) == FRAMES // chunk and torch.equal(heard, batch.cond.per_frame["action"])


def test_the_critic_comes_first_and_more_often():
    critic, student = DMD(critic_updates=5, critic_first=20).updates()
    assert (critic.role, critic.every, critic.start) == ("critic", 1, 0)
    assert (student.role, student.every, student.start) == ("student", 5, 20)


@pytest.mark.parametrize(
    "wrong", [{"critic_updates": 0}, {"critic_first": -1}, {"lowest": 0.98}, {"highest": 1.2}, {"lowest": -0.1}]
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        DMD(**wrong)
