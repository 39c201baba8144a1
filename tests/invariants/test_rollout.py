"""The one generation loop: what it visits, where its gradients go, and when it asks."""

import math

import pytest
import torch
from toys import SIZE, Formula, Spy, normal, rng, told, toy_material, toy_world, wild

from forcing import flow
from forcing.cond import Cond
from forcing.recipe import Sampling
from forcing.rollout import Plan, remember, rollout
from forcing.stages.diffusion import given_clean

FRAMES = 5
FOUR = (1.0, 0.9375, 0.8333, 0.625)


def run(model, conds, plan, *, window=FRAMES, sink=0, seed=0, detach=True, clips=2):
    cache = model.cache(clips, window=window, sink=sink)
    return list(rollout(model, conds, (clips, 1, *SIZE), plan, cache, rng(seed), detach=detach))


def wanting(conds):
    """The conditions with actions that ask for gradients."""
    return [Cond(c.static, {"action": c.per_frame["action"].clone().requires_grad_()}) for c in conds]


def pulls(conds):
    """How strongly each chunk's action was pulled by a gradient."""
    grads = [cond.per_frame["action"].grad for cond in conds]
    return [0.0 if grad is None else grad.abs().max().item() for grad in grads]


# ---- what it visits


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_an_ode_plan_on_a_linear_field_is_euler_exactly(double, steps):
    rate = -1.3
    model, plan = Formula(lambda x, sigma, cond: rate * x), Plan.ode(steps, 3.0)
    made = run(model, [Cond()] * 3, plan)
    levels, draw = [*plan.rest, 0.0], rng()
    assert levels == flow.grid(steps, 3.0).tolist()
    growth = math.prod(1 + rate * (b - a) for a, b in zip(levels[:-1], levels[1:], strict=True))
    for chunk in made:  # one draw of noise a chunk, and no other
        assert torch.allclose(chunk, growth * flow.randn((2, 1, *SIZE), draw), rtol=0, atol=1e-12)


def test_a_fresh_plan_renoises_every_prediction(double):
    model, draw = Formula(lambda x, sigma, cond: 0.4 * x), rng()
    for chunk in run(model, [Cond()] * 2, Plan((1.0, 0.6))):
        x0 = 0.6 * flow.randn((2, 1, *SIZE), draw)  # x - 1.0 * 0.4 x
        x = 0.4 * x0 + 0.6 * flow.randn((2, 1, *SIZE), draw)
        assert torch.allclose(chunk, x - 0.6 * 0.4 * x, rtol=0, atol=1e-12)


def test_each_chunk_visits_its_levels_and_is_then_remembered_clean():
    spy, conds = Spy(wild()), list(told(2, 4).chunks(4, 2))
    made = list(rollout(spy, conds, (2, 2, *SIZE), Plan((1.0, 0.5)), spy.cache(2, window=4), rng()))
    assert spy.levels() == [[1.0, 1.0], [0.5, 0.5], [0.0, 0.0]] * 2
    assert [call.layout.times.tolist() for call in spy.calls] == [[0.0, 1.0]] * 3 + [[2.0, 3.0]] * 3
    assert [call.layout.past.held for call in spy.calls] == [0] * 3 + [2] * 3
    assert torch.equal(spy.calls[2].x, made[0]) and torch.equal(spy.calls[5].x, made[1])


def test_the_first_chunks_plan_is_for_a_chunk_that_nothing_precedes():
    plan, conds = Plan((1.0, 0.75), first=FOUR), list(told(1, 2).chunks(2, 1))
    spy = Spy(wild())
    run(spy, conds, plan, clips=1)
    assert [level for (level,) in spy.levels()] == [*FOUR, 0.0, 1.0, 0.75, 0.0]
    spy = Spy(wild())
    cache = spy.cache(1, window=FRAMES)
    remember(spy, normal(1, 1, *SIZE), conds[0], cache)
    list(rollout(spy, conds, (1, 1, *SIZE), plan, cache, rng()))
    assert [level for (level,) in spy.levels()] == [0.0, 1.0, 0.75, 0.0, 1.0, 0.75, 0.0]


