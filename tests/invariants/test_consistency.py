"""Consistency distillation has the teacher's flow map as its fixed point, last interval included."""

import pytest
import torch
from toys import ACTION, SIZE, TEXT, Formula, Spy, normal, rng, told, wild

from forcing import flow
from forcing.cond import Cond
from forcing.layout import teacher_forced
from forcing.stages import Batch
from forcing.stages.consistency import Consistency

FRAMES, CLIPS, STEPS = 4, 3, 48
STAGE = Consistency(chunk=2, steps=STEPS, shift=5.0, guidance=3.0)
GRID = flow.grid(STEPS, 5.0)


def constant(sigma):
    """dx/dsigma = a x."""
    return torch.ones_like(sigma)


def gaussian(sigma):
    """dx/dsigma = a k(sigma) x, for a = 1 the exact velocity of data from N(0, 0.25)."""
    return (sigma - (1 - sigma) * 0.25) / ((1 - sigma) ** 2 * 0.25 + sigma**2)


def teacher(k):
    """v = a k(sigma) x, with a told frame by frame; the null condition tells 0, and then a = 0.5."""
    return Formula(lambda x, sigma, cond: ((0.5 + cond.per_frame["a"]) * k(sigma))[..., None, None, None] * x)


def flow_map(k, told_rate, *, wrong_at=None):
    """The student that lands where the guided teacher's Euler steps land: G(x, sigma_i) = x prod_j (1 + a k ds).

    wrong_at: an interval at whose beginning it is a little off.
    """
    levels = GRID.double()
    steps = levels.diff() * k(levels[:-1])
    rate = 0.5 + 3.0 * told_rate.double()  # uncond + guidance (cond - uncond)
    growth = torch.stack([(1 + rate[..., None] * steps[i:]).prod(-1) for i in range(STEPS + 1)], -1)
    growth = growth.repeat(1, 2, 1)  # for [clean; noisy]
    if wrong_at is not None:
        growth[..., wrong_at] += 0.1

    def v(x, sigma, cond):
        at = (sigma[..., None] == GRID).double()
        assert (at.sum(-1) == 1).all(), "a level beside the grid"
        landing = (growth * at).sum(-1)
        return ((1 - landing) / sigma.double().clamp(min=1e-12) * (sigma > 0))[..., None, None, None] * x

    return Formula(v)


def batch_of(rate, dtype=torch.float64, clips=CLIPS):
    cond = Cond({}, {"a": rate.to(dtype)})
    return Batch(normal(clips, FRAMES, 2, 2, 2, seed=1, dtype=dtype), cond, cond.blank())


def force(monkeypatch, i):
    """Every clip draws interval `i`."""
    monkeypatch.setattr(torch, "randint", lambda high, size, **_: torch.full(size, i))


@pytest.mark.parametrize("k", [constant, gaussian])
@pytest.mark.parametrize("i", range(STEPS))
def test_the_teachers_flow_map_has_no_loss_in_any_interval(monkeypatch, k, i):
    force(monkeypatch, i)
    rate = 0.3 * normal(CLIPS, FRAMES, seed=4)
    student = flow_map(k, rate)
    loss = STAGE.loss({"student": student, "student_ema": student, "teacher": teacher(k)}, batch_of(rate), rng())
    assert loss.value < 1e-10
    if i == STEPS - 1:
        assert loss.metrics["terminal_pair"] < 1e-10
    else:
        assert "terminal_pair" not in loss.metrics


@pytest.mark.parametrize("i", [0, 24, STEPS - 1])
def test_a_student_that_is_off_at_one_level_is_told_so(monkeypatch, i):
    force(monkeypatch, i)
    rate = 0.3 * normal(CLIPS, FRAMES, seed=4)
    true, off = flow_map(constant, rate), flow_map(constant, rate, wrong_at=i)
    loss = STAGE.loss({"student": off, "student_ema": true, "teacher": teacher(constant)}, batch_of(rate), rng())
    assert loss.value > 1e-3
    if i == STEPS - 1:
        assert torch.equal(loss.metrics["terminal_pair"], loss.value.detach())


def test_at_the_last_pair_the_target_is_where_the_teacher_lands_whatever_the_average_says(monkeypatch):
    force(monkeypatch, STEPS - 1)
    rate = 0.3 * normal(CLIPS, FRAMES, seed=4)
    noise = Formula(lambda x, sigma, cond: 1e3 * x)
    models = {"student": flow_map(constant, rate), "student_ema": noise, "teacher": teacher(constant)}
    assert STAGE.loss(models, batch_of(rate), rng()).value < 1e-10