def test_a_start_frame_precedes_in_a_world_too():
    data = toy_material()
    world = toy_world(data, "cd")
    world.model, how = Spy(world.model), Sampling(Plan((1.0,), first=(1.0, 0.5)), window=4)
    start = (data.heldout.latents[0][None, :1], world.cond(["day"], [[-1]], 1))
    list(world.stream([world.cond(["day"], [[0]], 1)], 1, rng(), sampling=how, start=start))
    assert [level for (level,) in world.model.levels()] == [0.0, 1.0, 0.0]
    assert torch.equal(world.model.calls[0].x, start[0])


def test_a_cut_plan_ends_at_every_level():
    plan, first = Plan((1.0, 0.8, 0.6), first=FOUR), (1.0, 0.75)
    cuts = [plan.cut(rng(seed)) for seed in range(100)]
    assert {cut.rest for cut in cuts} == {(1.0,), (1.0, 0.8), (1.0, 0.8, 0.6)}
    assert {cut.first for cut in cuts} == {FOUR[:n] for n in (1, 2, 3, 4)}
    assert all(cut.fresh for cut in cuts) and not Plan(first, fresh=False).cut(rng()).fresh
    assert all(Plan(first).cut(rng(seed)).first is None for seed in range(4))


@pytest.mark.parametrize("levels", [(), (0.9, 0.5), (1.0, 1.0), (1.0, 0.5, 0.6), (1.0, 0.0), (1.0, -0.1)])
def test_levels_fall_from_1(levels):
    with pytest.raises(ValueError, match="fall strictly"):
        Plan(levels)
    with pytest.raises(ValueError, match="fall strictly"):
        Plan((1.0,), first=levels)


# ---- where its gradients go


def test_only_the_last_prediction_of_a_chunk_carries_a_gradient():
    spy = Spy(wild())
    made = run(spy, list(told(2, 2).chunks(2, 1)), Plan((1.0, 0.8, 0.6)))
    assert [call.grad for call in spy.calls] == [False, False, True, False] * 2
    assert all(chunk.requires_grad for chunk in made)
    with torch.no_grad():
        assert not any(chunk.requires_grad for chunk in run(wild(), list(told(2, 2).chunks(2, 1)), Plan((1.0,))))


@pytest.mark.parametrize("plan", [Plan((1.0,)), Plan((1.0, 0.7, 0.4))])
@pytest.mark.parametrize(("window", "sink"), [(FRAMES, 0), (3, 1), (2, 0)])
def test_detached_frames_hear_nothing_of_later_ones(double, plan, window, sink):
    model, conds = wild(), list(told(2, FRAMES).chunks(FRAMES, 1))
    # the last chunk sees its neighbour at least, so that with detach off the gradient does go there
    for detach in (True, False):
        asking = wanting(conds)
        run(model, asking, plan, window=window, sink=sink, detach=detach)[-1].square().sum().backward()
        pulled = pulls(asking)
        assert pulled[-1] > 1e-3
        if detach:
            assert pulled[:-1] == [0.0] * (FRAMES - 1)
        else:
            assert all(pull > 1e-6 for pull in pulled)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(("window", "sink"), [(FRAMES, 0), (3, 0), (3, 1)])
def test_checkpointing_changes_no_gradient_even_when_frames_are_evicted(double, window, sink, detach):
    conds, grads, clips = list(told(2, FRAMES).chunks(FRAMES, 1)), [], []
    for checkpoint in (False, True):
        model, asking = wild(checkpoint=checkpoint), wanting(conds)
        made = torch.cat(run(model, asking, Plan((1.0, 0.6)), window=window, sink=sink, detach=detach), 1)
        made.square().sum().backward()
        clips.append(made.detach())
        grads.append([*(p.grad for p in model.parameters()), *(c.per_frame["action"].grad for c in asking)])
    assert torch.equal(*clips)
    for plain, recomputed in zip(*grads, strict=True):
        assert torch.allclose(plain, recomputed, rtol=1e-9, atol=1e-9)
    assert sum(grad.abs().sum() for grad in grads[0]) > 1