@pytest.mark.parametrize("wrong", ["guidance", "average"])
def test_other_wrong_maps_have_a_loss(wrong):
    rate = 0.3 * normal(CLIPS, FRAMES, seed=4)
    student = flow_map(constant, rate / 3 if wrong == "guidance" else rate)
    average = Formula(lambda x, sigma, cond: 0 * x) if wrong == "average" else student
    loss = STAGE.loss({"student": student, "student_ema": average, "teacher": teacher(constant)}, batch_of(rate), rng())
    assert loss.value > 1e-4


def spied(batch, stage=STAGE, seed=0):
    """Everyone says v = 0.1 x, told or not, but the student 0.2 x."""
    models = {role: Spy(Formula(lambda x, sigma, cond: 0.1 * x)) for role in stage.roles}
    models["student"] = Spy(Formula(lambda x, sigma, cond: 0.2 * x))
    loss = stage.loss(models, batch, rng(seed))
    return models, loss


def test_every_interval_is_drawn_one_for_each_clip_and_one_for_all_its_frames():
    clips = 512
    models, loss = spied(batch_of(torch.zeros(clips, FRAMES), clips=clips))
    sigma, sigma_next = (models[role].calls[0].sigma[:, FRAMES:] for role in ("student", "student_ema"))
    assert (sigma == sigma[:, :1]).all() and (sigma_next == sigma_next[:, :1]).all()
    assert torch.equal(models["teacher"].calls[0].sigma[:clips, FRAMES:], sigma)
    index = (sigma[:, :1] == GRID).nonzero()[:, 1]
    assert sorted(index.unique().tolist()) == list(range(STEPS))
    assert torch.equal(sigma_next[:, 0], GRID[index + 1])
    x, x_next = (models[role].calls[0].x[:, FRAMES:] for role in ("student", "student_ema"))
    assert torch.allclose(x_next, x + 0.1 * (sigma_next - sigma)[..., None, None, None] * x, rtol=0, atol=1e-6)
    last = x[index == STEPS - 1]
    gap = (1 - 0.2 * GRID[-2]) * last - (1 - 0.1 * GRID[-2]) * last
    assert torch.allclose(loss.metrics["terminal_pair"], gap.square().mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_clock_is_float32_whatever_the_latents_are(dtype):
    models, _ = spied(batch_of(torch.zeros(CLIPS, FRAMES), dtype))
    for spy in models.values():
        assert {call.sigma.dtype for call in spy.calls} == {torch.float32}
        assert {call.x.dtype for call in spy.calls} == {dtype}


def test_everyone_is_given_the_clean_past_and_the_teacher_alone_is_guided():
    rate = normal(CLIPS, FRAMES, seed=4)
    batch = batch_of(rate)
    models, _ = spied(batch)
    for role, spy in models.items():
        (call,) = spy.calls
        copies = 2 if role == "teacher" else 1
        assert torch.equal(call.x[:, :FRAMES], batch.latents.repeat(copies, 1, 1, 1, 1))
        assert (call.sigma[:, :FRAMES] == 0).all()
        assert torch.equal(call.layout.mask, teacher_forced(FRAMES, 2).mask)
        told_rates = call.cond.per_frame["a"]
        assert torch.equal(told_rates[:CLIPS], rate.double().repeat(1, 2))
        assert len(told_rates) == copies * CLIPS and (told_rates[CLIPS:] == 0).all()
        assert call.grad == (role == "student")


def test_only_the_student_learns():
    models = {role: wild(seed) for seed, role in enumerate(STAGE.roles)}
    batch = Batch(normal(CLIPS, FRAMES, *SIZE), told(CLIPS, FRAMES), told(CLIPS, FRAMES).blank())
    assert batch.cond.static["text"].shape == (CLIPS, TEXT) and batch.cond.per_frame["action"].shape[-1] == ACTION
    STAGE.loss(models, batch, rng()).value.backward()
    assert all(p.grad is None for role in ("teacher", "student_ema") for p in models[role].parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in models["student"].parameters())


def test_the_loss_is_a_function_of_its_generator():
    models = {role: wild(seed) for seed, role in enumerate(STAGE.roles)}
    batch = Batch(normal(CLIPS, FRAMES, *SIZE), told(CLIPS, FRAMES), told(CLIPS, FRAMES).blank())
    values = [STAGE.loss(models, batch, rng(seed)).value.item() for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