def test_with_detach_off_the_gradient_is_that_of_the_same_clip_made_without_a_cache(double):
    model, conds, noise = wild(), told(2, FRAMES), rng()
    made = torch.cat(run(model, list(conds.chunks(FRAMES, 1)), Plan((1.0,)), detach=False), 1)
    ours = torch.autograd.grad(made.square().sum(), model.parameters())
    eps, one = torch.cat([flow.randn((2, 1, *SIZE), noise) for _ in range(FRAMES)], 1), torch.ones(2, FRAMES)
    clean = torch.zeros_like(eps)
    for f in range(FRAMES):
        v = given_clean(model, eps, one, clean, conds, 1)
        here = (torch.arange(FRAMES) == f)[:, None, None, None]
        clean = torch.where(here, flow.to_x0(eps, v, one), clean)
    assert torch.allclose(made, clean, rtol=0, atol=1e-9)
    for a, b in zip(ours, torch.autograd.grad(clean.square().sum(), model.parameters()), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


# ---- when it asks


@pytest.mark.parametrize("k", range(FRAMES))
@torch.no_grad()
def test_an_action_changes_no_earlier_chunk(k):
    model, conds = wild(), told(2, FRAMES)
    action = conds.per_frame["action"].clone()
    action[:, k] += 1
    before = run(model, list(conds.chunks(FRAMES, 1)), Plan((1.0, 0.6)))
    after = run(model, list(Cond(conds.static, {"action": action}).chunks(FRAMES, 1)), Plan((1.0, 0.6)))
    assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [i >= k for i in range(FRAMES)]


@torch.no_grad()
def test_live_is_offline_and_pulls_each_condition_only_when_it_is_due():
    model, conds, seen = wild(), list(told(1, FRAMES).chunks(FRAMES, 1)), []

    def user():
        for i, cond in enumerate(conds):
            seen.append(f"asked for {i}")
            yield cond

    live = []
    for i, chunk in enumerate(rollout(model, user(), (1, 1, *SIZE), Plan(FOUR), model.cache(1, window=3), rng())):
        seen.append(f"made {i}")
        live.append(chunk)
    assert seen == [line for i in range(FRAMES) for line in (f"asked for {i}", f"made {i}")]
    offline = run(model, conds, Plan(FOUR), window=3, clips=1)
    assert all(torch.equal(a, b) for a, b in zip(live, offline, strict=True))


@torch.no_grad()
def test_a_chunk_is_shipped_before_it_is_remembered():
    spy = Spy(wild())
    chunks = rollout(spy, told(1, 3).chunks(3, 1), (1, 1, *SIZE), Plan((1.0,)), spy.cache(1, window=3), rng())
    next(chunks)
    assert spy.levels() == [[1.0]]
    next(chunks)
    assert spy.levels() == [[1.0], [0.0], [1.0]]


def test_a_world_streams_lazily_and_leaves_gradients_on_for_its_caller():
    world = toy_world(toy_material(), "cd")
    conds = [world.cond(["day"], [[key]], 1) for key in ("left", "right", "wait")]
    world.model.requires_grad_(True)
    pulled = []

    def user():
        for cond in conds:
            pulled.append(cond)
            yield cond

    for i, chunk in enumerate(world.stream(user(), 1, rng())):
        assert len(pulled) == i + 1 and torch.is_grad_enabled() and not chunk.requires_grad
    offline = world.stream(conds, 1, rng())
    again = list(world.stream(iter(conds), 1, rng()))
    assert all(torch.equal(a, b) for a, b in zip(offline, again, strict=True))
